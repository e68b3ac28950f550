"""The world of the embedded model: pictures of 1 to 4 flat shapes, their prompts, questions and judge.

Lengths are pixels of the 96 x 96 frame, x right and y down from its top left corner. An object's (x, y) is
the centroid of its shape, its radius the distance to the farthest corner. `relation` is the position rule.
"""

import itertools
import math
import random
import re
import zlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FRAME = 96
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLORS = {
    "red": (220, 30, 35), "orange": (245, 135, 15), "yellow": (242, 212, 20), "green": (30, 160, 55),
    "cyan": (40, 205, 215), "blue": (35, 70, 215), "purple": (140, 45, 175), "black": (25, 25, 28),
}  # fmt: skip
BACKGROUNDS = ((250, 250, 250), (228, 228, 228), (248, 240, 222), (222, 234, 248))
TASKS = ("single", "color", "color_attribution", "two", "counting", "position")
TASK_WEIGHTS = (8, 12, 20, 15, 20, 25)  # binding attributes and places to two things is learnt last
RELATIONS = ("left of", "right of", "above", "below")
PREFIXES = ("", "a photo of ", "an image of ", "a picture of ")
NUMBERS = ("zero", "one", "two", "three", "four")
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
HELD_OUT_NOUNS = frozenset({"purple star", "cyan heart", "orange cross", "black triangle"})
MIN_RADIUS, MAX_RADIUS, GAP, JITTER = 10.0, 19.0, 2.0, 8
MIN_SHIFT, DOMINANCE = 20.0, 1.5
SLACK = 1.5  # sampled pairs keep this far from the borders of the rule, so reading a render cannot cross one
MIN_AREA, MIN_OVERLAP, COLOR_TOLERANCE = 40, 0.75, 80.0  # the smallest object has 130 pixels
UNKNOWN = "unknown"  # what detect calls a color or a shape that is none of ours
Kind = tuple[str | None, str]  # (color, shape)


@dataclass(frozen=True)
class Object:
    """One thing in a picture."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """A background and the objects on it, which never touch."""

    background: tuple[int, int, int]
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class Request:
    """What a prompt asks for: `count` objects of each kind; `relation` is the first's to the second."""

    kinds: tuple[Kind, ...]
    count: int = 1
    relation: str | None = None

    @property
    def task(self) -> str:
        """The request's name in TASKS."""
        colored = any(color for color, _ in self.kinds)
        if len(self.kinds) == 1:
            return "counting" if self.count > 1 else "color" if colored else "single"
        return "position" if self.relation else "color_attribution" if colored else "two"

    @property
    def text(self) -> str:
        """The prompt, without prefix."""
        return f" {self.relation or 'and'} ".join(_phrase(*kind, self.count) for kind in self.kinds)


