"""What makes training fast on the machine at hand, found out at run time: number type, compiler, processes."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..attention import Attention, eager, sdpa

log = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])
COMPILERS = ("c++", "g++", "clang++", "cl")
GPU_TIMES = 6  # with a CPU's batches a GPU would mostly wait for orders


def rank() -> int:
    """The number of this process among those that train together."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Go on once every process has come here; nothing to do for one."""
    if dist.is_initialized():
        dist.barrier()


@dataclass(frozen=True)
class Machine:
    """Where a process trains, whether its matrix products run in bfloat16, and whether steps get compiled."""

    device: torch.device
    bf16: bool
    compiles: bool

    @classmethod
    def measured(cls, device: torch.device, compiling_pays: bool) -> Machine:
        """The fastest way on this machine; a run that is short does better without compiling."""
        compiles = compiling_pays and has_compiler()
        if compiling_pays and not compiles:
            log.info("there is no C++ compiler (g++): training goes on uncompiled, about half as fast")
        return cls(device, faster_in_bf16(device), compiles)

    @property
    def times(self) -> int:
        """How many times as many samples belong in a batch as on a CPU."""
        return 1 if self.device.type == "cpu" else GPU_TIMES

    @property
    def workers(self) -> int:
        """How many processes prepare what a GPU is to see; a CPU has better things to do."""
        return 0 if self.device.type == "cpu" else max((os.cpu_count() or 1) - 2, 1)

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in bfloat16, the rest in float32; or all in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def compiled(self, function: Function) -> Function:
        """torch.compile for fixed shapes, or the function itself."""
        return torch.compile(function, dynamic=False) if self.compiles else function  # type: ignore[return-value]


def training_attention(device: torch.device) -> Attention:
    """The kernel whose forward and backward pass together are the fastest there."""
    return eager if device.type == "cpu" else sdpa


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), *COMPILERS) if name)


def faster_in_bf16(device: torch.device, seconds: float = 0.1) -> bool:
    """Whether matrix products run at least 1.3 times as fast in bfloat16 as in float32 here: measured, not guessed.

    Some processors have units for it, others emulate it slowly. All processes take the first one's word.
    """
    size = 512 if device.type == "cpu" else 4096  # a GPU would only wait for small ones
    rates = [_products(device, dtype, size, seconds) for dtype in (torch.float32, torch.bfloat16)]
    verdict = torch.tensor(float(rates[1] > 1.3 * rates[0]))
    if dist.is_initialized():
        dist.broadcast(verdict, 0)
    log.info("matrix products a second: float32 %.0f, bfloat16 %.0f", *rates)
    return bool(verdict)


def _products(device: torch.device, dtype: torch.dtype, size: int, seconds: float) -> float:
    a = torch.ones(size, size, device=device, dtype=dtype)
    float((a @ a)[0, 0])  # the first one loads libraries
    count, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        float((a @ a)[0, 0])  # waits for a GPU
        count += 1
    return count / (time.monotonic() - began)
