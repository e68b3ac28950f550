"""Rectified flow: from noise at t = 0 to data at t = 1 along z_t = t * x + (1 - t) * z0 (paper, section 2).

Knows no model: a velocity is any callable (z (B, C, h, w), t a float in [0, 1]) -> (B, C, h, w). The state and all
times are float32 whatever the model computes in; the authors' bf16 steps add up to 1.003.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .seeds import generator

Velocity = Callable[[Tensor, float], Tensor]
# (steps done, steps in all, the picture the flow is heading for (B, C, h, w)); may raise to cancel
OnStep = Callable[[int, int, Tensor], None]
Fresh = Iterator[Tensor]  # noise that was not there before, (B, C, h, w) each time
# (velocity, z, where the flow is, where it was a step before, the time to reach, new noise) -> z there
Step = Callable[[Velocity, Tensor, "Point", "Point | None", float, Fresh], Tensor]
RENEWED, RENEWED_FROM, RENEWED_TO = 0.8, 0.1, 0.6  # how much of the noise, and when on the way
MOST_STEPS = 1_000_000
ROUNDING = 1e-6  # of times that were noise levels in float32


def time_grid(steps: int, start: float = 0.0, shift: float = 1.0) -> list[float]:
    """The `steps` + 1 times from `start` to 1; `shift` > 1 spends more of them near the noise.

    Raises ValueError unless 1 <= steps <= 1,000,000, 0 <= start < 1 and shift > 0.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps must be at least 1 and at most {MOST_STEPS:,}, got {steps}.")
    if not 0.0 <= start < 1.0:
        raise ValueError(f"the start of the flow must lie in [0, 1), got {start}.")
    if not 0.0 < shift < math.inf:
        raise ValueError(f"shift must be a number above 0, got {shift}.")
    uniform = (k / steps + start * (1.0 - k / steps) for k in range(steps + 1))  # ends at 1 exactly
    return [t / (t + shift * (1.0 - t)) for t in uniform]


def draw_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Standard normal noise (len(seeds), *shape): each row from its own seed, on the CPU, so that no batch or device
    changes a picture."""
    return torch.stack([torch.randn(*shape, generator=generator(seed)) for seed in seeds])


def fresh_noise(noise: Tensor) -> Fresh:
    """Draws more and more noise like this (B, C, h, w): each row follows from the same row here, bit by bit, so that
    no batch or device changes a picture."""
    rows = noise.detach().float().cpu().contiguous()  # not before the first is asked for
    generators = [generator(zlib.crc32(row.numpy().tobytes())) for row in rows]
    while True:
        yield torch.stack([torch.randn(rows.shape[1:], generator=own) for own in generators]).to(noise.device)


def spherical_mix(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The point at this share of the arc from each row of `first` (B, ...) to that of `second`: noise of the same
    deviation, which a straight mix of two is not."""
    a, b = first.flatten(1).double(), second.flatten(1).double()
    angle = torch.acos(torch.cosine_similarity(a, b).clamp(-1.0, 1.0))[:, None]  # (B, 1)
    weights = torch.sin(torch.cat(((1.0 - share) * angle, share * angle), dim=1)) / torch.sin(angle)
    near = angle.abs() < 1e-6  # of two alike the arc is a point
    mixed = torch.where(near, a, weights[:, :1] * a + weights[:, 1:] * b)
    return mixed.to(first.dtype).view_as(first)


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


@dataclass(frozen=True)
class Point:
    """A time `t` of the way, the velocity there, and the picture `ahead` that it heads for, both (B, C, h, w)."""

    t: float
    v: Tensor
    ahead: Tensor


def euler(velocity: Velocity, z: Tensor, here: Point, last: Point | None, t_next: float, fresh: Fresh) -> Tensor:
    """First order, one evaluation a step: the authors' solver."""
    return z + here.v * (t_next - here.t)


def heun(velocity: Velocity, z: Tensor, here: Point, last: Point | None, t_next: float, fresh: Fresh) -> Tensor:
    """Second order, two evaluations a step; the last step is Euler's, because t = 1 was never trained."""
    dt = t_next - here.t
    if t_next >= 1.0 - ROUNDING:
        return z + here.v * dt
    return z + 0.5 * dt * (here.v + velocity(z + here.v * dt, t_next).float())


