"""Rectified flow: from noise at t = 0 to data at t = 1 along z_t = t * x + (1 - t) * z0 (paper, section 2).

Knows no model: a velocity is any callable (z (B, C, h, w), t a float in [0, 1]) -> (B, C, h, w). The state and all
times are float32 whatever the model computes in; the authors' bf16 steps add up to 1.003.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
# (steps done, steps in all, the picture the flow is heading for (B, C, h, w)); may raise to cancel
OnStep = Callable[[int, int, Tensor], None]
Step = Callable[[Velocity, Tensor, Tensor, float, float], Tensor]


def time_grid(steps: int, start: float = 0.0, shift: float = 1.0) -> list[float]:
    """The `steps` + 1 times from `start` to 1; `shift` > 1 spends more of them near the noise.

    Raises ValueError unless steps >= 1, 0 <= start < 1 and shift > 0.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if not 0.0 <= start < 1.0:
        raise ValueError(f"the start of the flow must lie in [0, 1), got {start}.")
    if not 0.0 < shift < math.inf:
        raise ValueError(f"shift must be a number above 0, got {shift}.")
    uniform = (k / steps + start * (1.0 - k / steps) for k in range(steps + 1))  # ends at 1 exactly
    return [t / (t + shift * (1.0 - t)) for t in uniform]


def draw_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Standard normal noise (len(seeds), *shape): each row from its own seed, on the CPU, so that no batch or device
    changes a picture."""
    rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


def logit_normal(count: int, generator: torch.Generator, mean: float | Tensor = 0.0) -> Tensor:
    """Times (count,) in (0, 1) whose logit is normal with deviation 1, on the generator's device.

    `mean`, one or (count,), 0 is the paper's P(t); below 0 more times lie near the noise.
    """
    return (torch.randn(count, generator=generator, device=generator.device) + mean).sigmoid()


def interpolate(x: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    """The point of the straight path at time `t` between `noise` (t = 0) and data `x` (t = 1), all (B, C, h, w).

    `t` is one time or, as a tensor (B,), one for each row.
    """
    at = t[:, None, None, None] if isinstance(t, Tensor) else t
    return at * x + (1.0 - at) * noise


def guide(cond: Tensor, uncond: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance (paper, eq. 5): weight * cond + (1 - weight) * uncond."""
    return weight * cond + (1.0 - weight) * uncond


def euler(velocity: Velocity, z: Tensor, v: Tensor, t: float, dt: float) -> Tensor:
    """First order, one evaluation a step: the authors' solver."""
    return z + v * dt


def heun(velocity: Velocity, z: Tensor, v: Tensor, t: float, dt: float) -> Tensor:
    """Second order, two evaluations a step; the last step is Euler's, because t = 1 was never trained."""
    if t + dt >= 1.0 - 1e-6:
        return z + v * dt
    return z + 0.5 * dt * (v + velocity(z + v * dt, t + dt))


SOLVERS: dict[str, Step] = {"euler": euler, "heun": heun}


@dataclass(frozen=True)
class Inpaint:
    """Keep `x` (B, C, h, w) where `mask` (B, 1, h, w) is 0, paint where it is 1; `noise` is the flow's own start."""

    x: Tensor
    mask: Tensor
    noise: Tensor

    def blend(self, z: Tensor, t: float) -> Tensor:
        """Put the kept region back on its own path at time `t`; at t = 1 it is `x` itself."""
        return self.mask * z + (1.0 - self.mask) * interpolate(self.x, self.noise, t)


def integrate(
    velocity: Velocity,
    z: Tensor,
    times: Sequence[float],
    solver: str = "euler",
    inpaint: Inpaint | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Carry `z` (B, C, h, w) from times[0] to times[-1], in float32 (paper, eq. 4). `on_step` may raise to cancel.

    Raises ValueError for an unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown; choose one of {', '.join(SOLVERS)}.")
    z, steps = z.float(), len(times) - 1
    for k, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
        v = velocity(z, t).float()
        ahead = z + (1.0 - t) * v
        z = SOLVERS[solver](velocity, z, v, t, t_next - t)
        if inpaint is not None:
            z = inpaint.blend(z, t_next)
        if on_step is not None:
            on_step(k + 1, steps, ahead)
    return z
