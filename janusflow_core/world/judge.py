"""A judge without weights: reads colors and silhouettes off a picture and compares them with a prompt."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from .scenes import COLORS, FRAME, SHAPES, Object, Scene, relation, render
from .talk import parse_prompt

MIN_AREA, MIN_OVERLAP, COLOR_TOLERANCE = 40, 0.75, 80.0  # the smallest object has 130 pixels
UNKNOWN = "unknown"  # what detect calls a color or a shape that is none of ours
TEMPLATE = FRAME - 2  # radius of the silhouettes that regions are compared with, soft by a pixel
_TEMPLATES = {}
for _name in (*SHAPES, "crescent"):
    _drawn = render(Scene((0, 0, 0), (Object(_name, "", 48, 48, TEMPLATE / 2, (255, 255, 255)),)), 2 * FRAME)
    _TEMPLATES[_name] = np.asarray(Image.fromarray(_drawn).filter(ImageFilter.BoxBlur(3)))[..., 0] / 255


def judge(image: np.ndarray | Image.Image, prompt: str) -> bool:
    """Say whether a picture shows exactly what the prompt asks for; raises ValueError on a foreign prompt."""
    request, found = parse_prompt(prompt), detect(image)
    asked = request.kinds * request.count
    for order in itertools.permutations(found) if len(found) == len(asked) else ():
        fits = all(item.is_a(kind) for item, kind in zip(order, asked, strict=True))
        if fits and request.relation in (None, relation(order[0], order[-1])):
            return True
    return False


def detect(image: np.ndarray | Image.Image, shapes: Sequence[str] = SHAPES) -> list[Object]:
    """Read the objects of a picture, PIL or uint8 (H, W, 3); a foreign color or shape is "unknown"."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pixels = np.asarray(picture.convert("RGB").resize((FRAME, FRAME), Image.Resampling.BOX), np.float32)
    labels = _color_labels(pixels)
    return [_read(pixels, labels, row, column, shapes) for row, column in _regions(labels)]


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


def _read(pixels: np.ndarray, labels: np.ndarray, row: np.ndarray, column: np.ndarray, shapes: Sequence[str]) -> Object:
    """Make an object of a region, of the shape whose silhouette of that centroid and area overlaps best."""
    x, y, area = float(column.mean()), float(row.mean()), len(row)
    found = []
    for name in shapes:
        template = _TEMPLATES[name]
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
