"""The terms of one training step, per sample, from tensors alone: what is drawn, what is answered.

B batch, T tokens, N picture tokens, W features of the understanding encoder, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .. import sampling
from ..attention import Attention, sdpa, segment_mask
from ..config import JanusFlowConfig
from ..llama import hidden_after
from ..model import JanusFlow, Prefix, flow_tokens
from .data import Packed
from .losses import autoregressive_loss, flow_loss, repa_loss


def new_projector(config: JanusFlowConfig) -> nn.Module:
    """The paper's three-layer head from hidden states to the understanding encoder's features."""
    hidden = config.language.hidden_size
    wide = [nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()]
    return nn.Sequential(*wide, nn.Linear(hidden, config.vision.width))


class Terms:
    """The objectives of one model, as a context: inside it the hidden states after `layer`, from 1, are watched.

    `compiled` may be torch.compile or the like; it gets the parts whose shapes are those of their tensors alone.
    `time_mean` is that of the times' logit (see `sampling.logit_normal`).
    """

    def __init__(
        self,
        model: JanusFlow,
        projector: nn.Module,
        layer: int,
        attention: Attention = sdpa,
        compiled: Callable[[Any], Any] = lambda function: function,
        time_mean: float = 0.0,
    ) -> None:
        self.model, self.projector, self.layer, self.attention = model, projector, layer, attention
        self.time_mean = time_mean
        self._draw, self._answer = compiled(self._drawing), compiled(self._answering)
        self._watching = ExitStack()

    def __enter__(self) -> Terms:
        self._hidden = self._watching.enter_context(hidden_after(self.model.language_model.model, self.layer))
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.close()

    def generation(self, prompts: Prefix, x: Tensor, features: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Flow and alignment loss (B,) of latents `x` (B, 4, h, w) at drawn noise and times (paper, eq. 7 and 8).

        `features` (B, N, W) of the same pictures are what the hidden states shall resemble; `generator` is on their
        device.
        """
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        t = sampling.logit_normal(len(x), generator, self.time_mean)
        positions, mask = prompts.layout(flow_tokens(*x.shape[2:]))
        flow, repa = self._draw(x, noise, t, prompts.embeddings, positions, mask, features)
        return {"flow": flow, "repa": repa}

    def understanding(self, asked: Packed, features: Tensor) -> dict[str, Tensor]:
        """Response loss (B,) of conversations about one picture each, given as `features` (B, N, W) (paper, eq. 6)."""
        embeddings = self.model.embed_conversation(asked.ids, asked.image_mask, features)
        return {"answer": self._answer(embeddings, asked.positions, segment_mask(asked.segments), asked.labels)}

    def _drawing(
        self, x: Tensor, noise: Tensor, t: Tensor, prompt: Tensor, positions: Tensor, mask: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        self._hidden.clear()
        z = sampling.interpolate(x, noise, t)
        v = self.model.flow(z, t, prompt, positions, mask, None, self.attention)
        projected = self.projector(self._hidden[0][:, -features.shape[1] :])
        return flow_loss(v, x, noise), repa_loss(projected, features)

    def _answering(self, embeddings: Tensor, positions: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        self._hidden.clear()
        hidden = self.model.language_model.model(embeddings, positions, mask, None, self.attention)
        return autoregressive_loss(self.model.logits(hidden), labels)
