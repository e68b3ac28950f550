"""Muon with all matrices of one shape at once: torch's takes them one by one, and a GPU then waits for its orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic that is steepest at zero: five steps do
STEPS = 5


def orthogonalised(g: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly and in bfloat16, to a stack of them (K, M, N), by Newton and Schulz."""
    a, b, c = NEWTON_SCHULZ
    tall = g.shape[1] > g.shape[2]
    x = (g.mT if tall else g).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def all_orthogonalised(stacks: list[Tensor]) -> list[Tensor]:
    """Each of some stacks orthogonalised: one function, so that a GPU may take all of it as one order."""
    return [orthogonalised(stack) for stack in stacks]


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal, for matrices (Jordan et al., 2024): torch.optim.Muon without weight decay.

    `compiled` may be torch.compile or the like.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        compiled: Callable[[Any], Any] = lambda function: function,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})
        self._orthogonalised = compiled(all_orthogonalised)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the matrices that have a gradient; a closure is not called."""
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    of_shape.setdefault(weight.shape, []).append(weight)
            stacks = [self._directions(weights, group["momentum"]) for weights in of_shape.values()]
            found = zip(of_shape.items(), self._orthogonalised(stacks), strict=True)
            for (shape, weights), directions in found:
                rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                for weight, direction in zip(weights, directions.to(weights[0].dtype), strict=True):
                    weight.add_(direction, alpha=-rate)

    def _directions(self, weights: list[nn.Parameter], momentum: float) -> Tensor:
        """Nesterov's: the gradients a part of the way to their running means, (K, M, N)."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        means = [self.state[weight]["momentum_buffer"] for weight in weights]
        get_ema_multi_avg_fn(momentum)(means, gradients, None)
        return torch.stack(gradients).lerp(torch.stack(means), momentum)
