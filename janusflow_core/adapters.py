"""What a LoRA does to a weight, in float32: the sums, without any file.

A weight W becomes W + s B A (LoRA, with s = alpha / r; rsLoRA, with s = alpha / sqrt(r)), and for DoRA
(W + s B A) * rows / |W|, row by row. That is what ComfyUI makes of the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Adapter:
    """What one weight (out, in) or (out, in, kh, kw) becomes: `down` (r, in, ...), `up` (out, r, ...), `rows` (out)."""

    down: Tensor
    up: Tensor
    scale: float
    rows: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    def delta(self, like: Tensor) -> Tensor:
        """What is added, in float32, in the shape and on the device of a weight."""
        up, down = (part.to(like.device, torch.float32).flatten(1) for part in (self.up, self.down))
        return (self.scale * (up @ down)).view(like.shape)

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The changed weight in float32; of a DoRA, a strength other than 1 mixes the plain and the changed one."""
        weight = weight.float()
        if self.rows is None:
            return weight + strength * self.delta(weight)
        factor = _as_rows(self.rows.to(weight), weight) / row_norms(weight)
        return weight + strength * ((weight + self.delta(weight)) * factor - weight)

    def shaped(self, like: Tensor) -> Adapter:
        """The same with its parts in the shapes of PEFT's layers; some trainers write convolutions flat."""
        down = self.down.reshape(self.rank, *like.shape[1:])
        up = self.up.reshape(len(like), self.rank, *[1] * (like.dim() - 2))
        return replace(self, down=down, up=up, rows=self.rows if self.rows is None else _as_rows(self.rows, like))

    def copied(self) -> Adapter:
        """A copy on the CPU, which later training does not change."""
        down, up, rows = (None if part is None else part.cpu().clone() for part in (self.down, self.up, self.rows))
        assert down is not None and up is not None
        return Adapter(down, up, self.scale, rows)

    def fits(self, weight: Tensor) -> bool:
        """Whether all parts have the shapes that such a weight needs."""
        inner = (len(self.up), self.up[0].numel()) == (len(weight), self.rank) if self.up.dim() > 1 else False
        outer = self.down.dim() > 1 and weight.dim() > 1 and self.down[0].numel() == weight[0].numel()
        return inner and outer and (self.rows is None or self.rows.numel() == len(weight))


@dataclass(frozen=True)
class Difference:
    """What is added to a weight as it stands: ComfyUI's trainer writes norms and biases so."""

    diff: Tensor

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The changed weight in float32."""
        return weight.float() + strength * self.diff.to(weight.device, torch.float32)

    def shaped(self, like: Tensor) -> Difference:
        """The same."""
        return self

    def fits(self, weight: Tensor) -> bool:
        """Whether it has the shape of such a weight."""
        return self.diff.shape == weight.shape


Change = Adapter | Difference
Changes = Mapping[str, Change]  # by the name of a parameter, which ends in .weight or .bias


def row_norms(weight: Tensor) -> Tensor:
    """Norms of a weight's rows, in float32, in a shape that multiplies it."""
    return _as_rows(weight.float().flatten(1).norm(dim=1), weight)


def _as_rows(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))


def rows_of(magnitude: Tensor, weight: Tensor, adapter: Adapter) -> Tensor:
    """PEFT's DoRA magnitude as `rows`, (out, 1, ...): PEFT divides by |W + s B A|, ComfyUI by |W|; at 1 they agree."""
    magnitude = _as_rows(magnitude.to(weight.device, torch.float32), weight)
    return magnitude * row_norms(weight) / row_norms(weight.float() + adapter.delta(weight))


def magnitude_of(weight: Tensor, adapter: Adapter) -> Tensor:
    """The inverse of `rows_of`: (out, 1, ...)."""
    assert adapter.rows is not None
    rows = _as_rows(adapter.rows.to(weight.device, torch.float32), weight)
    return rows * row_norms(weight.float() + adapter.delta(weight)) / row_norms(weight)
