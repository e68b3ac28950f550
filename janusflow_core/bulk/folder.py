"""Captions for whole folders: in batches, over several processes, and never lost.

What a picture gets is first noted in a journal, then put in its place under a temporary name that becomes the final
one. A run that was stopped, cancelled or killed therefore goes on with the same settings, whichever way it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..captions import (
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
from ..image import Picture, pictures_below
from ..seeds import later
from ..values import printable
from .batches import chunks, halving, opened
from .journal import DONE, FAILED, ITEM, Journal, Share

ROOM = ".janusflow-captions"  # a folder for the journals of a run that has not ended
# (pictures, a seed for each) -> a caption for each
Describe = Callable[[Sequence[Picture], Sequence[int]], Sequence[str]]
OnCaption = Callable[[int, int, str], None]  # (how many are done, of how many, a caption); may raise to cancel


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
        below = (path.relative_to(folder).as_posix() for path in pictures_below(folder))
        self.names = [name for name in below if options.takes(name)]
        if not self.names:
            raise ValueError(f"there is no picture to caption in {printable(folder)}: check the folder and patterns.")
        self._owners: dict[Path, str] = {}
        for name in self.names:
            self._owners.setdefault(self._place(name), name)
        self._table: Table = {} if self._path is None else read_table(self._path)
        room = (folder if self._path is None else self._path.parent) / ROOM
        self.journal = Journal(room, {**asdict(options), **settings, "table": table}, share)
        self._mend()

    def todo(self) -> list[tuple[int, str]]:
        """Number and name of each picture of this process that still needs a caption."""
        done = {name for name, note in self.journal.notes.items() if DONE in note}
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
        self.journal.note(name, DONE, text)
        self._put(name, text)

    def fail(self, name: str, reason: str) -> None:
        """Note why a picture gets no caption."""
        self.journal.note(name, FAILED, " ".join(reason.split()))

    def finish(self) -> Report | None:
        """End this process's part; the last one to end writes the table, tidies up and gets the report of all."""
        if not self.journal.end():
            return None
        noted = self.journal.read()
        texts = {name: note[DONE] for name, note in noted.items() if DONE in note}
        failed = {name: note[FAILED] for name, note in noted.items() if FAILED in note}
        if self._path is not None:
            rows = {name: {**self._table.get(name, {}), NAME: name, TEXT: text} for name, text in texts.items()}
            self.journal.put_text(self._path, table_text({**self._table, **rows}, self._path.suffix))
        self.journal.close()
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
            self.journal.put_text(self._place(name), text)

    def _mend(self) -> None:
        """Put the last caption of each process in its place: it may have died just before."""
        for last in self.journal.last():
            if DONE in last and self._existing(last[ITEM]) != last[DONE]:
                self._put(last[ITEM], last[DONE])


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

    def made(batch: Sequence[tuple[int, Picture]]) -> Sequence[str]:
        return describe([picture for _, picture in batch], [later(seed, number) for number, _ in batch])

    todo, done = run.todo(), 0
    for batch in opened(chunks(todo, at_once), lambda one: open_picture(run.folder / one[1])):
        good = {one: found for one, found in batch if not isinstance(found, Exception)}
        texts = halving(made, [(number, picture) for (number, _), picture in good.items()]) if good else []
        captions = dict(zip(good, texts, strict=True))
        for one, found in batch:
            done += 1
            settle(run, one[1], found if isinstance(found, Exception) else captions[one])
            if on_caption is not None:
                on_caption(done, len(todo), captions.get(one, ""))


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
