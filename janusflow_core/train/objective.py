"""What packed samples cost a model: all three objectives in one forward pass, sample by sample.

R rows, T tokens, G pictures to draw, N tokens and W features of a picture, D hidden size; 4 x h x w latents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import sampling
from ..attention import apart
from ..image import ImageConfig
from ..llama import hidden_after
from ..model import JanusFlow
from .losses import IGNORE, flow_loss, repa_loss
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

    def forward(self, batch: Batch, latents: Tensor | None) -> dict[str, Tensor]:
        """The terms of the samples: `flow` and `repa` (G,) of pictures drawn, `answer` and `text` of what is said.

        `latents` (G, 4, h, w) at model scale are those of the crops; each sample costs what it would cost alone.
        """
        model, drawn = self.model, batch.kinds == DRAWN
        embeddings = self._embedded(batch)
        if latents is not None and batch.noise is not None and batch.t is not None:
            z = sampling.interpolate(latents, batch.noise, batch.t)
            tokens, features, t_emb = model.embed_flow(z, batch.t)
            embeddings = embeddings.masked_scatter(drawn[..., None], tokens.flatten(0, 1).to(embeddings))
        with hidden_after(model.language_model.model, self.layer) as watched:
            hidden = model.language_model.model(embeddings, batch.positions, None, None, apart(batch.lengths))
        terms = self._said(batch, hidden)
        if latents is not None and batch.noise is not None:
            v = model.read_velocity(_of_pictures(hidden, drawn, len(latents)), features, t_emb)
            terms["flow"] = flow_loss(v, latents, batch.noise)
            if self.projector is not None and batch.crops is not None:
                states = _of_pictures(watched[-1], drawn, len(latents))
                terms["repa"] = repa_loss(self.projector(states), self.see(batch.crops, learns=False))
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
        if batch.pictures is None:
            return embeddings
        images = self.model.embed_features(self.see(batch.pictures, learns=True)).flatten(0, 1)
        return embeddings.masked_scatter((batch.kinds == SEEN)[..., None], images.to(embeddings))

    def _said(self, batch: Batch, hidden: Tensor) -> dict[str, Tensor]:
        """The mean cost of each sample's answer (paper, eq. 6); only what has a label needs logits."""
        said = batch.labels != IGNORE
        logits = self.model.logits(hidden[said])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        costs = F.cross_entropy(logits, batch.labels[said], reduction="none")  # (tokens,)
        owners, counts = batch.owners[said], len(batch.tasks)
        sums = costs.new_zeros(counts).index_add(0, owners, costs)
        means = sums / torch.bincount(owners, minlength=counts).clamp(min=1)
        names = {"answer": "understanding", "text": "text"}
        places = {name: [n for n, task in enumerate(batch.tasks) if task == names[name]] for name in names}
        return {name: means[at] for name, at in places.items() if at}


def normalised(pictures: Tensor, image: ImageConfig) -> Tensor:
    """The vision encoder's input (M, 3, S, S) of pictures in bytes, in float32."""
    values, told = pictures.float() * image.rescale_factor, (image.image_mean, image.image_std)
    mean, std = (torch.tensor(value, device=pictures.device)[:, None, None] for value in told)
    return (values - mean) / std if image.do_normalize else values


def _of_pictures(hidden: Tensor, drawn: Tensor, count: int) -> Tensor:
    """The states (G, N, D) of the pictures that are drawn, without those of their times."""
    return hidden[drawn].unflatten(0, (count, -1))[:, 1:]
