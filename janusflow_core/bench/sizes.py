"""What is measured: language models with random weights of three sizes, and what bounds them on this machine."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from ..config import LanguageConfig
from ..llama import LanguageModel
from ..operations import OPERATIONS

Size = Literal["tiny", "middle", "full"]

# (layers of janusflow-tiny, of something between, of JanusFlow-1.3B; tokens of one picture with its question)
SHAPES: dict[str, tuple[dict[str, int], int]] = {
    "tiny": (
        {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6,
         "vocab_size": 512},
        80,
    ),
    "middle": (
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
         "vocab_size": 8192},
        200,
    ),
    "full": (
        {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
         "vocab_size": 102400},
        620,
    ),
}  # fmt: skip


def language_config(size: Size) -> LanguageConfig:
    """The shapes of a language model of this size."""
    return LanguageConfig(**SHAPES[size][0])


def usual_prompt(size: Size) -> int:
    """Tokens of a picture and a question about it at this size."""
    return SHAPES[size][1]


@torch.no_grad()
def random_language_model(config: LanguageConfig, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    """A whole language model with random weights, the same ones each time on one device."""
    model = LanguageModel(config, text=True, layers=True, operations=OPERATIONS, dtype=dtype, device=device)
    random = torch.Generator(device).manual_seed(0)
    for weight in model.requires_grad_(False).eval().parameters():
        if weight.dim() == 1:
            weight.fill_(1.0)
        else:
            weight.normal_(0.0, weight.shape[1] ** -0.5, generator=random)
    return model


def bandwidth(device: torch.device) -> float:
    """Bytes a second that this device reads of more memory than any cache holds."""
    block = torch.ones(1 << 27, dtype=torch.float32, device=device)  # 512 MB
    block.sum()
    return max(block.nbytes / seconds(block.sum, device) for _ in range(5))


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long it takes until the device has done it."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int | None:
    """The most memory in use during `work`: a GPU's, else this process's where Linux tells, else None."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    begun_anew = _forget_peak()
    work()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()) if begun_anew else None
    return int(found[1]) * 1024 if found else None


def _forget_peak(switch: Path = Path("/proc/self/clear_refs")) -> bool:
    """Whether this process's high-water mark begins anew: on Linux, where a container does not forbid it."""
    try:
        switch.write_text("5")
    except OSError:
        return False
    return True
