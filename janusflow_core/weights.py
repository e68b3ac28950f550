"""Tensors on disk, read one at a time: safetensors by memory map, .bin and .pt only with torch's safe unpickler."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .partial import appearing
from .quantized import PARTS, dequantize
from .values import parse_json, printable, read_json, shown

SAFE_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# Texts that a single file may hold among its tensors or, but for the tokenizer, in its metadata.
TOKENIZER_KEY = "tokenizer_json"
JSON_KEYS = ("config", "processor_config", "preprocessor_config", "special_tokens_map", "drawing_config", "vae_config")
QUANTIZED = "_quantization_metadata"  # in the metadata of files by older quantisers: {"layers": {name: description}}
NORM = "language_model.model.norm.weight"  # in every half; never in eight bits unless all is
NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


class TensorFile:
    """Names and shapes of the tensors in one file, and the tensors on demand.

    Raises ValueError with one sentence when the file is cut short or is not what its name says.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, shown(path)
        self.metadata: dict[str, str] = {}
        self._loaded: dict[str, Tensor] | None = None
        if path.suffix in SAFE_SUFFIXES:
            with self._open() as file:
                self.metadata = dict(file.metadata() or {})
                self.shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        elif path.suffix in PICKLE_SUFFIXES:
            self._loaded = _unpickle(path)
            self.shapes = {key: tuple(value.shape) for key, value in self._loaded.items()}
        else:
            raise ValueError(f"{self.name} is no weight file: expected {', '.join(SAFE_SUFFIXES + PICKLE_SUFFIXES)}.")

    def read(self, key: str) -> Tensor:
        """One tensor, backed by the file where it can be: its memory is the page cache's until it is converted."""
        if self._loaded is not None:
            return self._loaded[key]
        # Opened anew for each tensor, so that the pages of those already converted can go.
        with self._open() as file:
            return file.get_tensor(key)

    def _open(self) -> safe_open:
        try:
            os.fspath(self.path).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{printable(self.path)} is a path of no valid Unicode, which safetensors cannot open: rename the file "
                "or its folder."
            ) from error
        try:
            return safe_open(self.path, framework="pt", device="cpu")
        except SafetensorError as error:
            size, reason = self.path.stat().st_size, str(error).removeprefix("Error while deserializing header: ")[:200]
            raise ValueError(
                f"{self.name} is not a whole safetensors file ({size:,} bytes; {reason}): "
                "it was probably cut short; download or copy it again."
            ) from error


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch's own text is a page long and advises to load it unsafely
        raise ValueError(
            f"{shown(path)} cannot be read safely, because it is cut short or holds more than tensors: "
            "convert it to .safetensors where it came from."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(key, str) and _plain(state[key]) for key in state):
        raise ValueError(f"{shown(path)} holds no dictionary of names and plain tensors: it is not a checkpoint.")
    return dict(state)


def _plain(value: object) -> bool:
    """Whether something is a tensor that has its numbers with it, one after the other."""
    if not isinstance(value, Tensor) or value.is_meta or value.is_quantized:
        return False
    return value.layout == torch.strided


class Weights:
    """The tensors of a checkpoint, spread over one or more files, optionally below a prefix.

    Layers that ComfyUI or `convert` quantised read as the numbers that they stand for.
    """

    def __init__(self, files: Iterable[TensorFile], prefix: str = "") -> None:
        self._where = {
            key.removeprefix(prefix): (file, key) for file in files for key in file.shapes if key.startswith(prefix)
        }
        files = {file for file, _ in self._where.values()}
        self._described = {name.removeprefix(prefix): said for file in files for name, said in _described(file).items()}
        marked = {key.removesuffix(".comfy_quant") for key in self._where if key.endswith(".comfy_quant")}
        self._quantized = {layer for layer in marked.union(self._described) if f"{layer}.weight" in self._where}
        self._parts = {f"{layer}.{part}" for layer in self._quantized for part in PARTS}

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def __iter__(self) -> Iterator[str]:
        """Names of what a model holds: scales and descriptions of quantised layers belong to their weights."""
        return (key for key in self._where if key not in self._parts)

    def shape(self, key: str) -> tuple[int, ...]:
        file, name = self._where[key]
        return file.shapes[name]

    def file(self, key: str) -> str:
        return self._where[key][0].name

    def is_quantized(self, key: str) -> bool:
        return key.endswith(".weight") and key.removesuffix(".weight") in self._quantized

    def read(self, key: str) -> Tensor:
        """One tensor; of a quantised layer the numbers that it stands for, in what the final norm is stored in.

        Raises ValueError for a quantised layer that is not what it says.
        """
        return self.unpacked(key, self.packed(key)) if self.is_quantized(key) else self.stored(key)

    def unpacked(self, key: str, packed: Mapping[str, Tensor]) -> Tensor:
        """The numbers that what `packed` gives for a quantised layer stands for; raises what `read` raises."""
        layer = key.removesuffix(".weight")
        try:
            said = json.loads(tensor_json(packed[f"{layer}.comfy_quant"]))
            return dequantize(packed[key], packed.get(f"{layer}.weight_scale"), said, self.stored(NORM).dtype)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.file(key)}: {key} is no quantised layer that can be read ({error}): "
                "make the file anew with `janusflow convert --quantize`."
            ) from error

    def stored(self, key: str) -> Tensor:
        """One tensor as it lies in its file."""
        file, name = self._where[key]
        return file.read(name)

    def packed(self, key: str) -> dict[str, Tensor]:
        """The weight of a quantised layer and what lies beside it, as ComfyUI's layers load them."""
        layer = key.removesuffix(".weight")
        found = {name: self.stored(name) for name in (key, *(f"{layer}.{part}" for part in PARTS)) if name in self}
        if layer in self._described:
            found.setdefault(f"{layer}.comfy_quant", json_tensor(json.dumps(self._described[layer])))
        return found


