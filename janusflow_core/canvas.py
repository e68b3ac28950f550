"""What a drawing starts from: noise of every picture's own seed, a picture that is dissolved in it, and a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from .image import pixels
from .sampling import draw_noise, spherical_mix


def latent_sides(width: int, height: int) -> tuple[int, int]:
    """The sides (h, w) of the latents of a picture of so many pixels; raises ValueError for sides without any."""
    for name, side in (("width", width), ("height", height)):
        if side % 16 or side < 16:
            raise ValueError(f"{name} must be a multiple of 16 pixels, got {side}.")
    return height // 8, width // 8


def varied_noise(shape: Sequence[int], seeds: Sequence[int], others: Sequence[int], share: float) -> Tensor:
    """Noise (B, *shape) of some seeds, on a share in [0, 1] of the way to that of `others`; 0 does without them.

    Raises ValueError for another share.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"the strength of a variation must lie in [0, 1], got {share}.")
    noise = draw_noise(shape, seeds)
    return spherical_mix(noise, draw_noise(shape, others), share) if share else noise


def start_pixels(picture: Image.Image | Tensor, size: tuple[int, int]) -> Tensor:
    """The picture to start from, as pixels (B, 3, H, W) in [0, 1] of this `size` (W, H): a PIL picture is resized.

    Raises ValueError for a tensor of another shape.
    """
    width, height = size
    if isinstance(picture, Image.Image):
        picture = pixels(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))[None]
    if picture.shape[-2:] != (height, width) or picture.dim() != 4:
        raise ValueError(f"init_image must be (B, 3, {height}, {width}) in [0, 1], got {tuple(picture.shape)}.")
    return picture


def latent_mask(mask: Image.Image | Tensor, like: Tensor) -> Tensor:
    """The mask (B, 1, h, w) of latents `like` (B, 4, h, w), from a picture or tensor (..., H, W) that is 1 or white
    where something is painted anew."""
    if isinstance(mask, Image.Image):
        mask = pixels(mask.convert("L"))
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).to(like)
    return torch.nn.functional.interpolate(mask, size=like.shape[-2:], mode="bilinear")
