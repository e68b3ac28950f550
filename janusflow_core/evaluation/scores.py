"""How often something came out right, how sure that is, and whether two of them differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Z = 1.959964  # the normal distribution's, for 95 %


@dataclass(frozen=True)
class Score:
    """Trials, each of which came out right or not."""

    trials: tuple[bool, ...]

    @property
    def right(self) -> int:
        return sum(self.trials)

    @property
    def total(self) -> int:
        return len(self.trials)

    @property
    def rate(self) -> float:
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the rate behind it, both ends in [0, 1]."""
        return wilson(self.right, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.3f} [{low:.3f}, {high:.3f}] of {self.total}"


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a rate, both ends in [0, 1]."""
    if not total:
        return 0.0, 1.0
    p = right / total
    middle = (p + Z * Z / (2 * total)) / (1 + Z * Z / total)
    half = Z / (1 + Z * Z / total) * math.sqrt(p * (1 - p) / total + Z * Z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def by_name(results: Iterable[tuple[str, bool]]) -> dict[str, Score]:
    """Trials by what they were about, in the order in which they came."""
    trials: dict[str, list[bool]] = {}
    for name, right in results:
        trials.setdefault(name, []).append(right)
    return {name: Score(tuple(own)) for name, own in trials.items()}


def overall(scores: Mapping[str, Score]) -> float:
    """The mean of the tasks' rates, as GenEval counts it."""
    return sum(score.rate for score in scores.values()) / len(scores)


def paired_chance(one: Sequence[bool], other: Sequence[bool]) -> float:
    """How likely chance alone makes the same trials differ so much, either way: McNemar's exact test.

    Only trials that came out differently tell anything; each would be a fair coin.
    """
    gained = sum(b and not a for a, b in zip(one, other, strict=True))
    lost = sum(a and not b for a, b in zip(one, other, strict=True))
    differ = gained + lost
    tail = sum(math.comb(differ, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**differ)


def unpaired_chance(one: Score, other: Score) -> float:
    """How likely chance alone makes other trials differ so much, either way: Fisher's exact test."""
    right, total = one.right + other.right, one.total + other.total

    def likely(k: int) -> int:
        return math.comb(one.total, k) * math.comb(other.total, right - k)

    possible = range(max(0, right - other.total), min(right, one.total) + 1)
    found = likely(one.right)
    return sum(weight for k in possible if (weight := likely(k)) <= found) / math.comb(total, right)


def holm(chances: Sequence[float]) -> list[float]:
    """The chances of several comparisons at once, so that 0.05 stands for all of them together: Holm's method."""
    adjusted, worst = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        worst = max(worst, min(1.0, chances[place] * (len(chances) - rank)))
        adjusted[place] = worst
    return adjusted
