import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from golden import (
    GOLDEN,
    MANIFEST,
    MODULE,
    assert_close,
    new_codec,
    read_json,
    recipe,
    recorded_vae,
    tensors,
    vae_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from janusflow_core.autoencoder import VAEConfig, load_vae_files, vae_shapes
from janusflow_core.image import from_tensor
from janusflow_core.vae import LatentCodec

CONFIG = read_json("tiny_vae/config.json")
Weights = dict[str, Tensor]


def test_decoded_pixels_equal_golden():
    golden = tensors("vae")
    found = new_codec().decode(golden["latent"])
    for key, part in (("decoded_grid4", found[:, :, 1::4, 2::4]), ("decoded_row", found[:, :, 100])):
        assert_close(part, (golden[key] / 2 + 0.5).clamp(0, 1), MODULE)


def test_pictures_are_rounded_where_the_demo_truncates():
    case = MANIFEST["t2i"]["cases"]["vae"]
    pixels = new_codec().decode(tensors("vae")["latent"]).permute(0, 2, 3, 1)
    truncated = np.asarray(Image.open(GOLDEN / case["u8_png_truncating_demo"])).astype(int)
    ours = np.asarray(from_tensor(pixels)[0]).astype(int)
    assert (pixels[0].numpy() * 255).astype(np.uint8).astype(int) == pytest.approx(truncated, abs=1)
    assert set(np.unique(ours - truncated)) == {0, 1}
    assert (ours != truncated).mean() == pytest.approx(case["pixels_where_trunc_differs_from_round"], abs=1e-3)


def test_encoded_latents_are_the_scaled_posterior_mean_of_diffusers():
    theirs = AutoencoderKL.from_config(CONFIG).eval()
    theirs.load_state_dict(vae_weights())
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.encode(pixels * 2 - 1).latent_dist.mode() * CONFIG["scaling_factor"]
        decoded = (theirs.decode(expected / CONFIG["scaling_factor"]).sample / 2 + 0.5).clamp(0, 1)
    assert_close(new_codec().encode(pixels), expected, MODULE)
    assert_close(new_codec().decode(expected), decoded, MODULE)


def older_diffusers_names(weights: Weights) -> Weights:
    new_to_old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    return {
        re.sub(r"attentions\.0\.(to_[qkv]|to_out\.0)\.", lambda m: f"attentions.0.{new_to_old[m[1]]}.", key): value
        for key, value in weights.items()
    }


def sdxl_names(weights: Weights) -> Weights:
    """The names in SDXL's own file: other blocks, decoder counted from the other end, 1x1 convolutions in attention."""
    rules = [
        (r"(down|up)_blocks\.(\d)\.resnets\.", r"\1.\2.block."),
        (r"(down|up)_blocks\.(\d)\.(down|up)samplers\.0", r"\1.\2.\3sample"),
        (r"decoder\.up\.(\d)", lambda m: f"decoder.up.{3 - int(m[1])}"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ]
    out = {}
    for key, value in weights.items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        out[key] = value[..., None, None] if ".attn_1." in key and value.dim() == 2 else value
    return out


def written(folder: Path, weights: Weights, **config: Any) -> Path:
    """A VAE in diffusers' layout: the recorded config, with changes, and these weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("rename", [older_diffusers_names, sdxl_names])
def test_other_names_give_the_same_vae(tmp_path: Path, rename: Callable[[Weights], Weights]):
    renamed = rename(vae_weights())
    assert renamed.keys() != vae_weights().keys()
    found = load_vae_files(written(tmp_path, renamed)).weights
    assert found.keys() == vae_weights().keys()
    assert all(torch.equal(found[key], value) for key, value in vae_weights().items())


def test_names_of_the_original_file_are_read_as_diffusers_reads_them(tmp_path: Path):
    original = sdxl_names(vae_weights())
    theirs = convert_ldm_vae_checkpoint(dict(original), CONFIG)
    ours = load_vae_files(written(tmp_path, original)).weights
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


@given(st.lists(st.sampled_from([8, 16, 24]), min_size=1, max_size=4), st.integers(1, 3), st.sampled_from([1, 4, 16]))
@settings(max_examples=15, deadline=None)
def test_a_vae_is_made_of_what_diffusers_makes_it_of(widths: list[int], layers: int, channels: int):
    config = VAEConfig(
        block_out_channels=tuple(widths), layers_per_block=layers, latent_channels=channels, norm_num_groups=8
    )
    with torch.device("meta"):
        theirs = AutoencoderKL.from_config(config.to_json_dict()).state_dict()
    assert dict(vae_shapes(config)) == {key: tuple(value.shape) for key, value in theirs.items()}


@pytest.mark.parametrize("rename", [lambda weights: weights, sdxl_names], ids=["diffusers", "SDXL"])
def test_a_single_file_needs_no_config(tmp_path: Path, rename: Callable[[Weights], Weights]):
    numbers = {**CONFIG, "block_out_channels": (32, 32, 64, 64), "norm_num_groups": 32, "layers_per_block": 1}
    theirs = AutoencoderKL.from_config(numbers).eval()
    weights = {key: recipe(key, value.shape, 0) for key, value in theirs.state_dict().items()}
    theirs.load_state_dict(weights)
    save_file({key: value.contiguous() for key, value in rename(weights).items()}, tmp_path / "vae.safetensors")
    latents = recipe("latents", (1, 4, 4, 4), 0)
    with torch.no_grad():
        expected = (theirs.decode(latents / 0.13025).sample / 2 + 0.5).clamp(0, 1)
    assert_close(LatentCodec(load_vae_files(tmp_path / "vae.safetensors")).decode(latents), expected, MODULE)


def test_a_diffusers_folder_loads(tmp_path: Path):
    (tmp_path / "config.json").write_text((GOLDEN / "tiny_vae" / "config.json").read_text())
    save_file(vae_weights(), tmp_path / "diffusion_pytorch_model.safetensors")
    latents = recipe("latents", (1, 4, 4, 4), 0)
    assert torch.equal(LatentCodec(load_vae_files(tmp_path)).decode(latents), new_codec().decode(latents))


def test_a_batch_is_the_pictures_alone():
    latents = recipe("latents", (3, 4, 4, 6), 0)
    together = new_codec().decode(latents)
    for row, expected in zip(latents, together, strict=True):
        assert torch.equal(new_codec().decode(row[None])[0], expected)


def test_what_is_no_vae_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="has no config.json: expected a VAE folder"):
        load_vae_files(tmp_path)
    (tmp_path / "config.json").write_text('{"act_fn": "si')
    with pytest.raises(ValueError, match=f"{tmp_path.name}/config.json is not valid JSON"):
        load_vae_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing.safetensors does not exist: expected a VAE"):
        load_vae_files(tmp_path / "nothing.safetensors")
    save_file({"unet.weight": torch.ones(3)}, tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match="unet.safetensors is not a VAE: it holds no decoder"):
        load_vae_files(tmp_path / "unet.safetensors")


KEY = "decoder.conv_in.weight"


def without(key: str) -> Weights:
    return {name: value for name, value in vae_weights().items() if name != key}


def spoilt(value: float) -> Weights:
    weights = {name: tensor.clone() for name, tensor in vae_weights().items()}
    weights[KEY][1, 1] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "config", "words"),
    [
        (without(KEY), {}, ["the VAE lacks", KEY, "[32, 4, 3, 3]", "not saved whole"]),
        ({**without(KEY), KEY: torch.ones(32, 4, 3, 1)}, {}, [KEY, "[32, 4, 3, 1]", "expected [32, 4, 3, 3]"]),
        ({**vae_weights(), "decoder.extra.weight": torch.ones(1)}, {}, ["decoder.extra.weight", "not part of a VAE"]),
        (spoilt(math.nan), {}, [KEY, "NaN", "download or train"]),
        (spoilt(math.inf), {}, [KEY, "infinite"]),
        ({**without(KEY), KEY: torch.ones(32, 4, 3, 3, dtype=torch.int8)}, {}, [KEY, "int8", "floating point"]),
        (vae_weights(), {"layers_per_block": 10**6}, ["lacks encoder.down_blocks.0.resnets.2.norm1.weight"]),
        (vae_weights(), {"block_out_channels": [16] * 10**6}, ["down_blocks.1", "expected [16, 16, 3, 3]"]),
        (vae_weights(), {"block_out_channels": [16, 32, "32", 32]}, ["block_out_channels", "integer"]),
        (vae_weights(), {"norm_num_groups": 5}, ["widths that 5 norm groups divide"]),
        (vae_weights(), {"act_fn": "relu"}, ["act_fn", "'relu'", "'silu'"]),
        (vae_weights(), {"scaling_factor": 0.0}, ["scaling_factor", "0.0", "greater than 0"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_broken_vae_is_named_in_one_sentence(tmp_path: Path, weights: Weights, config: dict, words: list[str]):
    folder = written(tmp_path, weights, **config)
    began = time.monotonic()
    with pytest.raises(ValueError) as error:
        load_vae_files(folder)
    assert time.monotonic() - began < 5  # building a million blocks takes minutes and all memory
    assert all(word in str(error.value) for word in ["diffusion_pytorch_model.safetensors", *words]), error.value
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_what_lies_beside_a_vae_is_left_alone(tmp_path: Path):
    beside = {"loss.logvar": torch.ones(1), "model_ema.decay": torch.ones(1)}
    assert load_vae_files(written(tmp_path, {**vae_weights(), **beside})).weights.keys() == vae_weights().keys()


def test_float16_is_refused():
    with pytest.raises(ValueError, match="overflows in float16: use bfloat16 or float32"):
        LatentCodec(recorded_vae(), dtype=torch.float16)
