"""The paper's three objectives, per sample and per term; the caller weights, reduces and logs.

B batch, T tokens, V vocabulary, N picture tokens, D features. Pure functions that know no model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def _precise(x: Tensor) -> Tensor:
    """At least float32: half precision would lose the differences that a loss is made of."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autoregressive_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (B,) of the response tokens (paper, eq. 6).

    `logits` (B, T, V) at a position predict `labels` (B, T) at the same position; IGNORE marks what is no response.
    A sample without response tokens costs 0.
    """
    loss = F.cross_entropy(_precise(logits).transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")  # (B, T)
    return _mean(loss, labels != IGNORE)


def packed_autoregressive_loss(logits: Tensor, labels: Tensor, owners: Tensor, samples: int) -> Tensor:
    """The same (S,) for each of so many samples of the response tokens (K,) that they own, with `logits` (K, V)."""
    costs = F.cross_entropy(_precise(logits), labels, reduction="none")  # (K,)
    sums = costs.new_zeros(samples).index_add(0, owners, costs)
    return sums / torch.bincount(owners, minlength=samples).clamp(min=1)


def _mean(costs: Tensor, answers: Tensor) -> Tensor:
    """The mean (B,) of costs (B, T), 0 outside the `answers` (B, T), over these."""
    return costs.sum(dim=1) / answers.sum(dim=1).clamp(min=1)


def kept_loss(logits: Tensor, target: Tensor, answers: Tensor) -> Tensor:
    """KL(target, now) of tokens, the mean (B,) over the `answers` (B, T) of a row that `logits` (K, V) are for."""
    now, then = (_precise(x).log_softmax(dim=-1) for x in (logits, target))
    costs = F.kl_div(now, then, reduction="none", log_target=True).sum(dim=-1)  # (K,)
    return _mean(costs.new_zeros(answers.shape).masked_scatter(answers, costs), answers)


def flow_loss(velocity: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error (B,) of a velocity against x - z0, all (B, C, h, w) (paper, eq. 7)."""
    return (_precise(velocity) - (_precise(x) - _precise(noise))).square().mean(dim=(1, 2, 3))


def repa_loss(projected: Tensor, target: Tensor) -> Tensor:
    """Minus the mean cosine (B,) between projected hidden states and encoder features (B, N, D) (paper, eq. 8).

    The target gets no gradient.
    """
    return -F.cosine_similarity(_precise(projected), _precise(target.detach()), dim=-1).mean(dim=1)
