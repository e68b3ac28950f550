"""LoRA files: read for a model, laid upon its weights, written under ComfyUI's names or as a PEFT folder.

Layers have the checkpoint's names; in a file they follow `diffusion_model.` or, where ComfyUI's CLIP owns them,
`text_encoders.`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from pydantic import Field
from torch import Tensor, nn

from .adapters import Adapter, Change, Changes, Difference, magnitude_of, rows_of
from .partial import appearing
from .values import Part, printable, read_json, shown, validated
from .weights import NUMBERS, TensorFile, Weights, is_finite, save_tensors, write_tensors

BUNDLED = Path(__file__).parent / "bundled" / "loras"
MODEL_PREFIX, CLIP_PREFIX, PEFT_PREFIX = "diffusion_model.", "text_encoders.", "base_model.model."
IN_CLIP = ("vision_und_enc_", "language_model.lm_head", "language_model.model.embed_tokens", "beg_of_und_embed")
FLAT_PREFIXES = ("lora_unet_", "lora_te_")  # kohya's names have underscores for dots
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# How the name of a tensor ends, and what it is to its layer.
ROLES = {
    **{f".{name}.weight": "down" for name in ("lora_down", "lora_A", "lora_A.default")},
    **{f".{name}.weight": "up" for name in ("lora_up", "lora_B", "lora_B.default")},
    **{f".lora_magnitude_vector{end}": "magnitude" for end in ("", ".weight", ".default", ".default.weight")},
    ".alpha": "alpha",
    ".dora_scale": "rows",
    ".diff": "diff",
    ".diff_b": "diff_b",
}


def lora_path(source: str | Path) -> Path:
    """The file of a LoRA that ships with the package, by its name, or else the path that `source` is."""
    bundled = BUNDLED / f"{source}.safetensors"
    return bundled if Path(source).name == str(source) and bundled.is_file() else Path(source)


class LoraStack:
    """LoRAs upon a model's weights, in place; the plain weights of the layers that they change are kept."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._plain: dict[str, Tensor] = {}
        self._changes: list[tuple[Changes, float]] = []

    @torch.no_grad()
    def add(self, source: str | Path, strength: float = 1.0) -> int:
        """Lay one more LoRA upon the weights; returns how many tensors it changes. Raises as `read_lora` does."""
        weights = dict(self.model.named_parameters())
        changes = read_lora(lora_path(source), weights | self._plain)
        self._plain |= {name: weights[name].clone() for name in changes if name not in self._plain}
        self._changes.append((changes, strength))
        for name in changes:
            weight = self._plain[name].float()
            for others, by in self._changes:
                weight = others[name].apply(weight, by) if name in others else weight
            weights[name].copy_(weight)  # rounded once, however many there are
        return len(changes)

    @torch.no_grad()
    def clear(self) -> None:
        """Take all LoRAs off; the weights are then bit for bit as they were."""
        weights = dict(self.model.named_parameters())
        for name, plain in self._plain.items():
            weights[name].copy_(plain)
        self._plain, self._changes = {}, []


# --- reading ----------------------------------------------------------------------------------------------------


class PeftConfig(Part):
    """What of a PEFT folder's adapter_config.json changes the sums."""

    peft_type: Literal["LORA"]
    r: int = Field(gt=0)
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}

    def scale(self, layer: str, rank: int) -> float:
        """alpha over the rank, or over its root; a pattern fits a layer as in PEFT, from a dot to the end."""
        fitting = (alpha for key, alpha in self.alpha_pattern.items() if re.match(rf"(.*\.)?({key})$", layer))
        return next(fitting, self.lora_alpha) / (rank**0.5 if self.use_rslora else rank)


