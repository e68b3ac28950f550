"""What steps will see, made before they come: by worker processes where a GPU would have to wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")
WAITING = 4  # made beforehand by each worker


class _Made(Dataset[T], Generic[T]):
    def __init__(self, make: Callable[[int], T]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> T:
        return self.make(number)


def ahead(make: Callable[[int], T], numbers: Iterable[int], workers: int = 0) -> Iterator[T]:
    """`make` of each number, in their order, by so many worker processes; without any, when it is asked for.

    For workers `make` must be picklable, and a function of its number alone.
    """
    loader: DataLoader[Any] = DataLoader(
        _Made(make),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=WAITING if workers else None,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # its seed for the workers shall not come out of the common stream
    )
    return iter(loader)


def _as_it_is(made: T) -> T:
    return made
