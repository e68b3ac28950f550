"""What the processes of a run note of its items, so that a run may be stopped, cancelled or killed and then goes on.

A run has a room, a folder in which each process keeps a journal: a line of JSON for each item that is done or failed.
When the last process ends the room is gone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..partial import refusal_told

ITEM, DONE, FAILED = "item", "done", "failed"  # what a line tells: of which item, what it got, or why it got nothing
Note = Mapping[str, str]
ESCAPED = "backslashreplace"  # half a character, as names of files and scraped texts have it, as JSON writes it


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's: every `world`-th piece, as torchrun and accelerate launch say."""

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


class Journal:
    """One process's journal in the room of its run, and what all processes noted until it was opened.

    `settings` is all that decides about what an item gets: only journals of the same count. Raises OSError with one
    sentence when the disk is full or refuses.
    """

    def __init__(self, room: Path, settings: Mapping[str, Any], share: Share) -> None:
        self._room, self._share = room, share
        self._settings = json.loads(json.dumps(settings, default=str))
        self._path = room / f"{share.rank}.jsonl"
        self.notes = self.read()
        self._open()

    def note(self, item: str, what: str, text: str) -> None:
        """Write down what became of an item: DONE or FAILED, and how."""
        self.notes[item] = {ITEM: item, what: text}
        with refusal_told(self._room.parent), self._path.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(self.notes[item]) + "\n")

    def read(self) -> dict[str, Note]:
        """What all processes have noted of each item: what it got, or else why it has nothing."""
        noted: dict[str, Note] = {}
        for notes in self._journals():
            noted.update((note[ITEM], note) for note in notes if DONE in note or note[ITEM] not in noted)
        return noted

    def last(self) -> list[Note]:
        """The last note of each process, which may have died right after it."""
        return [notes[-1] for notes in self._journals() if notes]

    def put(self, path: Path, write: Callable[[Path], object]) -> None:
        """Let `write` make a file under a temporary name that then becomes `path`."""
        new = self._room / f"{self._share.rank}.new"
        with refusal_told(path.parent):
            write(new)
            os.replace(new, path)

    def put_text(self, path: Path, text: str) -> None:
        """Write a text as a file that appears whole or not at all."""
        self.put(path, lambda new: new.write_text(text, encoding="utf-8", errors=ESCAPED, newline=""))

    def end(self) -> bool:
        """End this process's part; True for the last one, which has to tidy up."""
        (self._room / f"{self._share.rank}{self._tag}").touch()
        return len([*self._room.glob(f"*{self._tag}")]) == self._share.world and self._comes_first()

    def close(self) -> None:
        """Forget the room and all that is in it."""
        shutil.rmtree(self._room, ignore_errors=True)

    @property
    def _tag(self) -> str:
        return f"-of-{self._share.world}-{self._share.launch}.ended"

    def _comes_first(self) -> bool:
        """Whether this process is the one that tidies up, should two end at once."""
        try:
            (self._room / f"tidying-{self._share.launch}").mkdir(exist_ok=self._share.world == 1)
        except FileExistsError:
            return False
        return True

    def _journals(self) -> Iterator[list[Note]]:
        """The notes of every process of this run and of those that it goes on with."""
        for journal in sorted(self._room.glob("*.jsonl")):
            first, *notes = _whole_lines(journal)
            if first == self._settings:
                yield notes

    def _open(self) -> None:
        """Go on with this process's own journal, less a line that was cut short, or begin one."""
        with refusal_told(self._room.parent):
            self._room.mkdir(parents=True, exist_ok=True)
        first, *notes = _whole_lines(self._path) if self._path.is_file() else [None]
        lines = [self._settings, *(notes if first == self._settings else [])]
        self.put_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        (self._room / f"{self._share.rank}{self._tag}").unlink(missing_ok=True)


def begun(room: Path) -> bool:
    """Whether any process of a run has noted anything."""
    return any(len(_whole_lines(journal)) > 1 for journal in room.glob("*.jsonl"))


def _whole_lines(path: Path) -> list[Any]:
    """The lines of a journal that were written to their end; at least one, None where there is none."""
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    with suppress(ValueError):
        return [json.loads(line) for line in whole] or [None]
    return [None]