def _described(file: TensorFile) -> dict[str, Any]:
    """The quantised layers that a file's metadata names, and what it says of each."""
    said = parse_json(file.metadata[QUANTIZED], f"{file.name}: {QUANTIZED}") if QUANTIZED in file.metadata else {}
    layers = said.get("layers", {})
    return layers if isinstance(layers, dict) else {}


def read_weights(
    weights: Weights,
    keys: Iterable[str],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    packed: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """The named tensors, converted one by one; `packed` leaves quantised layers so, for ComfyUI's layers.

    Raises ValueError at the first that is no floating point number of a known kind, or holds a NaN or an infinity.
    """
    for key in keys:
        parts = weights.packed(key) if weights.is_quantized(key) else {}
        tensor = weights.unpacked(key, parts) if parts else weights.stored(key)
        if tensor.dtype not in NUMBERS:
            raise ValueError(
                f"{weights.file(key)}: {key} holds {str(tensor.dtype).removeprefix('torch.')}, expected floating point "
                "numbers, or a quantised layer with its scale and description."
            )
        if not is_finite(tensor):
            raise ValueError(f"{weights.file(key)}: {key} holds NaN or infinite values: download or train it again.")
        if packed and parts:
            yield from parts.items()
        else:
            yield key, tensor.to(device=device, dtype=dtype)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds no NaN and no infinity; in one pass and without a copy of large weights."""
    if not tensor.numel():
        return True
    # A NaN makes both ends NaN. float8 has no order of its own.
    ends = (tensor.float() if tensor.element_size() == 1 else tensor).aminmax()
    return bool(ends.min.isfinite() and ends.max.isfinite())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all; raises OSError with one sentence when the disk is full."""
    with appearing(path) as partial:
        save_tensors(partial, tensors, metadata)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file inside something that appears as a whole."""
    path.touch()
    mode = path.stat().st_mode  # what the user's umask allows; safetensors would keep the file to its owner
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"format": "pt", **(metadata or {})})
    path.chmod(mode)


def json_tensor(text: str) -> Tensor:
    """A text as a uint8 tensor, for what must live among the weights of a single file."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def tensor_json(tensor: Tensor) -> str:
    """The text in a uint8 tensor."""
    return tensor.cpu().numpy().tobytes().decode()


def read_index(folder: Path) -> list[TensorFile]:
    """The weight files of a folder: model.safetensors, its shards with an index, or pytorch_model.bin.

    Raises FileNotFoundError when there is none or a shard is missing, ValueError when the index is broken.
    """
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            return [TensorFile(folder / name) for name in _shards(folder, index)]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [TensorFile(folder / name)]
    raise FileNotFoundError(
        f"{shown(folder)} holds no weights: expected model.safetensors, shards with "
        "model.safetensors.index.json, or pytorch_model.bin."
    )


def _shards(folder: Path, index: str) -> list[str]:
    """The files that an index names, as names in its own folder, whatever path it gives."""
    files = read_json(folder / index).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(name, str) and 0 < len(name) < 1000 for name in files.values()
    ):
        raise ValueError(
            f"{shown(folder)}/{index} is no index of weights: expected a weight_map of names and files; copy it again."
        )
    names = sorted({Path(name).name for name in files.values()})
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{shown(folder)} lacks {shown(name)}, which {index} names: download it again.")
    return names
