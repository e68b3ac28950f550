"""Muon and AdamW under one schedule, and the gradients of several processes as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import nn


def schedule(step: int, steps: int, warmup: int = 50) -> float:
    """Learning-rate factor in (0, 1]: warm up, hold for half of the run, then fall linearly to nearly nothing."""
    return min((step + 1) / warmup, 1.0, max(2.0 * (steps - step) / steps, 0.01))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make every process see the mean gradient; nothing to do for one."""
    if dist.is_initialized():
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / dist.get_world_size()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def is_hidden(name: str) -> bool:
    """Weights for Muon: matrices between hidden features; not tables, norms, depthwise filters or outermost layers."""
    outer = ("embed_tokens", "lm_head", "in_conv", "unpatch_conv", "depthwise", "channelwise_norm", "beg_of_und")
    return not any(part in name for part in outer)


class Optimizer:
    """Muon for hidden matrices and convolutions (flattened), AdamW for everything else, under one schedule."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        muon: Callable[[str], bool],
        steps: int,
        muon_lr: float = 0.02,
        adam_lr: float = 2e-3,
    ) -> None:
        named = list(named)
        self.steps, self.rates = steps, (muon_lr, adam_lr)
        self.hidden = [p for name, p in named if p.dim() >= 2 and muon(name)]
        chosen = {id(p) for p in self.hidden}
        self.views = [nn.Parameter(p.data.view(p.shape[0], -1)) for p in self.hidden]  # shares the weights' memory
        self.muon = torch.optim.Muon(self.views, lr=muon_lr, weight_decay=0.0)
        self.adam = torch.optim.AdamW(
            [p for _, p in named if id(p) not in chosen], lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.parameters = [p for _, p in named]

    def step(self, step: int) -> None:
        """Update once from the gradients, then clear them; `step` counts from 0."""
        for optimizer, rate in zip((self.muon, self.adam), self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * schedule(step, self.steps)
        average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0, error_if_nonfinite=True)
        for view, weight in zip(self.views, self.hidden, strict=True):
            view.grad = None if weight.grad is None else weight.grad.view_as(view)
        self.muon.step()
        self.adam.step()
        for weight in self.parameters:
            weight.grad = None