def _phrase(color: str | None, shape: str, count: int = 1) -> str:
    noun = " ".join(word for word in (color, shape if count == 1 else PLURALS[shape]) if word)
    return f"{NUMBERS[count] if count > 1 else 'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def relation(a: Object, b: Object) -> str | None:
    """Say where a is, seen from b: shifted by at least 20 pixels and 1.5 times the other axis, else None."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= MIN_SHIFT and abs(dx) >= DOMINANCE * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= MIN_SHIFT and abs(dy) >= DOMINANCE * abs(dx):
        return "above" if dy < 0 else "below"
    return None


_TURN = np.linspace(0, 2 * np.pi, 60, endpoint=False)
_LOBES = 13 * np.cos(_TURN) - 5 * np.cos(2 * _TURN) - 2 * np.cos(3 * _TURN) - np.cos(4 * _TURN)
_CORNERS = {  # complex x + iy around the centroid, the farthest at distance 1
    "circle": np.exp(1j * _TURN),
    "square": np.exp(1j * (_TURN[::15] + np.pi / 4)),
    "triangle": -1j * np.exp(1j * _TURN[::20]),
    "star": -1j * np.exp(1j * _TURN[::6]) * np.tile([1.0, 0.45], 5),
    "cross": np.outer(1j ** np.arange(4), [0.36 - 0.933j, 0.36 - 0.36j, 0.933 - 0.36j]).ravel(),
    "heart": (16 * np.sin(_TURN) ** 3 - 1j * (_LOBES - 0.805)) / 17.805,
}


def render(scene: Scene, size: int = FRAME) -> np.ndarray:
    """Draw the scene, anti-aliased and true to a quarter of a pixel, as uint8 (size, size, 3)."""
    picture = Image.new("RGB", (4 * size, 4 * size), scene.background)
    draw, scale = ImageDraw.Draw(picture), 4 * size / FRAME
    for item in scene.objects:
        corners = (_CORNERS[item.shape] * item.radius + complex(item.x, item.y)) * scale
        draw.polygon(corners.view(np.float64).tolist(), fill=item.rgb)
    return np.asarray(picture.reduce(4))


_HUE = f"(?:({'|'.join(COLORS)}) )?"
_THING = f"an? {_HUE}({'|'.join(SHAPES)})"
_THINGS = f"({'|'.join(NUMBERS[2:])}) {_HUE}({'|'.join(PLURALS.values())})"
_LINK = f" (and|{'|'.join(RELATIONS)}) "
_PROMPT = re.compile(f"(?:{'|'.join(PREFIXES)})(?:{_THING}(?:{_LINK}{_THING})?|{_THINGS})")


def parse_prompt(prompt: str) -> Request:
    """Read a prompt, with or without prefix; raises ValueError if it is not of this world."""
    match = _PROMPT.fullmatch(prompt)
    if not match:
        raise ValueError(f"got the prompt {prompt!r}, expected the form 'a red circle left of a blue square'")
    color, shape, link, color2, shape2, number, shared_color, plural = match.groups()
    if number:
        return Request(((shared_color, SHAPES[[*PLURALS.values()].index(plural)]),), NUMBERS.index(number))
    kinds = ((color, shape), (color2, shape2)) if link else ((color, shape),)
    return Request(kinds, relation=link if link in RELATIONS else None)


def scene_for_prompt(prompt: str, rng: random.Random) -> Scene:
    """Draw a scene of exactly what the prompt asks for; colors it does not name may be held-out ones."""
    request = parse_prompt(prompt)
    # The uncolored things of a group share a color half of the time.
    shared = rng.choice(list(COLORS)) if request.count > 1 and rng.random() < 0.5 else None
    kinds = [(c or shared or rng.choice(list(COLORS)), shape) for c, shape in request.kinds * request.count]
    return Scene(rng.choice(BACKGROUNDS), _place(kinds, request.relation, rng))


def sample_training_example(rng: random.Random) -> tuple[str, str, Scene]:
    """Draw a prompt, its task and a scene of exactly what it asks for; never anything held out."""
    (task,) = rng.choices(TASKS, TASK_WEIGHTS)
    while True:
        prompt = rng.choice(PREFIXES) + _draw_request(task, rng).text
        scene = scene_for_prompt(prompt, rng)
        if not is_held_out(scene):
            return prompt, task, scene


def sample_prompts(task: str, n: int, seed: int, held_out: bool = False) -> list[str]:
    """Draw n prompts, all of held-out things or none; raises ValueError if the task has no such prompts."""
    known = [name for name in TASKS if not (held_out and name in ("single", "two"))]  # these name no colors
    if task not in known:
        raise ValueError(f"got {task!r} with held_out={held_out}, expected one of {', '.join(known)}")
    rng = random.Random(seed)
    requests = (_draw_request(task, rng) for _ in itertools.count())
    wanted = (request.text for request in requests if _held_out(request.kinds) == held_out)
    return list(itertools.islice(wanted, n))


def is_held_out(scene: Scene) -> bool:
    """Say whether the scene has a kind, or a pair of different kinds, that training never sees."""
    return _held_out(tuple((item.color, item.shape) for item in scene.objects))


def _held_out(kinds: tuple[Kind, ...]) -> bool:
    nouns = sorted({f"{color} {shape}" for color, shape in kinds if color})
    pairs = ["|".join(pair).encode() for pair in itertools.combinations(nouns, 2)]
    return not HELD_OUT_NOUNS.isdisjoint(nouns) or any(zlib.crc32(pair) % 10 == 0 for pair in pairs)


def _draw_request(task: str, rng: random.Random) -> Request:
    width = 1 if task in ("single", "color", "counting") else 2
    colored = task.startswith("color") or (task in ("counting", "position") and rng.random() < 0.5)
    colors = rng.sample(list(COLORS), width) if colored else [None] * width
    kinds = tuple(zip(colors, rng.sample(SHAPES, width), strict=True))
    link = rng.choice(RELATIONS) if task == "position" else None
    return Request(kinds, rng.randint(2, 4) if task == "counting" else 1, link)


def _place(kinds: list[tuple[str, str]], wanted: str | None, rng: random.Random) -> tuple[Object, ...]:
    """Lay objects out at random, apart from each other, the first in the wanted relation to the second."""
    items: list[Object] = []
    while len(items) < len(kinds):
        color, shape = kinds[len(items)]
        radius = rng.uniform(MIN_RADIUS, MAX_RADIUS)
        x, y = (rng.uniform(radius + 1, FRAME - radius - 1) for _ in "xy")
        red, green, blue = (channel + rng.randint(-JITTER, JITTER) for channel in COLORS[color])
        if all(math.hypot(x - o.x, y - o.y) >= radius + o.radius + GAP for o in items):
            items.append(Object(shape, color, x, y, radius, (red, green, blue)))
        elif rng.random() < 0.1:
            items.clear()  # the first ones may leave no room for the rest
        if len(kinds) == len(items) == 2 and not _settled(items[0], items[1], wanted):
            items.clear()
    return tuple(items)


def _settled(a: Object, b: Object, wanted: str | None) -> bool:
    """Say whether the pair's relation and reading order survive a shift by SLACK and are the wanted ones."""
    moved = [replace(a, x=a.x + i, y=a.y + j) for i in (-SLACK, SLACK) for j in (-SLACK, SLACK)]
    readings = {(relation(m, b), m.x + m.y < b.x + b.y) for m in moved}
    return len(readings) == 1 and wanted in (None, relation(a, b))


