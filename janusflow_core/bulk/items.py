"""What bulk work is done on: prompts and pictures, from text files, tables, folders and tars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from PIL import Image
from pydantic import AliasChoices, ConfigDict, Field, field_validator

from ..image import SUFFIXES, files_below, open_image
from ..train.data import Tars
from ..values import Part, printable, read_text, shown, validated
from ..wildcards import read_prompts
from .tables import READERS, Row, Told, read_rows

IMAGE = ("image", "file_name", "image_path")  # what the column may be called that names a picture


@dataclass(frozen=True)
class Item:
    """One thing to do: a prompt to draw, or a picture to answer a question about.

    `row` is all that its source says of it, `fault` why nothing can be done with it.
    """

    id: str
    prompt: str = ""
    question: str = ""
    open: Callable[[], Image.Image] | None = None
    seed: int | None = None
    row: Row = field(default_factory=dict)
    fault: str = ""


class Columns(Part):
    """What a row may say, under the names that the benchmarks give it; the others are kept as they are."""

    model_config = ConfigDict(strict=False, coerce_numbers_to_str=True)

    id: str = Field(
        default="", validation_alias=AliasChoices("id", "item_id", "prompt_id", "question_id", "key", "index")
    )
    prompt: str = Field(default="", validation_alias=AliasChoices("prompt", "Prompt", "text", "caption"))
    question: str = ""
    image: str = Field(default="", validation_alias=AliasChoices(*IMAGE))
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)

    @field_validator("seed", mode="before")
    @classmethod
    def _none(cls, seed: object) -> object:
        return None if seed == "" else seed


def open_items(path: Path, columns: Mapping[str, str] = {}) -> list[Item]:
    """The items of a .txt (a prompt a line), .jsonl, .json, .csv or .parquet, of a folder of pictures or of prompts in
    .txt, of a .tar, or of a folder or pattern (`part-*.parquet`) of tars or parquet files; in the order of the source.

    An id that no row gives is the row's number, a file's is its name. `columns` say for id, prompt, question, image and
    seed which column of a table that is, where it has another name. A row that is broken or repeats an id with
    something else is an item with a fault; one that repeats it all is left out. Raises FileNotFoundError, ValueError or
    ImportError with one sentence where there is none.
    """
    items: dict[str, Item] = {}
    for number, item in enumerate(_read(path, columns)):
        first = items.setdefault(item.id, item)
        if first is not item and _asked(first) != _asked(item):
            again = f"{item.id} (row {number})"
            items[again] = replace(item, id=again, fault=f"its id {printable(item.id)} is that of another row")
    if not items:
        raise ValueError(f"{shown(path)} holds nothing to do: put prompts or pictures into it")
    return [*items.values()]


def _asked(item: Item) -> tuple[object, ...]:
    return item.prompt, item.question, *(item.row.get(name) for name in IMAGE)


def _read(path: Path, columns: Mapping[str, str]) -> Iterator[Item]:
    if "*" in path.name:
        return _parts(sorted(path.parent.glob(path.name)), path, columns)
    if path.is_dir():
        parts = sorted(one for one in path.iterdir() if one.suffix in (".tar", ".parquet"))
        return _parts(parts, path, columns) if parts else _folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {printable(path)} to work on: check the path")
    return _parts([path], path, columns)


def _parts(paths: list[Path], source: Path, columns: Mapping[str, str]) -> Iterator[Item]:
    """The items of files that belong together; numbers run on from one to the next."""
    kinds = {path.suffix.lower() for path in paths}
    if kinds == {".tar"}:
        return _tars(paths)
    if kinds == {".txt"}:
        prompts = (prompt for path in paths for prompt in read_prompts(path))
        return (Item(_number(k), prompt) for k, prompt in enumerate(prompts))
    if len(kinds) == 1 and kinds <= {*READERS}:
        rows = (told for path in paths for told in _rows(path, columns))
        return (_item(row, _number(k), opener) for k, (row, opener) in enumerate(rows))
    expected = f"a folder, .txt, .tar, {', '.join(READERS)}"
    raise ValueError(f"got {shown(source)} to work on, expected {expected}: convert it")


def _number(place: int) -> str:
    return f"{place:05}"


def _folder(folder: Path) -> Iterator[Item]:
    """A folder's pictures, or its prompts where it has no picture."""
    pictures = files_below(folder, SUFFIXES)
    for path in pictures:
        name = path.relative_to(folder).as_posix()
        yield Item(name, open=partial(open_image, path), row={"image": name})
    for path in () if pictures else files_below(folder, (".txt",)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        yield Item(name, " ".join(read_text(path).split()))


def _tars(paths: list[Path]) -> Iterator[Item]:
    tars = Tars(paths)
    unique = len({*tars.keys}) == len(tars.keys)
    for number, name in enumerate(tars.keys):
        key = name if unique else f"{tars.tar(number).stem}/{name}"
        opener = partial(tars.picture, number) if tars.pictured(number) else None
        try:
            said = tars.row(number)
        except ValueError as error:
            yield Item(key, fault=str(error))
        else:
            yield Item(key, " ".join(said.text.split()), said.question, opener, row={"text": said.text, "image": key})


def _item(row: Row | str, number: str, opener: Callable[[], Image.Image] | None) -> Item:
    """A row of a table, or what is wrong with it, as an item."""
    if isinstance(row, str):
        return Item(number, fault=row)
    try:
        said = validated(Columns, {key: value for key, value in row.items() if value is not None}, "its row")
    except ValueError as error:
        return Item(number, fault=str(error), row=row)
    return Item(said.id or number, said.prompt.strip(), said.question.strip(), opener, said.seed, row)


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[Told]:
    for row, opener in read_rows(path):
        if not isinstance(row, str):
            row = {**row, **{own: row[told] for own, told in columns.items() if told in row}}
        yield row, opener or _beside(path.parent, row)


def _beside(folder: Path, row: Row | str) -> Callable[[], Image.Image] | None:
    """What opens the picture that a row names, from the folder of its file on."""
    if isinstance(row, str):
        return None
    named = next((row[name] for name in IMAGE if row.get(name)), None)
    return partial(open_image, folder / named) if isinstance(named, str) else None
