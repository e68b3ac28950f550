"""Latents to pixels and back, outside ComfyUI: any SDXL VAE, and the embedded one, through diffusers.

Model-scale latents are VAE latents times `scaling_factor`; pixels are (B, 3, H, W) in [0, 1], eight to a latent.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .autoencoder import Autoencoder


class LatentCodec:
    """An SDXL-style autoencoder at the model's scale. Never in float16, where SDXL's VAE overflows.

    It is built when first used, so that diffusers is needed for pixels alone.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if dtype == torch.float16:
            raise ValueError("the SDXL VAE overflows in float16: use bfloat16 or float32.")
        self.autoencoder, self.dtype, self.device = autoencoder, dtype, torch.device(device)
        self.scale = autoencoder.config.scaling_factor

    @cached_property
    def vae(self) -> Any:
        """diffusers' AutoencoderKL; raises ImportError, with what to install, where there is no diffusers."""
        try:
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        except ImportError as error:
            raise ImportError('pictures need diffusers outside ComfyUI: pip install "diffusers>=0.35"') from error
        with torch.device("meta"):
            vae: Any = AutoencoderKL.from_config(self.autoencoder.config.to_json_dict())
        own = {key: value.to(self.device, self.dtype) for key, value in self.autoencoder.weights.items()}
        vae.load_state_dict(own, strict=True, assign=True)
        return vae.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> LatentCodec:
        """The same on another device."""
        return LatentCodec(self.autoencoder, self.dtype, device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, 8h, 8w) in [0, 1], float32, of model-scale latents (B, 4, h, w)."""
        # One picture at a time: the decoder's peak memory is many times the picture's.
        rows = [self.vae.decode(self._own(row[None]) / self.scale).sample for row in latents]
        return (torch.cat(rows).float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Model-scale latents (B, 4, H/8, W/8), float32, of pixels (B, 3, H, W) in [0, 1]: the posterior's mean."""
        rows = [self.vae.encode(self._own(row[None] * 2 - 1)).latent_dist.mean for row in pixels]
        return torch.cat(rows).float() * self.scale

    def _own(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype)
