"""ComfyUI's layers, with a Linear that is fast on every CPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...janusflow_core.operations import onednn_linear, onednn_serves
from .compat import check_cancelled


def quick(operations: Any) -> Any:
    """These operations of ComfyUI's, their Linear computed by the faster of a CPU's two libraries.

    Only where ComfyUI would do nothing else: it stays in charge of weights to be cast, moved, patched or unpacked.
    """

    class Linear(operations.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if self.weight_function or self.bias_function or not onednn_serves(input, self.weight):
                return super().forward(input)
            check_cancelled()  # as ComfyUI's own does: a step at full size takes many seconds on a CPU
            return onednn_linear(input, self.weight, self.bias)

    return type("Operations", (operations,), {"Linear": Linear})
