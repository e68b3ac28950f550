"""The first stage of the embedded model: its VAE, trained on crops, scaled so that SDXL's factor is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autoencoder import VAEConfig
from ..drawing import Preview
from ..partial import appearing
from ..train.loop import Budget, Stage, fit, streams
from ..train.machine import rank, world
from ..train.optimizer import Optimizer
from .library import SEEDS, draw_scenes, pictures
from .scenes import FRAME

# 32 groups because ComfyUI's own autoencoder has that number built in.
VAE = VAEConfig(block_out_channels=(64, 64, 64, 64), norm_num_groups=32, sample_size=FRAME)


def crops(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """One random square of `size` pixels from each picture: (N, 3, size, size)."""
    corners = torch.randint(0, pixels.shape[-1] - size + 1, (len(pixels), 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(pixels, corners, strict=True)])


def autoencoder(folder: Path | None = None) -> Any:
    """The embedded model's VAE, new or as trained in `folder`."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL.from_config(VAE.to_json_dict()) if folder is None else AutoencoderKL.from_pretrained(folder)


def train_vae(out: Path, budget: Budget, batch: int = 8, kl_weight: float = 2e-4) -> None:
    """Train the KL autoencoder on 40-pixel crops, then scale its latents to deviation 1 / 0.13025.

    `batch` crops a step, divided among the processes.
    """
    torch.manual_seed(0)
    vae, own = autoencoder(), max(batch // world(), 1)
    # Posteriors start narrow: at the usual deviation of 1 the noise drowns the untrained means for thousands of steps.
    nn.init.constant_(vae.quant_conv.bias[VAE.latent_channels :], -6.0)
    outer = ("encoder.conv_in", "decoder.conv_out", "quant_conv", "post_quant_conv")
    named = dict(vae.named_parameters())
    optimizer = Optimizer(named.items(), lambda name: not name.startswith(outer))
    weights = {"l1": 1.0, "kl": kl_weight}
    stage = Stage("vae", out.with_name("vae.state.safetensors"), named, optimizer, weights)

    def terms(step: int) -> dict[str, Tensor]:
        rng, generator = streams(SEEDS["vae"], step)
        x = crops(pictures(draw_scenes(rng.getrandbits(40), own)), 40, generator)
        posterior = vae.encode(x).latent_dist
        error = (vae.decode(posterior.sample(generator)).sample - x).abs()
        return {"l1": error, "kl": posterior.kl() / posterior.mean[0].numel()}

    fit(stage, budget, terms)
    if rank() == 0:
        normalise_latents(vae, pictures(draw_scenes(SEEDS["library"], 64)))
        with appearing(out) as partial:
            vae.save_pretrained(partial)


def fit_preview(vae: Any, x: Tensor, units: int = 32, steps: int = 1500) -> Preview:
    """The little network that shows latents of pictures `x` (N, 3, H, W) in their colors; SDXL's would be false."""
    torch.manual_seed(0)
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(32)]) * VAE.scaling_factor
    colors, background = F.avg_pool2d(x, 8), x[:, :, :2].mean(dim=(2, 3), keepdim=True)
    weight = 0.3 + (colors - background).norm(dim=1, keepdim=True)  # most cells are background and hardly count
    inner = nn.Conv2d(latents.shape[1], units, 3, padding=1, padding_mode="replicate").to(x.device)
    outer = nn.Conv2d(units, 3, 1).to(x.device)
    optimizer = torch.optim.AdamW([*inner.parameters(), *outer.parameters()], lr=3e-3)
    for _ in range(steps):
        some = torch.randint(len(x), (16,))
        error = outer(F.silu(inner(latents[some]))) - colors[some]
        (error.square() * weight[some]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return Preview(hidden=_rows(inner), color=_rows(outer))


def _rows(layer: nn.Conv2d) -> Any:
    """Weights and bias of each output, rounded to what a preview needs."""
    assert layer.bias is not None
    rows = torch.cat((layer.weight.flatten(1), layer.bias[:, None]), dim=1).tolist()
    return tuple(tuple(round(value, 3) for value in row) for row in rows)


@torch.no_grad()
def normalise_latents(vae: Any, x: Tensor) -> None:
    """Fold an affine map into the two 1x1 convolutions: latents of pictures `x` get mean 0, deviation 1 / 0.13025."""
    latents = vae.encode(x).latent_dist.mean
    mean = latents.mean(dim=(0, 2, 3))
    scale = 1 / (VAE.scaling_factor * latents.std(dim=(0, 2, 3)))
    channels = len(mean)
    vae.quant_conv.weight[:channels] *= scale[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) * scale
    vae.quant_conv.bias[channels:] += 2 * scale.log()
    weight = vae.post_quant_conv.weight  # (4, 4, 1, 1)
    vae.post_quant_conv.bias += (weight * mean[None, :, None, None]).sum(dim=(1, 2, 3))
    weight /= scale[None, :, None, None]
