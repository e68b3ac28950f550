"""The generation encoder and decoder: shallow ConvNeXt-V2 stages around the language model (paper, section 3.1).

B batch, C channels, h and w the latent's sides; the language model sees a grid of (h / 2, w / 2) tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import FlowConfig


def sinusoid(t: Tensor, size: int) -> Tensor:
    """Sinusoidal features (B, size) of model times `t` (B,) in [0, 1000], cosines first, in float32."""
    half = size // 2
    index = torch.arange(half, device=t.device, dtype=torch.float32)
    angle = t.float()[:, None] * torch.exp(-math.log(10000.0) * index / half)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class TimeEmbedding(nn.Module):
    def __init__(self, channels: int, hidden_size: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.linear_1 = operations.Linear(channels, hidden_size, **factory)
        self.linear_2 = operations.Linear(hidden_size, hidden_size, **factory)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


class GlobalResponseNorm(nn.Module):
    """ConvNeXt-V2's competition between channels, over the whole picture; zero weights make it the identity."""

    def __init__(self, channels: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 1, 1, channels, **factory))
        self.bias = nn.Parameter(torch.empty(1, 1, 1, channels, **factory))

    def forward(self, x: Tensor) -> Tensor:
        # Not vector_norm, which is ten times as slow on a CPU; clamped, for a dead channel's gradient would be 0 / 0.
        squares = x.to(torch.promote_types(x.dtype, torch.float32)).square()
        energy = squares.sum(dim=(1, 2), keepdim=True).clamp_min(1e-30).sqrt()  # (B, 1, 1, C)
        response = (energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)).to(x.dtype)
        return self.bias.to(x) + (self.weight.to(x) * response + 1) * x


class ConvNextBlock(nn.Module):
    def __init__(self, channels: int, hidden_size: int, config: FlowConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        bias = config.use_bias
        self.depthwise = operations.Conv2d(
            channels, channels, kernel_size=7, padding=3, groups=channels, bias=bias, **factory
        )
        self.norm = operations.RMSNorm(channels, eps=config.norm_eps, **factory)
        self.channelwise_linear_1 = operations.Linear(channels, 4 * channels, bias=bias, **factory)
        self.channelwise_norm = GlobalResponseNorm(4 * channels, **factory)
        self.channelwise_linear_2 = operations.Linear(4 * channels, channels, bias=bias, **factory)
        self.cond_embeds_mapper = operations.Linear(hidden_size, 2 * channels, bias=bias, **factory)

    def forward(self, x: Tensor, t_emb: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # (B, h, w, C)
        h = self.channelwise_norm(F.gelu(self.channelwise_linear_1(h)))
        x = x + self.channelwise_linear_2(h).permute(0, 3, 1, 2)
        scale, shift = self.cond_embeds_mapper(F.silu(t_emb))[:, :, None, None].chunk(2, dim=1)
        return x * (1 + scale) + shift  # the time modulates the sum, not the branch


class Stage(nn.Module):
    def __init__(
        self, layers: int, channels: int, hidden_size: int, config: FlowConfig, operations: Any, **factory: Any
    ) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(
            ConvNextBlock(channels, hidden_size, config, operations, **factory) for _ in range(layers)
        )

    def forward(self, x: Tensor, t_emb: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x, t_emb)
        return x


class FlowEncoder(nn.Module):
    """Noisy latents to a grid of features, and the time to one token."""

    def __init__(self, config: FlowConfig, hidden_size: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.channels = config.channels
        self.time_embed = TimeEmbedding(config.channels, hidden_size, operations, **factory)
        self.in_conv = operations.Conv2d(config.latent_channels, config.channels, kernel_size=2, stride=2, **factory)
        self.mid_block = Stage(config.encoder_layers, config.channels, hidden_size, config, operations, **factory)

    def forward(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h/2, w/2) and time embedding (B, D) of latents `z` (B, 4, h, w) at `t` (B,) in [0, 1000]."""
        t_emb = self.time_embed(sinusoid(t, self.channels).to(z.dtype))
        return self.mid_block(self.in_conv(z), t_emb), t_emb


class Unpatch(nn.Module):
    def __init__(self, config: FlowConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        channels = 2 * config.channels
        self.norm = operations.RMSNorm(channels, eps=config.norm_eps, **factory)
        self.unpatch_conv = operations.Conv2d(channels, 4 * config.latent_channels, kernel_size=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(self.unpatch_conv(x), 2)


class FlowDecoder(nn.Module):
    """The language model's view of the picture, joined to the encoder's features, to a velocity."""

    def __init__(self, config: FlowConfig, hidden_size: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.input_norm = operations.RMSNorm(config.channels, eps=config.norm_eps, **factory)
        self.mid_block = Stage(config.decoder_layers, 2 * config.channels, hidden_size, config, operations, **factory)
        self.out_convs = nn.ModuleList([Unpatch(config, operations, **factory)])

    def forward(self, x: Tensor, skip: Tensor, t_emb: Tensor) -> Tensor:
        """Velocity (B, 4, h, w) from LLM features `x` and encoder features `skip`, both (B, C, h/2, w/2)."""
        x = self.input_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.mid_block(torch.cat((x, skip), dim=1), t_emb)
        return self.out_convs[0](x)
