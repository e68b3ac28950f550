"""Blueprints, graphs in one node: found by name, run as they are, and made from the workflows as these stand."""

import json
from pathlib import Path

import pytest

from janusflow_core.world.talk import tells
from tools.editor import run_graph
from tools.make_blueprints import BLUEPRINTS, make

FOLDER = Path(__file__).resolve().parents[2] / "subgraphs"
# What comes out of the node goes to a node that shows it; a picture that goes in is a red square.
CONNECT = """() => {
    const { graph } = window.app, { LiteGraph } = window, blueprint = graph._nodes[0];
    const added = (kind, x, y) => {
        const node = LiteGraph.createNode(kind);
        node.pos = [x, y];
        graph.add(node);
        return node;
    };
    blueprint.outputs.forEach(({ type }, slot) => {
        const show = added(type === 'IMAGE' ? 'PreviewImage' : 'PreviewAny', 1200, 400 * slot);
        blueprint.connect(slot, show, 0);
    });
    const slot = blueprint.inputs.findIndex(({ type }) => type === 'IMAGE');
    if (slot < 0) return;
    const [paper, square, whole] = ['EmptyImage', 'EmptyImage', 'ImageCompositeMasked'].map(
        (kind, at) => added(kind, -900, 300 * at));
    for (const [node, values] of [[paper, [96, 96, 1, 0xfafafa]], [square, [24, 24, 1, 0xdc1e23]], [whole, [30, 38]]])
        values.forEach((value, at) => { node.widgets[at].value = value; });
    paper.connect(0, whole, 0);
    square.connect(0, whole, 1);
    whole.connect(0, blueprint, slot);
}"""


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_what_its_workflow_gives(name):
    assert json.loads((FOLDER / f"{name}.json").read_text("utf-8")) == make(name), "run python -m tools.make_blueprints"


def test_the_server_offers_them(server):
    offered = [one for one in server.get("/global_subgraphs").values() if one["source"] == "custom_node"]
    assert {one["name"] for one in offered} == set(BLUEPRINTS) == {path.stem for path in FOLDER.glob("*.json")}


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_found_by_its_name_and_runs(name, page):
    blueprint = BLUEPRINTS[name]
    page.evaluate("window.app.graph.clear()")
    page.evaluate("window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.get_by_role("combobox").last.fill(name.partition(" (")[0])
    page.get_by_role("option").filter(has_text=name).filter(has_text="Blueprint").first.click()
    page.wait_for_function("window.app.graph._nodes.length === 1")
    shown = page.evaluate("window.app.graph._nodes[0].widgets.map(({ name }) => name)")
    assert [widget for widget in shown if widget != "control_after_generate"] == [
        label for *_, label in blueprint.widgets
    ]
    page.evaluate(CONNECT)
    assert run_graph(page) == "execution_success"
    said = page.evaluate(
        """window.app.graph._nodes.filter(({ type }) => type === 'PreviewAny')
            .map(({ widgets }) => widgets.find(({ name }) => name === 'preview_text').value)"""
    )
    drawn = page.evaluate("Object.values(window.app.nodeOutputs).flatMap(({ images }) => images ?? []).length")
    assert len(said) + drawn == len(blueprint.outputs)
    wanted = {"There and Back (JanusFlow)": "a purple heart", "Describe Image (JanusFlow)": "a red square"}
    assert all(tells(text, wanted[name]) for text in said)
