"""Rows in .jsonl, .json, .csv and .parquet, read one by one and written whole."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..captions import TABLES, rows_text
from ..image import open_image
from ..values import parse_json, printable, read_text, shown
from .journal import ESCAPED

Row = Mapping[str, Any]
# A row, or what is wrong with it, and what opens the picture that lies in the file itself.
Told = tuple[Row | str, Callable[[], Image.Image] | None]
PICTURE = "image"  # the column of parquet in which `datasets` keeps pictures
PARQUET = 'parquet needs pyarrow: pip install "pyarrow>=15"'


def read_rows(path: Path) -> Iterator[Told]:
    """The rows of a table; raises ValueError or ImportError with one sentence where it is none."""
    return READERS[path.suffix.lower()](path)


def write_rows(path: Path, rows: Sequence[Row], kind: str) -> None:
    """Write rows to a file as a table of a `kind` (.jsonl, .csv or .parquet), whatever the file's name."""
    WRITERS[kind](path, rows)


def _of_jsonl(path: Path) -> Iterator[Told]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"line {number} of {shown(path)}"
            try:
                if text := line.decode("utf-8-sig").strip():
                    yield parse_json(text, where), None
            except UnicodeDecodeError as error:
                yield f"{where} is not UTF-8 ({error})", None
            except ValueError as error:
                yield str(error), None


def _of_json(path: Path) -> Iterator[Told]:
    """A list of objects, or an object of them by their ids."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(path)} is not valid JSON ({error}): copy it again") from error
    if not isinstance(found, (dict, list)):
        raise ValueError(f"{shown(path)} holds no list and no object of rows: correct it")
    rows = [({"id": key}, row) for key, row in found.items()] if isinstance(found, dict) else [({}, x) for x in found]
    for own, row in rows:
        told = {"prompt": row} if isinstance(row, str) else row
        yield ({**own, **told} if isinstance(told, dict) else "its row is no object"), None


def _of_csv(path: Path) -> Iterator[Told]:
    for row in csv.DictReader(StringIO(read_text(path), newline="")):
        yield {key: value for key, value in row.items() if key is not None}, None


def _of_parquet(path: Path) -> Iterator[Told]:
    """Rows without their pictures, which are read with their group of rows when they are wanted."""
    file = _parquet(path)
    kinds = {one.name: str(one.type) for one in file.schema_arrow}
    encoded = kinds.get(PICTURE, "").startswith("struct<bytes")
    columns = [name for name in kinds if not (encoded and name == PICTURE)]
    for group in range(file.num_row_groups):
        rows = file.read_row_group(group, columns).to_pylist() if columns else None
        for number in range(file.metadata.row_group(group).num_rows):
            yield rows[number] if rows else {}, partial(_from_group, path, group, number) if encoded else None


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError(PARQUET) from error
    try:
        return ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(f"{shown(path)} is no parquet file ({printable(error)}): copy it again") from error


@lru_cache(maxsize=2)  # pictures are wanted in their order, a batch ahead
def _group(path: Path, group: int) -> Any:
    return _parquet(path).read_row_group(group, [PICTURE]).column(PICTURE)


def _from_group(path: Path, group: int, number: int) -> Image.Image:
    found = _group(path, group)[number].as_py() or {}
    if not found.get("bytes"):
        raise ValueError(f"row {number} of {shown(path)} holds no picture: leave it out")
    return open_image(BytesIO(found["bytes"]), found.get("path") or f"row {number} of {shown(path)}")


def _to_text(suffix: str, path: Path, rows: Sequence[Row]) -> None:
    path.write_text(rows_text(rows, suffix), encoding="utf-8", errors=ESCAPED, newline="")


def _to_parquet(path: Path, rows: Sequence[Row]) -> None:
    try:
        from pyarrow import Table
        from pyarrow.parquet import write_table
    except ImportError as error:
        raise ImportError(PARQUET) from error
    columns = dict.fromkeys(column for row in rows for column in row)
    write_table(Table.from_pydict({column: [row.get(column) for row in rows] for column in columns}), path)


READERS = {".jsonl": _of_jsonl, ".json": _of_json, ".csv": _of_csv, ".parquet": _of_parquet}
WRITERS = {**{suffix: partial(_to_text, suffix) for suffix in TABLES}, ".parquet": _to_parquet}
