"""Conversations as tensors: several questions about one picture in one row, hidden from one another.

B batch, T tokens. The questions share the picture's common beginning (segment 0); each with its answer is a segment.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import accumulate, chain
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..tokenizer import ASSISTANT, USER, JanusTokenizer, Message
from .losses import IGNORE

T = TypeVar("T")
Held = TypeVar("Held", bound=Any)
_made: WeakKeyDictionary[JanusTokenizer, dict[Hashable, Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Conversation:
    """Ids of a picture's common beginning, and of each question with its answer; other labels are IGNORE."""

    start: list[int]
    segments: list[list[int]]
    labels: list[list[int]]


@dataclass(frozen=True)
class Packed:
    """A batch of conversations, all (B, T): ids, labels, positions, segment numbers, places of picture embeddings.

    No row has a label before `start`.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    segments: Tensor
    image_mask: Tensor
    start: int

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        return moved(self, device)


def moved(held: Held, device: torch.device) -> Held:
    """A dataclass with its tensors on another device, also those of the dataclasses in it."""
    tensors = {name: part for name, part in vars(held).items() if isinstance(part, Tensor)}
    others = {name: moved(part, device) for name, part in vars(held).items() if is_dataclass(part)}
    return replace(held, **{name: part.to(device, non_blocking=True) for name, part in tensors.items()}, **others)


def remembered(make: Callable[..., T], tokenizer: JanusTokenizer, *told: Hashable) -> T:
    """`make(tokenizer, *told)`, made once of what is told again and again; it goes with the tokenizer."""
    made, key = _made.setdefault(tokenizer, {}), (make, *told)
    if key not in made:
        made[key] = make(tokenizer, *told)
    return made[key]


def conversation(
    tokenizer: JanusTokenizer, asked: Sequence[tuple[str, str]], turns: Sequence[int] | None = None
) -> Conversation:
    """Questions and answers about one picture, each question exactly as inference asks it.

    `turns` says how many of them follow each other as turns of one chat, and so share a segment; one by default.
    """
    start, segments, labels = [], [], []
    beginnings = {0, *accumulate(turns or [1] * len(asked))}
    for number, (question, answer) in enumerate(asked):
        beginning, rest, reply = remembered(exchange, tokenizer, question, answer, number in beginnings)
        if number in beginnings:
            start = [*beginning]
            segments.append([])
            labels.append([])
        segments[-1] += rest + reply
        # The label of a position is the token after it; the last position has none.
        labels[-1] += [IGNORE] * (len(rest) - 1) + reply + [IGNORE]
    return Conversation(start, segments, labels)


def exchange(
    tokenizer: JanusTokenizer, question: str, answer: str, begins: bool, pictures: int = 1
) -> tuple[list[int], list[int], list[int]]:
    """Ids of a picture's common beginning, of what follows it up to the answer, and of the answer.

    One that does not begin a chat stands behind the answer before, without picture.
    """
    if begins:
        ids = tokenizer.understanding_ids(tokenizer.question_messages(question, pictures), pictures)
    else:
        ids = tokenizer.encode(tokenizer.chat([Message(USER, question), Message(ASSISTANT, "")]), bos=False)
    split = ids.index(tokenizer.image_end_id) + 1 if begins and pictures else 0
    return ids[:split], ids[split:], [*tokenizer.encode(" " + answer, bos=False), tokenizer.eos_id]


def pack(rows: Sequence[Conversation], tokenizer: JanusTokenizer, length: int = 0) -> Packed:
    """Conversations as one batch of at least `length` tokens, padded on the right.

    Every segment counts on from the beginning.
    """
    ids, labels, positions, segments = (
        padded(columns, fill, length) for columns, fill in _columns(rows, tokenizer.pad_id)
    )
    start = min(len(row.start) for row in rows)
    return Packed(ids, labels, positions, segments, tokenizer.image_mask(ids), start)


def _columns(rows: Sequence[Conversation], pad_id: int) -> list[tuple[list[list[int]], int]]:
    """Ids, labels, positions and segment numbers of each row, with what pads them."""
    lengths = [[len(row.start), *map(len, row.segments)] for row in rows]
    ids = [[*row.start, *(token for segment in row.segments for token in segment)] for row in rows]
    labels = [[IGNORE] * len(row.start) + [label for part in row.labels for label in part] for row in rows]
    positions = [[*range(start), *(start + at for length in rest for at in range(length))] for start, *rest in lengths]
    segments = [[number for number, length in enumerate(row) for _ in range(length)] for row in lengths]
    return [(ids, pad_id), (labels, IGNORE), (positions, 0), (segments, 0)]


def padded(rows: Sequence[Sequence[int]], fill: int, length: int) -> Tensor:
    """Rows of numbers as one tensor (B, T) of at least `length` columns, filled up on the right."""
    longest = max(length, *map(len, rows))
    numbers = array("q", chain.from_iterable([*row, *[fill] * (longest - len(row))] for row in rows))
    return torch.frombuffer(numbers, dtype=torch.int64).view(len(rows), longest)  # four times as fast as torch.tensor
