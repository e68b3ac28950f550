"""Makes the pictures of help pages and of the README's workflows: python -m tools.make_screenshots [NAME ...]

In a real browser, on a real server; NAME is a node or a workflow, without one all are made. Each graph is run first,
so that nodes show what they made. A help page's picture is taken once for each language that has pages, which needs
fonts for it (Debian: fonts-noto-cjk).
"""

import json
import logging
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page

from janusflow_core.host.find import find_comfyui
from janusflow_core.host.server import Server
from janusflow_core.world.scenes import COLORS, Object, Scene, render
from tools.editor import chromium, load, open_editor, run_graph

CHECKOUT = Path(__file__).resolve().parents[1]
WORKFLOWS, HELP, GRAPHS = CHECKOUT / "workflows", CHECKOUT / "web" / "docs", CHECKOUT / "docs" / "graphs"
VIEW = (2400, 1700)  # large enough that the editor's own panels never cover what is shown
APP = (1200, 760)  # the whole page in App mode
AROUND, QUALITY = (110, 24), 82  # graph pixels beside and above a node; of the JPEG
LANGUAGES = {"en": "", "zh": ".zh"}  # and what the name of a picture has for it

TEXT, DESCRIBE, CHAT = "JanusFlow text to image", "JanusFlow describe image", "JanusFlow chat about a picture"
VALUES = "JanusFlow answers as values"
SHOWN = ["there and back", "app", "image to image", "best of four", "caption and train"]  # in the README
# Node -> the workflow that shows it, and, where none does, how to bring it there: in place of a node, before or beside
# one.
NODES = {
    "JanusFlowLoader": (TEXT,),
    "JanusFlowEncodePrompt": (TEXT,),
    "JanusFlowSampler": (TEXT,),
    "JanusFlowVAEDecode": (TEXT,),
    "JanusFlowDescribe": (DESCRIBE,),
    "JanusFlowChoose": (VALUES,),
    "JanusFlowNumber": (VALUES,),
    "JanusFlowJSON": (DESCRIBE, "replace", "JanusFlowDescribe"),
    "JanusFlowCaptionFolder": (DESCRIBE, "replace", "JanusFlowDescribe"),
    "JanusFlowYesNo": ("JanusFlow route by an answer",),
    "JanusFlowChatTurn": ("JanusFlow chat by hand",),
    "JanusFlowAsk": (CHAT,),
    "JanusFlowSaveChat": (CHAT,),
    "JanusFlowLoadChat": (CHAT, "precede", "JanusFlowAsk"),
    "JanusFlowScore": ("JanusFlow best of four",),
    "JanusFlowRetry": ("JanusFlow draw until right",),
    "JanusFlowREPAFineTune": ("JanusFlow fine-tune",),
    "JanusFlowSweep": ("JanusFlow sweep",),
    "JanusFlowSheet": ("JanusFlow sweep",),
    "JanusFlowDoctor": (TEXT, "beside", "JanusFlowLoader"),
}
BRING = """([kind, how, other]) => {
    const { graph } = window.app, old = graph._nodes.find(({ type }) => type === other);
    const node = window.LiteGraph.createNode(kind);
    graph.add(node);
    node.pos = [...old.pos];
    for (const widget of node.widgets.filter(({ name }) => name === 'question'))
        widget.value = widget.value.replace('circle', 'square'); // which is what the picture shows
    if (how === 'beside') {
        node.size = [480, 440];
        node.pos = [old.pos[0] - node.size[0] - 170, old.pos[1]];
        return;
    }
    if (how === 'precede') {
        node.pos = [old.pos[0] - node.size[0] - 70, old.pos[1]];
        return node.connect(0, old, old.inputs.findIndex(({ type }) => type === node.outputs[0].type));
    }
    for (const [slot, { name }] of node.inputs.entries()) {
        const link = graph.getLink(old.inputs.find(input => input.name === name)?.link);
        if (link) graph.getNodeById(link.origin_id).connect(link.origin_slot, node, slot);
    }
    for (const link of old.outputs.flatMap(({ links }) => (links ?? []).map(id => graph.getLink(id))))
        node.connect(0, graph.getNodeById(link.target_id), link.target_slot);
    graph.remove(old);
}"""
BOUNDS = """kind => {
    const { graph } = window.app, node = graph._nodes.find(({ type }) => type === kind);
    if (node) return [node.pos[0], node.pos[1] - 30, node.size[0], node.size[1] + 30];
    const boxes = graph._groups.map(({ _bounding }) => [..._bounding]);
    const [left, top] = [0, 1].map(at => Math.min(...boxes.map(box => box[at])));
    return [left, top, ...[0, 1].map(at => Math.max(...boxes.map(box => box[at] + box[at + 2])) - [left, top][at])];
}"""
LOOK_AT = """async ([scale, x, y]) => {
    Object.assign(window.app.canvas.ds, { scale, offset: [x, y] });
    window.app.canvas.deselectAll();
    window.app.canvas.setDirty(true, true);
    await new Promise(ready => setTimeout(ready, 1500));
}"""

