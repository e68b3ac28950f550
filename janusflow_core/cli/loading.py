"""What the commands that run a model share: which one, with which LoRAs, and where."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .options import progress

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from ..bulk.journal import Share

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Which model runs, and where."""

    model: str = "janusflow-tiny"
    """A bundled name, a folder in the official layout or a .safetensors file."""
    device: str | None = None
    """cuda, cuda:1, mps or cpu; the best there is by default."""
    dtype: Literal["bf16", "fp32"] | None = None
    """What to compute in; by default bf16 on GPUs that have it and CPUs that are faster in it, else fp32."""
    lora: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE[:STRENGTH]")] = ()
    """A LoRA file, PEFT folder or bundled name to lay upon the model, at this strength or 1; may be given several
    times."""

    @contextmanager
    def loading(self) -> Iterator[dict[str, Any]]:
        """What JanusFlowPipeline.from_pretrained takes beside the model, and a bar while it reads."""
        from ..device import usable_device

        place = {"device": usable_device(self.device), "dtype": torch_dtype(self.dtype)}
        loras = [path_and_strength(text) for text in self.lora]
        with progress("loading") as show:
            yield {**place, "loras": loras, "on_progress": show}

    def at(self, share: Share) -> Self:
        """The same on this process's own GPU, where there are several processes and no device is named."""
        from ..device import best_device

        if self.device is not None or share.world == 1 or best_device().type != "cuda":
            return self
        return replace(self, device=f"cuda:{share.local}")


def path_and_strength(text: str) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH as the two; raises ValueError for a strength that is no number, before anything loads."""
    from ..lora import lora_path

    before, colon, after = text.rpartition(":")
    if lora_path(text).exists() or not colon:
        return Path(text), 1.0
    if not lora_path(before).exists():
        raise FileNotFoundError(f"no LoRA at {text}: check the path")
    try:
        strength = float(after)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise ValueError(f"got {after} as the strength of {before}, expected a number: --lora {before}:0.8")
    return Path(before), strength


def lora_is_there(text: str) -> bool:
    """Whether FILE or FILE:STRENGTH names a LoRA that can be found."""
    from ..lora import lora_path

    return any(name and lora_path(name).exists() for name in (text, text.rpartition(":")[0]))


def dtype_name(dtype: torch.dtype) -> str:
    """The name by which the command line calls one of torch's types."""
    return next(name for name in DTYPES if torch_dtype(name) == dtype)


def torch_dtype(name: str | None) -> torch.dtype | None:
    """torch's type for bf16, fp16 or fp32."""
    import torch

    return None if name is None else getattr(torch, DTYPES[name])
