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
from ..guidance import Guidance
from ..image import ImageConfig, from_tensor, preprocess
from ..model import JanusFlow, Prefix, flow_tokens
from ..tokenizer import JanusTokenizer
from .examples import Examples

LONGEST = 48  # tokens of an answer
DESCRIBE = "Describe the image."  # what dreams are asked
MORE = ("What is in the image?", "How many objects are there?", "What color is it?")  # and, to be held to, this


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

        `starts` holds for each picture the length of the prompt that it does without. With `asks` the pictures are
        kept as well, and what the model answers to more questions about them. `on_picture` hears how many are done,
        and may raise to cancel.
        """
        dreams, side = Examples(), self.image.image_size // 8
        for first in range(0, len(starts), decoding.AT_ONCE):
            some = list(starts[first : first + decoding.AT_ONCE])
            shape = (self.flow.config.flow.latent_channels, side, side)
            noise = sampling.draw_noise(shape, [seed + first + row for row in range(len(some))]).to(self.device)
            bos = [self.prompt([self.tokenizer.bos_id])] * len(some)
            latents = sampling.integrate(self._velocity(Prefix.join(bos, some), side), noise, sampling.time_grid(steps))
            pictures = self.pictures(latents)
            whole = torch.stack([preprocess(picture, self.image) for picture in pictures])
            seen = self.see(whole)
            texts = self.answers(seen, [DESCRIBE] * len(some))
            dreams.latents += list(latents.float().cpu())
            dreams.texts += texts
            if asks:
                dreams.whole += whole.half().split(1)
                dreams.asked += self._interview(seen, texts)
            if on_picture is not None:
                on_picture(len(dreams.texts))
        return dreams

    @torch.no_grad()
    def draw(self, prompts: Sequence[Sequence[int]], drawing: DrawingConfig, seed: int = 0) -> list[Image.Image]:
        """Pictures of prompts' ids at the trained size, as inference draws them: how far the training has come."""
        side, count = self.image.image_size // 8, len(prompts)
        rows = [self.prompt(prompt) for prompt in prompts]
        guided = self.flow.guided(rows, None, Guidance(drawing.guidance), (side, side), self.attention)
        shape = (self.flow.config.flow.latent_channels, side, side)
        noise = sampling.draw_noise(shape, [seed + row for row in range(count)]).to(self.device)
        return self.pictures(sampling.integrate(guided, noise, sampling.time_grid(drawing.steps), drawing.solver))

    def _velocity(self, prompts: Prefix, side: int) -> sampling.Velocity:
        prompts = self.flow.prefill(prompts, flow_tokens(side, side), self.attention)
        return lambda z, t: self.flow.velocity(z, torch.full((len(z),), t, device=z.device), prompts, self.attention)

    def pictures(self, latents: Tensor) -> list[Image.Image]:
        """What model-scale latents (B, 4, S/8, S/8) show."""
        return from_tensor(self.decode(latents).permute(0, 2, 3, 1).cpu().float())

    def _interview(self, seen: Tensor, texts: Sequence[str]) -> list[list[tuple[str, str]]]:
        """Questions about each picture with the model's answers: some for all, and whether its own text or another's
        is true of it."""
        columns = [[question] * len(texts) for question in MORE]
        columns += [[f"Is there {text}?" for text in told] for told in (texts, (*texts[1:], texts[0]))]
        said = [zip(column, self.answers(seen, column), strict=True) for column in columns]
        return [[(DESCRIBE, text), *more] for text, *more in zip(texts, *said, strict=True)]

    @torch.no_grad()
    def answers(self, seen: Tensor, questions: Sequence[str]) -> list[str]:
        """What the model answers, greedily and shortly, to a question each about pictures of features (B, P, W)."""
        turns = [self.tokenizer.question_messages(question, 1) for question in questions]
        return self.continued(seen, [self.tokenizer.understanding_ids(turn, 1) for turn in turns])

    @torch.no_grad()
    def continued(self, seen: Tensor, rows: Sequence[Sequence[int]]) -> list[str]:
        """What the model says behind the ids of a conversation each about pictures of features (B, P, W)."""
        ids, real = (part.to(self.device) for part in self.tokenizer.pad_left(rows))
        texts = decoding.generate(
            self.flow.language_model.model,
            self.text.logits,
            self.text.encode_prompt,
            self.conversation(ids, self.tokenizer.image_mask(ids) & real, seen),
            real,
            eos=self.tokenizer.eos_id,
            max_new_tokens=LONGEST,
            attention=self.attention,
        )
        return [self.tokenizer.decode(row).strip() for row in texts]
