"""The editor in a real browser: templates run as they open, help can be read, pictures can be dropped."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_workflows import NAMES, NEED_FILES

from janusflow_core.world.talk import tells

CHECKOUT = Path(__file__).resolve().parents[2]
NODES = sorted(path.stem for path in (CHECKOUT / "web" / "docs").glob("*.md"))


def open_template(page, name: str) -> None:
    page.locator("button[aria-label=Templates]").click()
    dialog = page.locator("[role=dialog]").first
    dialog.get_by_text("All Templates").first.click()
    dialog.locator("input").first.fill("janus")
    dialog.get_by_text(name).first.click()
    dialog.wait_for(state="detached")
    page.wait_for_function("window.app.graph._nodes.some(node => node.type === 'JanusFlowLoader')")


def run_graph(page) -> None:
    """Press Run, and wait until the prompt has ended; one that trains, which the server's tests carry through, is
    cancelled once it learns."""
    page.evaluate(
        """() => {
            window.ended = [];
            for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
                window.app.api.addEventListener(kind, event => window.ended.push([kind, event.detail.node_id]));
            const trainer = window.app.graph._nodes.find(node => node.type === 'JanusFlowREPAFineTune');
            window.trains = Boolean(trainer);
            window.app.api.addEventListener('progress', ({ detail }) => {
                if (detail.node == trainer?.id && detail.value > 2) window.app.api.interrupt();
            });
        }"""
    )
    page.get_by_test_id("queue-button").first.click()
    page.wait_for_function("window.ended.length", timeout=300_000)
    expected = "execution_interrupted" if page.evaluate("window.trains") else "execution_success"
    assert page.evaluate("window.ended[0][0]") == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_template_is_found_and_runs_as_it_opens(page, name):
    open_template(page, name)
    assert page.evaluate("window.app.graph._nodes.filter(node => node.has_errors).length") == 0
    run_graph(page)
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


@pytest.mark.parametrize("name", NEED_FILES)
def test_a_template_that_needs_files_opens_whole_and_names_them(page, name):
    open_template(page, name)
    page.get_by_text("sd_xl_base_1.0.safetensors").first.wait_for()
    kinds = page.evaluate("window.app.graph._nodes.map(node => node.constructor.nodeData?.name ?? node.type)")
    assert {"JanusFlowLoader", "CheckpointLoaderSimple", "KSampler", "JanusFlowSampler"} <= set(kinds)


@pytest.mark.parametrize("page", ["en", "zh"], indirect=True)
def test_help_is_shown_in_every_language_and_never_wider_than_its_panel(page):
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
        title = (CHECKOUT / "web" / "docs" / f"{node}.md").read_text("utf-8").splitlines()[0].removeprefix("# ")
        page.locator(".node-help-content h1", has_text=title).wait_for()
        wide = page.evaluate(
            """() => [...document.querySelectorAll('.node-help-content, .node-help-content *')]
                .filter(part => part.scrollWidth > part.clientWidth && part.clientWidth)
                .map(part => part.outerHTML.slice(0, 200))"""
        )
        assert wide == [], node


def test_a_picture_of_the_command_line_can_be_dropped(page, tmp_path):
    """ComfyUI takes it for a picture, and not for a workflow of its own that it cannot read."""
    command = [sys.executable, "-m", "janusflow_core.cli", "generate", "a heart", "--steps", "1", "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    drawn = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout.strip()
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
        [drawn, base64.b64encode((tmp_path / drawn).read_bytes()).decode()],
    )
    page.wait_for_function("window.app.graph._nodes.length")
    nodes = page.evaluate("window.app.graph._nodes.map(node => [node.type, node.widgets[0].value])")
    assert nodes == [["LoadImage", drawn]]
