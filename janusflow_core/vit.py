"""The understanding encoder: SigLIP's vision transformer under the checkpoint's (timm-style) names.

The checkpoint also holds `attn_pool.*`, which JanusFlow never uses; it is the one prefix dropped on loading.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, sdpa
from .config import VisionConfig

NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    def __init__(self, config: VisionConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = operations.Conv2d(3, config.width, kernel_size=size, stride=size, **factory)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)  # (B, 3, S, S) -> (B, N, D)


class FusedAttention(nn.Module):
    def __init__(self, config: VisionConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = operations.Linear(config.width, 3 * config.width, **factory)
        self.proj = operations.Linear(config.width, config.width, **factory)

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, H, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, H, N, K) each
        return self.proj(attention(q, k, v, None))


class ViTMLP(nn.Module):
    def __init__(self, config: VisionConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.fc1 = operations.Linear(config.width, hidden, **factory)
        self.fc2 = operations.Linear(hidden, config.width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # exact GELU; the tanh form is off by 5e-3 in the logits


class ViTBlock(nn.Module):
    def __init__(self, config: VisionConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.norm1 = operations.LayerNorm(config.width, eps=NORM_EPS, **factory)
        self.attn = FusedAttention(config, operations, **factory)
        self.norm2 = operations.LayerNorm(config.width, eps=NORM_EPS, **factory)
        self.mlp = ViTMLP(config, operations, **factory)

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        x = x + self.attn(self.norm1(x), attention)
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, config: VisionConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config, operations, **factory)
        self.pos_embed = nn.Parameter(torch.empty(1, config.grid**2, config.width, **factory))
        self.blocks = nn.ModuleList(ViTBlock(config, operations, **factory) for _ in range(config.depth))
        self.norm = operations.LayerNorm(config.width, eps=NORM_EPS, **factory)

    def forward(self, pixels: Tensor, attention: Attention = sdpa) -> Tensor:
        """Patch features (B, N, D), row by row, of normalised pixels (B, 3, S, S)."""
        x = self.patch_embed(pixels)
        x = x + self.pos_embed.to(x)
        for block in self.blocks:
            x = block(x, attention)
        return self.norm(x)


class VisionEncoder(nn.Module):
    """Holds the transformer under the checkpoint's name `vision_tower`."""

    def __init__(self, config: VisionConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.vision_tower = VisionTransformer(config, operations, **factory)

    def forward(self, pixels: Tensor, attention: Attention = sdpa) -> Tensor:
        return self.vision_tower(pixels, attention)
