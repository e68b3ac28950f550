"""How likely whole answers are: every option behind a prompt in one forward pass, exactly.

B prompts, O options, N nodes: the options' tokens as a tree, in which what begins alike stands once. A node sees the
prompt and what leads to it, so that its logits are those of its option written alone, and
log P(option) = sum over its tokens, and the closing eos, of log P(token | prompt, tokens before).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Attention, KVCache, sdpa
from .decoding import Backbone, Reader

LOGITS_AT_ONCE = 1 << 26  # numbers, 256 MB: a vocabulary of 100,000 makes many of a few nodes


@dataclass(frozen=True)
class Choice:
    """The likeliest of some answers, and the probability of each among them, in the order that they were given."""

    answer: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Tree:
    """Options as nodes, parents first: what each says, what leads to it, and each option's way from the root.

    Node 0 is the root, the prompt itself, which says nothing.
    """

    ids: list[int]
    parents: list[int]
    ways: list[list[int]]

    @classmethod
    def of(cls, options: Sequence[Sequence[int]]) -> Tree:
        """Raises ValueError where an option is empty or two are the same."""
        if not options or not all(options) or len({tuple(option) for option in options}) < len(options):
            raise ValueError("options must be different texts, at least one and none empty.")
        numbers: dict[tuple[int, ...], int] = {(): 0}
        for option in options:
            for end in range(1, len(option) + 1):
                numbers.setdefault(tuple(option[:end]), len(numbers))
        begun = [*numbers][1:]
        ways = [[numbers[tuple(option[:end])] for end in range(len(option) + 1)] for option in options]
        return cls([path[-1] for path in begun], [numbers[path[:-1]] for path in begun], ways)

    def seen(self) -> Tensor:
        """Which nodes (N, N) each sees: itself and all that leads to it, but for the root."""
        seen = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent:
                seen[node] |= seen[parent - 1]
        return seen

    def steps(self, eos: int) -> Tensor:
        """Every step of every option as (owner, node that it is taken from, token that is said): (3, S)."""
        said = [[*(self.ids[node - 1] for node in way[1:]), eos] for way in self.ways]
        taken = [(owner, *step) for owner, way in enumerate(self.ways) for step in zip(way, said[owner], strict=True)]
        return torch.tensor(taken).T


@torch.no_grad()
def option_scores(
    backbone: Backbone,
    head: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    prompt: Tensor,
    real: Tensor,
    options: Sequence[Sequence[int]],
    *,
    eos: int,
    attention: Attention = sdpa,
) -> Tensor:
    """log P (B, O), in float32, of options as answers to prompts: left-padded embeddings (B, T, D), real (B, T).

    Of all answers that the model could give, so that their sum is below 1; `softmax` makes them a choice. Raises
    ValueError where options are empty or the same.
    """
    tree, rows, device = Tree.of(options), len(prompt), prompt.device
    cache = KVCache(prompt.shape[1] + len(tree.ids))
    root = Reader(backbone, head, embed, cache, attention).read_prompt(prompt, real)  # (B, V)
    seen = tree.seen().to(device).expand(rows, -1, -1)  # (B, N, N)
    mask = torch.cat((real[:, None].expand(-1, len(tree.ids), -1), seen), dim=2)[:, None]  # (B, 1, N, T + N)
    positions = real.sum(dim=1, keepdim=True) + seen[0].sum(dim=1) - 1  # (B, N)
    ids = torch.tensor(tree.ids, device=device).expand(rows, -1)
    hidden = backbone(embed(ids).to(prompt.dtype), positions, mask, cache, attention)  # (B, N, D)
    scores = torch.zeros(rows, len(options), device=device)
    steps = tree.steps(eos).to(device)
    _add_steps(scores, root[:, None], steps, 0)
    at_once = max(1, LOGITS_AT_ONCE // root.numel())
    for first in range(0, len(tree.ids), at_once):
        _add_steps(scores, head(hidden[:, first : first + at_once]).float(), steps, first + 1)
    return scores


def _add_steps(scores: Tensor, logits: Tensor, steps: Tensor, first: int) -> None:
    """Add to each option (B, O) the steps that are taken from the nodes of these logits (B, n, V)."""
    owners, nodes, tokens = steps[:, (steps[1] >= first) & (steps[1] < first + logits.shape[1])]
    scores.index_add_(1, owners, logits.log_softmax(dim=-1)[:, nodes - first, tokens])


def spelled(options: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Answers and how each may be written; raises ValueError where none is given, one is empty or two are the same."""
    pairs = [*options.items()] if isinstance(options, Mapping) else [(option, (option,)) for option in options]
    texts = [text.strip() for _, written in pairs for text in written]
    if not pairs or not all(written for _, written in pairs) or "" in texts or len({*texts}) < len(texts):
        raise ValueError("options must be different texts, at least one and none empty: correct the list.")
    return dict(pairs)


def choice_of(spellings: Mapping[str, Sequence[str]], scores: Tensor) -> Choice:
    """The choice that log P (O,) of all spellings, in their order, make."""
    chances = scores.double().softmax(dim=0).split([len(written) for written in spellings.values()])
    probabilities = {answer: float(part.sum()) for answer, part in zip(spellings, chances, strict=True)}
    return Choice(max(probabilities, key=probabilities.__getitem__), probabilities)
