"""Where to compute, and in which numbers."""

from __future__ import annotations

import os
import re
import shutil
import time
from functools import cache
from pathlib import Path

import torch

COMPILERS = ("c++", "g++", "clang++", "cl")


def best_device() -> torch.device:
    """CUDA (or ROCm) if there is one, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, a CPU faster than in float32, else float32.

    Never float16: it overflows in this language model.
    """
    cuda = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if cuda or _cpu_is_for_bf16(device, torch.get_num_threads()) else torch.float32


@cache
def _cpu_is_for_bf16(device: torch.device, threads: int) -> bool:
    """A CPU's answer, found in some 30 ms: those with units for bfloat16 are twice to eight times as fast in it, others
    many times slower."""
    return device.type == "cpu" and faster_in_bf16(device, 512, 0.01)


def faster_in_bf16(device: torch.device, side: int, seconds: float) -> bool:
    """Whether matrices of this side are multiplied at least 1.3 times as often in bfloat16 as in float32."""
    float32, bfloat16 = (products(device, dtype, side, seconds) for dtype in (torch.float32, torch.bfloat16))
    return bfloat16 > 1.3 * float32


def products(device: torch.device, dtype: torch.dtype, side: int, seconds: float) -> float:
    """How many products of two matrices of this side the device gets done in a second, counted for some `seconds`."""
    a = torch.ones(side, side, device=device, dtype=dtype)
    float((a @ a)[0, 0])  # the first one loads libraries
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        float((a @ a)[0, 0])  # waits for a GPU
        count += 1
    return count / (time.perf_counter() - began)


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), *COMPILERS) if name)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated there, what torch holds and does not use included; None where nobody tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    memory = Path("/proc/meminfo")  # Linux
    found = re.search(r"MemAvailable:\s+(\d+) kB", memory.read_text("utf-8")) if memory.is_file() else None
    return int(found[1]) * 1024 if found else None


def chosen_device(name: str | None) -> torch.device:
    """The device of this name, or the best there is; raises what `usable_device` raises."""
    return usable_device(name) or best_device()


def usable_device(name: str | None) -> torch.device | None:
    """The device, tried out; raises ValueError where this machine or this torch has none of that name."""
    if name is None:
        return None
    try:
        there = torch.zeros(1, device=name)
        there.item()  # which the meta device, for one, does not hold
        return there.device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"got device {name!r}, expected one that works here ({reason}): try cpu") from error