logger = logging.getLogger(__name__)


def main(names: list[str]) -> None:
    """Make the named pictures, or all."""
    nodes = [name for name in names or NODES if name in NODES]
    graphs = [name for name in names or SHOWN if name not in NODES]
    with chromium() as browser:
        for language, mark in LANGUAGES.items():
            shown = [] if mark else graphs
            if nodes or shown:
                make(browser, language, mark, nodes, shown)


def make(browser: Browser, language: str, mark: str, nodes: list[str], graphs: list[str]) -> None:
    """The pictures of one language, from a server of its own, where nothing has been trained, captioned or saved."""
    with Server(find_comfyui(), pack=CHECKOUT, pack_name="ComfyUI-JanusFlow") as server:
        for color in ("red", "green", "blue"):  # for Caption Folder
            save_scene(server.base / "input" / "shapes" / f"{color}.png", color)
        page, _ = open_editor(browser, server, language, vue=True, size=VIEW)
        for node in nodes:
            show(page, *NODES[node], node=node)
            shoot(page, node, HELP / "pictures" / f"{node}{mark}.jpg", 1)
        for name in graphs:
            show(page, f"JanusFlow {name}")
            shoot(page, "", GRAPHS / f"{name}.jpg", 0.6)
        page.context.close()


def save_scene(path: Path, color: str) -> None:
    """A picture of the world of janusflow-tiny: a star of a color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    star = Object("star", color, 48, 48, 18, COLORS[color])
    Image.fromarray(render(Scene((250, 250, 250), (star,)))).save(path)


def show(page: Page, workflow: str, *bring: str, node: str = "") -> None:
    """Open a workflow, bring a node into it that it does not have, and run it; what precedes a node is only shown."""
    load(page, json.loads((WORKFLOWS / f"{workflow}.json").read_text(encoding="utf-8")))
    if bring:
        page.evaluate(BRING, [node, *bring])
    page.evaluate("window.app.api.fetchApi('/free', { method: 'POST', body: '{\"free_memory\": true}' })")
    page.wait_for_timeout(1000)  # nothing comes from ComfyUI's cache then: nodes show only what they did themselves
    logger.info("%s %s: %s", workflow, node, "shown" if "precede" in bring else run_graph(page, timeout=900_000))


def shoot(page: Page, node: str, path: Path, scale: float) -> None:
    """Take a picture of a node and what is around it, or of a whole graph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if page.evaluate("window.app.graph.extra.linearMode"):
        page.set_viewport_size({"width": APP[0], "height": APP[1]})
        page.wait_for_timeout(2000)
        page.screenshot(path=path, type="jpeg", quality=QUALITY)
        page.set_viewport_size({"width": VIEW[0], "height": VIEW[1]})
        return
    x, y, width, height = page.evaluate(BOUNDS, node)
    beside, above = AROUND if node else (10, 10)
    left, top = 200, 150  # of the view
    page.evaluate(LOOK_AT, [scale, left / scale - x + beside, top / scale - y + above])
    clip = {"x": left, "y": top, "width": scale * (width + 2 * beside), "height": scale * (height + 2 * above)}
    page.screenshot(path=path, type="jpeg", quality=QUALITY, clip=clip)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
