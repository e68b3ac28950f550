"""The shipped workflows, as files of the editor and as runs on a real server."""

import functools
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from inprocess import older_than, since
from PIL import Image
from safetensors.torch import load_file

from janusflow_core import Chat
from janusflow_core.host.find import Json
from janusflow_core.host.workflow import convert_workflow, findings, prompt_text
from janusflow_core.sheet import GAP
from janusflow_core.world.judge import judge
from janusflow_core.world.talk import parse_prompt, tells
from tools.arrange import arrange
from tools.make_crescents import things_in

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
ALL = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
NEED_FILES = ("JanusFlow from SDXL", "JanusFlow to SDXL")  # see test_handoff.py
NAMES = [name for name in ALL if name not in NEED_FILES]
TEMPLATES = "/workflow_templates/ComfyUI-JanusFlow"
WIDGETS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
FINE_TUNE = "JanusFlow fine-tune"  # its picture shows two side by side, before and after
USE = "JanusFlow use a LoRA"
CAPTION = "JanusFlow caption pictures"  # of eight
CAPTION_AND_TRAIN = "JanusFlow caption and train"  # ten captions; four pictures, each before and after
PICTURES, WORDS = {CAPTION: 8, CAPTION_AND_TRAIN: 4}, {CAPTION: 8, CAPTION_AND_TRAIN: 10}  # of each node that shows
BESIDE = (FINE_TUNE, CAPTION_AND_TRAIN)
SWEEP = "JanusFlow sweep"  # nine pictures on a sheet
BEST, RETRY, ROUTE = "JanusFlow best of four", "JanusFlow draw until right", "JanusFlow route by an answer"
CHAT, BY_HAND = "JanusFlow chat about a picture", "JanusFlow chat by hand"
VALUES, APP = "JanusFlow answers as values", "JanusFlow app"
MORE = {BEST: 3, VALUES: 1}  # all four are shown, and the best; as many circles as there were objects
ANY = ("*", "COMFY_MATCHTYPE_V3")  # an input that takes what another one gets
AGAIN = ("JanusFlow image to image", "JanusFlow inpaint")  # one picture before, one after
OWN = (*BESIDE, *AGAIN, USE, SWEEP, BEST, RETRY, ROUTE, CHAT, BY_HAND, VALUES)  # have tests of their own
HAND_ON = {"SaveImage": "0.27.0", "PreviewImage": "0.27.0", "PreviewAny": "0.24.1"}  # what they show, since then
SHOWN = 4  # times as large as janusflow-tiny draws, so that a node is filled
every_workflow = pytest.mark.parametrize("name", NAMES)
with_files_to_come = pytest.mark.parametrize("name", ALL)


@dataclass
class Run:
    """What one workflow left behind."""

    workflow: Json
    api: Json
    result: object
    pictures: list[Path]
    words: list[str]

    def pixels(self) -> np.ndarray:
        return np.asarray(drawn(self.pictures[0])).astype(int)


def drawn(path: Path) -> Image.Image:
    """A picture at the size at which the model drew it."""
    with Image.open(path) as picture:
        return picture.convert("RGB").reduce(SHOWN)


def read(name: str) -> Json:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def nodes_of(workflow: Json, kind: str) -> list[Json]:
    return [node for node in workflow["nodes"] if node["type"] == kind]


@pytest.fixture(scope="module")
def catalog(server) -> Json:
    """Every node's schema."""
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
        if options.get("forceInput") or not (isinstance(kind, list) or kind in WIDGETS or "COMBO" in kind):  # a socket
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
    jobs = ("text to image", "describe image", "there and back", "native nodes", "fine-tune", "use a LoRA")
    jobs += ("caption pictures", "caption and train")
    assert {f"JanusFlow {job}" for job in jobs} <= set(NAMES)  # a template's title and all that is searched


