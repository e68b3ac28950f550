"""What cannot be drawn with: patches for other models, latents of other things, weights that hold NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class NoUNet(dict[str, Any]):
    """What ComfyUI calls the config of a U-Net: FreeU and its like look up in it what JanusFlow does not have."""

    def __missing__(self, key: str) -> Any:
        raise ValueError(
            f"This node changes a U-Net and asks for its {key}, but JanusFlow has none: take the node out of the graph."
        )


def check_pictures(image: Any, node: str) -> None:
    """Raises ValueError in the name of a node unless these are pictures (B, H, W, C), at least one of one pixel."""
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) != 4 or 0 in shape:
        raise ValueError(
            f"{node} got pictures of shape {shape}, expected (batch, height, width, channels) and at least one of one "
            "pixel: connect an IMAGE output."
        )


def check_latents(latents: Any, channels: int) -> None:
    """Raises ValueError unless these are latents (B, channels, h, w) of pictures, at least one of them."""
    shape, fits = _shape(latents, channels)
    if not fits:
        raise ValueError(
            f"The latent has shape {shape}, but JanusFlow draws pictures of (batch, {channels}, height, "
            "width): connect Empty Latent Image, or a latent of pictures."
        )


def check_decodable(latents: Any, channels: int) -> None:
    """Raises ValueError for latents of sounds, of videos and of other VAEs than one of so many channels."""
    shape, fits = _shape(latents, channels)
    if not fits:
        raise ValueError(
            f"The latent has shape {shape}, but this VAE decodes pictures of (batch, {channels}, height, width): "
            "connect a latent that was drawn for the same VAE."
        )


def _shape(latents: Any, channels: int) -> tuple[tuple[int, ...], bool]:
    """The shape of latents, and whether it is one of pictures: (B, channels, h, w), none of them 0."""
    shape = tuple(getattr(latents, "shape", ()))
    return shape, len(shape) == 4 and shape[1] == channels and 0 not in shape


def check_patches(transformer_options: Mapping[str, Any]) -> None:
    """Raises ValueError where a node has replaced what JanusFlow does not have."""
    if replaced := transformer_options.get("patches_replace"):
        raise ValueError(
            f"A node replaces {' and '.join(sorted(replaced))} in a U-Net's blocks, but JanusFlow has none: take that "
            "node out (SelfAttentionGuidance, an IPAdapter)."
        )


def check_numbers(latents: Tensor) -> None:
    """Raises ValueError for a drawing that holds NaN or infinity."""
    if not torch.isfinite(latents).all():
        raise ValueError(
            "The drawing came out as NaN, which a VAE shows as black: take LoRAs and other patches out one by one, or "
            "choose another weight_dtype in Load JanusFlow."
        )
