"""How a JanusFlow lies on disk, and how it is written, whole or not at all.

(a) The official folder: config.json, model.safetensors or shards, tokenizer.json, processor and preprocessor JSON;
    drawing_config.json (see drawing.py) and a VAE in diffusers' layout, in `vae/`, may lie beside them.
(b) One .safetensors file: the weights, `config` and the other JSON in its metadata, the tokenizer as a uint8 tensor,
    the VAE below `vae.`. Files that ComfyUI saved keep the JSON among the tensors, because it writes its own metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .autoencoder import VAE_FILE, VAE_FOLDER, VAE_PREFIX, Autoencoder
from .config import JanusFlowConfig
from .drawing import DrawingConfig
from .image import ImageConfig
from .partial import appearing
from .tokenizer import JanusTokenizer
from .weights import TOKENIZER_KEY, json_tensor, save_tensors, write_tensors


def describe_files(
    config: JanusFlowConfig,
    tokenizer: JanusTokenizer,
    image: ImageConfig,
    drawing: DrawingConfig = DrawingConfig(),
) -> dict[str, dict[str, Any]]:
    """The JSON parts of a checkpoint, by the names that both layouts use."""
    return {
        "config": config.to_dict(),
        "processor_config": tokenizer.processor.to_json_dict(),
        "preprocessor_config": image.to_json_dict(),
        "special_tokens_map": dict(tokenizer.special),
        "drawing_config": drawing.to_json_dict(),
    }


def save_single(
    path: Path,
    weights: Mapping[str, Tensor],
    parts: Mapping[str, Mapping[str, Any]],
    tokenizer_json: str,
    vae: Autoencoder | None = None,
) -> None:
    """Write one file that holds all of a JanusFlow; `parts` as `describe_files` gives them."""
    tensors = {**weights, TOKENIZER_KEY: json_tensor(tokenizer_json)}
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in parts.items()}
    if vae is not None:
        tensors |= {VAE_PREFIX + key: value for key, value in vae.weights.items()}
        metadata["vae_config"] = json.dumps(vae.config.to_json_dict())
    write_tensors(path, tensors, metadata)


def save_folder(
    path: Path,
    weights: Mapping[str, Tensor],
    parts: Mapping[str, Mapping[str, Any]],
    tokenizer_json: str,
    vae: Autoencoder | None = None,
) -> None:
    """Write a folder in the official layout, whole or not at all; raises FileExistsError rather than overwrite."""
    if path.exists():
        raise FileExistsError(f"{path} exists already: choose another name or move it away.")
    with appearing(path) as partial:
        partial.mkdir()
        fill_folder(partial, weights, parts, tokenizer_json, vae)


def fill_folder(
    folder: Path,
    weights: Mapping[str, Tensor],
    parts: Mapping[str, Mapping[str, Any]],
    tokenizer_json: str,
    vae: Autoencoder | None = None,
) -> None:
    """Write the official layout into a folder that appears as a whole."""
    for name, values in parts.items():
        write_json(folder / f"{name}.json", values)
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    save_tensors(folder / "model.safetensors", weights)
    if vae is not None:
        (folder / VAE_FOLDER).mkdir()
        write_json(folder / VAE_FOLDER / "config.json", vae.config.to_json_dict())
        save_tensors(folder / VAE_FOLDER / VAE_FILE, vae.weights)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
