"""The menu of a picture in the editor: one click adds what describes it, and asks only that."""

import graphs
import pytest
from playwright.sync_api import Page

from janusflow_core.host.server import Server
from janusflow_core.world.talk import tells

ENTRY = "Describe with JanusFlow"
SAID = "$$node-text-preview"  # the field with the answer
HELPERS = """
    window.make = (type, x, y, values = {}) => {
        const node = window.LiteGraph.createNode(type);
        node.pos = [x, y];
        window.app.canvas.graph.add(node);
        for (const [name, value] of Object.entries(values)) {
            const widget = node.widgets.find(widget => widget.name === name);
            widget.value = value;
            widget.callback?.(value);
        }
        return node.id;
    };
    window.node = id => window.app.canvas.graph.getNodeById(id);
    window.all = type => window.app.canvas.graph.nodes.filter(node => node.type === type);
    window.entry = id => window.app.collectNodeMenuItems(node(id)).find(item => item?.content === '%s');
    window.links = () => [...window.app.graph.links.values()].map(link => [
        node(link.origin_id).type, node(link.origin_id).outputs[link.origin_slot].type,
        node(link.target_id).type, node(link.target_id).inputs[link.target_slot].name]).sort();
    window.ended = [];
    window.app.api.addEventListener('execution_cached', event => window.cached = event.detail.nodes);
    for (const kind of ['execution_success', 'execution_error'])
        window.app.api.addEventListener(kind, () => window.ended.push(kind));
"""
TO_DESCRIBE = [
    ["JanusFlowLoader", "CLIP", "JanusFlowDescribe", "clip"],
    ["LoadImage", "IMAGE", "JanusFlowDescribe", "image"],
]


@pytest.fixture
def square(server: Server, tmp_path) -> str:
    """The name among the server's inputs of a picture of a red square."""
    return graphs.upload(server, tmp_path, graphs.scene(("red", "square", 48, 48)))[0]


@pytest.fixture
def editor(page: Page) -> Page:
    """The page with its default graph, which cannot run: it names a checkpoint that is not there."""
    page.evaluate(HELPERS % ENTRY)
    return page


def load(editor: Page, picture: str, x: int = 0, y: int = 900) -> int:
    """Adds a LoadImage below the default graph, and waits until it shows its picture."""
    node = editor.evaluate("([x, y, image]) => make('LoadImage', x, y, {image})", [x, y, picture])
    editor.wait_for_function("id => node(id).imgs?.length", arg=node)
    return node


def click(editor: Page, node: int) -> None:
    """Calls the entry, and waits for the end of the run."""
    editor.evaluate("id => { window.ended = []; entry(id).callback(); }", node)
    editor.wait_for_function("window.ended.length", timeout=300_000)
    assert editor.evaluate("window.ended[0]") == "execution_success"


def click_with_the_mouse(editor: Page, node: int) -> None:
    """The same from the menu that a right click on the node opens."""
    x, y = editor.evaluate(
        """id => {
            const {canvas} = window.app;
            canvas.ds.scale = 0.6;
            canvas.ds.offset = [300 - node(id).pos[0], 300 - node(id).pos[1]];
            canvas.draw(true, true);
            window.ended = [];
            const place = canvas.canvas.getBoundingClientRect();
            const [left, top] = canvas.convertOffsetToCanvas([node(id).pos[0] + 60, node(id).pos[1] - 15]);
            return [place.left + left, place.top + top];
        }""",
        node,
    )
    editor.wait_for_function(  # Vue's nodes follow the canvas a little later
        """([x, y, id]) => !document.querySelector('[data-node-id]')
            || document.elementFromPoint(x, y)?.closest('[data-node-id]')?.dataset.nodeId == id""",
        arg=[x, y, node],
    )
    editor.mouse.click(x, y, button="right")
    with editor.expect_response("**/prompt") as reply:
        editor.get_by_text(ENTRY, exact=True).first.click()
    assert reply.value.json()["node_errors"] == {}  # the default graph's would stand here, had it been queued too
    editor.wait_for_function("window.ended.length", timeout=300_000)
    assert editor.evaluate("window.ended[0]") == "execution_success"


def said(editor: Page) -> list[str]:
    """What stands on each Describe Image."""
    widget = f"node.widgets.find(widget => widget.name === '{SAID}')"
    return editor.evaluate(f"all('JanusFlowDescribe').map(node => {widget}?.value)")


