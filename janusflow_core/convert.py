"""From one layout of a checkpoint to the other, with a look at the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .autoencoder import Autoencoder
from .checkpoint import Checkpoint, OnProgress, counted, open_checkpoint, verified
from .layout import describe_files, save_folder, save_single
from .quantized import Quantization, describe, is_quantizable, quantize_matrix
from .weights import NORM, SAFE_SUFFIXES, json_tensor, read_weights


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    vae: Autoencoder | None = None,
    on_progress: OnProgress | None = None,
    quantize: Quantization | None = None,
) -> Checkpoint:
    """Rewrite a checkpoint as a single file (target ends in .safetensors) or a folder, read it back and compare.

    `dtype` None keeps the stored one; `vae` is put in where the source has none or another; `quantize` writes the
    matrices of the layers in eight bits as ComfyUI does, which only a single file can hold. Quantised layers of the
    source become ordinary ones without it. `on_progress` hears how many tensors are read, of both files.
    """
    origin, target = open_checkpoint(source), Path(target)
    if quantize is not None and target.suffix not in SAFE_SUFFIXES:
        raise ValueError(
            f"{target.name}: quantised layers go into one file only, choose a name that ends in .safetensors."
        )
    if origin.tokenizer is None:
        raise ValueError(f"{origin.name} holds only the flow half of a JanusFlow; convert a whole checkpoint.")
    shapes = verified(origin)
    parts_more = 2 * sum(is_quantizable(*item) for item in shapes.items()) if quantize else 0
    total = 2 * len(shapes) + parts_more
    read = counted(read_weights(origin.weights, shapes, dtype), total, on_progress)
    weights = dict(read if quantize is None else _quantized(read, quantize))
    vae = vae.for_model(origin.config.flow.latent_channels) if vae is not None else origin.read_vae()
    stored = weights[NORM].dtype
    config = origin.config.model_copy(update={"torch_dtype": str(stored).removeprefix("torch.")})
    parts = describe_files(config, origin.tokenizer, origin.image, origin.drawing)
    save = save_single if target.suffix in SAFE_SUFFIXES else save_folder
    save(target, weights, parts, origin.tokenizer.json, vae)
    written = open_checkpoint(target)
    found_weights = read_weights(written.weights, shapes, packed=True)
    _compare(target, weights, counted(found_weights, total, on_progress, len(shapes)))
    if vae is not None:
        found = written.read_vae()
        _compare(target, vae.weights, found.weights.items() if found else ())
    return written


def _quantized(weights: Iterable[tuple[str, Tensor]], kind: Quantization) -> Iterator[tuple[str, Tensor]]:
    """The same weights, the matrices of the layers in eight bits, each followed by its scale and its description."""
    for key, weight in weights:
        if not is_quantizable(key, weight.shape):
            yield key, weight
            continue
        layer = key.removesuffix(".weight")
        numbers, scale = quantize_matrix(weight, kind)
        yield key, numbers
        yield f"{layer}.weight_scale", scale
        yield f"{layer}.comfy_quant", json_tensor(describe(kind))


def _compare(target: Path, expected: Mapping[str, Tensor], found: Iterable[tuple[str, Tensor]]) -> None:
    left = dict(expected)
    for key, tensor in found:
        if not torch.equal(tensor, left.pop(key)):
            raise RuntimeError(f"{target}: {key} was not written as it was read: check the disk and convert again.")
    if left:
        raise RuntimeError(f"{target}: {min(left)} was not written: check the disk and convert again.")
