"""The layers that the model is built of outside ComfyUI: torch.nn's, with a Linear that is fast on every CPU.

For float32 torch leaves a Linear's product to MKL, which on processors of other makers takes up to twice as long as
oneDNN, the library in the same torch that it uses for bfloat16. Which of the two is faster here is measured, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 1 << 18  # weights from which on oneDNN's longer way to its kernel (some 12 us a call) does not show


class Linear(nn.Linear):
    """torch's Linear, computed by the faster library; the two round differently, by some 1e-7 of the values' size."""

    def forward(self, input: Tensor) -> Tensor:
        product = onednn_linear if onednn_serves(input, self.weight) else F.linear
        return product(input, self.weight, self.bias)


class Embedding(nn.Embedding):
    """torch's, without first values: drawing them for a model without memory would load a compiler, for a second."""

    def reset_parameters(self) -> None:
        """Nothing: weights come from a checkpoint, or from `JanusFlow.init_weights`."""


OPERATIONS = SimpleNamespace(**{**vars(nn), "Linear": Linear, "Embedding": Embedding})


def onednn_serves(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can compute this and is the faster: large, in float32 on a CPU, and no gradient is asked for."""
    return (
        type(weight) in (Tensor, nn.Parameter)  # not quantised, not still to be loaded
        and weight.numel() >= LARGE
        and x.device.type == "cpu" == weight.device.type
        and x.dtype == torch.float32 == weight.dtype
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and onednn_is_faster(x.numel() == x.shape[-1], torch.get_num_threads())
    )


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of (..., in) and weights (out, in) by oneDNN, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def onednn_is_faster(single: bool, threads: int) -> bool:
    """Whether oneDNN takes at least a tenth less time than torch's own choice; False where torch lacks it.

    For a `single` row (only memory counts), or for several, with this number of threads; some 50 ms each.
    """
    random = torch.Generator().manual_seed(0)  # its own: torch's must give everyone else the same noise as ever
    weight = torch.randn(1024, 2048, generator=random).repeat(8, 1)  # 64 MB, more than most caches hold
    x = torch.randn(1 if single else 16, 2048, generator=random)
    try:
        alike = torch.allclose(onednn_linear(x, weight), F.linear(x, weight), rtol=1e-4, atol=1e-3)
    except (AttributeError, RuntimeError):
        return False
    taken = [[_seconds(product, x, weight) for product in (onednn_linear, F.linear)] for _ in range(3)]
    return alike and min(onednn for onednn, _ in taken) < 0.9 * min(other for _, other in taken)


def _seconds(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> float:
    start = time.perf_counter()
    product(x, weight)
    return time.perf_counter() - start
