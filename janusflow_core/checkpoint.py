"""Checkpoints opened in either layout (see layout.py), verified and loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from .autoencoder import VAE_FILE, VAE_FOLDER, VAE_PREFIX, Autoencoder
from .config import JanusFlowConfig
from .drawing import DrawingConfig
from .image import ImageConfig
from .model import JanusFlow
from .tokenizer import JanusTokenizer, ProcessorConfig
from .values import parse_json, printable, read_json, read_optional_json, shown
from .weights import JSON_KEYS, NORM, TOKENIZER_KEY, TensorFile, Weights, read_index, read_weights, tensor_json

BUNDLED = Path(__file__).parent / "bundled"
DROPPED = "vision_und_enc_model.vision_tower.attn_pool."  # in the official file, used by nobody

Half = Literal["flow", "text"]  # what draws: layers, generation encoder and decoder; what reads and speaks
OnProgress = Callable[[int, int], None]  # (done, in all); may raise to cancel
Item = TypeVar("Item")


@dataclass
class Checkpoint:
    """An opened checkpoint: everything but the weights is read, the weights are read on demand."""

    name: str
    path: Path
    config: JanusFlowConfig
    weights: Weights
    tokenizer: JanusTokenizer | None
    image: ImageConfig
    drawing: DrawingConfig
    vae_values: dict[str, Any] | None
    vae_weights: Weights | None

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are stored in, but for those of quantised layers."""
        return self.weights.stored(NORM).dtype

    @property
    def has_flow(self) -> bool:
        return "vision_gen_dec_aligner.weight" in self.weights

    @property
    def has_text(self) -> bool:
        return "beg_of_und_embed" in self.weights

    def read_vae(self) -> Autoencoder | None:
        """Its VAE, whole and finite, or None where it brings none; raises ValueError with one sentence."""
        if self.vae_weights is None:
            return None
        vae = Autoencoder.read(self.name, self.vae_weights, self.vae_values)
        return vae.for_model(self.config.flow.latent_channels)


def bundled_names() -> list[str]:
    """The checkpoints that ship with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a bundled name, a folder in the official layout or one .safetensors file.

    Raises FileNotFoundError or ValueError with one sentence that names the file and what is wrong with it.
    """
    path = Path(source)
    if str(source) in bundled_names():
        path = BUNDLED / f"{source}.safetensors"
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_single(path)
    known, hint = ", ".join(bundled_names()) or "none", ""
    if str(source).endswith("JanusFlow-1.3B"):
        hint = "; `janusflow download` gets JanusFlow-1.3B and says where it is"
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        hint = (
            f"; to get it from the Hugging Face hub, run `hf download {source} --local-dir {path.name}` "
            f"(from pip install huggingface_hub), then load the folder {path.name}"
        )
    raise FileNotFoundError(
        f"{printable(source)} is neither a folder, nor a file, nor one of the bundled models ({known}){hint}."
    )


def _open_folder(folder: Path) -> Checkpoint:
    config = JanusFlowConfig.from_dict(read_json(folder / "config.json"), shown(folder / "config.json", 2))
    tokenizer = JanusTokenizer.from_folder(folder)
    image = _image_config(read_optional_json(folder / "preprocessor_config.json"), config)
    vae = folder / VAE_FOLDER
    return _checked(
        Checkpoint(
            name=shown(folder),
            path=folder,
            config=config,
            weights=Weights(read_index(folder)),
            tokenizer=tokenizer,
            image=image,
            drawing=DrawingConfig.from_json_dict(read_optional_json(folder / "drawing_config.json")),
            vae_values=read_json(vae / "config.json", "a VAE in diffusers' layout", 3) if vae.is_dir() else None,
            vae_weights=Weights([TensorFile(vae / VAE_FILE)]) if vae.is_dir() else None,
        )
    )


def _open_single(path: Path) -> Checkpoint:
    file = TensorFile(path)
    weights = Weights([file])
    extra = {key: file.metadata[key] for key in JSON_KEYS if key in file.metadata}
    extra |= {key: _text(weights, key) for key in JSON_KEYS if key in weights and key not in extra}
    if "config" not in extra:
        raise ValueError(
            f"{file.name} is not a JanusFlow checkpoint: it has no `config` in its metadata; "
            "make one from the official folder with `janusflow convert FOLDER FILE.safetensors`."
        )
    parsed = {key: parse_json(text, f"{file.name}: {key} in its metadata") for key, text in extra.items()}
    config = JanusFlowConfig.from_dict(parsed["config"], file.name)
    has_vae = any(key.startswith(VAE_PREFIX) for key in weights)
    return _checked(
        Checkpoint(
            name=printable(path.stem),
            path=path,
            config=config,
            weights=weights,
            tokenizer=_single_tokenizer(file.name, weights, parsed),
            image=_image_config(parsed.get("preprocessor_config", {}), config),
            drawing=DrawingConfig.from_json_dict(parsed.get("drawing_config", {})),
            vae_values=parsed.get("vae_config"),
            vae_weights=Weights([file], VAE_PREFIX) if has_vae else None,
        )
    )


def _single_tokenizer(name: str, weights: Weights, parsed: Mapping[str, Any]) -> JanusTokenizer | None:
    if TOKENIZER_KEY in weights:
        processor = ProcessorConfig.from_json_dict(parsed.get("processor_config", {}))
        return JanusTokenizer(_text(weights, TOKENIZER_KEY), processor, parsed.get("special_tokens_map"))
    if "beg_of_und_embed" in weights:
        raise ValueError(
            f"{name} holds no tokenizer: it lacks the tensor {TOKENIZER_KEY}; "
            "make the file anew with `janusflow convert`."
        )
    return None  # ComfyUI's ModelSave writes the flow half alone


