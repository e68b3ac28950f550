"""The scenes of the embedded model's world: 1 to 4 flat shapes on a plain background, drawn and placed.

Lengths are pixels of the 96 x 96 frame, x right and y down from its top left corner. An object's (x, y) is
the centroid of its shape, its radius the distance to the farthest corner. `relation` is the position rule.
"""

import itertools
import math
import random
import zlib
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

FRAME = 96
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLORS = {
    "red": (220, 30, 35), "orange": (245, 135, 15), "yellow": (242, 212, 20), "green": (30, 160, 55),
    "cyan": (40, 205, 215), "blue": (35, 70, 215), "purple": (140, 45, 175), "black": (25, 25, 28),
}  # fmt: skip
BACKGROUNDS = ((250, 250, 250), (228, 228, 228), (248, 240, 222), (222, 234, 248))
RELATIONS = ("left of", "right of", "above", "below")
HELD_OUT_NOUNS = frozenset({"purple star", "cyan heart", "orange cross", "black triangle"})
MIN_RADIUS, MAX_RADIUS, GAP, JITTER = 10.0, 19.0, 2.0, 8
MIN_SHIFT, DOMINANCE = 20.0, 1.5
SLACK = 1.5  # sampled pairs keep this far from the borders of the rule, so reading a render cannot cross one
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

    def is_a(self, kind: Kind) -> bool:
        """Whether it is a thing of this kind, whose color may be open."""
        return self.shape == kind[1] and kind[0] in (None, self.color)


@dataclass(frozen=True)
class Scene:
    """A background and the objects on it, which never touch."""

    background: tuple[int, int, int]
    objects: tuple[Object, ...]


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


def _crescent() -> np.ndarray:
    """A disc without a smaller one, around the centroid of what is left."""
    horns, bite = 0.8, 0.65  # angle of the horns, middle of the smaller disc
    outer = np.exp(1j * np.linspace(horns, 2 * np.pi - horns, 48))
    last = np.angle(outer[-1] - bite)
    inner = bite + abs(outer[-1] - bite) * np.exp(1j * np.linspace(last, -last - 2 * np.pi, 40))
    corners = np.concatenate([outer, inner])
    turned = np.roll(corners, -1)
    areas = (corners.conj() * turned).imag
    corners -= ((corners + turned) * areas).sum() / (3 * areas.sum())
    return corners / abs(corners).max()


_CORNERS["crescent"] = _crescent()  # none of the world's SHAPES: what a fine-tuned model can learn beside them


def render(scene: Scene, size: int = FRAME) -> np.ndarray:
    """Draw the scene, anti-aliased and true to a quarter of a pixel, as uint8 (size, size, 3)."""
    picture = Image.new("RGB", (4 * size, 4 * size), scene.background)
    draw, scale = ImageDraw.Draw(picture), 4 * size / FRAME
    for item in scene.objects:
        corners = (_CORNERS[item.shape] * item.radius + complex(item.x, item.y)) * scale
        draw.polygon(corners.view(np.float64).tolist(), fill=item.rgb)
    return np.asarray(picture.reduce(4))


def is_held_out(scene: Scene) -> bool:
    """Say whether the scene has a kind, or a pair of different kinds, that training never sees."""
    return any_held_out(tuple((item.color, item.shape) for item in scene.objects))


@cache
def any_held_out(kinds: tuple[Kind, ...]) -> bool:
    nouns = sorted({f"{color} {shape}" for color, shape in kinds if color})
    pairs = ["|".join(pair).encode() for pair in itertools.combinations(nouns, 2)]
    return not HELD_OUT_NOUNS.isdisjoint(nouns) or any(zlib.crc32(pair) % 10 == 0 for pair in pairs)


def place(kinds: list[tuple[str, str]], wanted: str | None, rng: random.Random) -> tuple[Object, ...]:
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
