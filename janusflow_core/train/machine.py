"""What makes training fast on the machine at hand, found out at run time: number type, compiler, processes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..attention import Attention, eager, sdpa
from ..device import faster_in_bf16, has_compiler

log = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])
GPU_TIMES = 6  # with a CPU's batches a GPU would mostly wait for orders


def together() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized()  # Windows' builds for AMD have no processes


def rank() -> int:
    """The number of this process among those that train together."""
    return dist.get_rank() if together() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if together() else 1


def meeting_place() -> torch.device:
    """Where a tensor must be that the processes tell one another: NCCL knows GPUs alone."""
    there = together() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if there else torch.device("cpu")


def wait_for_all() -> None:
    """Go on once every process has come here; nothing to do for one."""
    if together():
        dist.barrier()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that processes may share among them: every one of them has to ask."""
    return tensor.full_tensor() if is_shared(tensor) else tensor  # type: ignore[attr-defined]


def gathered(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """All of some tensors on the CPU, for the first process; the others ask as well, and get nothing."""
    found = {}
    for name, tensor in tensors:
        complete = whole(tensor.detach())
        if rank() == 0:
            found[name] = complete.cpu()
    return found


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, as shared among them as another of its shape is."""
    if not is_shared(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    told: Any = like
    return distribute_tensor(tensor.to(like.device), told.device_mesh, told.placements)


def is_shared(tensor: Tensor) -> bool:
    """Whether each process holds a part of a tensor (FSDP2): by its looks, for some builds of torch lack the class."""
    return hasattr(tensor, "full_tensor")


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
        return cls(device, trains_in_bf16(device), compiles)

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
        if not self.compiles:
            return function
        # A small model's step is many small kernels: a GPU would wait for the order of each.
        mode = None if self.device.type == "cpu" else "reduce-overhead"
        return torch.compile(function, dynamic=False, mode=mode)  # type: ignore[return-value]

    def recorded(self, function: Function) -> Function:
        """`compiled` for what a CPU does as fast by itself, where a GPU would wait for each of many orders."""
        return function if self.device.type == "cpu" else self.compiled(function)


def quiet_norms() -> None:
    """Say nothing of norms that keep their weights in float32 under autocast, as they should."""
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")


def training_attention(device: torch.device) -> Attention:
    """The kernel whose forward and backward pass together are the fastest there."""
    return eager if device.type == "cpu" else sdpa


def trains_in_bf16(device: torch.device, seconds: float = 0.1) -> bool:
    """Whether matrix products run faster in bfloat16 here: measured, not guessed, and the first process's word."""
    side = 512 if device.type == "cpu" else 4096  # a GPU would only wait for small ones
    verdict = torch.tensor(float(faster_in_bf16(device, side, seconds)), device=meeting_place())
    if together():
        dist.broadcast(verdict, 0)
    log.info("matrix products run in %s", "bfloat16" if verdict else "float32")
    return bool(verdict)
