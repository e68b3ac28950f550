"""The main job in a real ComfyUI: words to a picture and back to words, with this checkout as the pack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .comfyui import Json, checked_comfyui, convert_workflow, find_comfyui
from .pipeline import best_device
from .png import copy_new
from .server import Result, Server

CHECKOUT = Path(__file__).resolve().parents[1]
TALKERS = ("JanusFlowDescribe", "PreviewAny")  # nodes that show words, best first


def there_and_back(
    prompt: str | None, comfyui: Path | None, out: Path, show: Callable[[str], object]
) -> tuple[str, Path, str]:
    """Run the demo's workflow; returns the prompt, the picture's path in `out` and the words.

    `prompt` replaces the workflow's own, `comfyui` is its folder (default: find or fetch one), `show` gets what is
    going on. Raises FileNotFoundError outside a checkout, RuntimeError when ComfyUI fails.
    """
    workflow = checkout_workflow()
    folder = checked_comfyui(comfyui, "--comfyui") if comfyui else find_comfyui()
    show("starting ComfyUI")
    cpu = best_device().type == "cpu"
    with Server(folder, pack=CHECKOUT, pack_name="ComfyUI-JanusFlow", cpu=cpu) as server:
        api = convert_workflow(workflow, server.object_info())
        own = prompt_text(api)
        if prompt is not None:
            # In the workflow too, because the picture carries it.
            api, workflow = replaced(api, own, prompt), replaced(workflow, own, prompt)
        result = server.run(api, workflow, on_event=progress(api, show))
        picture, words = findings(api, result)
        path = copy_new(out, "there_and_back", server.output_path(picture))
    return own if prompt is None else prompt, path, words


def checkout_workflow() -> Json:
    """The workflow as the editor saved it; raises FileNotFoundError outside a checkout of the pack."""
    entry, path = CHECKOUT / "__init__.py", CHECKOUT / "workflows" / "there_and_back.json"
    if not path.is_file() or not entry.is_file() or "comfy_entrypoint" not in entry.read_text(encoding="utf-8"):
        raise FileNotFoundError(
            "the demo runs from a checkout of the ComfyUI pack, not from an installed library: "
            "clone the repository and run `python3 start.py demo` in it"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def prompt_text(api: Json) -> str:
    """The text that an API prompt draws, also where another node holds it; raises ValueError without one."""
    encoders = [node for node in api.values() if node["class_type"] == "JanusFlowEncodePrompt"]
    text = encoders[0]["inputs"].get("text") if encoders else None
    if isinstance(text, list):
        text = next((value for value in api[text[0]]["inputs"].values() if isinstance(value, str)), None)
    if not isinstance(text, str):
        raise ValueError("the workflow has no JanusFlowEncodePrompt node with a text: the demo finds its prompt there")
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
    shown = [(api[node]["class_type"], output) for node, output in result.outputs.items() if node in api]
    pictures = [image for kind, output in shown if kind == "SaveImage" for image in output.get("images", ())]
    words = [text for talker in TALKERS for kind, output in shown if kind == talker for text in output.get("text", ())]
    if not pictures or not words:
        raise RuntimeError("the workflow ended without a picture in SaveImage or without words in JanusFlowDescribe")
    return pictures[0], str(words[0])
