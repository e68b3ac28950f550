"""What packed samples cost a model: all three objectives in one forward pass, sample by sample.

R rows, T tokens, G pictures to draw, N tokens and W features of a picture, D hidden size; 4 x h x w latents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import sampling
from ..attention import apart
from ..image import ImageConfig
from ..llama import hidden_after
from ..model import JanusFlow
from .losses import IGNORE, flow_loss, packed_autoregressive_loss, repa_loss
from .packing import DRAWN, SEEN, Batch


class Objective(nn.Module):
    """A model and the head that REPA takes away again, as one module: what a process group wraps.

    The hidden states after `layer`, from 1, are aligned with what the understanding encoder sees in the picture that
    is drawn (paper, eq. 8); without a projector they are not.
    """

    def __init__(self, model: JanusFlow, projector: nn.Module | None, layer: int, image: ImageConfig) -> None:
        super().__init__()
        self.model, self.projector = model, projector
        self.layer, self.image = layer, image

    def forward(self, batch: Batch, latents: Tensor) -> dict[str, Tensor]:
        """The terms of the samples: `flow` and `repa` (G,) of pictures drawn, `answer` and `text` of what is said.

        `latents` (G, 4, h, w) at model scale are those of the crops. Each sample costs what it would cost alone. What a
        batch has none of costs nothing, but every weight gets a gradient, as every process must have one.
        """
        embeddings, drawn = self._embedded(batch), batch.kinds == DRAWN
        if not len(latents):
            return {**self._said(batch, self._read(embeddings, batch)[0]), "flow": self._nothing()}
        z = sampling.interpolate(latents, batch.noise, batch.t)
        tokens, features, t_emb = self.model.embed_flow(z.to(embeddings.dtype), batch.t)
        embeddings = embeddings.masked_scatter(drawn[..., None], tokens.flatten(0, 1).to(embeddings))
        hidden, early = self._read(embeddings, batch)
        own, aligned = (states[drawn].unflatten(0, tokens.shape[:2])[:, 1:] for states in (hidden, early))
        v = self.model.read_velocity(own, features, t_emb)
        terms = {**self._said(batch, hidden), "flow": flow_loss(v, latents, batch.noise)}
        if self.projector is not None:
            terms["repa"] = repa_loss(self.projector(aligned), self.see(batch.crops, learns=False))
        return terms

    def see(self, pictures: Tensor, learns: bool) -> Tensor:
        """Features (M, N, W) of pictures (M, 3, S, S) in bytes, with their gradients if the encoder `learns`."""
        encoder = self.model.vision_und_enc_model
        weight = next(encoder.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled() and weight.requires_grad):
            return self.model.image_features(normalised(pictures, self.image).to(weight.dtype))

    def _embedded(self, batch: Batch) -> Tensor:
        """Embeddings (R, T, D) of the words and of the pictures that are read."""
        embeddings = self.model.encode_prompt(batch.ids)
        images = self.model.embed_features(self.see(batch.pictures, learns=True)).flatten(0, 1)
        return embeddings.masked_scatter((batch.kinds == SEEN)[..., None], images.to(embeddings))

    def _read(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The hidden states (R, T, D) at the end, and those behind the layer that is aligned."""
        backbone = self.model.language_model.model
        with hidden_after(backbone, self.layer) as watched:
            return backbone(embeddings, batch.positions, None, None, apart(batch.lengths)), watched[-1]

    def _nothing(self) -> Tensor:
        """No cost (0,), with a gradient of zeros for all that drawing alone needs."""
        names = ("vision_gen", "projector")
        idle = [weight for name, weight in self.named_parameters() if any(part in name for part in names)]
        return torch.stack([weight.flatten()[:0].sum() for weight in idle]).sum()[None][:0]

    def _said(self, batch: Batch, hidden: Tensor) -> dict[str, Tensor]:
        """The mean cost of each sample's answer (paper, eq. 6); only what has a label needs logits."""
        said = batch.labels != IGNORE
        logits, samples = self.model.logits(hidden[said]), len(batch.tasks)
        means = packed_autoregressive_loss(logits, batch.labels[said], batch.owners[said], samples)
        told = {"answer": "understanding", "text": "text"}
        return {name: means[[n for n, own in enumerate(batch.tasks) if own == task]] for name, task in told.items()}


def normalised(pictures: Tensor, image: ImageConfig) -> Tensor:
    """The vision encoder's input (M, 3, S, S) of pictures in bytes, in float32."""
    values, told = pictures.float() * image.rescale_factor, (image.image_mean, image.image_std)
    mean, std = (torch.tensor(value, device=pictures.device)[:, None, None] for value in told)
    return (values - mean) / std if image.do_normalize else values
