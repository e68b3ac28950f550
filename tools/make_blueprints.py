"""Makes subgraphs/*.json, ready graphs in one node, out of the workflows: python -m tools.make_blueprints"""

import itertools
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from janusflow_core import __version__
from janusflow_core.host.find import Json

CHECKOUT = Path(__file__).resolve().parents[1]
OUTSIDE_IN, OUTSIDE_OUT = -10, -20  # the ids by which links name the two ends of a subgraph
LINE, WIDTH, BESIDE = 20, 120, 260  # pixels between slots, of an end, and from the nodes to its far side


@dataclass(frozen=True)
class Blueprint:
    """What a ready graph is made of: a workflow, the nodes of it that stay, and what is shown on the outside."""

    workflow: str
    description: str
    nodes: list[int]
    widgets: list[tuple[int, str, str]]  # node, widget, name
    outputs: list[tuple[int, int, str]]  # node, slot, name
    inputs: list[tuple[int, str]] = field(default_factory=list)  # node, input, under its own name

    @property
    def entries(self) -> list[tuple[int, str]]:
        """Node and input of all that is set from outside."""
        return [*self.inputs, *((node, widget) for node, widget, _ in self.widgets)]

    @property
    def names(self) -> list[str]:
        """What these are called outside."""
        return [*(name for _, name in self.inputs), *(name for _, _, name in self.widgets)]


MODEL = [(1, "checkpoint", "checkpoint"), (1, "vae", "vae")]
BLUEPRINTS = {
    "Text to Image (JanusFlow)": Blueprint(
        "JanusFlow text to image",
        "Draws a picture of a prompt with JanusFlow.",
        [1, 2, 3, 4],
        [
            (2, "text", "prompt"),
            (3, "seed", "seed"),
            (3, "steps", "steps"),
            (3, "cfg", "cfg"),
            (3, "width", "width"),
            (3, "height", "height"),
            (3, "batch_size", "batch_size"),
            *MODEL,
        ],
        [(4, 0, "IMAGE")],
    ),
    "Describe Image (JanusFlow)": Blueprint(
        "JanusFlow describe image",
        "Answers a question about each picture with JanusFlow.",
        [1, 3],
        [(3, "ask", "ask"), (3, "question", "question"), (1, "checkpoint", "checkpoint")],
        [(3, 0, "text")],
        [(3, "image")],
    ),
    "There and Back (JanusFlow)": Blueprint(
        "JanusFlow there and back",
        "Draws a picture of a prompt and says what it shows, with one JanusFlow.",
        [1, 2, 3, 4, 6],
        [(2, "text", "prompt"), (3, "seed", "seed"), (6, "question", "question"), *MODEL],
        [(4, 0, "IMAGE"), (6, 0, "text")],
    ),
}


def main() -> None:
    """Write all of them."""
    for name in BLUEPRINTS:
        path = CHECKOUT / "subgraphs" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(make(name), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def make(name: str) -> Json:
    """A blueprint, out of its workflow as that stands."""
    blueprint = BLUEPRINTS[name]
    workflow = (CHECKOUT / "workflows" / f"{blueprint.workflow}.json").read_text(encoding="utf-8")
    return as_graph(name, inside(name, blueprint, json.loads(workflow)), blueprint)


def inside(name: str, blueprint: Blueprint, workflow: Json) -> Json:
    """The subgraph itself: some nodes of a workflow, the links between them, and those to its two ends."""
    nodes, links = kept(workflow, blueprint.nodes)
    numbers = itertools.count(workflow["last_link_id"] + 1)
    begin = [enter(nodes[node], slot, place, next(numbers)) for place, (node, slot) in enumerate(blueprint.entries)]
    end = [leave(nodes[node], slot, place, next(numbers)) for place, (node, slot, _) in enumerate(blueprint.outputs)]
    left, top = (min(node["pos"][axis] for node in nodes.values()) for axis in (0, 1))
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values())
    state = {"lastGroupId": 0, "lastNodeId": max(nodes), "lastLinkId": next(numbers) - 1, "lastRerouteId": 0}
    return {
        "id": key(name),
        "version": 1,
        "state": state,
        "revision": 0,
        "config": {},
        "name": name,
        "category": "JanusFlow",
        "description": blueprint.description,
        "inputNode": {"id": OUTSIDE_IN, "bounding": [left - BESIDE, top, WIDTH, LINE * (len(begin) + 2)]},
        "outputNode": {"id": OUTSIDE_OUT, "bounding": [right + BESIDE - WIDTH, top, WIDTH, LINE * (len(end) + 2)]},
        "inputs": slots(name, "inputs", blueprint.names, begin, left - BESIDE + WIDTH - LINE, top),
        "outputs": slots(
            name, "outputs", [one[2] for one in blueprint.outputs], end, right + BESIDE - WIDTH + LINE, top
        ),
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": [],
        "links": [*links, *begin, *end],
        "extra": {},
    }