def caption(scene: Scene) -> str:
    """Describe a scene as a prompt, from the top left corner on; raises ValueError if no prompt can."""
    things = sorted(scene.objects, key=lambda item: item.x + item.y)
    colors, shapes = {item.color for item in things}, {item.shape for item in things}
    if len(shapes) == 1 and len(things) <= 4:
        return Request(((colors.pop() if len(colors) == 1 else None, shapes.pop()),), len(things)).text
    if len(things) != 2:
        raise ValueError(f"got {len(things)} objects, expected 1 to 4 of one shape or 2 of different shapes")
    return Request(tuple((item.color, item.shape) for item in things), relation=relation(*things)).text


def questions(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """Ask one (kind, question, answer) of each kind the scene decides; raises like `caption`."""
    asked = [("caption", "Describe the image.", caption(scene))]
    colors, shapes = [item.color for item in scene.objects], [item.shape for item in scene.objects]
    if alone := [item for item in scene.objects if shapes.count(item.shape) == 1]:
        item = rng.choice(alone)
        asked.append(("color", f"What color is the {item.shape}?", item.color))
    if alone := [item for item in scene.objects if colors.count(item.color) == 1]:
        item = rng.choice(alone)
        asked.append(("shape", f"What shape is the {item.color} object?", item.shape))
    counted = rng.choice([None, rng.choice(shapes), rng.choice(SHAPES)])
    total, noun = (shapes.count(counted), PLURALS[counted]) if counted else (len(shapes), "objects")
    asked += [("count", f"How many {noun} are there?", NUMBERS[total]), _ask_exists(scene, rng)]
    if len(scene.objects) == len(set(shapes)) == 2 and relation(*scene.objects):
        asked += _ask_places(rng, *rng.sample(scene.objects, 2))
    return asked


def _ask_exists(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    present = [(item.color, item.shape) for item in scene.objects]
    if rng.random() < 0.5:
        return "exists", f"Is there {_phrase(*rng.choice(present))}?", "yes"
    # Held-out kinds are never asked for in vain: training would teach that they do not exist.
    absent = [k for k in itertools.product(COLORS, SHAPES) if k not in present and not _held_out((k,))]
    near = [k for k in absent if any(k[0] == color or k[1] == shape for color, shape in present)]
    return "exists", f"Is there {_phrase(*rng.choice(near if rng.random() < 0.5 else absent))}?", "no"


def _ask_places(rng: random.Random, one: Object, other: Object) -> list[tuple[str, str, str]]:
    true = relation(one, other)
    said = true if rng.random() < 0.5 else rng.choice([name for name in RELATIONS if name != true])
    return [
        ("relation", f"Is the {one.shape} {said} the {other.shape}?", "yes" if said == true else "no"),
        ("where", f"Where is the {one.shape}?", f"{true} the {other.shape}"),
        ("what", f"What is {true} the {other.shape}?", _phrase(one.color, one.shape)),
    ]


TEMPLATE = FRAME - 2  # radius of the silhouettes that regions are compared with, soft by a pixel
_TEMPLATES = {}
for _name in SHAPES:
    _drawn = render(Scene((0, 0, 0), (Object(_name, "", 48, 48, TEMPLATE / 2, (255, 255, 255)),)), 2 * FRAME)
    _TEMPLATES[_name] = np.asarray(Image.fromarray(_drawn).filter(ImageFilter.BoxBlur(3)))[..., 0] / 255


def judge(image: np.ndarray | Image.Image, prompt: str) -> bool:
    """Say whether a picture shows exactly what the prompt asks for; raises ValueError on a foreign prompt."""
    request, found = parse_prompt(prompt), detect(image)
    asked = request.kinds * request.count
    for order in itertools.permutations(found) if len(found) == len(asked) else ():
        pairs = zip(order, asked, strict=True)
        fits = all(item.shape == shape and color in (None, item.color) for item, (color, shape) in pairs)
        if fits and request.relation in (None, relation(order[0], order[-1])):
            return True
    return False


def detect(image: np.ndarray | Image.Image) -> list[Object]:
    """Read the objects of a picture, PIL or uint8 (H, W, 3); a foreign color or shape is "unknown"."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pixels = np.asarray(picture.convert("RGB").resize((FRAME, FRAME), Image.Resampling.BOX), np.float32)
    labels = _color_labels(pixels)
    return [_read(pixels, labels, row, column) for row, column in _regions(labels)]


def _color_labels(pixels: np.ndarray) -> np.ndarray:
    """Label each pixel with 1 + the index of its color, or 0 for background: (H, W)."""
    background = np.median([np.rot90(pixels, turn)[:2] for turn in range(4)], axis=(0, 1, 2))  # of the rim
    axes = np.array(list(COLORS.values()), np.float32) - background  # (colors, 3)
    # A soft edge mixes background and color, so a pixel belongs to the nearest of the lines between the
    # two, not to the nearest color: half black on white is nearer to purple than to black.
    lengths = np.maximum((axes**2).sum(1), 1)
    along = (pixels - background) @ axes.T  # (H, W, colors)
    share = np.clip(along / lengths, 0, 1)
    nearest = (share * (share * lengths - 2 * along)).argmin(-1)
    solid = np.take_along_axis(share, nearest[..., None], -1)[..., 0] >= 0.5
    return np.where(solid, nearest + 1, 0)


def _regions(labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """List (rows, columns) of each 4-connected region of one label, without background and specks."""
    flat, width = np.pad(labels, 1).ravel(), labels.shape[1] + 2
    spots = np.flatnonzero(flat)
    touching = [(spots[flat[spots] == flat[spots + step]], step) for step in (1, width)]
    a, b = np.hstack([(here, here + step) for here, step in touching])
    root = np.arange(len(flat))
    while (root[a] != root[b]).any():
        np.minimum.at(root, np.maximum(root[a], root[b]), np.minimum(root[a], root[b]))
        root = root[root]
    spots = spots[np.argsort(root[spots], kind="stable")]
    regions = np.split(spots, np.flatnonzero(np.diff(root[spots])) + 1)
    return [(r // width - 1, r % width - 1) for r in regions if len(r) >= MIN_AREA]


def _read(pixels: np.ndarray, labels: np.ndarray, row: np.ndarray, column: np.ndarray) -> Object:
    """Make an object of a region, of the shape whose silhouette of that centroid and area overlaps best."""
    x, y, area = float(column.mean()), float(row.mean()), len(row)
    found = []
    for name, template in _TEMPLATES.items():
        zoom = math.sqrt(template.sum() / area)
        spots = np.stack([row - y, column - x]) * zoom + len(template) / 2
        inside = template[tuple(np.clip(spots, 0, len(template) - 1).astype(np.intp))]
        found.append((float(inside.sum()), TEMPLATE / zoom, name))
    shared, radius, shape = max(found)
    color = list(COLORS)[labels[row[0], column[0]] - 1]
    rgb = tuple(np.median(pixels[row, column], axis=0).astype(int).tolist())
    known = math.dist(rgb, COLORS[color]) <= COLOR_TOLERANCE
    fits = shared / (2 * area - shared) >= MIN_OVERLAP  # intersection over union of two equal areas
    return Object(shape if fits else UNKNOWN, color if known else UNKNOWN, x + 0.5, y + 0.5, radius, rgb)
