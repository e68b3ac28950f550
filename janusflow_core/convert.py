"""From one layout of a checkpoint to the other, with a look at the result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint, OnProgress, counted, open_checkpoint, read_weights, verified
from .layout import describe_files, save_folder, save_single
from .weights import SAFE_SUFFIXES


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    vae: tuple[Mapping[str, Any], Mapping[str, Tensor]] | None = None,
    on_progress: OnProgress | None = None,
) -> Checkpoint:
    """Rewrite a checkpoint as a single file (target ends in .safetensors) or a folder, read it back and compare.

    `dtype` None keeps the stored one; `vae` (config, weights) is put in where the source has none or another.
    `on_progress` hears how many reads are done, of two for each tensor.
    """
    origin, target = open_checkpoint(source), Path(target)
    if origin.tokenizer is None:
        raise ValueError(f"{origin.name} holds only the flow half of a JanusFlow; convert a whole checkpoint.")
    shapes = verified(origin)
    total = 2 * len(shapes)
    weights = dict(counted(read_weights(origin.weights, shapes, dtype), total, on_progress))
    if vae is None and origin.vae_weights is not None:
        vae = origin.vae_config or {}, origin.vae_weights.tensors()
    stored = weights["language_model.model.norm.weight"].dtype
    config = origin.config.model_copy(update={"torch_dtype": str(stored).removeprefix("torch.")})
    parts = describe_files(config, origin.tokenizer, origin.image, origin.drawing)
    save = save_single if target.suffix in SAFE_SUFFIXES else save_folder
    save(target, weights, parts, origin.tokenizer.json, *(vae or (None, None)))
    written = open_checkpoint(target)
    for key, tensor in counted(read_weights(written.weights, shapes), total, on_progress, len(shapes)):
        if not torch.equal(tensor, weights[key]):
            raise RuntimeError(f"{target}: {key} was not written as it was read: check the disk and convert again.")
    return written
