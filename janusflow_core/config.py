"""Shapes of a JanusFlow model: reads and writes the official config.json, and refuses what it cannot build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from .values import Part, expected, short

# The official config names a timm preset instead of its numbers; explicit numbers beside it win.
VISION_PRESETS: dict[str, dict[str, int | float]] = {
    "siglip_large_patch16_384": {"width": 1024, "layers": 24, "heads": 16, "mlp_ratio": 4, "patch_size": 16},
    "siglip_large_patch16_256": {"width": 1024, "layers": 24, "heads": 16, "mlp_ratio": 4, "patch_size": 16},
}

# Settings that a config.json may carry and that would need another model: key -> the only value we build.
FIXED_LANGUAGE = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "pretraining_tp": 1,
}
FIXED_ENCODER = {"kernel_size": 2, "stride": 2, "padding": 0, "use_mid_block": True}
FIXED_DECODER = {"upsamples": 1, "use_mid_block": True}
Solver = Literal["euler", "heun", "ab2", "dpmpp_2m", "renoise"]  # the names of sampling.SOLVERS


class LanguageConfig(Part):
    """The Llama: widths in features, `vocab_size` in tokens, `max_position_embeddings` in positions."""

    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(default=16384, gt=0)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    rope_theta: float = Field(default=10000.0, ge=1)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def check_drawing(self, prompt: int, picture: int) -> None:
        """Raise ValueError unless a prompt and a picture of so many tokens fit the model's context."""
        tokens, limit = prompt + picture, self.max_position_embeddings
        if tokens > limit:
            raise ValueError(
                f"prompt and picture need {tokens} tokens, but the model's context holds {limit}: "
                "make them shorter or smaller."
            )

    def check_conversation(self, conversation: int, max_new_tokens: int) -> None:
        """Raise ValueError unless a conversation of so many tokens, pictures included, and its answer fit."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
        tokens, limit = conversation + max_new_tokens, self.max_position_embeddings
        if tokens > limit:
            raise ValueError(
                f"conversation, pictures and max_new_tokens ({max_new_tokens}) need {tokens} tokens, but the model's "
                f"context holds {limit}: make them shorter or fewer."
            )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        heads = data.get("num_attention_heads") if isinstance(data, Mapping) else None
        return {"num_key_value_heads": heads, **data} if heads is not None else data

    @model_validator(mode="after")
    def _divisible(self) -> LanguageConfig:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be an even multiple of {self.num_attention_heads} heads"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} heads cannot share {self.num_key_value_heads} key/value heads"
            )
        return self


class VisionConfig(Part):
    """The understanding encoder (SigLIP): `image_size` and `patch_size` in pixels, `width` in features."""

    image_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp_ratio: float = Field(default=4, gt=0)
    select_layer: int = -1
    model_name: str = "siglip"

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def depth(self) -> int:
        """Blocks that are built: -1 keeps all, -k drops the last k - 1 (the final norm stays)."""
        return self.layers + self.select_layer + 1 if self.select_layer < 0 else min(self.layers, self.select_layer)

    @model_validator(mode="after")
    def _divisible(self) -> VisionConfig:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        if self.depth < 1:
            raise ValueError(f"select_layer {self.select_layer} leaves none of {self.layers} layers")
        return self


class FlowConfig(Part):
    """The generation encoder and decoder (shallow ConvNeXt U-ViT around the language model)."""

    latent_channels: int = Field(default=4, gt=0)
    channels: int = Field(gt=0)
    encoder_layers: int = Field(default=2, ge=0)
    decoder_layers: int = Field(default=2, ge=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    use_bias: bool = True


class JanusFlowConfig(Part):
    """Everything that fixes the modules of a JanusFlow and the shapes of its weights."""

    language: LanguageConfig
    vision: VisionConfig
    flow: FlowConfig
    torch_dtype: str = "bfloat16"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "config.json") -> JanusFlowConfig:
        """Read an official config; raises ValueError with one sentence that names `source`, key, found and expected."""
        try:
            return cls(
                language=_language(data),
                vision=_vision(data),
                flow=_flow(data),
                torch_dtype=data.get("torch_dtype") or "bfloat16",
            )
        except KeyError as missing:
            raise ValueError(f"{source} is not a JanusFlow config: {missing.args[0]} is missing.") from None
        except RecursionError:
            raise ValueError(f"{source} is nested too deeply: correct the file.") from None
        except ValidationError as wrong:
            first = wrong.errors()[0]
            if not first["loc"]:
                raise ValueError(f"{source}: {expected(first)}.") from None
            key = ".".join(str(part) for part in (wrong.title, *first["loc"]))
            raise ValueError(f"{source}: {key}: {first['msg']} (found {short(first.get('input'))}).") from None
        except ValueError as wrong:
            raise ValueError(f"{source}: {wrong}") from None

    def to_dict(self) -> dict[str, Any]:
        """The same shapes in the official layout, readable by the authors' code."""
        hidden, flow = self.language.hidden_size, self.flow
        shared = {
            "block_out_channels": [flow.channels],
            "hidden_size": hidden,
            "norm_eps": flow.norm_eps,
            "use_bias": flow.use_bias,
            "use_mid_block": True,
        }
        encoder = {
            **shared,
            "input_channels": flow.latent_channels,
            "kernel_size": 2,
            "stride": 2,
            "padding": 0,
            "layers_in_middle": flow.encoder_layers,
            "elementwize_affine": True,
            "num_extra_tensors": 5,
        }
        decoder = {
            **shared,
            "in_channels": flow.channels,
            "out_channels": flow.latent_channels,
            "upsamples": 1,
            "layers_in_middle": flow.decoder_layers,
            "elementwise_affine": True,
        }
        vision = {**self.vision.model_dump(), "select_feature": "same"}
        return {
            "architectures": ["MultiModalityCausalLM"],
            "model_type": "multi_modality",
            "torch_dtype": self.torch_dtype,
            "language_config": {"model_type": "llama", **self.language.model_dump(), "torch_dtype": self.torch_dtype},
            "vision_und_enc_config": _section("vision_und_enc", "CLIPVisionTower", vision),
            "vision_gen_enc_config": _section("vision_gen_enc", "ShallowUViTEncoder", encoder),
            "vision_gen_dec_config": _section("vision_gen_dec", "ShallowUViTDecoder", decoder),
        }


