"""Items worked through by any number of processes: always the same ones together, whatever else happens.

A batch is so many items that follow each other, whole batches are dealt out in turn, and one of which something is
missing is computed again as a whole. What an item gets therefore depends neither on the number of processes nor on
where a run was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ..captions import Report
from ..partial import appear, room
from ..values import printable, read_json, short
from .batches import chunks, halving, opened
from .items import Item
from .journal import DONE, FAILED, Journal, Note, Share, begun

Found = TypeVar("Found")
Got = TypeVar("Got")
Contra = TypeVar("Contra", contravariant=True)
OnItem = Callable[[int, int], None]  # (how many are done, of how many); may raise to cancel
SEED_BYTES = 6  # 48 bits: JSON and the page keep such numbers as they are


def seed_of(item: Item, seed: int) -> int:
    """An item's own seed, or one that follows from its id and the seed of the run."""
    if item.seed is not None:
        return item.seed
    return int.from_bytes(blake2b(f"{seed}/{item.id}".encode(), digest_size=SEED_BYTES).digest(), "big")


class Place(Protocol[Contra]):
    """Where what items get is put: a folder or a file, `out`."""

    @property
    def out(self) -> Path: ...

    @property
    def items(self) -> Sequence[Item]: ...

    def has(self, item: Item, note: Note) -> bool: ...  # whether all of it is there; what is noted of it may say so

    def put(self, item: Item, got: Contra, journal: Journal) -> str: ...  # and what is to be noted of it

    def finish(self, notes: Mapping[str, Note], journal: Journal) -> None: ...


class Run(Generic[Got]):
    """One process's part in a run over the items of a place.

    `settings` is all that decides about what they get, as `agreed` on. Raises OSError with one sentence.
    """

    def __init__(self, place: Place[Got], settings: Mapping[str, Any], share: Share = Share()) -> None:
        self.place, self.share = place, share
        self.journal = Journal(_room(place.out), settings, share)

    def done(self, item: Item) -> bool:
        """Whether an item has all that it gets."""
        return self.place.has(item, self.journal.notes.get(item.id, {}))

    def batches(self, at_once: int) -> Iterator[Sequence[Item]]:
        """Those of this process of which something is still to do."""
        mine = islice(chunks(self.place.items, at_once), self.share.rank, None, self.share.world)
        return (batch for batch in mine if not all(map(self.done, batch)))

    def settle(self, item: Item, got: Got | Exception) -> None:
        """Put what an item got in its place, or note what is in its way."""
        if isinstance(got, Exception):
            self.journal.note(item.id, FAILED, " ".join(str(got).split()))
        else:
            self.journal.note(item.id, DONE, self.place.put(item, got, self.journal))

    def finish(self) -> Report | None:
        """End this process's part; the last one to end gets the report of all."""
        if not self.journal.end():
            return None
        known = {item.id for item in self.place.items}
        notes = {name: note for name, note in self.journal.read().items() if name in known}
        failed = {name: note[FAILED] for name, note in notes.items() if FAILED in note}
        self.place.finish(notes, self.journal)
        self.journal.close()
        return Report(len(notes) - len(failed), len(known) - len(notes), failed)


def _room(out: Path) -> Path:
    return out.with_name(f".{out.name}.janusflow")


def agreed(out: Path, settings: Mapping[str, Any], left_open: Mapping[str, Callable[[], Any]] = {}) -> dict[str, Any]:
    """The settings of a run, kept beside what it makes in OUT.run.json: all processes and all later runs keep to them.

    What is `left_open` is as the first process finds it. Raises ValueError with one sentence where anything was made
    with other settings.
    """
    kept, told = out.with_name(f"{out.name}.run.json"), json.loads(json.dumps(settings, default=str))
    if not kept.is_file():
        own = json.dumps({**told, **{name: find() for name, find in left_open.items()}}, indent=2, ensure_ascii=False)
        with room(out.parent) as inside, suppress(FileExistsError):
            (inside / "new").write_text(f"{own}\n", encoding="utf-8")
            appear(inside / "new", kept)
    found = read_json(kept)
    other = next((name for name in told if found.get(name) != told[name]), None)
    if other is None:
        return found
    if not out.exists() and not begun(_room(out)):  # it was refused, or stopped before anything was made
        kept.unlink(missing_ok=True)
        return agreed(out, settings, left_open)
    what = f"{printable(out.name)} is made with {other} {short(found.get(other))}, not {short(told[other])}"
    raise ValueError(f"{what}: name another with --out, or delete it and {printable(kept.name)}")


def work_through(
    run: Run[Got],
    prepare: Callable[[Item], Found],
    do: Callable[[Sequence[tuple[Item, Found]]], Sequence[Got]],
    at_once: int,
    on_item: OnItem | None = None,
) -> None:
    """Do what is left of a run, `at_once` items at a time, the next ones being prepared meanwhile.

    An item that `prepare` or `do` refuses (OSError, ValueError) is noted as failed, and the rest goes on. What `do`
    refuses all of a batch for is nobody's own fault, and raised. Where memory does not suffice, a batch is halved.
    """

    def ready(item: Item) -> Found:
        if item.fault:
            raise ValueError(item.fault)
        return prepare(item)

    batches, done = [*run.batches(at_once)], 0
    total = sum(map(len, batches))
    for batch in opened(batches, ready):
        missing = {item.id for item, _ in batch if not run.done(item)}
        good = [(item, found) for item, found in batch if not isinstance(found, Exception)]
        wanted = any(item.id in missing for item, _ in good)
        got = dict(zip((item.id for item, _ in good), outcomes(do, good) if wanted else [], strict=False))
        for item, found in batch:
            done += 1
            if item.id in missing:
                run.settle(item, found if isinstance(found, Exception) else got[item.id])
            if on_item is not None:
                on_item(done, total)


def outcomes(do: Callable[[Sequence[Found]], Sequence[Got]], work: Sequence[Found]) -> list[Got | Exception]:
    """What `do` makes of each, or why it refuses it; raises ValueError where it refuses all for the same."""
    try:
        return [*halving(do, work)]
    except ValueError as error:
        if len(work) == 1:
            return [error]
    found = [one for piece in work for one in outcomes(do, [piece])]
    if len({str(one) for one in found}) == 1 and isinstance(found[0], ValueError):
        raise found[0]
    return found
