"""The terms of one training step, per sample, from tensors alone: what is drawn, what is answered.

B batch, T tokens, N picture tokens, W features of the understanding encoder, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .. import sampling
from ..attention import Attention, sdpa, segment_mask
from ..config import JanusFlowConfig
from ..llama import hidden_after
from ..model import JanusFlow, Prefix, flow_tokens
from .conversations import Packed
from .losses import IGNORE, autoregressive_loss, flow_loss, kept_loss, repa_loss
from .options import Projector

# Added to the mean of the times' logit where a model is held to what it was: what there is, is decided early.
HELD = -1.0


def new_projector(config: JanusFlowConfig, kind: Projector = "mlp") -> nn.Module:
    """A head from hidden states (B, N, D) to the understanding encoder's features (B, N, W).

    mlp: the paper's three layers. conv: one 3 x 3 convolution over the grid, which keeps what lies where (iREPA).
    """
    hidden, width = config.language.hidden_size, config.vision.width
    if kind == "conv":
        return GridConv(hidden, width)
    wide = [nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()]
    return nn.Sequential(*wide, nn.Linear(hidden, width))


class GridConv(nn.Conv2d):
    """A 3 x 3 convolution over the tokens of a square picture."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__(hidden, width, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        grid = super().forward(x.transpose(1, 2).unflatten(2, (side, side)))  # (B, W, side, side)
        return grid.flatten(2).transpose(1, 2)


class Terms:
    """The objectives of one model, as a context: inside it the hidden states after `layer`, from 1, are watched.

    `flow` is the half that draws and `text` the one that reads and speaks: the same module where it is whole.
    `compiled` may be torch.compile or the like; it gets the parts whose shapes are those of their tensors alone.
    `time_mean` is that of the times' logit (see `sampling.logit_normal`), `dtype` what `flow` takes where `text` gives
    another.
    """

    def __init__(
        self,
        flow: JanusFlow,
        text: JanusFlow,
        projector: nn.Module,
        layer: int,
        attention: Attention = sdpa,
        compiled: Callable[[Any], Any] = lambda function: function,
        time_mean: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.flow, self.text = flow, text
        self.projector, self.layer, self.attention = projector, layer, attention
        self.time_mean, self.dtype = time_mean, dtype
        self._draw, self._answer = compiled(self._drawing), compiled(self._answering)
        self._watching = ExitStack()

    def __enter__(self) -> Terms:
        self._hidden = self._watching.enter_context(hidden_after(self.flow.language_model.model, self.layer))
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.close()

    def generation(
        self,
        prompts: Prefix,
        x: Tensor,
        features: Tensor | None,
        generator: torch.Generator,
        held: int = 0,
        plain: AbstractContextManager[Any] | None = None,
    ) -> dict[str, Tensor]:
        """Flow and alignment loss (B,) of latents `x` (B, 4, h, w) at drawn noise and times (paper, eq. 7 and 8).

        `features` (B, N, W) of the same pictures are what the hidden states shall resemble; without them there is no
        alignment. The last `held` rows count in neither: `kept` is how far their velocity is from what it was without
        the changes that `plain` takes away for a while, at times nearer to the noise. `generator` is on the
        device of the latents.
        """
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        new = len(x) - held
        mean = torch.full((len(x),), self.time_mean, device=x.device)
        mean[new:] += HELD
        t = sampling.logit_normal(len(x), generator, mean)
        positions, mask = prompts.layout(flow_tokens(*x.shape[2:]))
        z, prompt = sampling.interpolate(x, noise, t), prompts.embeddings
        target = None
        if plain is not None:
            mask = mask.expand(len(x), -1, -1, -1)
            rows = z[new:], t[new:], prompt[new:], positions[new:], mask[new:]
            with plain, torch.no_grad():
                target = self.flow.flow(*rows, None, self.attention)
        return self._draw(x, noise, z, t, prompt, positions, mask, features, target)

    def understanding(self, asked: Packed, features: Tensor) -> dict[str, Tensor]:
        """Response loss (B,) of conversations about one picture each, given as `features` (B, N, W) (paper, eq. 6)."""
        # Logits of the picture's tokens, which no one asks for, would take gigabytes.
        return {"answer": self._answer(*self._read(asked, features), asked.labels[:, asked.start :])}

    def remembering(self, asked: Packed, features: Tensor, plain: AbstractContextManager[Any]) -> Tensor:
        """How far (B,) answers are from what they were without the changes that `plain` takes away for a while.

        That is KL(plain, now), the mean over the tokens of a row's answers.
        """
        answers = asked.labels != IGNORE
        with plain, torch.no_grad():
            target = self._logits(asked, features, answers)
        return kept_loss(self._logits(asked, features, answers), target, answers)

    def _read(self, asked: Packed, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embeddings = self.text.embed_conversation(asked.ids, asked.image_mask, features).to(self.dtype)
        return embeddings, asked.positions, segment_mask(asked.segments)

    def _logits(self, asked: Packed, features: Tensor, chosen: Tensor) -> Tensor:
        """Those (K, V) of the chosen tokens (B, T), read from the embeddings on."""
        return self.text.logits(self._hidden_states(*self._read(asked, features))[chosen])

    def _hidden_states(self, embeddings: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        hidden = self.flow.language_model.model(embeddings, positions, mask, None, self.attention)
        self._hidden.clear()
        return hidden

    def _drawing(
        self,
        x: Tensor,
        noise: Tensor,
        z: Tensor,
        t: Tensor,
        prompt: Tensor,
        positions: Tensor,
        mask: Tensor,
        features: Tensor | None,
        target: Tensor | None,
    ) -> dict[str, Tensor]:
        v = self.flow.flow(z, t, prompt, positions, mask, None, self.attention)
        new = len(x) if target is None else len(x) - len(target)
        terms = {"flow": flow_loss(v[:new], x[:new], noise[:new])}
        if target is not None:
            terms["kept"] = (v[new:] - target).square().mean(dim=(1, 2, 3))
        hidden = self._hidden[-1]
        self._hidden.clear()  # else a compiled step would have to keep it until the next
        if features is not None:
            projected = self.projector(hidden[:new, -features.shape[1] :].float())
            terms["repa"] = repa_loss(projected, features)
        return terms

    def _answering(self, embeddings: Tensor, positions: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        hidden = self._hidden_states(embeddings, positions, mask)[:, -labels.shape[1] :]
        return autoregressive_loss(self.text.logits(hidden), labels)
