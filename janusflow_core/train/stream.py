"""The samples of a run by their numbers, and the batches of a process by theirs: pure functions, for workers too."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from .data import LeftOut, Source, bits
from .order import TASKS, Mixture, Task, shuffled
from .packing import Batch, Writer, Written, pack

TRIES = 100  # rows that may be broken one after the other
Problem = tuple[str, str]  # the kind, and the row with what is wrong with it


class Pool:
    """The rows of all data sets that serve a task, counted through; each data set as many `times` as it says."""

    def __init__(self, sources: Sequence[Source], times: Sequence[int], task: Task) -> None:
        firsts = accumulate((len(source.tasks) for source in sources[:-1]), initial=0)
        rows = (np.flatnonzero(source.tasks & bits({task})) for source in sources)
        found = [*zip(sources, firsts, rows, strict=True)]
        self.parts = [part for part, often in zip(found, times, strict=True) for _ in range(often)]
        self.ends = [*accumulate(len(rows) for *_, rows in self.parts)]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def find(self, number: int) -> tuple[Source, int, int]:
        """The data set of a row, its number there, and its number over all data sets."""
        part = bisect_right(self.ends, number)
        source, first, rows = self.parts[part]
        row = int(rows[number - (self.ends[part] - len(rows))])
        return source, row, first + row


class Stream:
    """Every sample of a run, written out: task by `mixture`, row by the epoch's order, luck by seed and number.

    Raises ValueError where a task has a share but no rows.
    """

    def __init__(
        self, sources: Sequence[Source], times: Sequence[int], mixture: Mixture, writer: Writer, seed: int
    ) -> None:
        self.pools = {task: Pool(sources, times, task) for task in TASKS}
        self.mixture, self.writer, self.seed = mixture, writer, seed
        for task in TASKS:
            if not len(self.pools[task]) and any(task in cycle for cycle in mixture.cycles):
                raise ValueError(f"the mixture has a share of {task}, but no row of the data is for it: add some, or 0")

    def __call__(self, number: int) -> tuple[Written, list[Problem]]:
        """The sample of a number, and the rows before it that could not be learnt from: the next takes their place.

        Raises ValueError where too many are broken one after the other.
        """
        problems: list[Problem] = []
        for source, row, task, overall in self._candidates(number):
            try:
                sample = replace(source.sample(row, task), number=overall)
                return self.writer(sample, random.Random(f"{self.seed}/{number}")), problems
            except LeftOut as error:
                problems.append((error.kind, f"{source.name(row)}: {error}"))
            except (OSError, ValueError) as error:
                problems.append(("broken", f"{source.name(row)}: {error}"))
        raise ValueError(f"{TRIES} rows one after the other cannot be learnt from, the last: {problems[-1][1]}")

    def _candidates(self, number: int) -> Iterator[tuple[Source, int, Task, int]]:
        """Rows to try, the one whose turn it is first."""
        task, own = self.mixture.at(number)
        pool = self.pools[task]
        epoch, place = divmod(own, len(pool))
        for attempt in range(TRIES):
            row = shuffled((place + attempt) % len(pool), len(pool), f"{self.seed}/{task}/{epoch}")
            source, found, overall = pool.find(row)
            yield source, found, task, overall


@dataclass(frozen=True)
class Batches:
    """What a process sees: its part of each step's `batch` samples, so many `at_once`."""

    stream: Stream
    batch: int
    at_once: int
    rank: int
    world: int

    def __post_init__(self) -> None:
        if self.batch % (self.at_once * self.world):
            raise ValueError(
                f"a batch of {self.batch} samples cannot be divided among {self.world} processes, {self.at_once} at "
                "once: change batch or at_once"
            )

    @property
    def accumulate(self) -> int:
        """Batches of a step."""
        return self.batch // (self.at_once * self.world)

    def __call__(self, number: int) -> tuple[Batch, list[Problem]]:
        """The batch of that number, and what was left out of it."""
        step, part = divmod(number, self.accumulate)
        first = step * self.batch + (self.rank * self.accumulate + part) * self.at_once
        made = [self.stream(first + place) for place in range(self.at_once)]
        samples, problems = [sample for sample, _ in made], [problem for _, some in made for problem in some]
        return pack(samples, self.stream.writer), problems
