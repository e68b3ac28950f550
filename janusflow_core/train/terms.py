"""The terms of one training step, per sample, from tensors alone: what is drawn, what is answered.

B batch, T tokens, N picture tokens, W features of the understanding encoder, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import sampling
from ..attention import Attention, sdpa, segment_mask
from ..config import JanusFlowConfig
from ..llama import hidden_after
from ..model import JanusFlow, Prefix
from .data import Packed
from .losses import autoregressive_loss, flow_loss, repa_loss


def new_projector(config: JanusFlowConfig) -> nn.Module:
    """The paper's three-layer head from hidden states to the understanding encoder's features."""
    hidden = config.language.hidden_size
    wide = [nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()]
    return nn.Sequential(*wide, nn.Linear(hidden, config.vision.width))


def generation_terms(
    model: JanusFlow,
    projector: nn.Module,
    prompts: Prefix,
    x: Tensor,
    features: Tensor,
    *,
    layer: int,
    generator: torch.Generator,
    attention: Attention = sdpa,
) -> dict[str, Tensor]:
    """Flow and alignment loss (B,) of latents `x` (B, 4, h, w) at drawn noise and times (paper, eq. 7 and 8).

    `features` (B, N, W) of the same pictures are what the hidden states after `layer`, counted from 1, shall resemble;
    `generator` is on their device.
    """
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    t = sampling.logit_normal(len(x), generator)
    with hidden_after(model.language_model.model, layer) as hidden:
        v = model.velocity(sampling.interpolate(x, noise, t), t, prompts, attention)
    projected = projector(hidden[0][:, -features.shape[1] :])
    return {"flow": flow_loss(v, x, noise), "repa": repa_loss(projected, features)}


def understanding_terms(
    model: JanusFlow, asked: Packed, features: Tensor, attention: Attention = sdpa
) -> dict[str, Tensor]:
    """Response loss (B,) of conversations about one picture each, given as `features` (B, N, W) (paper, eq. 6)."""
    embeddings = model.embed_conversation(asked.ids, asked.image_mask, features)
    mask = segment_mask(asked.segments)
    hidden = model.language_model.model(embeddings, asked.positions, mask, None, attention)
    return {"answer": autoregressive_loss(model.logits(hidden), asked.labels)}
