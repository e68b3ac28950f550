"""Muon and AdamW under one schedule, and the gradients of several processes as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .machine import spread, together, whole
from .muon import Muon


def schedule(progress: float, step: int, hold: float = 0.5, warmup: int = 50) -> float:
    """Learning-rate factor in (0, 1]: warm up, hold up to `hold` of the run, then fall linearly to nearly nothing.

    `progress` in [0, 1] is the part of the run that is over, by steps or by the clock; `step` counts from 0.
    """
    return min((step + 1) / warmup, 1.0, max((1.0 - progress) / (1.0 - hold), 0.01))


def cosine(progress: float, step: int, warmup: int = 50) -> float:
    """Learning-rate factor in (0, 1]: warm up, then half a cosine down to nearly nothing."""
    return min((step + 1) / warmup, max(0.5 + 0.5 * math.cos(math.pi * progress), 0.01))


def constant(progress: float, step: int, warmup: int = 50) -> float:
    """Learning-rate factor in (0, 1]: warm up, then stay."""
    return min((step + 1) / warmup, 1.0)


class Diverged(ArithmeticError):
    """Training has left the road: a loss or a gradient is no number, or a loss has exploded."""


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make every process see the mean gradient; nothing to do for one."""
    if together():
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / dist.get_world_size()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _eight_bit_adam() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError('the 8-bit optimizer needs bitsandbytes: pip install "bitsandbytes>=0.46"') from error
    return AdamW8bit


def is_hidden(name: str) -> bool:
    """Weights for Muon: matrices between hidden features; not tables, norms, depthwise filters or outermost layers."""
    outer = ("embed_tokens", "lm_head", "in_conv", "unpatch_conv", "depthwise", "channelwise_norm", "beg_of_und")
    return not any(part in name for part in outer)


class Optimizer:
    """AdamW, with Muon for the hidden matrices and convolutions (flattened) that `muon` chooses by name.

    With `eight_bit` AdamW keeps its momenta in eight bits, which needs bitsandbytes. `compiled` may be torch.compile or
    the like; it gets most of Muon's work. Gradients of several processes are averaged unless who computes them `shares`
    them already, and clipped to the norm `clip`.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        muon: Callable[[str], bool] = lambda name: False,
        muon_lr: float = 0.02,
        adam_lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eight_bit: bool = False,
        compiled: Callable[[Any], Any] = lambda function: function,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        shares: bool = False,
    ) -> None:
        named = list(named)
        self.clip, self.shares = clip, shares
        self.parameters = [p for _, p in named]
        self.hidden = [p for name, p in named if p.dim() >= 2 and muon(name)]
        chosen = {id(p) for p in self.hidden}
        self.views = [nn.Parameter(p.data.view(p.shape[0], -1)) for p in self.hidden]  # shares the weights' memory
        adam: Any = _eight_bit_adam() if eight_bit else torch.optim.AdamW
        rest = [p for p in self.parameters if id(p) not in chosen]
        told: dict[str, Any] = {"lr": adam_lr, "betas": betas, "weight_decay": weight_decay}
        self.parts: dict[str, torch.optim.Optimizer] = {"adam": adam(rest, **told)}
        if self.views:
            self.parts["muon"] = Muon(self.views, lr=muon_lr, compiled=compiled)
        self.rates = {"adam": adam_lr, "muon": muon_lr}

    def step(self, factor: float) -> None:
        """Update once from the gradients at `factor` of the full rate, then clear them.

        Raises Diverged, with nothing updated, where a gradient is no number.
        """
        if not self.shares:
            average_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if not torch.isfinite(whole(norm)):
            raise Diverged("a gradient is no number")
        for view, weight in zip(self.views, self.hidden, strict=True):
            view.grad = None if weight.grad is None else weight.grad.view_as(view)
        for name, optimizer in self.parts.items():
            optimizer.param_groups[0]["lr"] = self.rates[name] * factor
            optimizer.step()
        for weight in self.parameters:
            weight.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Momenta and counts by name: what a later run needs to go on as if it had never stopped."""
        return {
            f"{kind}.{index}.{name}": value
            for kind, optimizer in self.parts.items()
            for index, values in optimizer.state_dict()["state"].items()
            for name, value in _flat(values)
        }

    def restore(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take up what `tensors` gave."""
        states: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in self.parts}
        for key, value in tensors:
            kind, index, name = key.split(".", 2)
            weight = self.parts[kind].param_groups[0]["params"][int(index)]
            _put(states[kind].setdefault(int(index), {}), name, spread(value, weight))
        for kind, optimizer in self.parts.items():
            optimizer.load_state_dict({"state": states[kind], "param_groups": optimizer.state_dict()["param_groups"]})


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The state of one weight as tensors: bitsandbytes counts in an int, and keeps its momenta one floor down."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            # Copied, because its tables are the same tensors for all weights, which no file can hold.
            yield from ((f"{name}.{inner}", tensor.clone()) for inner, tensor in _flat(value))
        else:
            yield name, torch.tensor(value) if isinstance(value, int) else value


def _put(values: dict[str, Any], name: str, tensor: Tensor) -> None:
    """The reverse for one tensor; torch's own counts are float32, so that an int64 was an int."""
    outer, _, inner = name.partition(".")
    if inner:
        _put(values.setdefault(outer, {}), inner, tensor)
    else:
        values[name] = tensor.item() if tensor.dtype == torch.int64 else tensor
