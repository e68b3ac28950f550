"""Lays the workflows out for the editor: python -m tools.arrange [NAME ...]

Frames stand beside each other in rows, at times two above each other; a frame's nodes stand in columns. A wire to the
next column goes there directly, every other one through a lane above the nodes, so that none is hidden behind a node.
"""

import json
import logging
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from janusflow_core.host.find import Json
from tools.plans import APPS, COLORS, HIGHLIGHTED, NOTE, PLANS, SIZES, Group

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
TITLE, UNDER = 30, 30  # height of a node's title, which is above its position; space below a node
GAP, PADDING, HEADING, BETWEEN = 70, 20, 46, 50  # between columns; within a frame; for its name; between frames
LANE, FIRST = 18, 24  # between two lanes; from the lowest lane to the titles of the nodes
FAR, UPRIGHT = 250, 60  # how far down is far, and how near to a node a wire is upright then
BEND, NEXT = 20, 10  # from a node to where a wire leaves or enters a lane, and from one such wire to the next
NOTE_LETTER, NOTE_LINE, NOTE_HEADING, NOTE_EDGES = 5, 13, 57, 50  # of a note, as measured in the editor

Output = tuple[int, int]  # node and slot
logger = logging.getLogger(__name__)


def main(names: list[str]) -> None:
    """Arrange the named workflows, or all."""
    for name in names or PLANS:
        path = WORKFLOWS / f"{name}.json"
        workflow = json.loads(path.read_text(encoding="utf-8"))
        arrange(workflow, name)
        path.write_text(json.dumps(workflow, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        logger.info(name)


@dataclass(eq=False)
class Frame:
    """A group on the canvas: columns of nodes, and the lanes above them. `upper` stands on top of it."""

    group: Group
    row: int
    stack: int
    columns: list[list[Json]]
    upper: "Frame | None" = None
    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    first: int = 0  # y of the uppermost nodes
    sides: list[tuple[int, int]] = field(default_factory=list)  # left and right of each column
    lanes: dict[Output, int] = field(default_factory=dict)  # output -> y


Place = tuple[Frame, int]  # a column of a frame
Wire = tuple[int, Output, Place, Place]  # number of the link, where it begins, from column to column


def arrange(workflow: Json, name: str) -> None:
    """Write positions, sizes, colors, groups, reroutes and what App mode shows into a workflow, as its plan says.

    Raises KeyError for a workflow without a plan and for a node without a place in it.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    rows = [list(frames(groups, row, nodes)) for row, groups in enumerate(PLANS[name])]
    every = [frame for row in rows for frame in row]
    place = {node["id"]: (frame, at) for frame in every for at, column in enumerate(frame.columns) for node in column}
    links = [(number, (a, slot), place[a], place[b]) for number, a, slot, b, *_ in workflow["links"]]
    wires = [wire for wire in links if not is_direct(*wire[2:])]
    top = 0
    for row in rows:
        top = put_row(row, wires, top) + BETWEEN
    workflow["groups"] = [box(number, frame) for number, frame in enumerate(every, 1)]
    workflow["extra"] |= route(wires, rows) | app_mode(name)
    workflow["extra"]["ds"] = {"scale": 0.6, "offset": [160, 160]}


def app_mode(name: str) -> Json:
    """What App mode shows of a workflow, as ComfyUI keeps it."""
    if name not in APPS:
        return {}
    widgets, results = APPS[name]
    return {
        "linearData": {"inputs": [[str(node), widget] for node, widget in widgets], "outputs": list(map(str, results))}
    }


def frames(groups: list[Group], row: int, nodes: dict[int, Json]) -> Iterator[Frame]:
    """The frames of a row from left to right, each followed by the one below it."""
    for stack, group in enumerate(groups):
        upper = None
        for one in filter(None, (group, group.below)):
            upper = Frame(one, row, stack, [[nodes[number] for number in column] for column in one.columns], upper)
            yield upper


def is_direct(source: Place, target: Place) -> bool:
    """Whether there is nothing between two nodes but the gap between their columns."""
    (a, column), (b, next_column) = source, target
    if a is b:
        return column + 1 == next_column
    return a.row == b.row and a.stack + 1 == b.stack and column + 1 == len(a.columns) and next_column == 0


def lanes_into(frame: Frame, wires: list[Wire]) -> list[Output]:
    """The outputs whose wires come to a frame through lanes of its own, those of lower slots nearer to the nodes."""
    found = {output for _, output, (a, _), (b, column) in wires if b is frame and (column or a.stack == b.stack)}
    return sorted(found)


# --- places -----------------------------------------------------------------------------------------------------


def put_row(row: list[Frame], wires: list[Wire], top: int) -> int:
    """Give a row of frames its place from this height on; returns where it ends."""
    into = [(output, source, target) for _, output, (source, _), (target, _) in wires if target.row == row[0].row]
    above = sorted({output for output, source, target in into if not target.upper or source.stack != target.stack})
    left = 0
    for frame in row:
        own = lanes_into(frame, wires) if frame.upper else above
        frame.left = frame.upper.left if frame.upper else left
        frame.top = frame.upper.bottom + BETWEEN if frame.upper else top
        put(frame, own)
        left = max(left, frame.right + BETWEEN)
    bottom = max(frame.bottom for frame in row)
    for number, frame in enumerate(row):
        if number + 1 == len(row) or row[number + 1].upper is not frame:
            frame.bottom = bottom
        else:
            frame.right = row[number + 1].right = max(frame.right, row[number + 1].right)
    return bottom


def put(frame: Frame, outputs: list[Output]) -> None:
    """Give lanes and nodes of a frame their places, from its left and top on."""
    under = frame.top + HEADING + LANE * len(outputs)
    frame.lanes = {output: under - LANE * at for at, output in enumerate(outputs)}
    left, y = frame.left + PADDING, under + FIRST + TITLE
    frame.first = y
    for column in frame.columns:
        right = left + max(SIZES[node["type"]].width for node in column)
        frame.sides.append((left, right))
        frame.bottom = max(frame.bottom, stack_nodes(column, left, right, y) + PADDING)
        frame.right, left = right + PADDING, right + GAP


def stack_nodes(column: list[Json], left: int, right: int, y: int) -> int:
    """Put nodes below each other; returns where the last one may end."""
    end = y
    for node in column:
        size = SIZES[node["type"]]
        height = note_height(node["widgets_values"][0], right - left) if node["type"] == NOTE else size.height
        node["pos"], node["size"] = [left, y], [right - left, height]
        node.update(HIGHLIGHTED.get(node["type"], {}))
        end = y + max(size.room, height)
        y = end + UNDER + TITLE
    return end


def note_height(text: str, width: int) -> int:
    """Pixels that a note takes when its lines break at this width, in the renderer that takes more."""
    height = NOTE_EDGES
    for line in filter(None, re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).splitlines()):
        if line.startswith("#"):
            height += NOTE_HEADING
            continue
        item = re.match(r"\d+\.|- ", line)
        lines = math.ceil(len(line) * NOTE_LETTER / (width - (60 if item else 30)))
        height += lines * NOTE_LINE + (18 if item else 10)
    return height


def box(number: int, frame: Frame) -> Json:
    """A frame as ComfyUI keeps a group."""
    bounding = [frame.left, frame.top, frame.right - frame.left, frame.bottom - frame.top]
    looks = {"color": COLORS[frame.group.kind], "font_size": 24, "flags": {}}
    return {"id": number, "title": frame.group.title, "bounding": bounding, **looks}


# --- wires ------------------------------------------------------------------------------------------------------


def route(wires: list[Wire], rows: list[list[Frame]]) -> Json:
    """The points that wires go through, as ComfyUI keeps them."""
    points: dict[tuple[Output, int, int], Json] = {}
    last = []
    for number, output, source, target in wires:
        before: Json = {}
        for point in stops(output, source, target, rows):
            one = points.setdefault((output, *point), {"id": len(points) + 1, "pos": list(point), "linkIds": []})
            one |= {"parentId": before["id"]} if before else {}
            one["linkIds"].append(number)
            before = one
        last.append({"id": number, "parentId": before["id"]})
    return {"reroutes": list(points.values()), "linkExtensions": last}


def stops(output: Output, source: Place, target: Place, rows: list[list[Frame]]) -> Iterator[tuple[int, int]]:
    """Where a wire bends on its way from column to column; what goes far down is held upright."""
    (a, column), (b, next_column) = source, target
    above = b if b.upper and a.stack == b.stack else rows[b.row][0]  # whose lane leads there
    aside = NEXT * list(above.lanes).index(output)
    begin, y = a.sides[column][1] + BEND + aside, above.lanes[output]
    if y > a.top + FAR:
        yield begin, a.first + UPRIGHT
    yield begin, y
    if above is not b and b.upper:
        beside = b.sides[0][0] - BEND - aside
        yield beside, y
        if not next_column:
            yield beside, b.first - UPRIGHT
            return
        yield beside, b.lanes[output]
        above = b
    yield b.sides[next_column][0] - BEND - aside, above.lanes[output]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
