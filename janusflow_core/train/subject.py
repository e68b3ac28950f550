"""What is fine-tuned, as both the library and ComfyUI have it: the halves of a model, and what surrounds them.

B pictures, S pixels a side, P picture tokens, W features of the understanding encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .. import decoding, sampling
from ..attention import Attention, sdpa
from ..drawing import DrawingConfig
from ..image import ImageConfig, from_tensor, preprocess
from ..model import JanusFlow, Prefix, flow_tokens
from ..tokenizer import JanusTokenizer
from .examples import Examples

LONGEST = 48  # tokens of an answer
DESCRIBE = "Describe the image."  # what dreams are asked


@dataclass(frozen=True)
class Subject:
    """`flow` draws and `text` reads and speaks: the same module where it is whole.

    `encode` makes model-scale latents (B, 4, S/8, S/8) of pixels (B, 3, S, S) in [0, 1], `decode` the reverse.
    """

    flow: JanusFlow
    text: JanusFlow
    tokenizer: JanusTokenizer
    image: ImageConfig
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    attention: Attention = sdpa
    dtype: torch.dtype | None = None  # what the layers of `flow` compute in, where their weights do not tell

    def prompt(self, ids: Sequence[int]) -> Tensor:
        """The embeddings (L, D) of a prompt, as `flow` takes them."""
        return self.text.encode_prompt(torch.tensor(ids, device=self.device)).to(self.dtype)

    @property
    def device(self) -> torch.device:
        return next(self.flow.parameters()).device

    def conversation(self, ids: Tensor, image_mask: Tensor, features: Tensor) -> Tensor:
        """The embeddings (B, T, D) of conversations about pictures, as `flow` takes them."""
        return self.text.embed_conversation(ids, image_mask, features).to(self.dtype)

    @torch.no_grad()
    def see(self, pixels: Tensor) -> Tensor:
        """Features (B, P, W) of normalised pictures (B, 3, S, S)."""
        weight = self.text.vision_und_enc_aligner.weight
        return self.text.image_features(pixels.to(weight.device, weight.dtype), self.attention)

    @torch.no_grad()
    def dream(
        self,
        starts: Sequence[int],
        seed: int,
        asks: bool = True,
        steps: int = 30,
        on_picture: Callable[[int], None] | None = None,
    ) -> Examples:
        """Pictures that the model makes of no prompt, each in its own words: what it knows, without asking anyone.

        `starts` holds for each picture the length of the prompt that it does without; features are kept where they
        are to be asked about. `on_picture` hears how many are done, and may raise to cancel.
        """
        dreams, side = Examples(), self.image.image_size // 8
        for first in range(0, len(starts), decoding.AT_ONCE):
            some = list(starts[first : first + decoding.AT_ONCE])
            shape = (self.flow.config.flow.latent_channels, side, side)
            noise = sampling.draw_noise(shape, [seed + first + row for row in range(len(some))]).to(self.device)
            bos = [self.prompt([self.tokenizer.bos_id])] * len(some)
            latents = sampling.integrate(self._velocity(Prefix.join(bos, some), side), noise, sampling.time_grid(steps))
            pictures = self._pictures(latents)
            seen = self.see(torch.stack([preprocess(picture, self.image) for picture in pictures]))
            dreams.texts += self.answers(list(seen), DESCRIBE)
            dreams.latents += list(latents.float().cpu())
            dreams.seen += list(seen.cpu()) if asks else []
            if on_picture is not None:
                on_picture(len(dreams.texts))
        return dreams

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], drawing: DrawingConfig, seed: int = 0) -> list[Image.Image]:
        """Pictures of some prompts at the trained size, as inference draws them: how far the training has come."""
        side, count = self.image.image_size // 8, len(prompts)
        ids = [self.tokenizer.generation_ids(prompt) for prompt in prompts]
        rows = [self.prompt(row) for row in (*ids, *(row[:1] for row in ids))]
        velocity = self._velocity(Prefix.join(rows, 2 * [len(row) for row in ids]), side)

        def guided(z: Tensor, t: float) -> Tensor:
            v = velocity(z.repeat(2, 1, 1, 1), t)
            return sampling.guide(v[:count], v[count:], drawing.guidance)

        shape = (self.flow.config.flow.latent_channels, side, side)
        noise = sampling.draw_noise(shape, [seed + row for row in range(count)]).to(self.device)
        return self._pictures(sampling.integrate(guided, noise, sampling.time_grid(drawing.steps)))

    def _velocity(self, prompts: Prefix, side: int) -> sampling.Velocity:
        prompts = self.flow.prefill(prompts, flow_tokens(side, side), self.attention)
        return lambda z, t: self.flow.velocity(z, torch.full((len(z),), t, device=z.device), prompts, self.attention)

    def _pictures(self, latents: Tensor) -> list[Image.Image]:
        return from_tensor(self.decode(latents).permute(0, 2, 3, 1).cpu().float())

    @torch.no_grad()
    def answers(self, seen: Sequence[Tensor], question: str) -> list[str]:
        """What the model answers, greedily and shortly, about pictures of features (P, W) each."""
        turns = self.tokenizer.question_messages(question, 1)
        ids = torch.tensor([self.tokenizer.understanding_ids(turns, 1)] * len(seen), device=self.device)
        texts = decoding.generate(
            self.flow.language_model.model,
            self.text.logits,
            self.text.encode_prompt,
            self.conversation(ids, self.tokenizer.image_mask(ids), torch.stack(tuple(seen)).to(self.device)),
            torch.ones_like(ids, dtype=torch.bool),
            eos=self.tokenizer.eos_id,
            max_new_tokens=LONGEST,
            attention=self.attention,
        )
        return [self.tokenizer.decode(row).strip() for row in texts]
