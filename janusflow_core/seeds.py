"""Seeds: every picture and every text has its own, so that no batch, no process and no device changes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

LIMIT = 2**64  # torch takes whole numbers of 64 bits


def later(seed: int, places: int) -> int:
    """The seed so many places behind this one; behind the last number of 64 bits comes 0."""
    return seed + places - LIMIT * (seed + places >= LIMIT > seed)


def counted(seed: int, count: int) -> list[int]:
    """`seed` and those behind it, `count` of them."""
    return [later(seed, k) for k in range(count)]


def own_seeds(seed: int | Sequence[int], rows: int) -> list[int]:
    """The seed of each of some pictures or answers: one number counts on from row to row, several are one for each.

    Raises ValueError for another number of seeds.
    """
    seeds = counted(seed, rows) if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise ValueError(f"got {len(seeds)} seeds, expected one to count from, or {rows}, one for each.")
    return seeds


def generator(seed: int) -> torch.Generator:
    """A source of random numbers, on the CPU; raises ValueError for a seed beyond 64 bits."""
    if not -LIMIT // 2 <= seed < LIMIT:
        raise ValueError(f"a seed must be a whole number of 64 bits, got {seed}.")
    return torch.Generator().manual_seed(seed)
