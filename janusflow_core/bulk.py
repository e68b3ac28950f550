"""Captions for whole folders: in batches, over several processes, and never lost.

What a picture gets is first noted in a journal, then put in its place under a temporary name that becomes the final
one. A run that was stopped, cancelled or killed therefore goes on with the same settings, whichever way it writes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from .captions import (
    NAME,
    TABLES,
    TEXT,
    CaptionOptions,
    Report,
    Table,
    read_beside,
    read_table,
    table_text,
    text_beside,
)
from .image import Picture, pictures_below
from .partial import refusal_told
from .values import printable

ROOM = ".janusflow-captions"  # a folder for the journals of a run that has not ended
FAILED = "failed"
# (pictures, a seed for each) -> a caption for each
Describe = Callable[[Sequence[Picture], Sequence[int]], Sequence[str]]
OnCaption = Callable[[int, int, str], None]  # (how many are done, of how many, a caption); may raise to cancel


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's: every `world`-th picture, as torchrun and accelerate launch say."""

    rank: int = 0
    world: int = 1
    local: int = 0  # of the processes on this machine: which GPU is its own
    launch: str = ""

    @classmethod
    def from_environment(cls) -> Share:
        """This process's, where a launcher started it, else all."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        rank, world, local, port = (os.environ.get(name, "") for name in names)
        return cls(int(rank), int(world), int(local or rank), port) if rank and world else cls()


class CaptionRun:
    """One process's part in captioning a folder: what is to do, and where each caption goes.

    Each picture gets a .txt beside it, or a row in the `table`, a .jsonl or .csv. `settings` is all that decides about
    the words beside the options (question, model …): only a run with the same goes on where one stopped. Raises
    FileNotFoundError or ValueError with one sentence.
    """

    def __init__(
        self,
        folder: Path,
        options: CaptionOptions,
        settings: Mapping[str, Any],
        table: Path | None = None,
        share: Share = Share(),
    ) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {printable(folder)}: check the path.")
        self.folder, self.options, self.share = folder, options, share
        if table is not None and table.suffix not in TABLES:
            raise ValueError(f"{printable(table)} is no table, expected a name that ends in .jsonl or .csv.")
        self._path = table
        self._settings = json.loads(json.dumps({**asdict(options), **settings, "table": table}, default=str))
        below = (path.relative_to(folder).as_posix() for path in pictures_below(folder))
        self.names = [name for name in below if options.takes(name)]
        if not self.names:
            raise ValueError(f"there is no picture to caption in {printable(folder)}: check the folder and patterns.")
        self._owners: dict[Path, str] = {}
        for name in self.names:
            self._owners.setdefault(self._place(name), name)
        self._room = (folder if self._path is None else self._path.parent) / ROOM
        self._journal = self._room / f"{share.rank}.jsonl"
        self._table: Table = {} if self._path is None else read_table(self._path)
        self._noted = self._read_journals()
        self._open_journal()
        self._mend()

    def todo(self) -> list[tuple[int, str]]:
        """Number and name of each picture of this process that still needs a caption."""
        done = {name for name, note in self._noted.items() if TEXT in note}
        done |= self.crowded.keys()
        return [(number, name) for number, name in self._mine if name not in done and not self._keeps(name)]

    @property
    def crowded(self) -> dict[str, str]:
        """Pictures of this process that can have no .txt of their own, and the one whose it is."""
        owners = {} if self._path else {name: self._owners[self._place(name)] for _, name in self._mine}
        return {name: owner for name, owner in owners.items() if name != owner and not self._keeps(name)}

    @property
    def _mine(self) -> list[tuple[int, str]]:
        return [*enumerate(self.names)][self.share.rank :: self.share.world]

    def write(self, name: str, caption: str) -> None:
        """Put a new caption in its place; raises ValueError where what stands there cannot be read or kept."""
        text = self.options.compose(self._existing(name), " ".join(caption.split()))
        self._note(name, TEXT, text)
        self._put(name, text)

    def fail(self, name: str, reason: str) -> None:
        """Note why a picture gets no caption."""
        self._note(name, FAILED, " ".join(reason.split()))

    def finish(self) -> Report | None:
        """End this process's part; the last one to end writes the table, tidies up and gets the report of all."""
        (self._room / f"{self.share.rank}{self._tag}").touch()
        if len([*self._room.glob(f"*{self._tag}")]) < self.share.world or not self._comes_first():
            return None
        noted = self._read_journals()
        texts = {name: note[TEXT] for name, note in noted.items() if TEXT in note}
        failed = {name: note[FAILED] for name, note in noted.items() if FAILED in note}
        if self._path is not None:
            rows = {name: {**self._table.get(name, {}), NAME: name, TEXT: text} for name, text in texts.items()}
            self._replace(self._path, table_text({**self._table, **rows}, self._path.suffix))
        shutil.rmtree(self._room, ignore_errors=True)
        return Report(len(texts), sum(name not in noted for name in self.names), failed)

    # --- where captions lie -------------------------------------------------------------------------------------

    def _place(self, name: str) -> Path:
        return text_beside(self.folder / name)

    def _existing(self, name: str) -> str:
        if self._path is not None:
            return str(self._table.get(name, {}).get(TEXT) or "").strip()
        return read_beside(self.folder / name)

    def _keeps(self, name: str) -> bool:
        if self.options.exists != "skip":
            return False
        with suppress(ValueError):
            return bool(self._existing(name))
        return True  # what nobody can read is not to be lost

    def _put(self, name: str, text: str) -> None:
        if self._path is None:
            self._replace(self._place(name), text)

    def _replace(self, path: Path, text: str) -> None:
        new = self._room / f"{self.share.rank}.new"
        with refusal_told(path.parent):
            new.write_text(text, encoding="utf-8", newline="")
            os.replace(new, path)

    # --- journals -----------------------------------------------------------------------------------------------

    @property
    def _tag(self) -> str:
        return f"-of-{self.share.world}-{self.share.launch}.ended"

    def _comes_first(self) -> bool:
        """Whether this process is the one that tidies up, should two end at once."""
        try:
            (self._room / f"tidying-{self.share.launch}").mkdir(exist_ok=self.share.world == 1)
        except FileExistsError:
            return False
        return True

    def _journals(self) -> Iterator[list[dict[str, str]]]:
        """The notes of every process of this run and of those that it goes on with."""
        for journal in sorted(self._room.glob("*.jsonl")):
            first, *notes = _whole_lines(journal)
            if first == self._settings:
                yield notes

    def _read_journals(self) -> dict[str, dict[str, str]]:
        """What is noted of each picture: a caption, or else why it has none."""
        noted: dict[str, dict[str, str]] = {}
        for notes in self._journals():
            noted.update((note[NAME], note) for note in notes if TEXT in note or note[NAME] not in noted)
        return noted

    def _open_journal(self) -> None:
        """Go on with this process's own journal, less a line that was cut short, or begin one."""
        with refusal_told(self._room.parent):
            self._room.mkdir(parents=True, exist_ok=True)
        first, *notes = _whole_lines(self._journal) if self._journal.is_file() else [None]
        lines = [self._settings, *(notes if first == self._settings else [])]
        self._replace(self._journal, "".join(json.dumps(line) + "\n" for line in lines))
        (self._room / f"{self.share.rank}{self._tag}").unlink(missing_ok=True)

    def _mend(self) -> None:
        """Put the last caption of each journal in its place: its process may have died just before."""
        for *_, last in filter(None, self._journals()):
            if TEXT in last and self._existing(last[NAME]) != last[TEXT]:
                self._put(last[NAME], last[TEXT])

    def _note(self, name: str, what: str, text: str) -> None:
        self._noted[name] = {NAME: name, what: text}
        with refusal_told(self._room.parent), self._journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(self._noted[name]) + "\n")


