"""Attention, without weights: the kernel's type, the cache of keys and values, rotary positions, and every mask.

B batch, T query positions, S key positions, H heads, K head size. A mask is boolean, (B or 1, 1, T, S), True where a
query may look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# (q, k, v: (B, H, T, K), mask: bool, True where visible, or None for no mask) -> (B, T, H * K)
Attention = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention of (B, H, T, K) heads under a boolean `mask` (True = visible): (B, T, H * K)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention written out: on a CPU its backward pass is nearly twice as fast as the fused kernel's."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same where every position sees itself and what came before it, without a mask."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def apart(lengths: Sequence[Sequence[int]]) -> Attention:
    """Causal attention of rows (B, T) that each hold samples of these lengths, T together: none sees another.

    No mask is made, and nothing computed that one would hide; where a mask is given it is ignored.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        rows = zip(lengths, *(part.split(1) for part in (q, k, v)), strict=True)
        return torch.cat([_samples(own, *row) for own, *row in rows])

    return attend


def _samples(lengths: Sequence[int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = zip(*(part.split(list(lengths), dim=2) for part in (q, k, v)), strict=True)
    return torch.cat([causal(*part) for part in parts], dim=1)


class KVCache:
    """Keys and values of every layer in preallocated buffers: `length` tokens are kept, the rest is scratch.

    `extend` writes behind the kept tokens; only `keep` makes what was written part of the past. The flow keeps the
    prompt and overwrites the picture at each step; text keeps every token. Where a `slot` (1,) is set, it says as data
    where to write, and all of the buffers is returned: shapes that never change, as a captured CUDA graph needs them.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.slot: Tensor | None = None
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, K) behind the kept tokens and return all (B, H, length + T, K), or into the slot."""
        if layer == len(self.buffers):
            shape = (k.shape[0], k.shape[1], self.capacity, k.shape[3])
            self.buffers.append((k.new_empty(shape), v.new_empty(shape)))
        keys, values = self.buffers[layer]
        if self.slot is not None:
            return keys.index_copy_(2, self.slot, k), values.index_copy_(2, self.slot, v)
        end = self.length + k.shape[2]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def spread(
        self, rows: Sequence[int], capacity: int, tokens: int | None = None, device: torch.device | None = None
    ) -> KVCache:
        """A cache of this capacity with the kept tokens of these rows, each as often as it is named: all of them or
        the first `tokens`, on the same device or another."""
        wider = KVCache(capacity)
        wider.length = self.length if tokens is None else tokens
        for layer in self.buffers:
            pair = [part.new_empty(len(rows), part.shape[1], capacity, part.shape[3], device=device) for part in layer]
            for new, part in zip(pair, layer, strict=True):
                new[:, :, : wider.length] = part[list(rows), :, : wider.length]
            wider.buffers.append((pair[0], pair[1]))
        return wider

    def first(self, rows: int) -> KVCache:
        """The first rows, in the same memory."""
        part = KVCache(self.capacity)
        part.length = self.length
        part.buffers = [(k[:rows], v[:rows]) for k, v in self.buffers]
        return part

    def clear_rest(self) -> None:
        """Zeros behind the kept tokens, where the memory still holds whatever was there."""
        for part in (part for layer in self.buffers for part in layer):
            part[:, :, self.length :].zero_()

    def keep(self, tokens: int) -> None:
        """Make the next `tokens` written positions part of the past."""
        self.length += tokens


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """What `rotate` takes: cosines and signed sines (B, 1, T, K) of rotary embeddings at `positions` (B, T).

    In float32 whatever the weights: bf16 would lose the angle.
    """
    index = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angle = positions.float()[:, None, :, None] * (1.0 / theta ** (index / head_dim))  # (B, 1, T, K / 2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embeddings to (B, H, T, K), pairing feature i with i + K / 2; `sin` is negative for the first."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.addcmul(values * cos, values.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)


def prefix_mask(lengths: Sequence[int], prefix: int, total: int, first: int, device: torch.device) -> Tensor:
    """Causal mask (B or 1, 1, total - first, total) for queries from `first` on, blind to the prompts' padding."""
    query = torch.arange(first, total, device=device)[:, None]
    key = torch.arange(total, device=device)
    causal = (key <= query)[None, None]
    if all(length == prefix for length in lengths):
        return causal
    real = torch.tensor(lengths, device=device)[:, None]
    return causal & ((key >= prefix) | (key < real))[:, None, None]


def left_padded_mask(real: Tensor, first: int) -> Tensor:
    """Causal mask (B, 1, T - first, T) over the `real` (B, T) keys; padding sees itself, so that no row is empty."""
    total = real.shape[1]
    key = torch.arange(total, device=real.device)
    query = key[first:, None]
    return (((key <= query) & real[:, None, :]) | (key == query))[:, None]


def segment_mask(segments: Tensor) -> Tensor:
    """Causal mask (B, 1, T, T) of rows (B, T) that branch: all see segment 0, no other segment sees another."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    query, key = segments[:, :, None], segments[:, None, :]
    return (causal & ((key == 0) | (key == query)))[:, None]
