"""The shipped workflows, as files of the editor and as runs on a real server."""

import functools
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janusflow_core.host.find import Json
from janusflow_core.host.workflow import convert_workflow, findings, prompt_text
from janusflow_core.world.judge import judge
from janusflow_core.world.talk import parse_prompt

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
TEMPLATES = "/workflow_templates/ComfyUI-JanusFlow"
WIDGETS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
every_workflow = pytest.mark.parametrize("name", NAMES)


@dataclass
class Run:
    """What one workflow left behind."""

    workflow: Json
    api: Json
    result: object
    pictures: list[Path]
    words: list[str]

    def pixels(self) -> np.ndarray:
        with Image.open(self.pictures[0]) as picture:
            return np.asarray(picture.convert("RGB")).astype(int)


def read(name: str) -> Json:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def nodes_of(workflow: Json, kind: str) -> list[Json]:
    return [node for node in workflow["nodes"] if node["type"] == kind]


@pytest.fixture(scope="module")
def catalog(server) -> Json:
    """Every node's schema, once the example pictures are where their notes tell the user to put them."""
    for picture in WORKFLOWS.glob("*_input.*"):
        assert server.upload_image(picture) == picture.name
    return server.object_info()


@pytest.fixture(scope="module")
def run(server, catalog):
    """Runs a workflow by its name, each only once."""

    @functools.cache
    def once(name: str) -> Run:
        workflow = read(name)
        api = convert_workflow(workflow, catalog)
        result = server.run(api, workflow)
        assert (result.status, result.error, result.node_errors) == ("success", None, {})
        shown = {node: output.get("text", ()) for node, output in result.outputs.items()}
        words = [text for node, texts in shown.items() if api[node]["class_type"] == "PreviewAny" for text in texts]
        return Run(workflow, api, result, [server.output_path(image) for image in result.images], words)

    return once


def editor_widgets(inputs: Json, values: Iterator, prefix: str = "") -> Iterator[tuple[str, list, object]]:
    """(input, its schema, value) in the order in which the editor stores the values of a node."""
    for name, spec in (*inputs.get("required", {}).items(), *inputs.get("optional", {}).items()):
        kind, options = spec[0], spec[1] if len(spec) > 1 else {}
        if not (isinstance(kind, list) or kind in WIDGETS or "COMBO" in kind):  # a socket
            continue
        value = next(values)
        yield prefix + name, spec, value
        if options.get("control_after_generate"):
            assert next(values) in ("fixed", "increment", "decrement", "randomize")
        if options.get("image_upload"):
            assert next(values) == "image"
        if kind == "COMFY_DYNAMICCOMBO_V3":
            chosen = next(option for option in options["options"] if option["key"] == value)
            yield from editor_widgets(chosen["inputs"], values, f"{name}.")