def caption_pictures(
    run: CaptionRun,
    open_picture: Callable[[Path], Picture],
    describe: Describe,
    at_once: int,
    seed: int = 0,
    on_caption: OnCaption | None = None,
) -> None:
    """Caption what a run has to do, `at_once` pictures at a time, the next ones being opened meanwhile.

    Picture number k of the folder gets seed + k. A picture that `open_picture` refuses (OSError, ValueError) is noted
    as failed. Where memory does not suffice for a batch, it is halved.
    """
    for name, owner in run.crowded.items():
        run.fail(name, f"it would share the .txt of {owner}: rename one of them, or write a table")
    todo, done = run.todo(), 0
    for batch in opened(run.folder, todo, open_picture, at_once):
        pictures = {name: found for (_, name), found in batch if not isinstance(found, Exception)}
        seeds = [(seed + number) % 2**64 for (number, name), _ in batch if name in pictures]
        texts = halving(describe, list(pictures.values()), seeds) if pictures else []
        captions = dict(zip(pictures, texts, strict=True))
        for (_, name), found in batch:
            done += 1
            settle(run, name, found if isinstance(found, Exception) else captions[name])
            if on_caption is not None:
                on_caption(done, len(todo), captions.get(name, ""))


def settle(run: CaptionRun, name: str, found: str | Exception) -> None:
    """Write a caption, or note what is in its way."""
    try:
        if isinstance(found, Exception):
            raise found
        run.write(name, found)
    except ValueError as error:
        run.fail(name, str(error))
    except OSError as error:
        if not isinstance(found, Exception):
            raise  # the disk refuses: the next caption would fare no better
        run.fail(name, str(error))


def halving(describe: Describe, pictures: Sequence[Picture], seeds: Sequence[int]) -> list[str]:
    """Captions of a batch, or of its halves where its memory does not suffice."""
    try:
        return list(describe(pictures, seeds))
    except torch.OutOfMemoryError:
        if len(pictures) == 1:
            raise
    half = len(pictures) // 2
    return halving(describe, pictures[:half], seeds[:half]) + halving(describe, pictures[half:], seeds[half:])


Work = tuple[int, str]


def opened(
    folder: Path, todo: Sequence[Work], open_picture: Callable[[Path], Picture], at_once: int
) -> Iterator[list[tuple[Work, Picture | Exception]]]:
    """Batches of pictures, or of what Pillow says of them; while one is worked on, the next is opened."""
    left = iter(todo)
    with ThreadPoolExecutor(4, "pictures") as pool:

        def begin() -> list[tuple[Work, Future[Picture]]]:
            return [(one, pool.submit(open_picture, folder / one[1])) for one in islice(left, at_once)]

        coming = begin()
        while coming:
            batch, coming = coming, begin()
            yield [(one, _outcome(future)) for one, future in batch]


def _outcome(future: Future[Picture]) -> Picture | Exception:
    try:
        return future.result()
    except (OSError, ValueError) as error:
        return error


def _whole_lines(path: Path) -> list[Any]:
    """The lines of a journal that were written to their end; at least one, None where there is none."""
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    with suppress(ValueError):
        return [json.loads(line) for line in whole] or [None]
    return [None]
