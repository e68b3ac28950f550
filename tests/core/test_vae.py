import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from golden import GOLDEN, MANIFEST, MODULE, assert_close, new_codec, read_json, recipe, tensors, vae_weights
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from janusflow_core.image import from_tensor
from janusflow_core.vae import LatentCodec, load_vae_files

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


@pytest.mark.parametrize("rename", [older_diffusers_names, sdxl_names])
def test_other_names_give_the_same_vae(rename: Callable[[Weights], Weights]):
    latents, renamed = recipe("latents", (1, 4, 4, 4), 0), rename(vae_weights())
    assert renamed.keys() != vae_weights().keys()
    assert torch.equal(LatentCodec(CONFIG, renamed).decode(latents), new_codec().decode(latents))


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
    assert_close(LatentCodec(*load_vae_files(tmp_path / "vae.safetensors")).decode(latents), expected, MODULE)


def test_a_diffusers_folder_loads(tmp_path: Path):
    (tmp_path / "config.json").write_text((GOLDEN / "tiny_vae" / "config.json").read_text())
    save_file(vae_weights(), tmp_path / "diffusion_pytorch_model.safetensors")
    latents = recipe("latents", (1, 4, 4, 4), 0)
    assert torch.equal(LatentCodec(*load_vae_files(tmp_path)).decode(latents), new_codec().decode(latents))


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


def test_float16_is_refused():
    with pytest.raises(ValueError, match="overflows in float16: use bfloat16 or float32"):
        LatentCodec(CONFIG, vae_weights(), dtype=torch.float16)
