"""From one layout of a checkpoint to the other, with a look at the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .autoencoder import Autoencoder
from .checkpoint import Checkpoint, OnProgress, counted, open_checkpoint, verified
from .layout import describe_files, save_folder, save_single
from .weights import SAFE_SUFFIXES, read_weights


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    vae: Autoencoder | None = None,
    on_progress: OnProgress | None = None,
) -> Checkpoint:
    """Rewrite a checkpoint as a single file (target ends in .safetensors) or a folder, read it back and compare.

    `dtype` None keeps the stored one; `vae` is put in where the source has none or another.
    `on_progress` hears how many reads are done, of two for each tensor.
    """
    origin, target = open_checkpoint(source), Path(target)
    if origin.tokenizer is None:
        raise ValueError(f"{origin.name} holds only the flow half of a JanusFlow; convert a whole checkpoint.")
    shapes = verified(origin)
    total = 2 * len(shapes)
    weights = dict(counted(read_weights(origin.weights, shapes, dtype), total, on_progress))
    vae = vae.for_model(origin.config.flow.latent_channels) if vae is not None else origin.read_vae()
    stored = weights["language_model.model.norm.weight"].dtype
    config = origin.config.model_copy(update={"torch_dtype": str(stored).removeprefix("torch.")})
    parts = describe_files(config, origin.tokenizer, origin.image, origin.drawing)
    save = save_single if target.suffix in SAFE_SUFFIXES else save_folder
    save(target, weights, parts, origin.tokenizer.json, vae)
    written = open_checkpoint(target)
    _compare(target, weights, counted(read_weights(written.weights, shapes), total, on_progress, len(shapes)))
    if vae is not None:
        found = written.read_vae()
        _compare(target, vae.weights, found.weights.items() if found else ())
    return written


def _compare(target: Path, expected: Mapping[str, Tensor], found: Iterable[tuple[str, Tensor]]) -> None:
    left = dict(expected)
    for key, tensor in found:
        if not torch.equal(tensor, left.pop(key)):
            raise RuntimeError(f"{target}: {key} was not written as it was read: check the disk and convert again.")
    if left:
        raise RuntimeError(f"{target}: {min(left)} was not written: check the disk and convert again.")
