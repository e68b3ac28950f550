"""Pictures in batches: the next one is opened while one is worked on, and what does not fit is halved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

Work = TypeVar("Work")
Found = TypeVar("Found")
Got = TypeVar("Got")
READERS = 4  # threads: Pillow and the disk let others run


def opened(
    work: Iterable[Sequence[Work]], prepare: Callable[[Work], Found]
) -> Iterator[list[tuple[Work, Found | Exception]]]:
    """Batches with what is prepared of each (its picture opened), or what is wrong with it (OSError, ValueError).

    While one is worked on, the next is prepared.
    """
    left = iter(work)
    with ThreadPoolExecutor(READERS, "pictures") as pool:

        def begin() -> list[tuple[Work, Future[Found]]]:
            return [(one, pool.submit(prepare, one)) for batch in islice(left, 1) for one in batch]

        coming = begin()
        while coming:
            batch, coming = coming, begin()
            yield [(one, _outcome(future)) for one, future in batch]


def halving(do: Callable[[Sequence[Work]], Sequence[Got]], work: Sequence[Work]) -> list[Got]:
    """What `do` makes of a batch, or of its halves where its memory does not suffice."""
    try:
        return list(do(work))
    except torch.OutOfMemoryError:
        if len(work) == 1:
            raise
    half = len(work) // 2
    return halving(do, work[:half]) + halving(do, work[half:])


def chunks(work: Sequence[Work], size: int) -> Iterator[Sequence[Work]]:
    """The work in pieces of `size`, the last one maybe smaller."""
    return (work[first : first + size] for first in range(0, len(work), size))


def _outcome(future: Future[Found]) -> Found | Exception:
    try:
        return future.result()
    except (OSError, ValueError) as error:
        return error
