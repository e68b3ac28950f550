"""Data sets: rows of pictures and texts in a folder, in a JSONL file or in WebDataset tars, opened one by one.

A row serves every task that it has what is needed for, unless it or its data set names one.
"""

from __future__ import annotations

import itertools
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image
from pydantic import AliasChoices, Field

from ..captions import read_beside, text_beside
from ..image import SUFFIXES, files_below, open_image
from ..values import Part, parse_json, printable, validated
from .order import TASKS, Task

PARTS = ("picture", "text", "table")  # of a row in a tar
PART_OF = {**dict.fromkeys(SUFFIXES, "picture"), ".txt": "text", ".caption": "text", ".json": "table"}
QUESTIONER = ("user", "human")  # the roles that ask, in OpenAI's and in LLaVA's files
IMAGE_TAG = "<image>"  # which some files write where the picture stands: here it always comes first


@dataclass(frozen=True)
class Sample:
    """One thing to learn: a text, questions with their answers, a picture, as the task wants them."""

    name: str
    task: Task
    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    open: Callable[[], Image.Image] | None = None
    number: int = 0  # of the row, over all data sets


class LeftOut(ValueError):
    """Why a row cannot be learnt from: what kind of fault it has, and the fault."""

    def __init__(self, kind: str, fault: str = "") -> None:
        super().__init__(fault or kind)
        self.kind = kind


class Turn(Part):
    """One side's words in a conversation, in OpenAI's or LLaVA's spelling."""

    role: Literal["user", "assistant", "human", "gpt"] = Field(validation_alias=AliasChoices("role", "from"))
    content: str = Field(validation_alias=AliasChoices("content", "value"))


class Row(Part):
    """What a line of JSON may say; other keys are ignored."""

    image: str = ""
    text: str = Field(default="", validation_alias=AliasChoices("text", "caption"))
    task: Task | None = None
    question: str = ""
    answer: str = ""
    conversation: tuple[Turn, ...] = Field(default=(), validation_alias=AliasChoices("conversation", "conversations"))

    def turns(self) -> tuple[tuple[str, str], ...]:
        """Questions with their answers; raises LeftOut where one lacks the other."""
        said = [(turn.role in QUESTIONER, turn.content.replace(IMAGE_TAG, "").strip()) for turn in self.conversation]
        if not said:
            said = [(True, self.question.strip()), (False, self.answer.strip())] if self.question or self.answer else []
        asked, answered = said[::2], said[1::2]
        complete = len(asked) == len(answered) and all(word for _, word in said)
        if not complete or not all(asks for asks, _ in asked) or any(asks for asks, _ in answered):
            raise LeftOut("no answer", "its questions and answers do not alternate, or one is empty")
        return tuple((question, answer) for (_, question), (_, answer) in zip(asked, answered, strict=True))

    def tasks(self, pictured: bool) -> set[Task]:
        """What can be learnt from the row, which is `pictured` or not; raises LeftOut where that is nothing."""
        turns, text = self.turns(), self.text.strip()
        if not turns and not text:
            raise LeftOut("no caption", "it has no text")
        if not pictured:
            if self.task not in (None, "text"):
                raise LeftOut("no picture", "it has no picture")
            return {"text"}
        possible: set[Task] = {"understanding", "generation"} if text and not turns else {"understanding"}
        if self.task is None:
            return possible
        if self.task == "generation" and not text:
            raise LeftOut("no caption", "it has no text")
        return {self.task}

    def sample(self, name: str, task: Task, picture: Callable[[], Image.Image] | None) -> Sample:
        """The row as a sample of a task; raises LeftOut where something is missing."""
        self.tasks(picture is not None)
        text = self.text.strip() if task == "text" else " ".join(self.text.split())
        return Sample(name, task, text, self.turns(), picture)