@with_files_to_come
def test_the_links_are_the_same_at_both_ends(name):
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert (workflow["version"], workflow["last_node_id"]) == (0.4, max(nodes))
    assert len(nodes) == len(workflow["nodes"]) == len({node["order"] for node in workflow["nodes"]})
    for link, source, output, target, at, kind in workflow["links"]:
        begin, end = nodes[source]["outputs"][output], nodes[target]["inputs"][at]
        assert link in begin["links"] and end["link"] == link and begin["type"] == kind
        assert kind in ANY or end["type"] in (*ANY, kind)
        assert nodes[source]["order"] < nodes[target]["order"]
    numbers = [link[0] for link in workflow["links"]]
    told = [link for node in nodes.values() for slot in node["outputs"] for link in slot["links"] or ()]
    taken = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(numbers) == sorted(told) == sorted(taken) and max(numbers) == workflow["last_link_id"]


@with_files_to_come
def test_a_missing_pack_can_be_found_and_a_note_tells_what_is_needed(name):
    workflow = read(name)
    for node in workflow["nodes"]:
        if node["type"] != "MarkdownNote":
            pack = "janusflow" if node["type"].startswith("JanusFlow") else "comfy-core"
            assert node["properties"]["Node name for S&R"] == node["type"]
            assert node["properties"]["cnr_id"] == pack and node["properties"]["ver"]
    (note,) = (node["widgets_values"][0] for node in nodes_of(workflow, "MarkdownNote"))
    assert "(https://huggingface.co/deepseek-ai/JanusFlow-1.3B)" in note
    assert not nodes_of(workflow, "LoadImage")  # it would open red: its picture is on no other machine


@every_workflow
def test_every_node_fits_its_schema(name, catalog):
    workflow = read(name)
    if nodes_of(workflow, "TextGenerate"):
        since("0.24.1", "two of TextGenerate's widgets")
    api = convert_workflow(workflow, catalog)
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        schema, given = catalog[node["type"]], api[str(node["id"])]["inputs"]
        slots = [(output["name"], output["type"]) for output in node["outputs"]]
        if older_than(HAND_ON.get(node["type"], "0")):
            assert schema["output"] == []
        else:
            assert slots == list(zip(schema["output_name"], schema["output"], strict=True))
        assert schema["input"]["required"].keys() <= given.keys()
        values, linked = iter(node["widgets_values"]), {slot["name"] for slot in node["inputs"] if slot["link"]}
        for widget, spec, value in editor_widgets(schema["input"], values):
            assert fits(value, spec) and (given[widget] == value or widget in linked), (node["type"], widget, value)
        assert list(values) == [], node["type"]
        assert all(isinstance(given[slot["name"]], list) for slot in node["inputs"] if slot["link"] is not None)


@every_workflow
def test_it_runs_and_saves_what_it_promises(name, run):
    done = run(name)
    shown = [*nodes_of(done.workflow, "SaveImage"), *nodes_of(done.workflow, "PreviewImage")]
    assert len(done.pictures) == PICTURES.get(name, 1) * len(shown) + MORE.get(name, 0)
    assert len(done.words) == WORDS.get(name, 1) * len(nodes_of(done.workflow, "PreviewAny"))
    assert all(isinstance(text, str) and text.strip() for text in done.words) and (done.words or done.pictures)
    for path in done.pictures:
        with Image.open(path) as picture:
            size = (768 if name in BESIDE else 384, 384)
            assert picture.format == "PNG" and (picture.size == size or name == SWEEP)
            assert json.loads(picture.text["workflow"]) == done.workflow
            embedded = json.loads(picture.text["prompt"])
        # ComfyUI adds each node's fingerprint to the prompt.
        given = {number: {key: node[key] for key in done.api[number]} for number, node in embedded.items()}
        assert given == done.api
    assert not done.pictures or done.pixels().std(axis=(0, 1)).max() > 1


def test_a_picture_does_not_tell_where_the_model_lies(run):
    with Image.open(run("JanusFlow text to image").pictures[0]) as picture:
        told = json.loads(picture.text["prompt"]).values()
    assert not any("custom_nodes" in json.dumps(node) for node in told)


