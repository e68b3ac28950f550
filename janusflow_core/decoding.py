"""Autoregressive text: prefill once, then one token at a time for a whole batch, with streaming and cancel.

B batch, T prompt tokens, D hidden size, V vocabulary. Knows the model only as a backbone (embeddings to hidden
states), a head (hidden states to logits) and an embedding table, because ComfyUI keeps them in different places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Attention, KVCache, left_padded_mask, sdpa
from .llama import Backbone

# (row, token id), called in order for every new token; may raise to cancel
OnToken = Callable[[int, int], None]
# (logits (B, V), float32, the ids that each row has written so far) -> logits (B, V); -inf forbids a token
LogitsRule = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]

AT_ONCE = 8  # conversations to answer in one batch: a picture in one is several hundred tokens long


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or above, got {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}.")
        if self.top_k < 0 or not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"top_k must be 0 or above and min_p in [0, 1], got {self.top_k} and {self.min_p}.")
        if not 0.0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be above 0, got {self.repetition_penalty}.")
        if not math.isfinite(self.presence_penalty):
            raise ValueError(f"presence_penalty must be a number, got {self.presence_penalty}.")


def penalise(logits: Tensor, seen: Tensor, options: SamplingOptions) -> Tensor:
    """Make tokens less likely that a row has already said; `seen` (B, V) is boolean."""
    factor = torch.where(logits > 0, 1 / options.repetition_penalty, options.repetition_penalty)
    return torch.where(seen, logits * factor - options.presence_penalty, logits)


def penalties(options: SamplingOptions) -> list[LogitsRule]:
    """The rules that make a row repeat itself less; none where the options ask for none."""
    if options.repetition_penalty == 1 and options.presence_penalty == 0:
        return []

    def rule(logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for row, ids in zip(seen, texts, strict=True):
            row[list(ids)] = True
        return penalise(logits, seen, options)

    return [rule]


def truncate(logits: Tensor, options: SamplingOptions) -> Tensor:
    """Send to -inf all but the top k tokens, those under min_p of the best, those outside the nucleus top_p."""
    if 0 < options.top_k < logits.shape[-1]:
        kth = logits.topk(options.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if options.min_p > 0:
        probability = logits.softmax(dim=-1)
        floor = options.min_p * probability.amax(dim=-1, keepdim=True)
        logits = logits.masked_fill(probability < floor, float("-inf"))
    if options.top_p < 1:
        ordered, index = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        outside = ordered.cumsum(dim=-1) - ordered >= options.top_p  # the token that crosses top_p stays in
        logits = logits.masked_fill(outside.scatter(-1, index, outside), float("-inf"))
    return logits


def choose(logits: Tensor, options: SamplingOptions, generators: Sequence[torch.Generator]) -> Tensor:
    """Next token ids (B,) of float32 logits (B, V); each row has its own generator, so no batch changes a text."""
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    probability = truncate(logits / options.temperature, options).softmax(dim=-1).cpu()
    drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(probability, generators, strict=True)]
    return torch.cat(drawn).to(logits.device)


@torch.no_grad()
def generate(
    backbone: Backbone,
    head: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    prompt: Tensor,
    real: Tensor,
    *,
    eos: int,
    max_new_tokens: int,
    options: SamplingOptions = SamplingOptions(),
    rules: Sequence[LogitsRule] = (),
    cache: KVCache | None = None,
    seeds: Sequence[int] | None = None,
    on_token: OnToken | None = None,
    attention: Attention = sdpa,
) -> list[list[int]]:
    """Continue prompts given as left-padded embeddings (B, T, D), `real` (B, T) marking what is not padding.

    `rules` see the logits after the options' penalties, in order. A `cache` holds P tokens that stand before the
    prompt: `real` is (B, P + T) then, and the cache afterwards also holds the prompt and all that was written but the
    last token. Returns the new ids of each row, the closing `eos` left out. Row k is the same alone and in any batch.
    """
    rows, length = prompt.shape[:2]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or [0] * rows]
    cache = KVCache(length + max_new_tokens) if cache is None else cache
    positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)[:, cache.length :]
    rules = (*penalties(options), *rules)
    texts: list[list[int]] = [[] for _ in range(rows)]
    done, hidden = [False] * rows, prompt
    for step in range(max_new_tokens):
        mask = left_padded_mask(real, cache.length)
        hidden = backbone(hidden, positions, mask, cache, attention)[:, -1]
        cache.keep(mask.shape[2])
        logits = head(hidden).float()  # (B, V)
        for rule in rules:
            logits = rule(logits, texts)
        ids = choose(logits, options, generators)
        for row, token in enumerate(ids.tolist()):
            done[row] = done[row] or token == eos
            if not done[row]:
                texts[row].append(token)
                if on_token is not None:
                    on_token(row, token)
        if all(done) or step + 1 == max_new_tokens:
            break
        hidden = embed(ids[:, None]).to(prompt.dtype)  # (B, 1, D)
        positions = positions[:, -1:] + 1
        real = torch.cat((real, torch.ones_like(real[:, :1])), dim=1)
    return texts
