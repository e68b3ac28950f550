"""An SDXL-style VAE on disk: its config, the names that its weights go by, and what a whole one is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from .values import Part, printable, read_json, validated
from .weights import TensorFile, Weights, read_weights

# Below this prefix in a single file, in this folder and file of an official one.
VAE_PREFIX, VAE_FOLDER, VAE_FILE = "vae.", "vae", "diffusion_pytorch_model.safetensors"
Width = Annotated[int, Field(gt=0)]
Shapes = Iterator[tuple[str, tuple[int, ...]]]  # names and shapes of tensors


class VAEConfig(Part):
    """What diffusers' config.json of an AutoencoderKL may say: SDXL's kind, of any widths and depth."""

    block_out_channels: tuple[Width, ...] = Field(min_length=1)
    layers_per_block: int = Field(default=1, gt=0)
    latent_channels: int = Field(default=4, gt=0)
    norm_num_groups: int = Field(default=32, gt=0)
    scaling_factor: float = Field(default=0.13025, gt=0)  # SDXL's
    sample_size: int | tuple[int, ...] = 1024
    force_upcast: bool = True
    # Another value would need another network.
    act_fn: Literal["silu"] = "silu"
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    mid_block_add_attention: Literal[True] = True
    use_quant_conv: Literal[True] = True
    use_post_quant_conv: Literal[True] = True
    shift_factor: None = None

    @model_validator(mode="after")
    def _divisible(self) -> VAEConfig:
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ValueError(f"widths that {self.norm_num_groups} norm groups divide")
        return self

    @classmethod
    def from_json_dict(cls, values: Mapping[str, Any], source: str = "the VAE's config.json") -> VAEConfig:
        """Read a parsed config.json of diffusers; other keys are ignored, wrong values raise ValueError."""
        return validated(cls, values, source)

    def to_json_dict(self) -> dict[str, Any]:
        """The content of diffusers' config.json with these values."""
        blocks = len(self.block_out_channels)
        return {
            "_class_name": "AutoencoderKL",
            **self.model_dump(mode="json"),
            "down_block_types": ["DownEncoderBlock2D"] * blocks,
            "up_block_types": ["UpDecoderBlock2D"] * blocks,
        }


@dataclass(frozen=True)
class Autoencoder:
    """An SDXL-style VAE as it lies on disk: its config, and its whole and finite weights by diffusers' names."""

    config: VAEConfig
    weights: Mapping[str, Tensor]

    @classmethod
    def read(cls, name: str, stored: Weights, values: Mapping[str, Any] | None = None) -> Autoencoder:
        """Read a VAE in SDXL's names or diffusers' present or older ones; without `values` the weights tell its config.

        Raises ValueError with one sentence: a value, a missing, foreign or misshapen tensor, a NaN, and where it is.
        """
        names = _diffusers_names(stored)
        if values is None:
            values = _config_values(name, {key: stored.shape(own) for key, own in names.items()})
        config = VAEConfig.from_json_dict(values, f"the VAE config of {name}")
        expected = dict(_verified(name, config, names, stored))
        weights = dict(read_weights(stored, [names[key] for key in expected]))
        return cls(config, {key: weights[names[key]].reshape(shape) for key, shape in expected.items()})

    def for_model(self, latent_channels: int) -> Autoencoder:
        """Itself; raises ValueError unless a model of so many latent channels can use it."""
        if self.config.latent_channels != latent_channels:
            raise ValueError(
                f"the VAE has {self.config.latent_channels} latent channels, the model {latent_channels}: "
                "use an SDXL VAE, or the one that the model was trained with."
            )
        return self


def load_vae_files(path: str | Path) -> Autoencoder:
    """The VAE in a diffusers folder, or in one SDXL VAE file in either naming; verified.

    Raises FileNotFoundError or ValueError with one sentence that names the file.
    """
    path, values = Path(path), None
    if path.is_dir():
        values = read_json(path / "config.json", "a VAE folder in diffusers' layout")
        path = path / VAE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{printable(path)} does not exist: expected a VAE as a .safetensors file or a diffusers folder."
        )
    file = TensorFile(path)
    weights = Weights([file])
    if not any(key.startswith("decoder.") for key in weights):
        raise ValueError(f"{file.name} is not a VAE: it holds no decoder.")
    return Autoencoder.read(file.name, weights, values)


# --- what a file holds ------------------------------------------------------------------------------------------