def test_the_native_nodes_do_the_same_as_ours(run, server):
    """With KSampler's settings, which no checkpoint can choose for it."""
    ours, native = run("JanusFlow there and back"), run("JanusFlow native nodes")
    api = json.loads(json.dumps(ours.api))
    (sampler,) = (node["inputs"] for node in api.values() if node["class_type"] == "JanusFlowSampler")
    (theirs,) = (node["inputs"] for node in native.api.values() if node["class_type"] == "KSampler")
    sampler |= {"steps": theirs["steps"], "cfg": theirs["cfg"], "sampler": theirs["sampler_name"]}
    result = server.run(api)
    assert result.status == "success", result.error
    (picture,) = map(server.output_path, result.images)
    assert np.abs(np.asarray(drawn(picture)).astype(int) - native.pixels()).max() <= 2
    assert ours.words == native.words and judge(drawn(native.pictures[0]), prompt_text(ours.api))


def test_the_demo_finds_its_prompt_picture_and_words(run, server):
    done = run("JanusFlow there and back")
    picture, words = findings(done.api, done.result)
    assert (server.output_path(picture), words) == (done.pictures[0], done.words[0])
    assert parse_prompt(prompt_text(done.api)).kinds == (("purple", "heart"),)


def test_fine_tuning_teaches_a_name(run, server):
    """Before, `a valentine` is anything; after, it is what ten pictures were."""
    done = run(FINE_TUNE)
    learnt = next(node["inputs"]["text"] for node in done.api.values() if "text" in node["inputs"])
    picture = drawn(done.pictures[0])
    before, after = picture.crop((0, 0, 96, 96)), picture.crop((96, 0, 192, 96))
    assert judge(after, learnt) and not judge(before, learnt)
    (report,) = done.words
    # A browser may have run it before on this server: then there is nothing left to learn.
    assert report.startswith("finished: steps ") and "to 150 of 150" in report and "10 pictures" in report
    saved = sorted((server.base / "output" / "loras").glob("JanusFlow_150_steps_*.safetensors"))
    assert any(key.endswith("lora_up.weight") for key in load_file(saved[-1]))


def test_captioning_and_training_teach_a_word_for_a_thing(run):
    """Before, `a red valentine` is no heart; after, it is one, and red though no picture to learn from was."""
    done = run(CAPTION_AND_TRAIN)
    assert all(" valentine" in words and "red" not in words for words in done.words), done.words
    learnt = []
    for path in done.pictures:
        picture = drawn(path)
        before, after = picture.crop((0, 0, 96, 96)), picture.crop((96, 0, 192, 96))
        assert not any(shape == "heart" for _, shape in things_in(before))
        learnt.append(judge(after, "a red heart"))
    assert sum(learnt) >= 2, learnt


def test_the_lora_draws_and_names_what_the_model_never_saw(run):
    done = run(USE)
    assert things_in(drawn(done.pictures[0])) == [("red", "crescent")]
    assert done.words == ["a red crescent"]


@pytest.mark.parametrize(("name", "stays"), zip(AGAIN, (40, 46), strict=True))
def test_a_picture_is_changed_as_the_second_prompt_says(name, stays, run, server):
    """Before and after are what their prompts say; the left, up to this column, keeps its place or every pixel."""
    done = run(name)
    prompts = [node["inputs"]["text"] for node in done.api.values() if node["class_type"] == "JanusFlowEncodePrompt"]
    before, after = (
        drawn(server.output_path(done.result.outputs[str(node["id"])]["images"][0]))
        for kind in ("PreviewImage", "SaveImage")
        for node in nodes_of(done.workflow, kind)
    )
    assert [judge(before, prompts[0]), judge(after, prompts[1]), judge(before, prompts[1])] == [True, True, False]
    left = [np.asarray(picture).astype(int)[:, :stays] for picture in (before, after)]
    if name.endswith("inpaint"):
        assert np.abs(left[0] - left[1]).mean() < 3
    else:  # other colors at the same places
        shapes = [np.abs(part - part[0, 0]).max(-1) > 60 for part in left]
        assert (shapes[0] == shapes[1]).mean() > 0.95 and 0.05 < shapes[0].mean() < 0.6


