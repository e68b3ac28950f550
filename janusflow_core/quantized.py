"""Weights in eight bits, as ComfyUI keeps them: beside `L.weight` lie `L.weight_scale` and `L.comfy_quant`.

`comfy_quant` is the JSON of ComfyUI's description of a layer, as bytes. Two of its formats are written here: fp8
with one scale for a matrix, int8 with one for each row. Only memory is meant to be saved: all computing goes on in the
numbers that the weights stand for, because activations of a language model can be larger than fp8 reaches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Quantization = Literal["fp8", "int8"]

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
FORMATS: dict[Quantization, str] = {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}
STORED = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "int8_tensorwise": torch.int8}
PARTS = ("comfy_quant", "weight_scale", "input_scale")  # what may lie beside the weight of such a layer
# The matrices of the language model's layers and of the vision encoder's: nine tenths of all that is not a table.
LAYERS = re.compile(r".+\.(layers|blocks)\.\d+\..+\.weight")
SMALLEST = 1e-30  # stands for the largest value of a row of zeros


def is_quantizable(key: str, shape: Sequence[int]) -> bool:
    """Whether this is a matrix of a layer that is repeated; tables, heads and convolutions stay as they are."""
    return len(shape) == 2 and LAYERS.fullmatch(key) is not None


def quantize_matrix(weight: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    """A matrix (out, in) in eight bits, and its factor: a scale () for fp8, (out, 1) for int8."""
    weight = weight.float()
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / 127
        return (weight / scale).round().to(torch.int8), scale
    # A power of two costs a float no digit, and is exact in bfloat16, in which ComfyUI multiplies by it.
    scale = (weight.abs().amax().clamp_min(SMALLEST) / FP8_MAX).log2().ceil().exp2()
    return (weight / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def describe(kind: Quantization) -> str:
    """ComfyUI's description of a layer that `quantize_matrix` made."""
    return json.dumps({"format": FORMATS[kind], "full_precision_matrix_mult": True})


def dequantize(weight: Tensor, scale: Tensor | None, description: Any, dtype: torch.dtype) -> Tensor:
    """The numbers (out, in) that a matrix in eight bits stands for; raises ValueError for what ComfyUI would not read.

    `scale` may be one number, or with int8 one for each row, and may be absent with fp8.
    """
    said = {**description, **description.get("params", {})} if isinstance(description, Mapping) else {}
    kind = said.get("format")
    if kind not in STORED or said.get("convrot"):
        raise ValueError(f"its format is {str(kind)[:40]!r}, read are {', '.join(STORED)}, and those without rotation")
    if weight.dtype != STORED[kind]:
        raise ValueError(f"it holds {str(weight.dtype).removeprefix('torch.')}, its format is {kind}")
    if scale is None and kind != "int8_tensorwise":
        return weight.to(dtype)
    rows = kind == "int8_tensorwise" and scale is not None and scale.shape == (len(weight), 1)
    if scale is None or not (rows or scale.numel() == 1) or not scale.is_floating_point() or not scale.isfinite().all():
        raise ValueError("it has no scale, one of another shape or one that is not finite")
    return (weight.float() * scale.float()).to(dtype)
