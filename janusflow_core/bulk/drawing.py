"""Prompts to pictures, as many as there are: what draws them, and the folder that they are put into."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from ..seeds import counted
from ..values import shown
from .batches import chunks
from .items import Item
from .journal import FAILED, Journal, Note
from .layouts import Layout
from .run import OnItem, Run, seed_of, work_through
from .tables import READERS, read_rows, write_rows

Drawn = tuple[Image.Image, Mapping[str, str]]  # a picture, and the text chunks that a PNG of it gets
# (prompts, the seed of each) -> their pictures
Draw = Callable[[Sequence[str], Sequence[int]], Sequence[Drawn]]


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures in a layout, and OUT.jsonl beside it, which says of each item where its pictures are.

    OUT.paths.json leads from prompts to pictures, where the layout wants it.
    """

    out: Path
    items: Sequence[Item]
    layout: Layout
    seed: int = 0

    def has(self, item: Item, note: Note) -> bool:
        try:
            return all((self.out / name).is_file() for name in self.layout.names(item))
        except ValueError:  # it is told when its turn comes
            return False

    def put(self, item: Item, got: Sequence[Drawn], journal: Journal) -> str:
        for name, write in zip(self.layout.names(item), self.layout.writes(item, got), strict=True):
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            journal.put(self.out / name, write)
        return ""

    def finish(self, notes: Mapping[str, Note], journal: Journal) -> None:
        rows = [self._told(item, notes.get(item.id, {})) for item in self.items]
        journal.put(self.out.with_name(f"{self.out.name}.jsonl"), partial(write_rows, rows=rows, kind=".jsonl"))
        if self.layout.paths:
            drawn = (item for item in self.items if FAILED not in notes.get(item.id, {}))
            paths = {item.prompt: str((self.out / self.layout.names(item)[0]).resolve()) for item in drawn}
            told = json.dumps(paths, indent=1, ensure_ascii=False)
            journal.put_text(self.out.with_name(f"{self.out.name}.paths.json"), f"{told}\n")

    def seeds(self, item: Item) -> list[int]:
        """The seed of each picture of an item."""
        return counted(seed_of(item, self.seed), self.layout.each)

    def check(self, item: Item) -> None:
        """Raise ValueError for an item that cannot be drawn or kept."""
        if not item.prompt:
            raise ValueError("it has no prompt")
        self.layout.names(item)

    def _told(self, item: Item, note: Note) -> dict[str, object]:
        told = {"id": item.id, "prompt": item.prompt}
        if FAILED in note:
            return {**told, "failed": note[FAILED]}
        return {**told, "seed": seed_of(item, self.seed), "files": self.layout.names(item)}


def draw_items(run: Run[Sequence[Drawn]], place: Pictures, draw: Draw, at_once: int, on_item: OnItem | None) -> None:
    """Draw what is left of a run, about `at_once` pictures at a time, and put them in their place."""
    each = place.layout.each

    def drawn(work: Sequence[tuple[Item, None]]) -> list[Sequence[Drawn]]:
        rows = [(item.prompt, seed) for item, _ in work for seed in place.seeds(item)]
        pictures = [one for some in chunks(rows, at_once) for one in draw(*zip(*some, strict=True))]
        return [*chunks(pictures, each)]

    work_through(run, place.check, drawn, max(1, at_once // each), on_item)


def pictures_told(table: Path) -> list[tuple[str, Path]]:
    """Prompt and file of each picture of a run, by the table that it wrote beside its folder.

    Raises FileNotFoundError or ValueError with one sentence where that is none.
    """
    if not table.is_file() or table.suffix not in READERS:
        raise FileNotFoundError(f"there is no {shown(table)}: name the .jsonl that bulk draw wrote beside its folder")
    rows = [row for row, _ in read_rows(table)]
    if broken := next((row for row in rows if isinstance(row, str)), None):
        raise ValueError(broken)
    folder, whole = table.with_suffix(""), [row for row in rows if not isinstance(row, str)]
    return [(row["prompt"], folder / name) for row in whole for name in row.get("files", ())]
