"""Pictures to words, as many as there are: what answers, and the table that answers are put into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ..image import Picture
from ..values import printable, shown
from .items import Item
from .journal import DONE, FAILED, Journal, Note
from .run import OnItem, Run, seed_of, work_through
from .tables import WRITERS, Row, read_rows, write_rows

# (pictures, a question and a seed for each) -> what is answered
Answer = Callable[[Sequence[Picture], Sequence[str], Sequence[int]], Sequence[str]]
RESPONSE, REFUSED = "response", "failed"


class Answers:
    """A table with a row for each item: all that its source said of it, the question and the response.

    A .jsonl, .csv or .parquet; what one of an earlier run holds stays. Raises ValueError for another name.
    """

    def __init__(self, out: Path, items: Sequence[Item], question: str) -> None:
        if out.suffix not in WRITERS:
            raise ValueError(f"got {printable(out.name)} for the answers, expected a name in {', '.join(WRITERS)}")
        self.out, self.items, self.question = out, items, question
        rows = [row for row, _ in read_rows(out)] if out.is_file() else []
        broken = next((row for row in rows if isinstance(row, str) or "id" not in row), None)
        if broken is not None:
            raise ValueError(f"{shown(out)} holds something else than answers: name another table with --out")
        self.rows: dict[str, Row] = {str(row["id"]): row for row in rows if not isinstance(row, str)}

    def has(self, item: Item, note: Note) -> bool:
        row = self.rows.get(item.id, {})
        return DONE in note or (row.get(RESPONSE) is not None and not row.get(REFUSED))

    def put(self, item: Item, got: str, journal: Journal) -> str:
        return got

    def finish(self, notes: Mapping[str, Note], journal: Journal) -> None:
        new = {item.id: self._row(item, notes[item.id]) for item in self.items if item.id in notes}
        found, order = {**self.rows, **new}, dict.fromkeys((*(item.id for item in self.items), *self.rows))
        rows = [found[name] for name in order if name in found]
        journal.put(self.out, partial(write_rows, rows=rows, kind=self.out.suffix))

    def asked(self, item: Item) -> str:
        """What is asked about an item."""
        return item.question or self.question

    def _row(self, item: Item, note: Note) -> Row:
        got = {RESPONSE: note[DONE]} if DONE in note else {REFUSED: note[FAILED]}
        return {**item.row, "id": item.id, "question": self.asked(item), **got}


def answer_items(
    run: Run[str],
    place: Answers,
    seen: Callable[[Picture], Picture],
    answer: Answer,
    at_once: int,
    seed: int = 0,
    on_item: OnItem | None = None,
) -> None:
    """Answer what is left of a run, `at_once` pictures at a time; `seen` makes each as small as the model sees it."""

    def opened(item: Item) -> Picture:
        if item.open is None:
            raise ValueError("it has no picture")
        return seen(item.open())

    def answered(work: Sequence[tuple[Item, Picture]]) -> Sequence[str]:
        seeds = [seed_of(item, seed) for item, _ in work]
        return answer([picture for _, picture in work], [place.asked(item) for item, _ in work], seeds)

    work_through(run, opened, answered, at_once, on_item)
