"""What is fine-tuned, as both the library and ComfyUI have it: the halves of a model, and what surrounds them.

B pictures, S pixels a side, P picture tokens, W features of the understanding encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import decoding, sampling
from ..attention import Attention, sdpa
from ..image import ImageConfig, from_tensor, preprocess
from ..model import JanusFlow, Prefix, flow_tokens
from ..tokenizer import JanusTokenizer
from .examples import Examples

LONGEST = 48  # tokens of an answer


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

    @property
    def device(self) -> torch.device:
        return next(self.flow.parameters()).device

    @torch.no_grad()
    def see(self, pixels: Tensor) -> Tensor:
        """Features (B, P, W) of normalised pictures (B, 3, S, S)."""
        weight = self.text.vision_und_enc_aligner.weight
        return self.text.image_features(pixels.to(weight.device, weight.dtype), self.attention)

    @torch.no_grad()
    def dream(
        self, starts: Sequence[int], seed: int, steps: int = 30, on_picture: Callable[[int], None] | None = None
    ) -> Examples:
        """Pictures that the model makes of no prompt, each in its own words: what it knows, without asking anyone.

        `starts` holds for each picture the length of the prompt that it does without. `on_picture` hears how many are
        done, and may raise to cancel.
        """
        dreams, side = Examples(), self.image.image_size // 8
        for first in range(0, len(starts), decoding.AT_ONCE):
            some = list(starts[first : first + decoding.AT_ONCE])
            shape = (self.flow.config.flow.latent_channels, side, side)
            noise = sampling.draw_noise(shape, [seed + first + row for row in range(len(some))]).to(self.device)
            latents = sampling.integrate(self._unprompted(some, side), noise, sampling.time_grid(steps))
            pictures = from_tensor(self.decode(latents).permute(0, 2, 3, 1).cpu().float())
            seen = self.see(torch.stack([preprocess(picture, self.image) for picture in pictures]))
            dreams.texts += self.answers(list(seen), "Describe the image.")
            dreams.latents += list(latents.float().cpu())
            dreams.seen += list(seen.cpu())
            if on_picture is not None:
                on_picture(len(dreams.texts))
        return dreams

    def _unprompted(self, starts: Sequence[int], side: int) -> sampling.Velocity:
        bos = self.text.encode_prompt(torch.tensor([self.tokenizer.bos_id], device=self.device))
        prompts = self.flow.prefill(Prefix.join([bos] * len(starts), starts), flow_tokens(side, side), self.attention)
        return lambda z, t: self.flow.velocity(z, torch.full((len(z),), t, device=z.device), prompts, self.attention)

    @torch.no_grad()
    def answers(self, seen: Sequence[Tensor], question: str) -> list[str]:
        """What the model answers, greedily and shortly, about pictures of features (P, W) each."""
        turns = self.tokenizer.question_messages(question, 1)
        ids = torch.tensor([self.tokenizer.understanding_ids(turns, 1)] * len(seen), device=self.device)
        texts = decoding.generate(
            self.flow.language_model.model,
            self.text.logits,
            self.text.encode_prompt,
            self.text.embed_conversation(ids, self.tokenizer.image_mask(ids), torch.stack(tuple(seen)).to(self.device)),
            torch.ones_like(ids, dtype=torch.bool),
            eos=self.tokenizer.eos_id,
            max_new_tokens=LONGEST,
            attention=self.attention,
        )
        return [self.tokenizer.decode(row).strip() for row in texts]
