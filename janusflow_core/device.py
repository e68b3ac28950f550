"""Where to compute, and in which numbers."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def best_device() -> torch.device:
    """CUDA (or ROCm) if there is one, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, else float32; float16 overflows in this language model."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


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


def usable_device(name: str | None) -> torch.device | None:
    """The device, tried out; raises ValueError where this machine or this torch has none of that name."""
    if name is None:
        return None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"got device {name!r}, expected one that works here ({reason}): try cpu") from error