# SDXL's names, then diffusers' older ones, each with its present one.
RENAMED = (
    (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
    (r"\.(down|up)\.(\d+)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
    (r"\.attentions\.0\.(query|key|value)\.", lambda found: f".attentions.0.to_{found[1][0]}."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)
UP = re.compile(r"decoder\.up\.(\d+)\.")


def _diffusers_names(stored: Weights) -> dict[str, str]:
    """Present diffusers name -> stored name, of what belongs to the VAE; losses and averages may lie beside it."""
    own = [key for key in stored if key.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))]
    # SDXL counts the decoder's blocks from the picture, diffusers from the latents.
    last = max((int(found[1]) for found in map(UP.match, own) if found), default=0)
    names = {}
    for key in own:
        name = UP.sub(lambda found: f"decoder.up.{last - int(found[1])}.", key)
        for pattern, present in RENAMED:
            name = re.sub(pattern, present, name)
        names[name] = key
    return names


def _config_values(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The config of a VAE by the shapes of its weights; raises ValueError for another kind."""
    first = "encoder.down_blocks.{}.resnets.{}.conv1.weight"
    if first.format(0, 0) not in shapes or "quant_conv.weight" not in shapes:
        raise ValueError(f"{name} is no VAE of SDXL's kind: it lacks encoder.down_blocks or quant_conv.")
    widths = [(*shapes[key], 0)[0] for i in range(len(shapes)) if (key := first.format(i, 0)) in shapes]
    return {
        "block_out_channels": widths,
        "layers_per_block": sum(first.format(0, i) in shapes for i in range(len(shapes))),
        "latent_channels": (*shapes["quant_conv.weight"], 0)[0] // 2,
    }


def _verified(name: str, config: VAEConfig, names: Mapping[str, str], stored: Weights) -> Shapes:
    """Names and shapes of all weights, each found in the file as it is asked for: a huge config builds nothing."""
    left = set(names)
    for key, shape in vae_shapes(config):
        if key not in names:
            raise ValueError(f"{name}: the VAE lacks {key}, expected shape {list(shape)}; it was not saved whole.")
        found = stored.shape(names[key])
        # SDXL keeps the attention's matrices as convolutions of one pixel.
        if found != shape and found != (*shape, 1, 1):
            raise ValueError(
                f"{name}: the VAE's {names[key]} has shape {list(found)}, expected {list(shape)}; "
                "the weights do not belong to its config."
            )
        left.discard(key)
        yield key, shape
    if left:
        raise ValueError(
            f"{name}: {printable(names[min(left)])[:200]} is not part of a VAE of SDXL's kind of this config."
        )


# --- what a VAE is made of --------------------------------------------------------------------------------------


def vae_shapes(config: VAEConfig) -> Shapes:
    """Names and shapes of all weights of a VAE, as diffusers' AutoencoderKL has them."""
    widths, latent, layers = config.block_out_channels, config.latent_channels, config.layers_per_block
    yield from _conv("encoder.conv_in", 3, widths[0])
    yield from _blocks("encoder.down_blocks", "downsamplers", widths, layers)
    yield from _end("encoder", widths[-1], widths[-1], 2 * latent)
    yield from _conv("quant_conv", 2 * latent, 2 * latent, size=1)
    yield from _conv("post_quant_conv", latent, latent, size=1)
    yield from _conv("decoder.conv_in", latent, widths[-1])
    yield from _blocks("decoder.up_blocks", "upsamplers", widths[::-1], layers + 1)
    yield from _end("decoder", widths[-1], widths[0], 3)


def _blocks(name: str, sampler: str, widths: Sequence[int], layers: int) -> Shapes:
    inside = widths[0]
    for i, width in enumerate(widths):
        for j in range(layers):
            yield from _resnet(f"{name}.{i}.resnets.{j}", inside, width)
            inside = width
        if i + 1 < len(widths):
            yield from _conv(f"{name}.{i}.{sampler}.0.conv", width, width)


def _end(name: str, middle: int, inside: int, outside: int) -> Shapes:
    """The middle block, which has attention, and the way out."""
    yield from _resnet(f"{name}.mid_block.resnets.0", middle, middle)
    yield from _norm(f"{name}.mid_block.attentions.0.group_norm", middle)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        yield f"{name}.mid_block.attentions.0.{part}.weight", (middle, middle)
        yield f"{name}.mid_block.attentions.0.{part}.bias", (middle,)
    yield from _resnet(f"{name}.mid_block.resnets.1", middle, middle)
    yield from _norm(f"{name}.conv_norm_out", inside)
    yield from _conv(f"{name}.conv_out", inside, outside)


def _resnet(name: str, inside: int, outside: int) -> Shapes:
    yield from _norm(f"{name}.norm1", inside)
    yield from _conv(f"{name}.conv1", inside, outside)
    yield from _norm(f"{name}.norm2", outside)
    yield from _conv(f"{name}.conv2", outside, outside)
    if inside != outside:
        yield from _conv(f"{name}.conv_shortcut", inside, outside, size=1)


def _conv(name: str, inside: int, outside: int, size: int = 3) -> Shapes:
    yield f"{name}.weight", (outside, inside, size, size)
    yield f"{name}.bias", (outside,)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