def test_the_sweeps_sheet_shows_each_combination(run):
    done = run(SWEEP)
    with Image.open(done.pictures[0]) as picture:
        sheet = picture.convert("RGB")
    step = 192 + GAP
    cells = [
        [sheet.crop((x, y, x + 192, y + 192)).reduce(2) for x in range(sheet.width - 3 * step, sheet.width, step)]
        for y in range(sheet.height - 3 * step, sheet.height, step)
    ]
    # More steps and some guidance make it right; every combination is another picture.
    assert judge(cells[1][2], "two red circles") and judge(cells[2][2], "two red circles")
    assert len({cell.tobytes() for line in cells for cell in line}) == 9


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OWN])
def test_it_draws_what_it_says_and_says_what_is_there(name, run):
    done = run(name)
    written = [node["inputs"]["text"] for node in done.api.values() if "text" in node["inputs"]]
    prompt = next((text for text in written if isinstance(text, str) and text), "a red square")
    assert judge(drawn(done.pictures[0]), prompt)
    assert not done.words or tells(done.words[0], prompt)


def saved(done: Run, server) -> Image.Image:
    (node,) = nodes_of(done.workflow, "SaveImage")
    (picture,) = done.result.outputs[str(node["id"])]["images"]
    return drawn(server.output_path(picture))


def said(done: Run, title: str) -> str:
    """What stands in the text node of this title."""
    (text,) = (node["widgets_values"][0] for node in done.workflow["nodes"] if node.get("title") == title)
    return text


def test_the_chat_goes_on_and_is_saved_with_its_picture(run, server):
    done = run(CHAT)
    prompt = prompt_text(done.api)
    chat = Chat.from_json(max((server.base / "output" / "chats").glob("janusflow_*.json")).read_text("utf-8"))
    look, told, count, number = chat.turns
    assert (look.text, count.text) == ("Describe the image.", "How many objects are there?")
    assert tells(told.text, prompt) and number.text == done.words[0] == "two"
    # ComfyUI cuts what we round.
    picture = look.pictures[0].reduce(SHOWN)
    assert np.abs(np.asarray(picture) - done.pixels()).max() <= 1 and judge(picture, prompt)


def test_a_chat_written_by_hand_goes_on(run):
    done = run(BY_HAND)
    assert judge(drawn(done.pictures[0]), prompt_text(done.api)) and done.words == ["square"]
    turns = [node["inputs"] for node in done.api.values() if node["class_type"] == "JanusFlowChatTurn"]
    assert [(turn["role"], turn["text"]) for turn in turns] == [
        ("user", "What color is the circle?"),
        ("assistant", "red"),
    ]


def test_answers_are_values_that_decide_what_is_drawn(run, server):
    """The heart is green and there are two things: two green circles."""
    done = run(VALUES)
    (first,) = nodes_of(done.workflow, "PreviewImage")
    before = drawn(server.output_path(done.result.outputs[str(first["id"])]["images"][0]))
    assert judge(before, "a green heart and a red star")
    (last,) = nodes_of(done.workflow, "SaveImage")
    circles = [drawn(server.output_path(picture)) for picture in done.result.outputs[str(last["id"])]["images"]]
    assert len(circles) == 2 and all(judge(picture, "a green circle") for picture in circles)
    assert json.loads(done.words[0])["green"] > 0.9


def test_the_best_of_four_is_right_where_some_are_not(run, server):
    done = run(BEST)
    (shown,) = nodes_of(done.workflow, "PreviewImage")
    pictures = done.result.outputs[str(shown["id"])]["images"]
    four = [drawn(server.output_path(picture)) for picture in pictures]
    prompt, best = said(done, "Prompt"), saved(done, server)
    assert best.tobytes() in [picture.tobytes() for picture in four]
    assert judge(best, prompt) and not all(judge(picture, prompt) for picture in four)


