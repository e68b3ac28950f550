"""Where the pictures of an item lie, as people and as the benchmarks that score them want it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from ..png import info
from ..values import printable
from .items import Item

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
QUALITY = 95  # of JPEG and WebP
# A part of a path that every system takes for a name.
SAFE = re.compile(r"(?![. ])[^\x00-\x1f<>:\"|?*\\/]{1,200}(?<![. ])")
Write = Callable[[Path], object]
LayoutName = Literal["plain", "geneval", "geneval2", "dpg", "mjhq"]


@dataclass(frozen=True)
class Layout:
    """So many pictures of `each` item under a `name` with its {id}, the picture's {n} and columns of its row.

    In a `grid` all pictures of an item are one square. A `row` is the name of a file with the item's row. With `paths`
    an object with the path of each prompt's first picture lies beside the folder.
    """

    name: str = "{id}.png"
    each: int = 1
    grid: bool = False
    row: str = ""
    paths: bool = False

    def names(self, item: Item) -> list[str]:
        """The files of an item in the order in which they are written: with the last all are there.

        Raises ValueError where one may not be a file's name, inside the folder that it is to lie in.
        """
        known = {**item.row, "id": item.id}
        found = [_filled(self.name, {**known, "n": n}) for n in range(1 if self.grid else self.each)]
        return found + ([_filled(self.row, known)] if self.row else [])

    def writes(self, item: Item, drawn: Sequence[tuple[Image.Image, Mapping[str, str]]]) -> list[Write]:
        """What writes each of the files, of pictures and the text chunks that go into PNGs, but for a grid."""
        suffix = Path(self.name).suffix
        shown = [(square([picture for picture, _ in drawn]), {})] if self.grid else drawn
        found = [partial(_save, picture=picture, suffix=suffix, text=text) for picture, text in shown]
        row = json.dumps(dict(item.row) or {"prompt": item.prompt}, ensure_ascii=False, default=str)
        return [*found, *([partial(Path.write_text, data=row, encoding="utf-8")] if self.row else [])]


LAYOUTS: dict[LayoutName, Layout] = {
    "plain": Layout(),
    "geneval": Layout("{id}/samples/{n:04}.png", 4, row="{id}/metadata.jsonl"),
    "geneval2": Layout(paths=True),
    "dpg": Layout(each=4, grid=True),
    "mjhq": Layout("{category}/{id}.jpg"),
}


def new_layout(kind: LayoutName = "plain", each: int | None = None, name: str | None = None) -> Layout:
    """The layout of a kind, with another number of pictures or another name; raises ValueError where these clash."""
    layout = LAYOUTS[kind]
    each = layout.each if each is None else each
    if each < 1:
        raise ValueError(f"got {each} pictures of each prompt, expected at least 1")
    if name is None:
        name = "{id}_{n}.png" if layout.name == "{id}.png" and each > 1 and not layout.grid else layout.name
    if Path(name).suffix.lower() not in FORMATS:
        raise ValueError(f"got the name {name} for pictures, expected one that ends in {', '.join(FORMATS)}")
    if layout.grid and math.isqrt(each) ** 2 != each:
        raise ValueError(f"{each} pictures make no square: take 1, 4 or 9 of each prompt")
    if each > 1 and not layout.grid and "{n" not in name:
        raise ValueError(f"the name {name} is the same for all {each} pictures of a prompt: put {{n}} into it")
    return replace(layout, each=each, name=name)


def square(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size as one, row by row, with nothing between."""
    side, (width, height) = math.isqrt(len(pictures)), pictures[0].size
    whole = Image.new("RGB", (side * width, side * height))
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % side * width, number // side * height))
    return whole


def _filled(template: str, known: Mapping[str, object]) -> str:
    try:
        name = template.format_map(known)
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"there is nothing to fill {template} with ({printable(error)})") from error
    if not all(SAFE.fullmatch(part) for part in name.split("/")):
        raise ValueError(f"{printable(name)} is no name for a file: give it an id of letters and digits")
    return name


def _save(path: Path, picture: Image.Image, suffix: str, text: Mapping[str, str]) -> None:
    kind = FORMATS[suffix.lower()]
    picture.save(path, format=kind, **({"pnginfo": info(text)} if kind == "PNG" else {"quality": QUALITY}))
