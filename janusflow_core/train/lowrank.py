"""LoRA in training: changes of chosen layers that act from outside, so that the model itself is never touched.

Hooks add to what a layer gives, so any layer will do: torch's, ComfyUI's own, a quantised one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import Adapter, row_norms, rows_of
from .options import Kind, PartName

PARTS: dict[PartName, str] = {
    "attention": r"language_model\.model\.layers\.\d+\.self_attn\.",
    "mlp": r"language_model\.model\.layers\.\d+\.mlp\.",
    "generation": r"vision_gen_",
    "head": r"language_model\.lm_head$",
}


def chosen_layers(halves: Iterable[nn.Module], parts: Iterable[PartName]) -> dict[str, nn.Module]:
    """The linear and convolution layers in some parts of a model, or of its halves, by their names."""
    wanted = re.compile("|".join([PARTS[part] for part in parts] or ["(?!)"]))
    named = (item for half in halves for item in half.named_modules())
    return {name: layer for name, layer in named if wanted.match(name) and _is_matrix(layer)}


def _is_matrix(layer: nn.Module) -> bool:
    # By what it has and not by its class, because ComfyUI's quantised layers are none of torch's.
    return hasattr(layer, "in_features") or (hasattr(layer, "kernel_size") and getattr(layer, "groups", 0) == 1)


class LowRank(nn.Module):
    """The change of one layer, in float32 whatever the layer computes in; `up` begins at zero, so it begins as none."""

    def __init__(self, layer: Any, rank: int, scale: float, dora: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple, so that its weights do not count as ours
        self.scale, self.is_conv = scale, hasattr(layer, "kernel_size")
        inner = (layer.in_channels, *layer.kernel_size) if self.is_conv else (layer.in_features,)
        outer, ones = (layer.out_channels, (1, 1)) if self.is_conv else (layer.out_features, ())
        bound = 1.0 / math.sqrt(math.prod(inner))  # PEFT's and the paper's: uniform, as Kaiming with a = sqrt(5)
        device = layer.weight.device
        down = torch.empty(rank, *inner).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(outer, rank, *ones, device=device))
        self.magnitude = nn.Parameter(row_norms(_plain(layer)).clone()) if dora else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """What the layer with its change makes of `x`, of which it makes `y` alone."""
        change = self.scale * self._product(x)
        if self.magnitude is None:
            return y + change
        (layer,) = self.layer
        shape = (-1, *[1] * (2 if self.is_conv else 0))
        bias = 0.0 if layer.bias is None else layer.bias.to(y).view(shape)
        with torch.no_grad():  # the norm gets no gradient, as the DoRA paper has it (section 4.3)
            weight = _plain(layer)
            norms = row_norms(weight + self._adapter().delta(weight))
        factor = self.magnitude / norms
        return (y - bias + change) * factor.to(y.dtype).view(shape) + bias

    def _product(self, x: Tensor) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if not self.is_conv:
            return F.linear(F.linear(x, down), up)
        (layer,) = self.layer
        return F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation), up)

    def _adapter(self) -> Adapter:
        return Adapter(self.down.detach(), self.up.detach(), self.scale)

    def adapter(self) -> Adapter:
        """The change as a file holds it; shares its memory."""
        adapter = self._adapter()
        if self.magnitude is None:
            return adapter
        return replace(adapter, rows=rows_of(self.magnitude.detach(), _plain(self.layer[0]), adapter))


def _plain(layer: Any) -> Tensor:
    """A layer's weight in float32, unpacked where it is quantised."""
    weight = layer.weight.detach()
    return (weight.dequantize() if hasattr(weight, "dequantize") and weight.is_quantized else weight).float()


class Adapters:
    """The changes of some layers by name, as a context: they act inside it and are gone after it, whatever happens."""

    def __init__(
        self, layers: Mapping[str, nn.Module], rank: int, alpha: float | None = None, kind: Kind = "lora", seed: int = 0
    ) -> None:
        if not layers:
            raise ValueError(f"there is no layer to train: choose some of {', '.join(PARTS)}")
        generator = torch.Generator().manual_seed(seed)
        scale = (alpha or rank) / (math.sqrt(rank) if kind == "rslora" else rank)
        self.layers = dict(layers)
        self.changes = {n: LowRank(layer, rank, scale, kind == "dora", generator) for n, layer in layers.items()}
        self._hooks = ExitStack()
        self._act = True

    def __enter__(self) -> Adapters:
        for name, layer in self.layers.items():
            self._hooks.callback(layer.register_forward_hook(partial(self._change, self.changes[name])).remove)
        return self

    def _change(self, change: LowRank, _: nn.Module, given: tuple[Tensor], y: Tensor) -> Tensor | None:
        return change(given[0], y) if self._act else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The plain model for a while."""
        self._act = False
        try:
            yield
        finally:
            self._act = True

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained, by layer and role."""
        for name, change in self.changes.items():
            yield from change.named_parameters(name)

    def adapters(self) -> dict[str, Adapter]:
        """All changes by the name of their weight, as `lora.save_lora` takes them; copies on the CPU."""
        found = {f"{name}.weight": change.adapter() for name, change in self.changes.items()}
        return {name: adapter.copied() for name, adapter in found.items()}