def covered(editor: Page) -> list[list[str]]:
    """The types of nodes that lie upon each other."""
    return editor.evaluate(
        """() => {
            const box = ({pos: [x, y], size: [width, height]}) => [x, y - 30, x + width, y + height];
            const cover = ([a, b, c, d], [e, f, g, h]) => a < g && e < c && b < h && f < d;
            const {nodes} = window.app.canvas.graph;
            const pairs = nodes.flatMap((one, k) => nodes.slice(k + 1).map(two => [one, two]));
            return pairs.filter(pair => cover(...pair.map(box))).map(pair => pair.map(node => node.type));
        }"""
    )


@pytest.mark.parametrize("vue", [False, True], ids=["on the canvas", "as Vue's"])
def test_a_loaded_picture_is_described_with_the_mouse_and_nothing_else_runs(square, editor, vue):
    before = editor.evaluate("links()")
    editor.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue)
    node = load(editor, square)
    editor.evaluate("make('PreviewImage', 320, 900), make('EmptyImage', 0, 1300)")  # in the way on both sides
    click_with_the_mouse(editor, node)
    assert [tells(text, "a red square") for text in said(editor)] == [True]
    assert [link for link in editor.evaluate("links()") if link not in before] == TO_DESCRIBE
    assert covered(editor) == []


def test_a_second_click_asks_the_same_nodes_again(square, editor):
    node = load(editor, square)
    click(editor, node)
    before = editor.evaluate("[window.app.graph.nodes.length, links()]")
    click(editor, node)
    assert editor.evaluate("[window.app.graph.nodes.length, links()]") == before


def test_a_shown_picture_is_taken_from_what_feeds_it_and_a_loader_that_is_there_is_used(square, editor):
    editor.evaluate("window.app.graph.clear()")
    node = load(editor, square, y=0)
    shown = editor.evaluate(
        """id => {
            make('JanusFlowLoader', 0, 600);
            const shown = make('PreviewImage', 400, 0);
            node(id).connect(0, node(shown), 'images');
            return shown;
        }""",
        node,
    )
    click(editor, shown)
    assert [tells(text, "a red square") for text in said(editor)] == [True]
    editor.wait_for_function("id => node(id).imgs?.length", arg=shown)  # it ran too: what it shows is what is described
    assert [link for link in editor.evaluate("links()") if link[2] == "JanusFlowDescribe"] == TO_DESCRIBE
    assert editor.evaluate("all('JanusFlowLoader').length") == 1
    assert covered(editor) == []
    # A node without outputs has the entry while it shows a picture.
    assert editor.evaluate("id => { node(id).removeOutput(0); return Boolean(entry(id)); }", shown)
    assert not editor.evaluate("id => { node(id).imgs = undefined; return Boolean(entry(id)); }", shown)


def test_inside_a_subgraph_the_nodes_are_added_there(square, editor):
    node = load(editor, square)
    editor.evaluate(
        """id => {
            const {subgraph, node: outer} = window.app.graph.convertToSubgraph(new Set([node(id)]));
            window.app.canvas.openSubgraph(subgraph, outer);
        }""",
        node,
    )
    editor.wait_for_function("window.app.canvas.graph !== window.app.graph && all('LoadImage').length")
    click(editor, editor.evaluate("all('LoadImage')[0].id"))
    assert [tells(text, "a red square") for text in said(editor)] == [True]
    assert sorted(editor.evaluate("window.app.canvas.graph.nodes.map(node => node.type)")) == [
        "JanusFlowDescribe",
        "JanusFlowLoader",
        "LoadImage",
    ]


def test_an_answer_that_the_server_remembers_is_shown_on_a_new_page_too(square, editor):
    for _ in range(2):
        editor.evaluate("window.app.graph.clear()")
        click(editor, load(editor, square))
        assert [tells(text, "a red square") for text in said(editor)] == [True]
    assert editor.evaluate("window.cached.length") == 3


def test_all_that_a_click_adds_is_one_step_of_undo(square, editor):
    node = load(editor, square)
    editor.evaluate("window.app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    before = editor.evaluate("window.app.graph.nodes.length")
    click(editor, node)
    assert editor.evaluate("window.app.graph.nodes.length") == before + 2
    editor.evaluate("window.app.extensionManager.command.execute('Comfy.Undo')")
    editor.wait_for_function("count => window.app.graph.nodes.length === count", arg=before)


def test_nodes_without_a_picture_have_no_entry(editor):
    editor.evaluate("for (const type of ['PreviewImage', 'JanusFlowLoader', 'JanusFlowDescribe']) make(type, 0, 900)")
    having = "window.app.graph.nodes.filter(node => entry(node.id)).map(node => node.type).sort()"
    assert editor.evaluate(having) == ["SaveImage", "VAEDecode"]
