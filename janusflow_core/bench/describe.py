"""Words a second: our decoding beside transformers' `generate` on the same weights, in one process, taken in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import decoding
from ..config import LanguageConfig
from ..llama import LanguageModel
from .peers import transformers_llama
from .sizes import bandwidth, medians, peak_bytes, random_language_model

NEVER = -1  # no token ends an answer: all write as many


@dataclass(frozen=True)
class Row:
    """One batch size; tokens a second count all rows of a batch, after the first token of each."""

    batch: int
    prompt_tokens: int
    dtype: str
    prefill_s: float
    ours_tok_s: float
    peer_tok_s: float
    static_peer_tok_s: float
    ratio: float
    same: float
    of_bound: float
    peak_bytes: int | None


@torch.no_grad()
def measure(
    config: LanguageConfig,
    batches: Sequence[int],
    *,
    prompt_tokens: int,
    new_tokens: int,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Row]:
    """A row for each batch size, each number the median of some rounds in which the ways take turns.

    `peer` is transformers' generate as it comes, `static_peer` the same with its static cache; `ratio` is ours over
    the peer, `same` the share of greedy tokens on which both agree before they first differ, `of_bound` the share of
    the memory's bandwidth that reading all weights, keys and values once per token takes. Raises ValueError on a
    machine that is too busy.
    """
    ours = random_language_model(config, dtype, device)
    theirs, speed = transformers_llama(ours, config), bandwidth(device)
    for batch in batches:
        ids = torch.randint(config.vocab_size, (batch, prompt_tokens), generator=torch.Generator().manual_seed(batch))
        prompt = ours.model.embed_tokens(ids.to(device))
        peers = [partial(theirs_write, theirs, prompt, cache) for cache in (None, "static")]
        ways = [partial(write, ours, prompt), *peers]
        peak = peak_bytes(partial(ways[0], new_tokens), device)
        mine, his = ways[0](new_tokens), ways[1](new_tokens)
        ways[2](new_tokens)  # its first call compiles on a GPU
        first, whole = take_turns(ways, new_tokens, rounds, device)
        step = seconds_a_token(first, whole, new_tokens)
        read = bytes_per_step(ours, config, batch, prompt_tokens + new_tokens // 2)
        yield Row(
            batch=batch,
            prompt_tokens=prompt_tokens,
            dtype=str(dtype).removeprefix("torch."),
            prefill_s=first[0],
            ours_tok_s=batch / step[0],
            peer_tok_s=batch / step[1],
            static_peer_tok_s=batch / step[2],
            ratio=step[1] / step[0],
            same=agreement(mine, his),
            of_bound=read / speed / step[0],
            peak_bytes=peak,
        )


def take_turns(
    ways: Sequence[Callable[[int], Any]], new_tokens: int, rounds: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Median seconds of one token and of all, of each way."""
    taken = medians([partial(way, tokens) for way in ways for tokens in (1, new_tokens)], rounds, device)
    return taken[::2], taken[1::2]


def seconds_a_token(first: Sequence[float], whole: Sequence[float], new_tokens: int) -> list[float]:
    """What each way took for a token after the first; raises ValueError where other work made that meaningless."""
    if any(after <= before for before, after in zip(first, whole, strict=True)):
        raise ValueError("this machine is too busy to measure: try again when it is idle, with more --rounds")
    return [(after - before) / (new_tokens - 1) for before, after in zip(first, whole, strict=True)]


def write(model: LanguageModel, prompt: Tensor, new_tokens: int) -> list[list[int]]:
    """Greedy continuations of embeddings (B, T, D), our way."""
    real = torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device)
    return decoding.generate(
        model.model,
        model.lm_head,
        model.model.embed_tokens,
        prompt,
        real,
        eos=NEVER,
        max_new_tokens=new_tokens,
        fixed=prompt.device.type == "cuda",
    )


def theirs_write(model: Any, prompt: Tensor, cache: str | None, new_tokens: int) -> list[list[int]]:
    """The same with transformers and this implementation of its cache, or the default one."""
    mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
    ids = model.generate(
        inputs_embeds=prompt,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        pad_token_id=0,
        cache_implementation=cache,
    )
    return ids.tolist()


def bytes_per_step(model: LanguageModel, config: LanguageConfig, batch: int, seen: int) -> int:
    """What must be read for one token of every row: all weights but the embeddings, all keys and values."""
    weights = sum(weight.nbytes for weight in model.parameters()) - model.model.embed_tokens.weight.nbytes
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return weights + batch * seen * heads * model.lm_head.weight.element_size()


def agreement(mine: list[list[int]], his: list[list[int]]) -> float:
    """The share of tokens before the first that differs, of all rows."""
    alike = [[a == b for a, b in zip(*rows, strict=True)] for rows in zip(mine, his, strict=True)]
    return sum([*row, False].index(False) for row in alike) / sum(map(len, alike))
