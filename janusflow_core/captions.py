"""Captions: what is asked for them, which pictures get one, and the files they are kept in."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args

from .values import parse_json, read_text, shown

# Questions that need no thinking up, meant for JanusFlow-1.3B: its training asked for captions in many words.
PRESETS = {
    "short": "Describe the image in one short sentence.",
    "detailed": "Describe the image in detail.",
    "tags": "List what the image shows as short tags, separated by commas.",
    "prompt": "Write the prompt from which an image generator would draw this image.",
}
Exists = Literal["skip", "overwrite", "append", "prepend"]
TABLES = (".jsonl", ".csv")
NAME, TEXT = "file_name", "text"  # the columns of a table, as `datasets` reads them from a folder of pictures
Table = dict[str, dict[str, Any]]  # file name -> its row, with all columns that somebody gave it


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """What becomes of captions. `exists` says what of a picture that has one, `trigger` stands in front of all.

    Patterns of `include` and `exclude`, like `*.png` or `drafts/*`, are held against a picture's path below the folder
    and its name. Raises ValueError for another `exists`.
    """

    exists: Exists = "skip"
    trigger: str = ""
    separator: str = ", "
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.exists not in get_args(Exists):
            raise ValueError(f"exists is {self.exists!r}, expected one of {', '.join(get_args(Exists))}.")

    def compose(self, old: str, new: str) -> str:
        """The text to keep for a `new` caption where there is an `old` one, or ''; the trigger stands in front once."""
        parts = {"append": (old, new), "prepend": (new, old)}.get(self.exists, (new,))
        text = self.separator.join(part for part in parts if part)
        return text if text.startswith(self.trigger) else f"{self.trigger}{self.separator}{text}"

    def takes(self, name: str) -> bool:
        """Whether the patterns let a picture in; upper and lower case are alike."""

        def fits(patterns: Sequence[str]) -> bool:
            ways = (name.lower(), name.lower().rpartition("/")[2])
            return any(fnmatch(way, pattern.lower()) for pattern in patterns for way in ways)

        return (not self.include or fits(self.include)) and not fits(self.exclude)


@dataclass
class Report:
    """What a run did: what was made, what was there and is kept, and why there is nothing of others."""

    written: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.told("captioned", "had a caption")

    def told(self, made: str, there: str) -> str:
        """The numbers in words, zeros left out but for what was `made`."""
        numbers = {made: self.written, there: self.kept, "failed": len(self.failed)}
        return ", ".join(f"{count} {what}" for what, count in numbers.items() if count or what == made)


def text_beside(picture: Path) -> Path:
    """Where a picture's own caption lies."""
    return picture.with_suffix(".txt")


def read_beside(picture: Path) -> str:
    """The caption in the .txt beside a picture, in one line, '' where there is none; raises ValueError for no UTF-8."""
    text = text_beside(picture)
    return " ".join(read_text(text, 1).removeprefix("\ufeff").split()) if text.is_file() else ""


def read_table(path: Path) -> Table:
    """The rows of a .jsonl or .csv by file name, none where there is no such file; raises ValueError."""
    if not path.is_file():
        return {}
    text, where = read_text(path).removeprefix("\ufeff"), shown(path, 2)
    table = {}
    for row in _csv_rows(text) if path.suffix == ".csv" else _json_rows(text, where):
        if not isinstance(row.get(NAME), str) or None in row:
            raise ValueError(f"{where} has a row that does not fit a column {NAME}: correct it, or write elsewhere.")
        table[row[NAME]] = dict(row)
    return table


def _csv_rows(text: str) -> Iterable[Mapping[Any, Any]]:
    return csv.DictReader(StringIO(text, newline=""))


def _json_rows(text: str, where: str) -> Iterable[Mapping[Any, Any]]:
    lines = enumerate(text.split("\n"), 1)
    return (parse_json(line, f"line {number} of {where}") for number, line in lines if line.strip())


def table_text(table: Table, suffix: str) -> str:
    """What `read_table` reads from a .jsonl or .csv, in the order of the names."""
    return rows_text([table[name] for name in sorted(table)], suffix, (NAME, TEXT))


def rows_text(rows: Sequence[Mapping[str, Any]], suffix: str, first: Sequence[str] = ()) -> str:
    """Rows as a .jsonl or .csv, whose `first` columns are these; what JSON has no word for is written as a text."""
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    text = StringIO(newline="")
    writer = csv.DictWriter(text, [*dict.fromkeys((*first, *(column for row in rows for column in row)))], restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