def _section(model_type: str, cls: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": model_type, "cls": cls, "params": params}


def _params(data: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    if not isinstance(data.get(section), Mapping):
        raise KeyError(section)
    params = data[section].get("params")
    if not isinstance(params, Mapping):
        raise KeyError(f"{section}.params")
    return params


def _require(section: str, params: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, value in fixed.items():
        if params.get(key, value) != value:
            raise ValueError(f"{section}.{key} is {short(params[key])}, but JanusFlow is only defined for {value!r}.")


def _language(data: Mapping[str, Any]) -> LanguageConfig:
    language = data.get("language_config")
    if not isinstance(language, Mapping):
        raise KeyError("language_config")
    _require("language_config", language, FIXED_LANGUAGE)
    return LanguageConfig.model_validate(dict(language))


def _vision(data: Mapping[str, Any]) -> VisionConfig:
    params = _params(data, "vision_und_enc_config")
    name = params.get("model_name", "")
    if not isinstance(name, str) or name not in VISION_PRESETS and "width" not in params:
        raise ValueError(
            f"vision_und_enc_config.model_name {short(name)} is unknown and no width is given; "
            f"known are {', '.join(VISION_PRESETS)}."
        )
    return VisionConfig.model_validate({**VISION_PRESETS.get(name, {}), **params})


def _flow(data: Mapping[str, Any]) -> FlowConfig:
    encoder, decoder = _params(data, "vision_gen_enc_config"), _params(data, "vision_gen_dec_config")
    _require("vision_gen_enc_config", encoder, FIXED_ENCODER)
    _require("vision_gen_dec_config", decoder, FIXED_DECODER)
    channels = encoder.get("block_out_channels")
    if not isinstance(channels, list) or len(channels) != 1 or channels != decoder.get("block_out_channels"):
        raise ValueError(
            f"block_out_channels must be a list of one number, the same in encoder and decoder, found "
            f"{short(channels)} and {short(decoder.get('block_out_channels'))}."
        )
    return FlowConfig(
        latent_channels=encoder.get("input_channels", 4),
        channels=channels[0],
        encoder_layers=encoder.get("layers_in_middle", 2),
        decoder_layers=decoder.get("layers_in_middle", 2),
        norm_eps=encoder.get("norm_eps", 1e-6),
        use_bias=encoder.get("use_bias", True),
    )
