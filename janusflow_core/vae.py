"""Latents to pixels and back, outside ComfyUI: any SDXL VAE, and the embedded one, through diffusers.

Model-scale latents are VAE latents times `scaling_factor`; pixels are (B, 3, H, W) in [0, 1], eight to a latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import read_json
from .weights import TensorFile, Weights

SDXL_CONFIG: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}


class LatentCodec:
    """An SDXL-style autoencoder at the model's scale. Never in float16, where SDXL's VAE overflows.

    It is built when first used, so that diffusers is needed for pixels alone.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if dtype == torch.float16:
            raise ValueError("the SDXL VAE overflows in float16: use bfloat16 or float32.")
        self.config, self.weights, self.dtype, self.device = config, weights, dtype, torch.device(device)
        self.scale = float(config.get("scaling_factor", SDXL_CONFIG["scaling_factor"]))

    @cached_property
    def vae(self) -> Any:
        """diffusers' AutoencoderKL; raises ImportError, with what to install, where there is no diffusers."""
        vae, named = _autoencoder(self.config), _diffusers_names(self.weights, self.config)
        own = {key: value.to(self.device, self.dtype) for key, value in named.items()}
        vae.load_state_dict(own, strict=True, assign=True)
        return vae.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> LatentCodec:
        """The same on another device."""
        return LatentCodec(self.config, self.weights, self.dtype, device)

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


def load_vae_files(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a VAE: a diffusers folder, or one SDXL VAE file in either naming.

    Raises FileNotFoundError or ValueError with one sentence that names the file.
    """
    path = Path(path)
    if path.is_dir():
        config = read_json(path / "config.json", "a VAE folder in diffusers' layout")
        path = path / "diffusion_pytorch_model.safetensors"
    else:
        config = {}
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a VAE as a .safetensors file or a diffusers folder.")
    weights = Weights([TensorFile(path)])
    if not any(key.startswith("decoder.") for key in weights):
        raise ValueError(f"{path.name} is not a VAE: it holds no decoder.")
    tensors = weights.tensors()
    return config or vae_config(tensors), tensors


def vae_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of an SDXL-style VAE, read off its weights in either naming; raises ValueError for another kind."""
    first = "encoder.down_blocks.{}.resnets.0.conv1.weight"
    if first.format(0) not in weights:
        first = "encoder.down.{}.block.0.conv1.weight"
    if first.format(0) not in weights or "quant_conv.weight" not in weights:
        raise ValueError("this is no VAE of SDXL's kind: it lacks encoder.down_blocks or quant_conv.")
    widths = [weights[first.format(i)].shape[0] for i in range(8) if first.format(i) in weights]
    block = first.format(0).replace(".0.conv1", ".{}.conv1")
    return {
        **SDXL_CONFIG,
        "block_out_channels": widths,
        "latent_channels": weights["quant_conv.weight"].shape[0] // 2,
        "layers_per_block": sum(block.format(i) in weights for i in range(8)),
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
    }


def _autoencoder(config: Mapping[str, Any]) -> Any:
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    except ImportError as error:
        raise ImportError('pictures need diffusers outside ComfyUI: pip install "diffusers>=0.35"') from error
    with torch.device("meta"):
        return AutoencoderKL.from_config({k: v for k, v in config.items() if not k.startswith("_")})


def _diffusers_names(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights under diffusers' present names; SDXL's own file has older ones."""
    if "decoder.mid.block_1.norm1.weight" in weights:
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        weights = convert_ldm_vae_checkpoint(dict(weights), dict(config))
    renamed = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    out = {}
    for name, tensor in weights.items():
        for old, new in renamed.items():
            name = name.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
        out[name] = tensor
    return out
