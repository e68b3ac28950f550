"""Classifier-free guidance (paper, eq. 5): how much the prompt outweighs what stands against it, when, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Guidance of `weight`, 1 is none, from the flow's time `start` up to `end`; elsewhere the prompt is alone.

    `zero_star` first scales the unconditional velocity to its share in the conditional one (CFG-Zero*, arXiv
    2503.18886, without its idle first steps). `rescale` in [0, 1] is how far the contrast of the picture that the
    prompt alone is heading for is kept (arXiv 2305.08891, section 3.4). Raises ValueError for other values.
    """

    weight: float = 2.0
    start: float = 0.0
    end: float = 1.0
    zero_star: bool = False
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"guidance must be a number, got {self.weight}.")
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(
                "guidance must start and end within the flow's time, 0 to 1 and in this order, "
                f"got {self.start} and {self.end}."
            )
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"the rescaling of guidance must lie in [0, 1], got {self.rescale}.")

    def guides(self, t: float) -> bool:
        """Whether the unconditional branch is needed at time `t`; 1 is never asked for."""
        return self.weight != 1.0 and self.start <= round(t, 6) < self.end  # ComfyUI's times are rounded to 1e-7

    def combine(self, z: Tensor, t: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
        """The guided velocity of two (B, C, h, w), at latents `z` and times `t` (B or 1,)."""
        uncond = optimal_scale(cond, uncond) * uncond if self.zero_star else uncond
        guided = guide(cond, uncond, self.weight)
        return rescaled(z, t, cond, guided, self.rescale) if self.rescale else guided


def guide(cond: Tensor, uncond: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance (paper, eq. 5): weight * cond + (1 - weight) * uncond."""
    return weight * cond + (1.0 - weight) * uncond


def optimal_scale(cond: Tensor, uncond: Tensor) -> Tensor:
    """For each row the factor (B, 1, 1, 1) that brings `uncond` nearest to `cond`: its projection's length."""
    alike, length = (part.sum((1, 2, 3), keepdim=True) for part in (cond * uncond, uncond.square()))
    return alike / (length + 1e-8)


def rescaled(z: Tensor, t: Tensor, cond: Tensor, guided: Tensor, share: float) -> Tensor:
    """The guided velocity whose picture at t = 1 has, by this share, the deviation of the conditional one's."""
    left = 1.0 - t[:, None, None, None]
    plain, strong = z + left * cond, z + left * guided
    contrast = plain.std((1, 2, 3), keepdim=True) / strong.std((1, 2, 3), keepdim=True).clamp_min(1e-8)
    return (torch.lerp(strong, strong * contrast, share) - z) / left
