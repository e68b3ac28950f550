"""Autoregressive text: prefill once, then one token at a time for a whole batch, with streaming and cancel.

B batch, T prompt tokens, D hidden size, V vocabulary. Knows the model only as a backbone (embeddings to hidden
states), a head (hidden states to logits) and an embedding table, because ComfyUI keeps them in different places.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Attention, KVCache, left_padded_mask, sdpa
from .config import LanguageConfig
from .graphs import replayed
from .seeds import generator, own_seeds

# (embeddings (B, T, D), positions (B, T), mask, cache, attention) -> hidden states (B, T, D), as llama.Backbone
Backbone = Callable[[Tensor, Tensor, "Tensor | None", "KVCache | None", Attention], Tensor]
# (row, token id), called in order for every new token; may raise to cancel
OnToken = Callable[[int, int], None]
# (logits (B, V), float32, the ids that each row has written so far) -> logits (B, V); -inf forbids a token
LogitsRule = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]

AT_ONCE = 8  # conversations to answer in one batch where nobody knows how much memory is free
AT_MOST = 32  # more are hardly faster, and all wait for the longest answer


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

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0


def penalise(logits: Tensor, seen: Tensor, options: SamplingOptions) -> Tensor:
    """Make tokens less likely that a row has already said; `seen` (B, V) is boolean."""
    factor = torch.where(logits > 0, 1 / options.repetition_penalty, options.repetition_penalty)
    return torch.where(seen, logits * factor - options.presence_penalty, logits)


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


def uniform(seeds: Sequence[int], count: int) -> Tensor:
    """Numbers (B, count) in [0, 1), float32 on the CPU: each row from its own seed, so that no batch changes a text."""
    return torch.stack([torch.rand(count, generator=generator(seed)) for seed in seeds])


def choose(logits: Tensor, options: SamplingOptions, luck: Tensor) -> Tensor:
    """Next token ids (B,) of float32 logits (B, V): those at which `luck` (B,) in [0, 1) falls, or greedily the best.

    Nothing here waits for a GPU: what is random was drawn before.
    """
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    reached = truncate(logits / options.temperature, options).softmax(dim=-1).cumsum(dim=-1)  # (B, V)
    # float32 numbers below 1 end at 1 - 2^-24, and no product with that is rounded up to the whole.
    return (reached <= luck[:, None] * reached[:, -1:]).sum(dim=-1)


def bytes_a_row(config: LanguageConfig, tokens: int, dtype: torch.dtype) -> int:
    """About what a conversation of so many tokens, its answer included, takes: keys and values, the widest layer's
    activations, masks and logits."""
    keys_and_values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    activations = 3 * config.intermediate_size + 6 * config.hidden_size
    masks = tokens * tokens * (1 + dtype.itemsize)
    return tokens * (keys_and_values + activations) * dtype.itemsize + masks + 16 * config.vocab_size


def fitting(free: int | None, row: int) -> int:
    """How many conversations of `row` bytes to answer at once in half of the `free` bytes; at least one."""
    return AT_ONCE if free is None else min(max(1, free // (2 * row)), AT_MOST)


class Chooser:
    """From logits to ids: penalties for what a row has said, then the rules, then its luck."""

    def __init__(self, options: SamplingOptions, rules: Sequence[LogitsRule], luck: Tensor, like: Tensor) -> None:
        self._options, self._rules, self._luck = options, rules, luck.to(like.device)
        self._said = torch.zeros_like(like, dtype=torch.bool)  # (B, V)

    def __call__(self, logits: Tensor, step: int, texts: Sequence[Sequence[int]]) -> Tensor:
        if self._options.penalises:
            logits = penalise(logits, self._said, self._options)
        for rule in self._rules:
            logits = rule(logits, texts)
        ids = choose(logits, self._options, self._luck[:, step])
        self._said.scatter_(1, ids[:, None], True)
        return ids


class Reader:
    """The model at work on a batch: the prompts, then a token of every row at a time, to logits (B, V) in float32."""

    def __init__(
        self,
        backbone: Backbone,
        head: Callable[[Tensor], Tensor],
        embed: Callable[[Tensor], Tensor],
        cache: KVCache,
        attention: Attention,
    ) -> None:
        self._backbone, self._head, self._embed = backbone, head, embed
        self._cache, self._attention = cache, attention

    def read_prompt(self, prompt: Tensor, real: Tensor) -> Tensor:
        """Logits after left-padded embeddings (B, T, D); `real` (B, P + T) also marks what the cache holds."""
        first, length = self._cache.length, real.shape[1]
        positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)[:, first:]
        self._position, self._dtype = positions[:, -1:], prompt.dtype
        # What the tokens to come may see, once for all; without padding there is nothing to hide.
        room = F.pad(real, (0, max(0, self._cache.capacity - length)), value=True)[:, None, None]  # (B, 1, 1, S)
        self._visible = None if real.all() else room
        logits = self._logits(prompt, positions, left_padded_mask(real, first))
        self._cache.keep(prompt.shape[1])
        return logits

    def read(self, ids: Tensor) -> Tensor:
        """Logits after one more token (B,) of every row."""
        self._position = self._position + 1
        seen = None if self._visible is None else self._visible[..., : self._cache.length + 1]
        logits = self._logits(self._embedded(ids), self._position, seen)
        self._cache.keep(1)
        return logits

    def fixed(self, rows: int) -> Callable[[Tensor], Tensor]:
        """`read` in shapes that never change, which a CUDA graph replays: the place of a token is data as well.

        Attention then goes over the whole capacity of the cache, of which only what was written is visible.
        """
        cache, position = self._cache, self._position.clone()
        cache.clear_rest()  # weights of zero do not undo a NaN in memory that nobody wrote
        ids = torch.zeros(rows, dtype=torch.long, device=position.device)
        slot = cache.slot = torch.full((1,), cache.length, device=position.device)
        ahead = torch.arange(cache.capacity, device=position.device) >= slot
        before = torch.ones_like(ahead) if self._visible is None else self._visible
        visible = (before & ~ahead).expand(rows, 1, 1, -1).clone()

        def step() -> Tensor:
            visible.index_fill_(3, slot, True)
            position.add_(1)
            logits = self._logits(self._embedded(ids), position, visible)
            slot.add_(1)
            return logits

        run = replayed(step) if position.device.type == "cuda" else step

        def read(chosen: Tensor) -> Tensor:
            ids.copy_(chosen)
            logits = run()
            cache.keep(1)
            return logits

        return read

    def _embedded(self, ids: Tensor) -> Tensor:
        return self._embed(ids[:, None]).to(self._dtype)  # (B, 1, D)

    def _logits(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        hidden = self._backbone(x, positions, mask, self._cache, self._attention)[:, -1]
        return self._head(hidden).float()


class Writer:
    """What has been written so far: takes the ids of a step, ends rows at `eos`, and tells who listens."""

    def __init__(self, rows: int, eos: int, on_token: OnToken | None) -> None:
        self.texts: list[list[int]] = [[] for _ in range(rows)]
        self._open, self._eos, self._on_token = [*range(rows)], eos, on_token

    @property
    def done(self) -> bool:
        return not self._open

    def write(self, ids: Sequence[int]) -> None:
        self._open = [row for row in self._open if ids[row] != self._eos]
        for row in self._open:
            self.texts[row].append(ids[row])
            if self._on_token is not None:
                self._on_token(row, ids[row])


def on_its_way(ids: Tensor) -> Callable[[], list[int]]:
    """The ids for the host, who gets them when it asks; a GPU goes on with the next step in the meantime."""
    if ids.device.type != "cuda":
        return ids.tolist
    host, arrived = ids.to("cpu", non_blocking=True), torch.cuda.Event()
    arrived.record()

    def read() -> list[int]:
        arrived.synchronize()
        return host.tolist()

    return read


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
    fixed: bool = False,
) -> list[list[int]]:
    """Continue prompts given as left-padded embeddings (B, T, D), `real` (B, T) marking what is not padding.

    `rules` see the logits after the options' penalties, in order. A `cache` holds P tokens that stand before the
    prompt: `real` is (B, P + T) then, and the cache afterwards also holds the prompt and all that was written but the
    last token. `fixed` keeps all shapes, so that a CUDA graph can be replayed for each token: for a model whose weights
    stay where they are. Returns the new ids of each row, the closing `eos` left out. Row k is the same alone and in
    any batch. Raises ValueError unless there is a seed for each row or, all 0, none.
    """
    rows = prompt.shape[0]
    seeds = own_seeds(seeds or [0] * rows, rows)
    cache = KVCache(prompt.shape[1] + max_new_tokens) if cache is None else cache
    reader, writer = Reader(backbone, head, embed, cache, attention), Writer(rows, eos, on_token)
    logits = reader.read_prompt(prompt, real)
    if not torch.isfinite(logits).all():
        raise ValueError("the model answers with NaN: take its LoRAs and patches out, or load it in another dtype.")
    read = reader.fixed(rows) if fixed else reader.read
    chooser = Chooser(options, rules, uniform(seeds, max_new_tokens), logits)
    # A GPU is given the next step before the host looks at the last one; rules need to know all that was written.
    unread, ahead = deque[Callable[[], list[int]]](), int(prompt.device.type == "cuda" and not rules)
    for step in range(max_new_tokens):
        ids = chooser(logits, step, writer.texts)
        unread.append(on_its_way(ids))
        if step >= ahead:
            writer.write(unread.popleft()())
        if writer.done or step + 1 == max_new_tokens:
            break
        logits = read(ids)
    if writer.done:
        cache.length -= len(unread)  # what was read before the host saw that all rows had ended
    for arrived in unread:
        writer.write(arrived())
    cache.slot = None
    return writer.texts