def ab2(velocity: Velocity, z: Tensor, here: Point, last: Point | None, t_next: float, fresh: Fresh) -> Tensor:
    """Adams and Bashforth's: second order with one evaluation a step, by the velocity of the step before; the first
    and the last step are Euler's. ComfyUI's ipndm_v of order 2."""
    dt = t_next - here.t
    if last is None or t_next >= 1.0:
        return z + here.v * dt
    bend = dt / (2.0 * (here.t - last.t))
    return z + dt * ((1.0 + bend) * here.v - bend * last.v)


def dpmpp_2m(velocity: Velocity, z: Tensor, here: Point, last: Point | None, t_next: float, fresh: Fresh) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095): second order with one evaluation a step, in the logarithm of the noise that
    is left, by the picture of the step before; the first and the last step are Euler's."""
    left = (1.0 - t_next) / (1.0 - here.t)
    ahead = here.ahead
    if last is not None and t_next < 1.0:
        bend = math.log(left) / (2.0 * math.log((1.0 - here.t) / (1.0 - last.t)))
        ahead = (1.0 + bend) * ahead - bend * last.ahead
    return left * z + (1.0 - left) * ahead


def renoise(velocity: Velocity, z: Tensor, here: Point, last: Point | None, t_next: float, fresh: Fresh) -> Tensor:
    """Euler's step, but where a picture is composed most of the noise that is left is another one: DDIM's step
    (arXiv 2010.02502, eq. 12) on a straight path. Of what does not fit together, one part can still give way."""
    if not RENEWED_FROM <= here.t + ROUNDING < RENEWED_TO:
        return euler(velocity, z, here, last, t_next, fresh)
    noise = (z - here.t * here.ahead) / (1.0 - here.t)
    noise = math.sqrt(1.0 - RENEWED**2) * noise + RENEWED * next(fresh)
    return interpolate(here.ahead, noise, t_next)


SOLVERS: dict[str, Step] = {"euler": euler, "heun": heun, "ab2": ab2, "dpmpp_2m": dpmpp_2m, "renoise": renoise}


@dataclass(frozen=True)
class Inpaint:
    """Keep `x` (B, C, h, w) where `mask` (B, 1, h, w) is 0, paint where it is 1; `noise` is the flow's own start.

    Between them a mask mixes both at every step, as ComfyUI does. Or, `differential`, it says when painting begins
    (arXiv 2306.00950): 0.7 is kept for the first 0.3 of the way, which begins at time `start`.
    """

    x: Tensor
    mask: Tensor
    noise: Tensor
    start: float = 0.0
    differential: bool = False

    def mask_at(self, t: float) -> Tensor:
        """What is painted at time `t`, (B, 1, h, w)."""
        left = (1.0 - t) / (1.0 - self.start)
        return (self.mask >= left).to(self.mask) if self.differential else self.mask

    def around(self, velocity: Velocity) -> Velocity:
        """The velocity of a picture of which only the masked part is free to move."""

        def masked(z: Tensor, t: float) -> Tensor:
            mask, left = self.mask_at(t), 1.0 - t
            mixed = mask * z + (1.0 - mask) * interpolate(self.x, self.noise, t)
            ahead = mask * (mixed + left * velocity(mixed, t).float()) + (1.0 - mask) * self.x
            return (ahead - z) / left

        return masked

    def finish(self, z: Tensor) -> Tensor:
        """The end of the flow with what was kept restored, free of rounding."""
        return torch.where(self.mask > 0, z, self.x)


def integrate(
    velocity: Velocity,
    z: Tensor,
    times: Sequence[float],
    solver: str = "euler",
    inpaint: Inpaint | None = None,
    on_step: OnStep | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Carry `z` (B, C, h, w) from times[0] to times[-1], in float32 (paper, eq. 4). `on_step` may raise to cancel.

    New noise, where a solver takes any, follows from `noise` (B, C, h, w), by default from `z`. Raises ValueError for
    an unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown; choose one of {', '.join(SOLVERS)}.")
    velocity = inpaint.around(velocity) if inpaint is not None else velocity
    z, steps, last = z.float(), len(times) - 1, None
    fresh = fresh_noise(z if noise is None else noise)
    for k, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
        v = velocity(z, t).float()
        here = Point(t, v, z + (1.0 - t) * v)
        z = SOLVERS[solver](velocity, z, here, last, t_next, fresh)
        last = here
        if on_step is not None:
            on_step(k + 1, steps, here.ahead)
    return inpaint.finish(z) if inpaint is not None else z
