"""JanusFlow: the language model with its two pairs of eyes and hands, under the official checkpoint's names.

B batch, L prompt tokens, N picture tokens (h / 2 * w / 2), D hidden size; latents are (B, 4, h, w) at model scale
(VAE latents times 0.13025). Time runs from t = 0, noise, to t = 1, data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, KVCache, prefix_mask, sdpa
from .config import JanusFlowConfig
from .device import has_compiler
from .graphs import replayed
from .guidance import Guidance
from .llama import LanguageModel
from .operations import OPERATIONS
from .sampling import Velocity
from .uvit import FlowDecoder, FlowEncoder
from .vit import VisionEncoder

SHORTEST = 64  # the room that compiled steps give the shortest prompts


@dataclass
class Prefix:
    """What the picture tokens look back at: a batch of prompts, padded on the right.

    `embeddings` (B, L, D); `lengths` real tokens per row; `starts` the position of each row's time token, which for
    an unconditional row is that of the prompt it is guided against; `cache` holds keys and values once computed, and
    `placed` the layout of the tokens that there is room for behind them.
    """

    embeddings: Tensor
    lengths: Sequence[int]
    starts: Sequence[int]
    cache: KVCache | None = None
    placed: tuple[Tensor, Tensor] | None = None

    @classmethod
    def join(cls, rows: Sequence[Tensor], starts: Sequence[int], length: int = 0) -> Prefix:
        """Pad prompts (L_i, D) on the right into one batch, of at least `length` tokens."""
        padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        padded = nn.functional.pad(padded, (0, 0, 0, max(length - padded.shape[1], 0)))
        return cls(padded, [len(row) for row in rows], list(starts))

    def sources(self) -> list[int]:
        """For each row the one that begins with all of it, itself if there is no other: attention is causal, so that
        both have the same keys and values there."""
        rows = sorted(range(len(self.lengths)), key=lambda row: -self.lengths[row])
        found: dict[int, int] = {}
        for row in rows:
            own, others = self.embeddings[row, : self.lengths[row]], dict.fromkeys(found.values())
            found[row] = next((r for r in others if torch.equal(self.embeddings[r, : len(own)], own)), row)
        return [found[row] for row in range(len(rows))]

    def first(self, rows: int) -> Prefix:
        """The first prompts of a batch that has been read, in the same memory."""
        assert self.cache is not None
        few = Prefix(self.embeddings[:rows], self.lengths[:rows], self.starts[:rows], self.cache.first(rows))
        few.placed = few.layout(self.cache.capacity - self.cache.length)
        return few

    def layout(self, new: int) -> tuple[Tensor, Tensor]:
        """Positions (B, T) and mask of `new` [time, picture] tokens, which see their prompt and what came before them.

        Without a cache the prompts come first in both: T is L + `new`, else `new`.
        """
        (rows, length), device = self.embeddings.shape[:2], self.embeddings.device
        starts = torch.tensor(self.starts, device=device)[:, None]
        positions = starts + torch.arange(new, device=device)  # (B, 1 + N)
        if self.cache is None:
            before = torch.arange(length, device=device).expand(rows, -1)
            positions = torch.cat((before, positions), dim=1)
        first = 0 if self.cache is None else length
        return positions, prefix_mask(self.lengths, length, length + new, first, device)


def flow_tokens(height: int, width: int) -> int:
    """Tokens that a latent of height x width takes: 2 x 2 values each, odd sides padded, and the time token."""
    return 1 + -(-height // 2) * -(-width // 2)


class JanusFlow(nn.Module):
    """The whole model, or one half of it where another module owns the other half's weights.

    `flow`: transformer layers, generation encoder and decoder. `text`: token embeddings, output head, understanding
    encoder. Modules are built empty: weights come from a checkpoint (see checkpoint.py) or `init_weights`.
    """

    def __init__(
        self,
        config: JanusFlowConfig,
        *,
        flow: bool = True,
        text: bool = True,
        operations: Any = OPERATIONS,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        hidden = config.language.hidden_size
        self.config, self.compiled = config, False
        self.language_model = LanguageModel(config.language, text=text, layers=flow, operations=operations, **factory)
        if text:
            self.beg_of_und_embed = nn.Parameter(torch.empty(1, hidden, **factory))
            self.vision_und_enc_model = VisionEncoder(config.vision, operations, **factory)
            self.vision_und_enc_aligner = operations.Linear(config.vision.width, hidden, **factory)
        if flow:
            channels = config.flow.channels
            self.vision_gen_enc_model = FlowEncoder(config.flow, hidden, operations, **factory)
            self.vision_gen_enc_aligner = operations.Linear(channels, hidden, **factory)
            self.vision_gen_dec_aligner_norm = operations.RMSNorm(hidden, eps=config.language.rms_norm_eps, **factory)
            self.vision_gen_dec_aligner = operations.Linear(hidden, channels, **factory)
            self.vision_gen_dec_model = FlowDecoder(config.flow, hidden, operations, **factory)

    # --- what goes in -------------------------------------------------------------------------------------------

    def encode_prompt(self, ids: Tensor) -> Tensor:
        """Embeddings (B, L, D) of token ids (B, L)."""
        return self.language_model.model.embed_tokens(ids)

    def image_features(self, pixels: Tensor, attention: Attention = sdpa) -> Tensor:
        """Features (M, N, W) of normalised pictures (M, 3, S, S): what the model sees, and what REPA aligns with."""
        return self.vision_und_enc_model(pixels, attention)

    def embed_features(self, features: Tensor) -> Tensor:
        """The 1 + N embeddings (M, 1 + N, D) that stand for pictures of `features` (M, N, W) in a conversation.

        The first is the learnt begin-of-understanding vector: it takes the place of the image start tag.
        """
        patches = self.vision_und_enc_aligner(features)
        begin = self.beg_of_und_embed.to(patches).expand(patches.shape[0], 1, -1)
        return torch.cat((begin, patches), dim=1)

    def embed_conversation(self, ids: Tensor, image_mask: Tensor, features: Tensor | None) -> Tensor:
        """Embeddings (B, T, D) of ids (B, T) whose places in `image_mask` (B, T) are filled from `features` (M, N, W).

        Pictures are taken in reading order; each fills its start tag and N image tags.
        """
        embeddings = self.encode_prompt(ids)
        if features is None:
            return embeddings
        images = self.embed_features(features).flatten(0, 1).to(embeddings)
        return embeddings.masked_scatter(image_mask[..., None], images)

    def embed_flow(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The 1 + N tokens (B, 1 + N, D) of noisy latents `z` (B, 4, h, w) at times `t` (B or 1,), the time's first.

        Also the features (B, C, h/2, w/2) and the time's embedding (B or 1, D) that `read_velocity` takes.
        """
        features, t_emb = self.vision_gen_enc_model(z, 1000.0 * t.float())
        picture = self.vision_gen_enc_aligner(features.flatten(2).transpose(1, 2))  # (B, N, D)
        return torch.cat((t_emb[:, None].expand(len(z), -1, -1), picture), dim=1), features, t_emb

    # --- what comes out -----------------------------------------------------------------------------------------

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) of hidden states (..., D)."""
        return self.language_model.lm_head(hidden)

    def read_velocity(self, hidden: Tensor, features: Tensor, t_emb: Tensor) -> Tensor:
        """Velocities (B, 4, h, w), at least float32, of what became (B, N, D) of what `embed_flow` embedded."""
        hidden = self.vision_gen_dec_aligner(self.vision_gen_dec_aligner_norm(hidden))
        grid = hidden.transpose(1, 2).unflatten(2, features.shape[2:])  # (B, C, h/2, w/2)
        v = self.vision_gen_dec_model(grid, features, t_emb)
        return v.to(torch.promote_types(v.dtype, torch.float32))

    def prefill(self, prefix: Prefix, new_tokens: int, attention: Attention = sdpa, share: bool = True) -> Prefix:
        """The same prompts with their keys and values computed, and room for `new_tokens` behind them.

        What begins another prompt is not computed again, if they may `share`.
        """
        rows, length = range(len(prefix.lengths)), prefix.embeddings.shape[1]
        sources = prefix.sources() if share else list(rows)
        own = sorted(set(sources))
        positions = torch.arange(length, device=prefix.embeddings.device)[None]
        mask = prefix_mask([length], length, length, 0, prefix.embeddings.device)
        cache = KVCache(length)
        self.language_model.model(prefix.embeddings[own], positions, mask, cache, attention)
        cache.keep(length)
        cache = cache.spread([own.index(source) for source in sources], length + new_tokens)
        read = Prefix(prefix.embeddings, prefix.lengths, prefix.starts, cache)
        read.placed = read.layout(new_tokens)
        return read

    def velocity(self, z: Tensor, t: Tensor, prefix: Prefix, attention: Attention = sdpa) -> Tensor:
        """Velocity x - z0 (B, 4, h, w) of latents `z` (B, 4, h, w) at times `t` (B or 1,) in [0, 1], in float32.

        Twice as many prompts as latents give twice as many velocities: guidance's two branches. `z` and `t` stay in
        float32 up to the first layer, whatever the weights (paper, section 3.2, eq. 4).
        """
        positions, mask = prefix.placed or prefix.layout(flow_tokens(*z.shape[2:]))
        return self.flow(z, t, prefix.embeddings, positions, mask, prefix.cache, attention)

    def flow(
        self,
        z: Tensor,
        t: Tensor,
        prompt: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: KVCache | None = None,
        attention: Attention = sdpa,
    ) -> Tensor:
        """The same of tensors alone, as torch.compile wants it; `positions` and `mask` as `Prefix.layout` gives them.

        `prompt` (B, L, D) is read again unless the `cache` holds its keys and values. Of more prompts than latents
        all first ones go with the latents, then all second ones; one time serves for all.
        """
        tokens, features, t_emb = self.embed_flow(z.to(prompt.dtype), t)
        picture = tokens.shape[1] - 1
        if (branches := len(prompt) // len(z)) > 1:
            tokens, features = tokens.repeat(branches, 1, 1), features.repeat(branches, 1, 1, 1)
            t_emb = t_emb if len(t_emb) == 1 else t_emb.repeat(branches, 1)
        if cache is None:
            tokens = torch.cat((prompt, tokens), dim=1)
        hidden = self.language_model.model(tokens, positions, mask, cache, attention)[:, -picture:]
        return self.read_velocity(hidden, features, t_emb)

    def guided(
        self,
        prompts: Sequence[Tensor],
        negatives: Sequence[Tensor] | None,
        guidance: Guidance,
        size: tuple[int, int],
        attention: Attention = sdpa,
        fixed: bool = False,
    ) -> Velocity:
        """The guided velocity of a sampling run (paper, eq. 5), for latents (B, 4, h, w) of this `size` (h, w).

        `prompts` are the embeddings (L_i, D) of each picture's own; `negatives` of what each is steered away from, at
        their own lengths. Without them the unconditional rows see BOS alone, at the distance of the row they guide.
        All are read once, here. `fixed` lets a GPU replay the steps as one CUDA graph, for a model whose weights stay
        where they are. Raises ValueError for a prompt that does not fit the model beside its picture.
        """
        rows, starts, count = list(prompts), [len(prompt) for prompt in prompts], len(prompts)
        if guidance.weight != 1.0:
            rows += negatives or [prompt[:1] for prompt in prompts]
            starts += [len(row) for row in negatives or prompts]
        tokens = flow_tokens(*size)
        self.config.language.check_drawing(max(starts), tokens)
        room = 1 << max(max(len(row) for row in rows), SHORTEST - 1).bit_length() if self.compiled else 0
        prefix = self.prefill(Prefix.join(rows, starts, room), tokens, attention)
        alone = prefix.first(count) if len(rows) > count else prefix

        def plain(z: Tensor, t: Tensor) -> Tensor:
            return self.velocity(z, t, alone, attention)

        def guided(z: Tensor, t: Tensor) -> Tensor:
            v = self.velocity(z, t, prefix, attention)
            return guidance.combine(z, t, v[:count], v[count:])

        ways = [_fixed(way) if fixed else _free(way) for way in (plain, guided)]
        return lambda z, t: ways[guidance.guides(t)](z, t)

    def compile_flow(self) -> None:
        """Let torch.compile make the steps of drawing; from then on prompts take the room of the next power of two, so
        that only pictures of another size, number or guidance are compiled for anew. Raises OSError where a CPU's
        steps cannot be compiled.
        """
        if self.vision_gen_dec_aligner.weight.device.type == "cpu" and not has_compiler():
            raise OSError("compiling for a CPU needs a C++ compiler, and there is none: install g++, or do without.")
        if not self.compiled:
            self.flow = torch.compile(self.flow, dynamic=False)
            self.compiled = True

    # --- from nothing -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def init_weights(
        self, generator: torch.Generator | None = None, chosen: Callable[[str], bool] = lambda name: True
    ) -> None:
        """Fill the weights of `chosen` names for training from nothing: normal with variance 1 / fan_in, norms 1,
        biases 0."""
        for name, weight in self.named_parameters():
            if not chosen(name):
                continue
            if name.endswith("bias") or name == "beg_of_und_embed" or "channelwise_norm" in name:
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)
            elif "embed" in name.rsplit(".", 2)[-2] or name.endswith("pos_embed"):
                weight.normal_(0.0, 0.02, generator=generator)
            else:
                weight.normal_(0.0, weight[0].numel() ** -0.5, generator=generator)


def _free(way: Callable[[Tensor, Tensor], Tensor]) -> Velocity:
    return lambda z, t: way(z, torch.full((1,), t, device=z.device))


def _fixed(way: Callable[[Tensor, Tensor], Tensor]) -> Velocity:
    """The same with all that it reads in one place: where a GPU's graph finds it."""
    at: list[Tensor] = []
    run = replayed(lambda: way(*at))

    def velocity(z: Tensor, t: float) -> Tensor:
        if not at:
            at.extend((torch.empty_like(z), torch.empty(1, device=z.device)))
        at[0].copy_(z)
        at[1].fill_(t)
        return run().clone()  # the next call writes there again

    return velocity