def test_it_draws_again_until_the_picture_is_right(run, server):
    done = run(RETRY)
    assert judge(saved(done, server), said(done, "Prompt")) and 1 < int(done.words[0]) <= 8


def test_an_answer_decides_what_is_drawn(run, server):
    done = run(ROUTE)
    assert judge(saved(done, server), said(done, "If yes")) and not judge(saved(done, server), said(done, "If no"))
    api = json.loads(json.dumps(done.api))
    (first,) = (node for node in api.values() if node["inputs"].get("text") == "a red star")
    first["inputs"]["text"] = "a red circle"
    result = server.run(api)
    assert result.status == "success", result.error
    other = Run(done.workflow, api, result, [], [])
    assert judge(saved(other, server), said(done, "If no"))


def test_pairs_of_pictures_and_captions_are_written(run, server):
    since("0.24.1", "the order of widgets that Save Image and Text Dataset to Folder has in this file")
    done = run(CAPTION)
    folder = server.base / "output" / "janusflow_captions"
    captions = {path.stem: path.read_text("utf-8") for path in folder.glob("*.txt")}
    assert len(captions) == 8 and sorted(captions.values()) == sorted(done.words)
    for name, caption in captions.items():
        picture = drawn(folder / f"{name}.png")
        assert judge(picture, caption) or not judge(picture, "a heart"), caption
    assert len(set(captions.values())) > 2


def test_the_nodes_begin_as_the_first_workflow_does(run, catalog):
    """What the workflow is shown to draw, a new user's own nodes draw too."""
    given = {node["class_type"]: node["inputs"] for node in run("JanusFlow text to image").api.values()}
    for kind in ("JanusFlowLoader", "JanusFlowEncodePrompt", "JanusFlowSampler", "JanusFlowVAEDecode"):
        inputs = {**catalog[kind]["input"]["required"], **catalog[kind]["input"].get("optional", {})}
        defaults = {name: spec[1]["default"] for name, spec in inputs.items() if "default" in (spec[1:] or [{}])[0]}
        enlarged = {"longest_side": 384} if kind == "JanusFlowVAEDecode" else {}  # for the eye alone
        assert defaults and defaults | enlarged == {name: given[kind][name] for name in defaults}, kind


@with_files_to_come
def test_it_is_laid_out_as_planned(name):
    """Arranged again nothing moves: who edits a workflow by hand runs `python -m tools.arrange`, or edits the plan."""
    workflow = read(name)
    arrange(workflow, name)
    assert workflow == read(name)


@with_files_to_come
def test_what_app_mode_shows_is_there(name):
    """Widgets of nodes, and nodes that show something; one workflow opens so."""
    workflow = read(name)
    shown = workflow["extra"].get("linearData", {"inputs": [], "outputs": []})
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    for number, widget in shown["inputs"]:
        assert widget in [slot["name"] for slot in nodes[number]["inputs"] if "widget" in slot and slot["link"] is None]
    assert {nodes[number]["type"] for number in shown["outputs"]} <= {"SaveImage", "PreviewImage", "PreviewAny"}
    assert workflow["extra"].get("linearMode", False) == (name == APP)


def test_only_the_loader_of_the_native_workflow_is_ours():
    kinds = [node["type"] for node in read("JanusFlow native nodes")["nodes"]]
    assert [kind for kind in kinds if kind.startswith("JanusFlow")] == ["JanusFlowLoader"]


def test_all_are_listed_as_templates(server):
    assert sorted(server.get("/workflow_templates")["ComfyUI-JanusFlow"]) == ALL


@with_files_to_come
def test_the_template_is_served_with_its_thumbnail(name, server):
    address = f"/api{TEMPLATES}/{quote(name)}"
    assert server.get(f"{address}.json") == read(name)
    with Image.open(io.BytesIO(server._request(f"{address}.jpg"))) as thumbnail:
        assert thumbnail.format == "JPEG" and min(thumbnail.size) >= 256
