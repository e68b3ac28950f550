"""What is measured: models with random weights of three sizes, and what bounds them on this machine."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..config import FlowConfig, JanusFlowConfig, LanguageConfig, VisionConfig
from ..llama import LanguageModel
from ..model import JanusFlow
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

# (channels of the generation encoder, sides of the latent)
DRAWN: dict[str, tuple[int, int]] = {"tiny": (96, 12), "middle": (256, 24), "full": (768, 48)}


def language_config(size: Size) -> LanguageConfig:
    """The shapes of a language model of this size."""
    return LanguageConfig(**SHAPES[size][0])


def usual_prompt(size: Size) -> int:
    """Tokens of a picture and a question about it at this size."""
    return SHAPES[size][1]


def latent_side(size: Size) -> int:
    """The sides of the latents that a model of this size is made for."""
    return DRAWN[size][1]


@torch.no_grad()
def random_flow(size: Size, dtype: torch.dtype, device: torch.device) -> JanusFlow:
    """All that draws in a model of this size, with random weights, the same ones each time on one device."""
    unused = VisionConfig(image_size=8 * latent_side(size), patch_size=16, width=16, layers=1, heads=1)
    config = JanusFlowConfig(language=language_config(size), vision=unused, flow=FlowConfig(channels=DRAWN[size][0]))
    model = JanusFlow(config, text=False, dtype=dtype, device=device).requires_grad_(False).eval()
    model.init_weights(torch.Generator(device).manual_seed(0))
    return model


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


@torch.no_grad()
def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a large layer by the fastest library: as fast as this device computes."""
    side = 2048 if device.type == "cpu" else 8192
    layer = OPERATIONS.Linear(side, side, bias=False, dtype=dtype, device=device)
    x = torch.ones(side, side, dtype=dtype, device=device)
    layer(x)
    return max(2 * side**3 / seconds(partial(layer, x), device) for _ in range(5))


def arithmetic(work: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products in `work`, those with what a mask hides included."""
    own: dict[Any, Any] = {  # which torch does not count by itself
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: 4 * math.prod(q) * k[-2],
    }
    if torch.backends.mkldnn.is_available():
        own[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        work()
    return counter.get_total_flops()


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long it takes until the device has done it."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def medians(ways: Sequence[Callable[[], Any]], rounds: int, device: torch.device) -> list[float]:
    """How long each way takes, the median of some rounds in which they take turns."""
    taken = [[seconds(way, device) for way in ways] for _ in range(rounds)]
    return [median(of_one) for of_one in zip(*taken, strict=True)]


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