def read_lora(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Change]:
    """Read a LoRA file or a PEFT folder for the model with these weights; PEFT's DoRA needs their values.

    Raises FileNotFoundError or ValueError with one sentence for what is no LoRA, or one of another model.
    """
    if not path.exists():
        raise FileNotFoundError(f"no LoRA at {printable(path)}: check the path.")
    peft = None
    if path.is_dir():
        peft = validated(PeftConfig, read_json(path / PEFT_CONFIG, "a PEFT folder"), shown(path / PEFT_CONFIG, 2))
        path = next((file for file in path.glob("adapter_model.*")), path / PEFT_WEIGHTS)
        if not path.is_file():
            raise FileNotFoundError(f"{shown(path.parent)} has no {PEFT_WEIGHTS}: copy the PEFT folder again.")
    file, changes = TensorFile(path), {}
    for layer, parts in _layers(file, weights).items():
        changes |= _changes(file, layer, parts, weights, peft)
    for name, change in changes.items():
        if name not in weights:
            _refuse(file, f"changes {name}, which this model does not have: it is a LoRA of another model")
        if not change.fits(weights[name]):
            _refuse(file, f"does not fit {name} {list(weights[name].shape)}: it is a LoRA of a model of another size")
    return {name: change.shaped(weights[name]) for name, change in changes.items()}


def _refuse(file: TensorFile, reason: str) -> NoReturn:
    raise ValueError(f"{file.name} {reason}.")


