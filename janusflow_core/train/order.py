"""Which sample stands where in a run: pure functions of the seed and of numbers that count on, so nothing is to resume.

A sample's number counts from the beginning of the run, over all processes and steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from math import gcd
from typing import Literal, get_args

Task = Literal["understanding", "generation", "text"]
TASKS: tuple[Task, ...] = get_args(Task)

ROUNDS = 8  # fewer prefer some places where there are few


def shuffled(place: int, count: int, key: str) -> int:
    """Which of `count` things stands at a place of the order that belongs to `key`.

    A permutation without a list of it, whatever the count: a Feistel network over the next power of four, walked on
    from what lies outside.
    """
    if not 0 <= place < count:
        raise ValueError(f"got place {place}, expected 0 to {count - 1}")
    half = max((count - 1).bit_length() + 1, 2) // 2
    while (place := _mixed(place, half, key)) >= count:
        pass
    return place


def _mixed(number: int, half: int, key: str) -> int:
    left, right = number >> half, number & (1 << half) - 1
    for turn in range(ROUNDS):
        left, right = right, left ^ _scattered(key, turn, right) & (1 << half) - 1
    return left << half | right


def _scattered(key: str, turn: int, right: int) -> int:
    return int.from_bytes(blake2b(f"{key}/{turn}/{right}".encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Phase:
    """From which sample on tasks are mixed how, in whole `shares`: 30, 50 and 20, say."""

    first: int
    shares: Mapping[Task, int]


class Mixture:
    """The task of every sample of a run, and how many samples of that task came before it.

    Each phase goes round a cycle of as many samples as its shares add up to, over which every task is spread evenly.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        if not phases or phases[0].first != 0 or any(b.first <= a.first for a, b in pairwise(phases)):
            raise ValueError("phases of a mixture must begin with the first sample and follow one another")
        self.phases = phases
        self.cycles = [_cycle(phase.shares) for phase in phases]
        self.before: list[dict[Task, int]] = [{}]
        for number, (phase, later) in enumerate(pairwise(phases)):
            self.before.append(self._counted(number, later.first - phase.first))

    def at(self, number: int) -> tuple[Task, int]:
        """The task of a sample, and its own number among the samples of that task."""
        phase = max(place for place, phase in enumerate(self.phases) if phase.first <= number)
        within, cycle = number - self.phases[phase].first, self.cycles[phase]
        task = cycle[within % len(cycle)]
        return task, self._counted(phase, within)[task]

    def _counted(self, phase: int, samples: int) -> dict[Task, int]:
        """Samples of each task before the one that is so many samples into a phase."""
        cycle, counts = self.cycles[phase], dict(self.before[phase])
        rounds, rest = divmod(samples, len(cycle))
        for task in set(cycle):
            counts[task] = counts.get(task, 0) + rounds * cycle.count(task) + cycle[:rest].count(task)
        return counts


def _cycle(shares: Mapping[Task, int]) -> list[Task]:
    """One round of the tasks: at each place comes the one that lags behind its share the most."""
    least = gcd(*shares.values())
    if least < 1:
        raise ValueError("the shares of a mixture must be whole numbers, not all of them 0")
    wanted = {task: share // least for task, share in shares.items() if share}
    total, given = sum(wanted.values()), dict.fromkeys(wanted, 0)
    cycle = []
    for place in range(1, total + 1):
        task = max(wanted, key=lambda name: wanted[name] * place - given[name] * total)
        given[task] += 1
        cycle.append(task)
    return cycle