def fits(value: object, spec: list) -> bool:
    """Whether a widget's value is one that its schema allows."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if isinstance(kind, str) and kind in WIDGETS:
        bounded = kind not in ("INT", "FLOAT") or options.get("min", value) <= value <= options.get("max", value)
        return isinstance(value, WIDGETS[kind]) and isinstance(value, bool) == (kind == "BOOLEAN") and bounded
    choices = kind if isinstance(kind, list) else options["options"]
    return value in [choice["key"] if isinstance(choice, dict) else choice for choice in choices]


def test_there_are_workflows_for_the_main_jobs():
    assert {"text_to_image", "describe_image", "there_and_back", "native_nodes"} <= set(NAMES)


@every_workflow
def test_the_links_are_the_same_at_both_ends(name):
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert (workflow["version"], workflow["last_node_id"]) == (0.4, max(nodes))
    assert len(nodes) == len(workflow["nodes"]) == len({node["order"] for node in workflow["nodes"]})
    for link, source, output, target, at, kind in workflow["links"]:
        begin, end = nodes[source]["outputs"][output], nodes[target]["inputs"][at]
        assert link in begin["links"] and end["link"] == link and begin["type"] == kind
        assert end["type"] in (kind, "*") and nodes[source]["order"] < nodes[target]["order"]
    numbers = [link[0] for link in workflow["links"]]
    told = [link for node in nodes.values() for slot in node["outputs"] for link in slot["links"] or ()]
    taken = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(numbers) == sorted(told) == sorted(taken) and max(numbers) == workflow["last_link_id"]


@every_workflow
def test_a_missing_pack_can_be_found_and_a_note_tells_what_is_needed(name):
    workflow = read(name)
    for node in workflow["nodes"]:
        if node["type"] != "MarkdownNote":
            pack = "janusflow" if node["type"].startswith("JanusFlow") else "comfy-core"
            assert node["properties"]["Node name for S&R"] == node["type"]
            assert node["properties"]["cnr_id"] == pack and node["properties"]["ver"]
    (note,) = (node["widgets_values"][0] for node in nodes_of(workflow, "MarkdownNote"))
    assert "(https://huggingface.co/deepseek-ai/JanusFlow-1.3B)" in note
    # LoadImage reads ComfyUI's input folder only, so the note says where its picture lies.
    pictures = [node["widgets_values"][0] for node in nodes_of(workflow, "LoadImage")]
    assert all((WORKFLOWS / picture).is_file() and f"workflows/{picture}" in note for picture in pictures)


@every_workflow
def test_every_node_fits_its_schema(name, catalog):
    workflow = read(name)
    api = convert_workflow(workflow, catalog)
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        schema, given = catalog[node["type"]], api[str(node["id"])]["inputs"]
        slots = [(output["name"], output["type"]) for output in node["outputs"]]
        assert slots == list(zip(schema["output_name"], schema["output"], strict=True))
        assert schema["input"]["required"].keys() <= given.keys()
        values = iter(node["widgets_values"])
        for widget, spec, value in editor_widgets(schema["input"], values):
            assert fits(value, spec) and given[widget] == value, (node["type"], widget, value)
        assert list(values) == [], node["type"]
        assert all(isinstance(given[slot["name"]], list) for slot in node["inputs"] if slot["link"] is not None)


@every_workflow
def test_it_runs_and_saves_what_it_promises(name, run):
    done = run(name)
    assert len(done.pictures) == len(nodes_of(done.workflow, "SaveImage"))
    assert len(done.words) == len(nodes_of(done.workflow, "PreviewAny"))
    assert all(isinstance(text, str) and text.strip() for text in done.words) and (done.words or done.pictures)
    for path in done.pictures:
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.size == (96, 96)
            assert json.loads(picture.text["workflow"]) == done.workflow
            embedded = json.loads(picture.text["prompt"])
        # ComfyUI adds each node's fingerprint to the prompt.
        given = {number: {key: node[key] for key in done.api[number]} for number, node in embedded.items()}
        assert given == done.api
    assert not done.pictures or done.pixels().std(axis=(0, 1)).max() > 1


def test_a_picture_does_not_tell_where_the_model_lies(run):
    with Image.open(run("text_to_image").pictures[0]) as picture:
        told = json.loads(picture.text["prompt"]).values()
    assert not any("custom_nodes" in json.dumps(node) for node in told)


def test_the_native_nodes_do_the_same_as_ours(run):
    ours, native = run("there_and_back"), run("native_nodes")
    assert np.abs(ours.pixels() - native.pixels()).max() <= 2
    assert ours.words == native.words


def test_the_demo_finds_its_prompt_picture_and_words(run, server):
    done = run("there_and_back")
    picture, words = findings(done.api, done.result)
    assert (server.output_path(picture), words) == (done.pictures[0], done.words[0])
    assert parse_prompt(prompt_text(done.api)).kinds == (("purple", "heart"),)


def test_the_demo_draws_what_it_says(run):
    done = run("there_and_back")
    with Image.open(done.pictures[0]) as picture:
        assert judge(picture, prompt_text(done.api))


def test_only_the_loader_of_the_native_workflow_is_ours():
    kinds = [node["type"] for node in read("native_nodes")["nodes"]]
    assert [kind for kind in kinds if kind.startswith("JanusFlow")] == ["JanusFlowLoader"]


def test_all_are_listed_as_templates(server):
    assert sorted(server.get("/workflow_templates")["ComfyUI-JanusFlow"]) == NAMES


@every_workflow
def test_the_template_is_served_with_its_thumbnail(name, server):
    assert server.get(f"/api{TEMPLATES}/{name}.json") == read(name)
    with Image.open(io.BytesIO(server._request(f"/api{TEMPLATES}/{name}.jpg"))) as thumbnail:
        assert thumbnail.format == "JPEG" and min(thumbnail.size) >= 256
