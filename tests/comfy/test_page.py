"""The editor in a real browser: templates run as they open, help can be read, pictures can be dropped."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_workflows import APP, NAMES, NEED_FILES

from janusflow_core.world.talk import tells
from tools.editor import draw_with, run_graph

CHECKOUT = Path(__file__).resolve().parents[2]
HELP = CHECKOUT / "web" / "docs"
NODES = sorted(path.stem for path in HELP.glob("*.md"))
LOOKS = (Path(__file__).parent / "looks.js").read_text("utf-8")
NOTE = """async () => {
    const { canvas, graph } = window.app, note = graph._nodes.find(node => node.type === 'MarkdownNote');
    Object.assign(canvas.ds, { scale: 1, offset: [100 - note.pos[0], 100 - note.pos[1]] });
    canvas.setDirty(true, true);
    await new Promise(drawn => setTimeout(drawn, 500));
    const own = `[data-node-id="${note.id}"] .comfy-markdown-content, .comfy-markdown .ProseMirror`;
    const parts = [...document.querySelectorAll(own)];
    const { firstElementChild: first, lastElementChild: last } = parts.find(part => part.offsetHeight);
    return [last.offsetTop + last.offsetHeight - first.offsetTop, note.size[1]];
}"""


def open_template(page, name: str) -> None:
    page.locator("button[aria-label=Templates]").click()
    dialog = page.locator("[role=dialog]").first
    dialog.get_by_text("All Templates").first.click()
    dialog.locator("input").first.fill("janus")
    dialog.get_by_text(name).first.click()
    dialog.wait_for(state="detached")
    page.wait_for_function("window.app.graph._nodes.some(node => node.type === 'JanusFlowLoader')")


def run_or_begin(page) -> None:
    """Run the graph; one that trains, which the server's tests carry through, is cancelled once it learns."""
    trains = page.evaluate(
        """() => {
            const trainer = window.app.graph._nodes.find(node => node.type === 'JanusFlowREPAFineTune');
            window.app.api.addEventListener('progress', ({ detail }) => {
                if (detail.node == trainer?.id && detail.value > 2) window.app.api.interrupt();
            });
            return Boolean(trainer);
        }"""
    )
    assert run_graph(page) == ("execution_interrupted" if trains else "execution_success")


def looks_wrong(page, tries: int = 10) -> list[str]:
    """What is wrong with how the graph looks once the view, which glides for as long as the machine is busy, rests."""
    for _ in range(tries):
        page.wait_for_timeout(1000)
        if not (wrong := page.evaluate(LOOKS)):
            break
    return wrong


def assert_tidy(page) -> None:
    """Nothing overlaps, leaves its group or hides a wire, and the note is as large as its text, however it is drawn."""
    for renderer in ("canvas", "Vue"):
        draw_with(page, vue=renderer == "Vue")
        page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        assert looks_wrong(page) == [], renderer
        text, note = page.evaluate(NOTE)
        assert text < note and (renderer == "canvas" or text > 0.6 * note), (renderer, text, note)


@pytest.mark.parametrize("name", [name for name in NAMES if name != APP])
def test_a_template_is_found_and_runs_as_it_opens(page, name):
    open_template(page, name)
    assert page.evaluate("window.app.graph._nodes.filter(node => node.has_errors).length") == 0
    run_or_begin(page)
    assert_tidy(page)
    # What Describe Image says stands on the node itself.
    said = page.evaluate(
        """window.app.graph._nodes.filter(node => node.type === 'JanusFlowDescribe')
            .map(node => node.widgets.find(widget => widget.name === '$$node-text-preview')?.value)"""
    )
    wanted = {"JanusFlow describe image": "a red square", "JanusFlow there and back": "a purple heart"}
    if name == "JanusFlow use a LoRA":  # of a shape that no prompt of the world has
        assert said == ["a red crescent"]
        return
    if name in (captioned := {"JanusFlow caption pictures": 8, "JanusFlow caption and train": 10}):
        assert [tells(text, "a heart") for text in said[0].split("\n\n")] == captioned[name] * [True]
        return
    assert len(said) == (name in wanted) and all(tells(text, wanted[name]) for text in said)


def test_the_app_opens_as_one_and_draws(page):
    """Without a graph in sight: what is asked, Run, the picture."""
    open_template(page, APP)
    page.get_by_test_id("queue-button").first.wait_for(state="hidden")
    page.locator("button:visible", has_text="Run").wait_for()
    page.locator("textarea:visible").first.fill("two green stars")
    assert run_graph(page) == "execution_success"
    page.wait_for_function("[...document.querySelectorAll('img')].some(({ naturalWidth }) => naturalWidth === 384)")
    assert page.evaluate(
        "window.app.graph._nodes.find(({ type }) => type === 'JanusFlowEncodePrompt').widgets[0].value"
    ) == ("two green stars")


@pytest.mark.parametrize("name", NEED_FILES)
def test_a_template_that_needs_files_opens_whole_and_names_them(page, name):
    open_template(page, name)
    page.get_by_text("sd_xl_base_1.0.safetensors").first.wait_for()
    kinds = page.evaluate("window.app.graph._nodes.map(node => node.constructor.nodeData?.name ?? node.type)")
    assert {"JanusFlowLoader", "CheckpointLoaderSimple", "KSampler", "JanusFlowSampler"} <= set(kinds)
    page.keyboard.press("Escape")
    assert_tidy(page)


