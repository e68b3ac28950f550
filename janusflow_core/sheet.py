"""One picture of many: cells in rows and columns, each row and column with what its pictures were drawn with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

GAP, LETTER, WIDEST = 6, 14, 40  # pixels between cells, of a letter; letters of a label
Kinds = Mapping[str, Callable[[str], Any]]  # name of a setting -> what reads its values


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes from row to row or from column to column."""

    name: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str, kinds: Kinds) -> Axis:
        """The axis of `name=5,10,20`, or `name=a heart|a star` where values hold commas.

        Raises ValueError for a name that is not among `kinds`, for values that are not of their kind, and for none.
        """
        name, _, listed = text.partition("=")
        return cls.of(name.strip(), listed, kinds)

    @classmethod
    def of(cls, name: str, listed: str, kinds: Kinds) -> Axis:
        """The same with name and values by themselves."""
        if name not in kinds:
            raise ValueError(f"got {name!r} to go through, expected one of {', '.join(kinds)}: steps=5,10,20")
        parts = [part.strip() for part in listed.split("|" if "|" in listed else ",")]
        values = []
        for part in filter(None, parts):
            try:
                values.append(kinds[name](part))
            except ValueError as error:
                raise ValueError(f"{part!r} is no value of {name}: {error}") from None
        if not values:
            raise ValueError(f"{name} has no values to go through: write them as 5,10,20")
        return cls(name, tuple(values))

    def labels(self) -> list[str]:
        """What stands beside its pictures: its name with each value."""
        return [
            _short(f"{self.name} {value:g}" if type(value) is float else f"{self.name} {value}")
            for value in self.values
        ]


def yes_or_no(text: str) -> bool:
    """True for yes, true, on and 1, False for no, false, off and 0; raises ValueError for anything else."""
    answers = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}
    if text.lower() not in answers:
        raise ValueError("expected yes or no")
    return answers[text.lower()]


def any_value(text: str) -> bool | int | float | str:
    """A value as it is written: true or false, a whole number, another number, or words."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def sheet(cells: Sequence[Sequence[Image.Image]], columns: Sequence[str], rows: Sequence[str]) -> Image.Image:
    """The pictures of `cells` in rows, with a label above each column and, where there are any, before each row.

    Pictures smaller than the largest lie in the middle of their cells.
    """
    from PIL import Image, ImageDraw, ImageFont  # here, so that the command line's help comes without it

    font = ImageFont.load_default(LETTER)
    pictures = [picture for row in cells for picture in row]
    width, height = (max(picture.size[side] for picture in pictures) for side in (0, 1))
    width = max(width, *(round(font.getlength(label)) for label in columns))
    left = GAP + max((round(font.getlength(label)) + GAP for label in rows), default=0)
    top = LETTER + 2 * GAP
    size = left + len(columns) * (width + GAP), top + len(cells) * (height + GAP)
    whole = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(whole)
    for number, label in enumerate(columns):
        draw.text((left + number * (width + GAP) + width // 2, top // 2), label, "black", font, anchor="mm")
    for line, row in enumerate(cells):
        y = top + line * (height + GAP)
        if rows:
            draw.text((left - GAP, y + height // 2), rows[line], "black", font, anchor="rm")
        for number, picture in enumerate(row):
            x = left + number * (width + GAP)
            whole.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
    return whole


def _short(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"
