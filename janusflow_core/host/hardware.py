"""What there is to compute with, in which numbers, and how much room."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .finding import Finding, reason, size

if TYPE_CHECKING:
    import torch

# Activations, the VAE and torch itself beside the weights.
OVERHEAD = 1_000_000_000


def hardware(device: torch.device) -> Iterator[Finding]:
    """The device, whether it multiplies, and in which numbers JanusFlow computes on it."""
    import torch

    from ..device import best_dtype

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    what = f"torch {torch.__version__} on {device.type} ({name}), computing in {_short(best_dtype(device))}"
    try:
        _multiply(device, best_dtype(device))
        yield Finding("ok", f"{what}; bf16 {_bf16_support(device)}")
    except RuntimeError as error:
        yield Finding(
            "error", f"{what} fails: {reason(error)}", "install a torch build for this GPU, or use --device cpu"
        )
    if device.type == "cpu":
        yield _no_gpu()
    yield Finding("ok", "free: " + ", ".join(f"{kind} {size(there)}" for kind, there in _free(device).items()))


def _cpu() -> str:
    """The processor, and which of its units torch uses."""
    import torch

    units = [torch.backends.cpu.get_cpu_capability()]
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        units.append("AMX")
    return f"{platform.processor() or platform.machine()} with {', '.join(units)}"


def _no_gpu() -> Finding:
    if shutil.which("nvidia-smi"):
        return Finding(
            "warning",
            "there is an NVIDIA driver, but torch cannot use it",
            "install a CUDA build of torch, or update the driver: https://pytorch.org/get-started",
        )
    return Finding("note", "no GPU that torch can use; the bundled model is quick without, the official one is slow")


def _multiply(device: torch.device, dtype: torch.dtype) -> None:
    import torch

    ones = torch.ones(8, 8, device=device, dtype=dtype)
    assert float((ones @ ones).sum()) == 512.0


def _bf16_support(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "works"
        return "is emulated, so fp32 is as fast; fp16 is not used, since the language model overflows in it"
    try:
        _multiply(device, torch.bfloat16)
    except (RuntimeError, TypeError):
        return "does not work"
    return "works"


def _short(dtype: torch.dtype) -> str:
    return {"torch.bfloat16": "bf16", "torch.float32": "fp32", "torch.float16": "fp16"}[str(dtype)]


def _free_memory() -> int | None:
    """Bytes of RAM that a program can take now; None where nothing tells."""
    try:
        import psutil
    except ImportError:
        return None
    return psutil.virtual_memory().available


def lack_of_room(source: str, need: int, device: torch.device) -> Iterator[Finding]:
    """Where the weights take more memory or disk than is free."""
    for kind, there in _free(device).items():
        wanted = need + OVERHEAD * ("memory" in kind)
        if there < wanted:
            yield Finding(
                "warning",
                f"{size(there)} of {kind} free, model {source} wants {size(wanted)}",
                f"free some {kind}, or use a smaller model",
            )


def _free(device: torch.device) -> dict[str, int]:
    """Bytes that a program can take now, of each kind that tells."""
    import torch

    free = {"memory": _free_memory(), "disk space in this folder": shutil.disk_usage(".").free}
    if device.type == "cuda":
        free["GPU memory"] = torch.cuda.mem_get_info(device)[0]
    return {kind: there for kind, there in free.items() if there is not None}
