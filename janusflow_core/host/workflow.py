"""Workflows of our nodes: from the editor's form to the server's, and what went in and came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .find import Json
from .server import Result

# The only node ids that are known outside nodes/.
ENCODER = "JanusFlowEncodePrompt"
TALKERS = ("JanusFlowDescribe", "PreviewAny")  # nodes that show words, best first


def convert_workflow(workflow: Json, object_info: Json) -> Json:
    """An editor workflow as the API prompt that /prompt takes; raises ImportError without comfy-cli,
    ValueError for a workflow that cannot be converted."""
    try:
        from comfy_cli.workflow_to_api import WorkflowConversionError, convert_ui_to_api
    except ImportError as error:
        raise ImportError('converting workflows needs comfy-cli: pip install "comfy-cli>=1.20"') from error
    try:
        return convert_ui_to_api(workflow, object_info)
    except WorkflowConversionError as error:
        raise ValueError(f"cannot convert the workflow: {error}") from error


def prompt_text(api: Json) -> str:
    """The text that an API prompt draws, also where another node holds it; raises ValueError without one."""
    encoders = [node for node in api.values() if node["class_type"] == ENCODER]
    text = encoders[0]["inputs"].get("text") if encoders else None
    if isinstance(text, list):
        text = next((value for value in api[text[0]]["inputs"].values() if isinstance(value, str)), None)
    if not isinstance(text, str):
        raise ValueError(f"the workflow has no {ENCODER} node with a text: the demo finds its prompt there")
    return text


def replaced(value: Any, old: str, new: str) -> Any:
    """The same JSON with every string that equals `old` as `new`."""
    if isinstance(value, dict):
        return {key: replaced(part, old, new) for key, part in value.items()}
    if isinstance(value, list):
        return [replaced(part, old, new) for part in value]
    return new if value == old else value


def progress(api: Json, show: Callable[[str], object]) -> Callable[[Json], None]:
    """A receiver of the server's messages that shows the node at work and its steps."""

    def receive(event: Json) -> None:
        data = event.get("data") or {}
        node = api.get(str(data.get("node")))
        if node is not None and event["type"] in ("executing", "progress"):
            steps = f" {data['value']}/{data['max']}" if event["type"] == "progress" else ""
            show(node["class_type"] + steps)

    return receive


def findings(api: Json, result: Result) -> tuple[dict[str, str], str]:
    """The first saved picture and the words that were shown; raises RuntimeError when the run did not get so far."""
    if result.status != "success":
        error = result.error or {}
        raise RuntimeError(f"{error.get('node_type', 'ComfyUI')}: {error.get('exception_message', result.status)}")
    pictures, words = shown(api, result, ["SaveImage"], "images"), shown(api, result, TALKERS, "text")
    if not pictures or not words:
        raise RuntimeError(f"the workflow ended without a picture in SaveImage or without words in {TALKERS[0]}")
    return pictures[0], str(words[0])


def shown(api: Json, result: Result, kinds: Sequence[str], what: str) -> list[Any]:
    """All `images` or all `text` that nodes of these kinds left in the page, one kind after the other."""
    outputs = [(api[node]["class_type"], output) for node, output in result.outputs.items() if node in api]
    return [each for wanted in kinds for kind, output in outputs if kind == wanted for each in output.get(what, ())]
