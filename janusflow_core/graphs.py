"""CUDA graphs: a step of many small kernels whose shapes never change, recorded once and then played as one."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def replayed(step: Callable[[], Tensor], before: int = 2) -> Callable[[], Tensor]:
    """A step as one CUDA graph, captured after as many plain calls as its kernels need to warm up.

    Where it cannot be captured it stays as it was, with a warning. The result is overwritten by the next call.
    """
    calls, graph, result = 0, None, torch.empty(0)

    def call() -> Tensor:
        nonlocal calls, graph, result
        calls += 1
        if calls == before + 1:
            try:
                graph, result = captured(step)
            except RuntimeError as error:
                warnings.warn(f"going on without a CUDA graph, slower: {error}", stacklevel=2)
        if graph is None:
            return step()
        graph.replay()
        return result

    return call


def captured(step: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The kernels of a step, recorded and not run, and where their result will be."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = step()
    return graph, result