def _text(weights: Weights, key: str) -> str:
    try:
        return tensor_json(weights.read(key))
    except (TypeError, UnicodeDecodeError) as error:  # bfloat16 is no type of numpy's
        raise ValueError(
            f"{weights.file(key)}: {key} is no text: make the file anew with `janusflow convert`."
        ) from error


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Refuse a tokenizer, a picture size or a preview that does not belong to the weights."""
    tokenizer, config, preview = checkpoint.tokenizer, checkpoint.config, checkpoint.drawing.preview
    if preview is not None and preview.channels != config.flow.latent_channels:
        raise ValueError(
            f"{checkpoint.name}: drawing_config.json previews {preview.channels} latent channels, the model has "
            f"{config.flow.latent_channels}."
        )
    if tokenizer is None:
        return checkpoint
    if tokenizer.vocab_size > config.language.vocab_size:
        raise ValueError(
            f"{checkpoint.name}: the tokenizer's ids go up to {tokenizer.vocab_size - 1}, the model's table only to "
            f"{config.language.vocab_size - 1}: use the tokenizer.json of this checkpoint."
        )
    if tokenizer.processor.num_image_tokens != config.vision.grid**2:
        raise ValueError(
            f"{checkpoint.name}: processor_config.json says {tokenizer.processor.num_image_tokens} image "
            f"tokens, the vision encoder gives {config.vision.grid**2}."
        )
    if checkpoint.image.image_size != config.vision.image_size:
        raise ValueError(
            f"{checkpoint.name}: preprocessor_config.json says {checkpoint.image.image_size} pixels, "
            f"config.json {config.vision.image_size}."
        )
    return checkpoint


def _image_config(values: Mapping[str, Any], config: JanusFlowConfig) -> ImageConfig:
    return ImageConfig.from_json_dict({"image_size": config.vision.image_size, **values})


# --- weights into a model ---------------------------------------------------------------------------------------


def verified(checkpoint: Checkpoint, half: Half | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the whole model, or one half of it, needs from a checkpoint.

    Raises ValueError, naming file, key, found and expected, when one is missing or has another shape, or when the
    checkpoint holds what no part of the model takes.
    """
    _check_size(checkpoint)
    whole = JanusFlow(checkpoint.config, device="meta")
    wanted = JanusFlow(checkpoint.config, flow=half != "text", text=half != "flow", device="meta") if half else whole
    shapes = {key: tuple(value.shape) for key, value in wanted.state_dict().items()}
    _check_shapes(checkpoint, shapes)
    _check_extra(checkpoint, whole.state_dict())
    return shapes


def _check_size(checkpoint: Checkpoint) -> None:
    """Refuse a config of more layers or longer sides than the file holds, before any module is built."""
    config, shapes = checkpoint.config, [checkpoint.weights.shape(key) for key in checkpoint.weights]
    longest = max((side for shape in shapes if 0 not in shape for side in shape), default=0)
    vision = config.vision
    asked = {**config.language.model_dump(), **vision.model_dump(), **config.flow.model_dump()}
    sides = asked | {"image_size": vision.grid**2, "mlp_ratio": vision.width * vision.mlp_ratio}
    for name in asked:
        if name in ("max_position_embeddings", "select_layer", "rope_theta"):
            continue  # the side of no tensor
        limit = len(shapes) if name.endswith("layers") else longest
        if isinstance(sides[name], (int, float)) and sides[name] > limit:
            raise ValueError(
                f"{checkpoint.name}: its config.json says {name} {asked[name]}, which is more than its weights can be: "
                "use the config.json of this checkpoint."
            )


def _check_shapes(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in expected.items():
        if key not in checkpoint.weights:
            raise ValueError(
                f"{checkpoint.name}: {key} is missing, expected shape {list(shape)}; "
                "the file belongs to another model or was not saved whole."
            )
        if checkpoint.weights.shape(key) != shape:
            raise ValueError(
                f"{checkpoint.weights.file(key)}: {key} has shape {list(checkpoint.weights.shape(key))}, "
                f"expected {list(shape)}; the weights do not belong to this config."
            )


def _check_extra(checkpoint: Checkpoint, expected: Container[str]) -> None:
    known = (*JSON_KEYS, TOKENIZER_KEY)
    for key in checkpoint.weights:
        if key not in expected and key not in known and not key.startswith((DROPPED, VAE_PREFIX)):
            raise ValueError(
                f"{checkpoint.weights.file(key)}: {printable(key)[:200]} is not part of JanusFlow; the file belongs to "
                "another model."
            )


def counted(items: Iterable[Item], total: int, on_progress: OnProgress | None, before: int = 0) -> Iterator[Item]:
    """The same items; `on_progress` hears after each how many of `total` are done, with the `before` earlier ones."""
    for done, item in enumerate(items, before + 1):
        yield item
        if on_progress is not None:
            on_progress(done, total)


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> JanusFlow:
    """The whole model with its weights in `dtype` (None: as stored) on `device`, without a second copy on the way."""
    shapes = verified(checkpoint)  # first, because a config may ask for more than there is room to build
    model = JanusFlow(checkpoint.config, device="meta")
    read = counted(read_weights(checkpoint.weights, shapes, dtype, device), len(shapes), on_progress)
    model.load_state_dict(dict(read), assign=True)
    return model.eval().requires_grad_(False)