@pytest.mark.parametrize(("page", "written"), [("en", "en"), ("zh", "zh"), ("ja", "en")], indirect=["page"])
def test_help_is_shown_in_every_language_with_its_picture_and_never_wider_than_its_panel(page, written):
    """In a language without pages of its own it is English."""
    for node in NODES:
        page.evaluate(
            """kind => {
                window.app.graph.clear();
                const node = window.LiteGraph.createNode(kind);
                node.pos = [500, 350];
                window.app.graph.add(node);
                window.app.canvas.selectNode(node);
            }""",
            node,
        )
        if not page.locator(".node-help-content").count():
            page.get_by_test_id("info-button").first.click()
        path = HELP / f"{node}.md" if written == "en" else HELP / node / f"{written}.md"
        title = path.read_text("utf-8").splitlines()[0].removeprefix("# ")
        page.locator(".node-help-content h1", has_text=title).wait_for()
        page.wait_for_function("document.querySelector('.node-help-content img')?.complete")
        assert page.evaluate("document.querySelector('.node-help-content img').naturalWidth") > 300, node
        wide = page.evaluate(
            """() => [...document.querySelectorAll('.node-help-content, .node-help-content *')]
                .filter(part => part.scrollWidth > part.clientWidth && part.clientWidth)
                .map(part => part.outerHTML.slice(0, 200))"""
        )
        assert wide == [], node


@pytest.mark.parametrize(("page", "language"), [("zh", "zh"), ("fr", "fr")], indirect=["page"])
def test_nodes_and_the_menu_of_a_picture_speak_the_users_language(page, language):
    texts, main = (
        json.loads((CHECKOUT / "locales" / language / name).read_text("utf-8"))
        for name in ("nodeDefs.json", "main.json")
    )
    for vue in (False, True):
        draw_with(page, vue)
        shown = page.evaluate(
            """() => {
                window.app.graph.clear();
                const node = window.LiteGraph.createNode('JanusFlowSampler');
                window.app.graph.add(node);
                const named = ({ name, label, localized_name }) => [name, label ?? localized_name ?? name];
                const slots = node.inputs.filter(({ widget }) => !widget);
                return [node.title, Object.fromEntries([...slots, ...node.widgets].map(named))];
            }"""
        )
        sampler = texts["JanusFlowSampler"]
        wanted = {name: text["name"] for name, text in sampler["inputs"].items()}
        assert shown[0] == sampler["display_name"] and shown[1].items() >= wanted.items()
    page.locator("[data-node-id]", has_text=sampler["inputs"]["steps"]["name"]).wait_for()
    menu = page.evaluate(
        """() => {
            const node = window.LiteGraph.createNode('JanusFlowVAEDecode');
            window.app.graph.add(node);
            const options = window.app.canvas.getNodeMenuOptions(node);
            new window.LiteGraph.ContextMenu(options, {});
            return options.map(option => option?.content);
        }"""
    )
    assert main["contextMenu"]["Describe with JanusFlow"] in menu


def drop(page, name: str, picture: bytes) -> None:
    """Clear the graph and drop a PNG onto the canvas."""
    page.evaluate(
        """([name, data]) => {
            const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
            const moved = new DataTransfer();
            moved.items.add(new File([bytes], name, {type: 'image/png'}));
            const [place, canvas] = [{bubbles: true, clientX: 600, clientY: 400}, document.querySelector('canvas')];
            window.app.graph.clear();
            for (const kind of ['dragover', 'drop'])
                canvas.dispatchEvent(new DragEvent(kind, {dataTransfer: moved, ...place}));
        }""",
        [name, base64.b64encode(picture).decode()],
    )
    page.wait_for_function("window.app.graph._nodes.length")


def test_the_button_draws_with_progress_previews_and_a_picture_that_brings_its_graph_back(page, server):
    open_template(page, "JanusFlow text to image")
    before = page.evaluate("window.app.graph._nodes.map(({ id, type, pos }) => [id, type, ...pos])")
    page.evaluate(
        """() => {
            window.seen = { progress: [], previews: 0 };
            const sampler = window.app.graph._nodes.find(({ type }) => type === 'JanusFlowSampler');
            window.app.api.addEventListener('progress', ({ detail: { node, value, max } }) => {
                if (node == sampler.id) window.seen.progress.push([value, max]);
            });
            window.app.api.addEventListener('b_preview_with_metadata', ({ detail }) => {
                if (detail.displayNodeId == sampler.id && detail.blob.size) window.seen.previews++;
            });
        }"""
    )
    assert run_graph(page) == "execution_success"
    seen = page.evaluate("window.seen")
    assert seen["progress"][-1] == [30, 30] and seen["progress"] == sorted(seen["progress"]) and seen["previews"] > 1
    saver = "window.app.graph._nodes.find(({ type }) => type === 'SaveImage')"
    page.wait_for_function(f"{saver}.imgs?.[0].naturalWidth === 384")
    (image,) = page.evaluate(f"window.app.nodeOutputs[{saver}.id].images")
    seed = "window.app.graph._nodes.find(({ type }) => type === 'JanusFlowSampler').widgets[0].value"
    drop(page, image["filename"], server.output_path(image).read_bytes())
    page.wait_for_function("count => window.app.graph._nodes.length === count", arg=len(before))
    assert page.evaluate("window.app.graph._nodes.map(({ id, type, pos }) => [id, type, ...pos])") == before
    assert page.evaluate("window.app.graph.links.size") == 7 and page.evaluate(seed) == 0  # not the next one's


def test_a_picture_of_the_command_line_can_be_dropped(page, tmp_path):
    """ComfyUI takes it for a picture, and not for a workflow of its own that it cannot read."""
    command = [sys.executable, "-m", "janusflow_core.cli", "generate", "a heart", "--steps", "1", "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    drawn = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout.strip()
    drop(page, drawn, (tmp_path / drawn).read_bytes())
    nodes = page.evaluate("window.app.graph._nodes.map(node => [node.type, node.widgets[0].value])")
    assert nodes == [["LoadImage", drawn]]