def kept(workflow: Json, numbers: list[int]) -> tuple[dict[int, Json], list[Json]]:
    """The nodes of a workflow with these numbers, and the links that both begin and end at one of them."""
    nodes = {node["id"]: node for node in workflow["nodes"] if node["id"] in numbers}
    links = [as_object(*link) for link in workflow["links"] if {link[1], link[3]} <= nodes.keys()]
    whole = {link["id"] for link in links}
    for node in nodes.values():
        for slot in node["inputs"]:
            slot["link"] = slot["link"] if slot["link"] in whole else None
        for slot in node["outputs"]:
            slot["links"] = [number for number in slot["links"] or [] if number in whole]
    return nodes, links


def enter(node: Json, name: str, place: int, number: int) -> Json:
    """A link from outside into an input or a widget."""
    at = [slot["name"] for slot in node["inputs"]].index(name)
    node["inputs"][at]["link"] = number
    return as_object(number, OUTSIDE_IN, place, node["id"], at, node["inputs"][at]["type"])


def leave(node: Json, slot: int, place: int, number: int) -> Json:
    """A link from an output to outside."""
    node["outputs"][slot]["links"].append(number)
    return as_object(number, node["id"], slot, OUTSIDE_OUT, place, node["outputs"][slot]["type"])


def slots(name: str, end: str, names: list[str], links: list[Json], x: float, top: float) -> list[Json]:
    """One end of a subgraph: what each of its links is called outside."""
    return [
        {
            "id": key(name, end, label),
            "name": label,
            "type": link["type"],
            "linkIds": [link["id"]],
            "pos": [x, top + LINE * line],
        }
        for line, (label, link) in enumerate(zip(names, links, strict=True), 1)
    ]


def as_graph(name: str, subgraph: Json, blueprint: Blueprint) -> Json:
    """A graph that holds the subgraph as its only node, as ComfyUI keeps blueprints."""
    widgets = {label for _, _, label in blueprint.widgets}
    inputs = [
        {
            "name": one["name"],
            "type": one["type"],
            **({"widget": {"name": one["name"]}} if one["name"] in widgets else {}),
        }
        for one in subgraph["inputs"]
    ]
    shown = [[str(node), widget] for node, widget, _ in blueprint.widgets]
    shown += [[str(node), "control_after_generate"] for node, widget, _ in blueprint.widgets if widget == "seed"]
    node = {
        "id": 1,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": [400, 100 + 40 * len(shown)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [{**one, "link": None} for one in inputs],
        "outputs": [{"name": one["name"], "type": one["type"], "links": None} for one in subgraph["outputs"]],
        "title": name,
        "properties": {"proxyWidgets": shown, "cnr_id": "janusflow", "ver": __version__},
        "widgets_values": [],
    }
    counts = {"revision": 0, "last_node_id": 1, "last_link_id": 0}
    return {
        **counts,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {},
    }


def as_object(*link: int | str) -> Json:
    """A link as subgraphs keep it."""
    return dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))


def key(*names: str) -> str:
    """An identifier that stays the same however often the file is made."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("janusflow", *names))))


if __name__ == "__main__":
    main()