class Problems:
    """What was left out: how often each row was, by kinds."""

    def __init__(self) -> None:
        self.found: dict[str, Counter[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """One more of a kind; the name may say more about it."""
        self.found.setdefault(kind, Counter())[name] += 1

    @property
    def counts(self) -> dict[str, int]:
        """How many rows of each kind."""
        return {kind: len(names) for kind, names in sorted(self.found.items())}

    def __str__(self) -> str:
        return ", ".join(f"{count} × {kind} ({self._named(kind)})" for kind, count in self.counts.items())

    def _named(self, kind: str) -> str:
        first, more = next(iter(self.found[kind])), len(self.found[kind]) - 1
        return f"{first} and {more} more" if more else first


class Source(Protocol):
    """A data set: the tasks that each row serves as bits (N,), what was left out, and the rows themselves."""

    tasks: np.ndarray
    problems: Problems

    @property
    def files(self) -> Sequence[Path]: ...  # which, while they stay the same, hold the same rows

    def name(self, row: int) -> str: ...

    def sample(self, row: int, task: Task) -> Sample: ...


def bits(tasks: set[Task]) -> int:
    """Tasks as the bits of a number."""
    return sum(1 << TASKS.index(task) for task in tasks)


def serving(row: Callable[[], Row], pictured: Callable[[Row], bool], name: str, problems: Problems) -> int:
    """The tasks that a row serves, as bits; none, and noted, where it is broken or lacks something."""
    try:
        found = row()
        return bits(found.tasks(pictured(found)))
    except ValueError as error:
        problems.add(error.kind if isinstance(error, LeftOut) else "broken row", f"{name}: {error}")
        return 0


def row_of(told: bytes | str, text: bytes = b"") -> Row:
    """A row from JSON, and from the text that lies beside it; raises ValueError with one sentence."""
    try:
        values = parse_json(told.decode("utf-8-sig") if isinstance(told, bytes) else told, "its JSON")
        values |= {"text": text.decode("utf-8-sig")} if text else {}
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 ({error})") from error
    return validated(Row, {key: value for key, value in values.items() if value is not None}, "its JSON")


def open_data(path: Path, task: Task | None = None) -> Source:
    """The rows of a folder of pictures, a JSONL file, a tar, or a folder or pattern (`shard-*.tar`) of tars.

    With a `task` they serve this one alone. Raises ValueError or OSError with one sentence where there are none.
    """
    source = _opened(path)
    if task is not None:
        source.tasks &= bits({task})
    if not source.tasks.any():
        left = f" ({source.problems})" if source.problems.counts else ""
        raise ValueError(f"{printable(path)} holds nothing to learn from{left}: put pictures with texts into it")
    return source


def _opened(path: Path) -> Source:
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
        return Tars(tars) if tars else Folder(path)
    if "*" in path.name:
        return Tars(sorted(path.parent.glob(path.name)))
    if not path.is_file():
        raise FileNotFoundError(f"there is no {printable(path)} to learn from: check the path")
    kinds: dict[str, Callable[[], Source]] = {".jsonl": partial(Jsonl, path), ".tar": lambda: Tars([path])}
    if path.suffix not in kinds:
        raise ValueError(f"got the data set {printable(path)}, expected a folder, a .jsonl or a .tar: convert it")
    return kinds[path.suffix]()


class Folder:
    """Pictures in a folder and below it, each with a .txt of its name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.problems = folder, Problems()
        found = files_below(folder, (*SUFFIXES, ".txt"))
        texts = {path for path in found if path.suffix.lower() == ".txt"}
        pictures = [path for path in found if path not in texts]
        self.pictures = [path for path in pictures if text_beside(path) in texts]
        for path in pictures:
            if text_beside(path) not in texts:
                self.problems.add("no caption", self._name(path))
        for path in sorted(texts - {text_beside(path) for path in pictures}):
            self.problems.add("no picture", self._name(path))
        self.tasks = np.full(len(self.pictures), bits({"understanding", "generation"}), np.uint8)

    def _name(self, path: Path) -> str:
        return printable(path.relative_to(self.folder))

    @property
    def files(self) -> Sequence[Path]:
        return self.pictures

    def name(self, row: int) -> str:
        return self._name(self.pictures[row])

    def sample(self, row: int, task: Task) -> Sample:
        path = self.pictures[row]
        return Row(text=read_beside(path)).sample(self.name(row), task, partial(open_image, path))


class Jsonl:
    """Lines of JSON; pictures are named from the folder that the file lies in."""

    def __init__(self, path: Path) -> None:
        self.path, self.problems = path, Problems()
        starts, tasks = array("q"), array("B")
        with path.open("rb") as file:
            for number, line in enumerate(file):
                starts.append(file.tell() - len(line))
                tasks.append(self._serving(number, line))
        self.starts, self.tasks = np.array(starts), np.array(tasks)

    @property
    def files(self) -> Sequence[Path]:
        return [self.path]

    def _serving(self, number: int, line: bytes) -> int:
        if not line.strip():
            return 0
        return serving(lambda: row_of(line), lambda row: bool(row.image), self.name(number), self.problems)

    def name(self, row: int) -> str:
        return f"line {row + 1} of {printable(self.path.name)}"

    def sample(self, row: int, task: Task) -> Sample:
        with self.path.open("rb") as file:
            file.seek(self.starts[row])
            said = row_of(file.readline())
        picture = partial(open_image, self.path.parent / said.image) if said.image else None
        return said.sample(self.name(row), task, picture)


class Tars:
    """WebDataset tars: files that stand together under one name are a row; the place of each is looked up once."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files, self.problems = list(paths), Problems()
        self.keys: list[str] = []
        # Of each row its tar, then first byte and length of picture, text and JSON; a length of 0 where there is none.
        self.places, tasks = array("q"), array("B")
        for number, path in enumerate(paths):
            for key, parts in _grouped(path):
                self.keys.append(key)
                self.places.extend((number, *itertools.chain(*(parts.get(part, (0, 0)) for part in PARTS))))
                tasks.append(self._serving(len(self.keys) - 1))
        self.tasks = np.array(tasks)

    def _serving(self, number: int) -> int:
        return serving(lambda: self.row(number), lambda row: self.pictured(number), self.name(number), self.problems)

    def tar(self, row: int) -> Path:
        """The file that a row lies in."""
        return self.files[self._place(row, "picture")[0]]

    def pictured(self, row: int) -> bool:
        """Whether a row has a picture."""
        return bool(self._place(row, "picture")[2])

    def _place(self, row: int, part: str) -> tuple[int, int, int]:
        """Tar, first byte and length."""
        first, at = row * (1 + 2 * len(PARTS)), 1 + 2 * PARTS.index(part)
        return self.places[first], self.places[first + at], self.places[first + at + 1]

    def _bytes(self, row: int, part: str) -> bytes:
        tar, start, length = self._place(row, part)
        with self.files[tar].open("rb") as file:
            file.seek(start)
            return file.read(length)

    def row(self, row: int) -> Row:
        """What a row says; raises ValueError with one sentence."""
        return row_of(self._bytes(row, "table") or "{}", self._bytes(row, "text"))

    def name(self, row: int) -> str:
        return f"{printable(self.keys[row])} of {printable(self.tar(row).name)}"

    def sample(self, row: int, task: Task) -> Sample:
        picture = partial(self.picture, row) if self.pictured(row) else None
        return self.row(row).sample(self.name(row), task, picture)

    def picture(self, row: int) -> Image.Image:
        """A row's picture, opened."""
        return open_image(BytesIO(self._bytes(row, "picture")), self.name(row))


def _grouped(path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """The rows of a tar: the name that files share up to the first dot, and first byte and length of each part."""
    try:
        with tarfile.open(path, "r:") as tar:
            files = (member for member in tar if member.isfile())
            for key, members in itertools.groupby(files, lambda member: _split(member.name)[0]):
                told = {_split(member.name)[1]: (member.offset_data, member.size) for member in members}
                yield key, told
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{printable(path)} is no tar that can be read ({error}): copy it again") from error


def _split(name: str) -> tuple[str, str]:
    """A file's key, and the part of a row that it is."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}{slash}{stem}", PART_OF.get(f".{suffix.lower()}", "other")
