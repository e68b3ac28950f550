"""What was read last, for a conversation that begins alike: only what is new in it is read then."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import decoding
from .attention import KVCache


class Recall:
    """Keys and values of one conversation, the last: 197 kB a token in bfloat16 in JanusFlow-1.3B."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Let go of the memory."""
        self._whose: Hashable = None
        self._marks: list[Hashable] = []
        self._cache = KVCache(0)

    def begin(self, whose: Hashable, marks: Sequence[Hashable], more: int, device: torch.device) -> KVCache:
        """A cache on a device that holds what a conversation of these `marks`, one a token, has in common with the last
        one of the same weights, but for its last token, with room for the rest and `more`."""
        known, room = 0, len(marks) + more
        if whose == self._whose:
            pairs = zip(marks, self._marks, strict=False)
            known = next(
                (at for at, (new, old) in enumerate(pairs) if new != old), min(len(marks) - 1, len(self._marks))
            )
        return self._cache.spread([0], room, known, device) if known else KVCache(room)

    def keep(self, whose: Hashable, marks: Sequence[Hashable], cache: KVCache, device: torch.device) -> None:
        """Remember a cache that holds the tokens of these `marks` instead of what was."""
        self._whose, self._marks = whose, [*marks]
        self._cache = cache.spread([0], cache.length, device=device)


@torch.no_grad()
def go_on(
    recall: Recall,
    whose: Hashable,
    marks: Sequence[Hashable],
    read: Callable[[int], Tensor],
    parts: tuple[Any, Any, Any],
    *,
    max_new_tokens: int,
    device: torch.device,
    kept_on: torch.device | None = None,
    **how: Any,
) -> list[int]:
    """Continue one conversation, of which what `recall` holds is not read again; returns the new ids.

    `whose` names the weights, `marks` (one a token) what stands there; `read` gives the embeddings (1, T, D) of all
    but so many first tokens; `parts` and the rest are `decoding.generate`'s. What was read and written is kept.
    """
    cache = recall.begin(whose, marks, max_new_tokens, device)
    real = torch.ones(1, len(marks), dtype=torch.bool, device=device)
    recall.forget()  # its memory serves what is computed now
    prompt = read(cache.length)
    [text] = decoding.generate(*parts, prompt, real, cache=cache, max_new_tokens=max_new_tokens, **how)
    recall.keep(whose, [*marks, *text][: cache.length], cache, kept_on or device)
    return text