def _layers(file: TensorFile, weights: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a LoRA file by layer and role."""
    flat = {name.removesuffix(".weight").replace(".", "_"): name.removesuffix(".weight") for name in weights}
    layers: dict[str, dict[str, Tensor]] = {}
    for key in file.shapes:
        end = max((end for end in ROLES if key.endswith(end)), key=len, default=None)
        if end is None:
            _refuse(file, f"holds {printable(key)[:200]}, which no LoRA has that JanusFlow knows")
        tensor = file.read(key)
        if tensor.dtype not in NUMBERS or not is_finite(tensor):
            _refuse(file, f"holds no finite numbers in {printable(key)[:200]}: train it again")
        layer = _plain_name(key.removesuffix(end), flat)
        layers.setdefault(layer, {})[ROLES[end]] = tensor
    if not layers:
        _refuse(file, "is empty: it holds no LoRA")
    return layers


def _plain_name(name: str, flat: Mapping[str, str]) -> str:
    """A layer's name in the checkpoint, whatever convention a file follows."""
    for prefix in (PEFT_PREFIX, MODEL_PREFIX, CLIP_PREFIX):
        name = name.removeprefix(prefix)
    for prefix in FLAT_PREFIXES:
        if name.startswith(prefix):
            return flat.get(name.removeprefix(prefix), printable(name))
    return printable(name)


def _changes(
    file: TensorFile, layer: str, parts: Mapping[str, Tensor], weights: Mapping[str, Tensor], peft: PeftConfig | None
) -> dict[str, Change]:
    """What the tensors of one layer say of its weight and its bias."""
    changes: dict[str, Change] = {}
    if "diff" in parts:
        changes[f"{layer}.weight"] = Difference(parts["diff"])
    if "diff_b" in parts:
        changes[f"{layer}.bias"] = Difference(parts["diff_b"])
    if parts.keys() <= {"diff", "diff_b"}:
        return changes
    if not {"up", "down"} <= parts.keys():
        _refuse(file, f"holds only half of the LoRA of {layer}: it was cut short, copy it again")
    changes[f"{layer}.weight"] = adapter = Adapter(parts["down"], parts["up"], _scale(file, layer, parts, peft))
    rows, weight = parts.get("rows"), weights.get(f"{layer}.weight")
    if "magnitude" in parts and weight is not None and adapter.fits(weight):
        if parts["magnitude"].numel() != len(weight):
            _refuse(file, f"holds {parts['magnitude'].numel()} magnitudes for {layer}, expected {len(weight)}")
        rows = rows_of(parts["magnitude"], weight, adapter)
    if rows is not None:
        changes[f"{layer}.weight"] = Adapter(adapter.down, adapter.up, adapter.scale, rows)
    return changes


def _scale(file: TensorFile, layer: str, parts: Mapping[str, Tensor], peft: PeftConfig | None) -> float:
    rank = len(parts["down"]) if parts["down"].dim() else 0
    if not rank:
        _refuse(file, f"holds an empty LoRA of {layer}: train it again")
    if peft is not None:
        return peft.scale(layer, rank)
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        _refuse(file, f"holds {alpha.numel()} values for the alpha of {layer}, expected one")
    return 1.0 if alpha is None else float(alpha) / rank


# --- writing ----------------------------------------------------------------------------------------------------


def lora_tensors(changes: Changes) -> dict[str, Tensor]:
    """The tensors of a LoRA under the names that ComfyUI's own trainer writes and its LoraLoader reads."""
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        layer, _, kind = name.rpartition(".")
        key = (CLIP_PREFIX if name.startswith(IN_CLIP) else MODEL_PREFIX) + layer
        if isinstance(change, Difference):
            tensors[f"{key}.diff" if kind == "weight" else f"{key}.diff_b"] = change.diff
            continue
        tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"] = change.up, change.down
        tensors[f"{key}.alpha"] = torch.tensor(change.scale * change.rank)
        if change.rows is not None:
            tensors[f"{key}.dora_scale"] = change.rows
    return tensors


def save_lora(path: Path, changes: Changes, metadata: Mapping[str, str]) -> None:
    """Write a LoRA file for ComfyUI and this library, whole or not at all."""
    write_tensors(path, lora_tensors(changes), metadata)


def save_peft(folder: Path, changes: Changes, weights: Mapping[str, Tensor]) -> None:
    """Write a LoRA as a new folder that PeftModel.from_pretrained reads; DoRA needs the model's plain `weights`.

    Raises FileExistsError rather than overwrite, ValueError for a LoRA that PEFT has no form for.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: choose another name or move it away.")
    adapters = {name.removesuffix(".weight"): change for name, change in changes.items() if isinstance(change, Adapter)}
    dora = {adapter.rows is not None for adapter in adapters.values()}
    if len(adapters) != len(changes) or len(dora) != 1:
        raise ValueError("this LoRA also changes norms or biases, or is a DoRA in part: PEFT has no form for that.")
    tensors: dict[str, Tensor] = {}
    for layer, adapter in adapters.items():
        key = PEFT_PREFIX + layer
        tensors |= {f"{key}.lora_A.weight": adapter.down, f"{key}.lora_B.weight": adapter.up}
        if adapter.rows is not None:
            weight = weights[f"{layer}.weight"]
            magnitude = magnitude_of(weight, adapter)
            # (out) of a Linear, (1, out, 1, 1) of a Conv2d
            tensors[f"{key}.lora_magnitude_vector"] = magnitude[None, :, 0] if weight.dim() > 2 else magnitude[:, 0]
    with appearing(folder) as partial:
        partial.mkdir()
        text = json.dumps(_peft_config(adapters, dora.pop()), indent=2)
        (partial / PEFT_CONFIG).write_text(text + "\n", encoding="utf-8")
        save_tensors(partial / PEFT_WEIGHTS, tensors)


def _peft_config(adapters: Mapping[str, Adapter], dora: bool) -> dict[str, Any]:
    first = next(iter(adapters.values()))
    return {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": first.scale * first.rank,
        "rank_pattern": {layer: adapter.rank for layer, adapter in adapters.items()},
        "alpha_pattern": {layer: adapter.scale * adapter.rank for layer, adapter in adapters.items()},
        "target_modules": sorted(adapters),
        "use_dora": dora,
        "use_rslora": False,  # alpha says it already
        "bias": "none",
        "task_type": None,
        "inference_mode": True,
    }


def base_hash(weights: Weights, names: Iterable[str]) -> str:
    """SHA-256 of a model's tensors as they are stored, names and shapes included: what a LoRA was made for."""
    digest = hashlib.sha256()
    for name in sorted(names):
        tensor = weights.read(name)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
