"""Quantised checkpoints in ComfyUI: kept in eight bits, computed as what they stand for, patched, trained on, saved."""

import shutil

import pytest
import torch
from graphs import relative
from inprocess import draw, since
from test_native import load_lora, saved, state, write
from test_training import train

from janusflow_core.checkpoint import open_checkpoint
from janusflow_core.convert import convert
from janusflow_core.lora import BUNDLED

MATRIX = "language_model.model.layers.0.mlp.up_proj.weight"
STORED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


@pytest.fixture(autouse=True)
def as_nodes_run():
    with torch.inference_mode():
        yield


@pytest.fixture(params=["fp8", "int8"])
def kind(request, pack):
    """Its file lies in ComfyUI's folder."""
    folder = pack.base / "models" / "checkpoints"
    if not (folder / f"{request.param}.safetensors").exists():
        convert("janusflow-tiny", folder / f"{request.param}.safetensors", quantize=request.param)
    return request.param


def load(pack, name, weight_dtype="default", vae="none"):
    return pack.node("load")(f"{name}.safetensors", vae, weight_dtype)


def stay_so(kind):
    if kind == "int8":  # else read as what they stand for
        since("0.27.0", "layers in int8")


def test_layers_stay_in_eight_bits_and_are_what_the_library_reads(pack, kind, monkeypatch):
    stay_so(kind)
    from comfy.quant_ops import QuantizedTensor

    # A busy machine may measure otherwise, and what is not quantised would take twice the room.
    monkeypatch.setattr(pack.module("nodes.native.compat"), "best_dtype", lambda device: torch.bfloat16)
    model, clip, _ = load(pack, kind)
    weights = open_checkpoint(pack.base / "models" / "checkpoints" / f"{kind}.safetensors").weights
    kept = 0
    for half in (model.model.diffusion_model, clip.cond_stage_model):
        for key, weight in half.named_parameters():
            if isinstance(weight, QuantizedTensor):
                kept += 1
                assert weight._qdata.dtype == STORED[kind]
                assert relative(weight.dequantize().float(), weights.read(key).float()) <= 2**-8, key
    assert kept == sum(map(weights.is_quantized, weights)) == 58
    exact, _, _ = load(pack, kind, "bf16")
    assert model.model_size() < 0.72 * exact.model_size()


def test_it_draws_and_speaks_as_its_weights_in_bf16_do(pack, kind, monkeypatch):
    """ComfyUI multiplies int8 by its scale in float32, the library's weights are rounded to bf16 after it."""
    compat = pack.module("nodes.native.compat")
    monkeypatch.setattr(compat, "best_dtype", lambda device: torch.float32)
    packed, plain = load(pack, kind), load(pack, kind, "fp32")
    assert packed[0].model.get_dtype_inference() == torch.float32
    pictured = draw(pack, *packed[:2], steps=1)  # its velocity: of more steps another picture may come
    assert relative(pictured, draw(pack, *plain[:2], steps=1)) <= {"fp8": 1e-5, "int8": 0.02}[kind]
    assert write(packed[1]) == write(plain[1])
    assert 1e-3 < relative(pictured, draw(pack, *pack.tiny[:2], steps=1)) < {"fp8": 0.3, "int8": 0.1}[kind]


def test_a_lora_works_upon_it(pack, kind):
    """One that was trained: of random changes a random few put a model where rounding decides what it draws."""
    shutil.copy(BUNDLED / "janusflow-tiny-crescent.safetensors", pack.base / "models" / "loras")

    def crescent(*halves):
        return draw(pack, *load_lora(*halves, "janusflow-tiny-crescent.safetensors", 1.0, 1.0), "a red crescent")

    packed, exact = load(pack, kind)[:2], crescent(*pack.tiny[:2])
    assert relative(crescent(*packed), exact) < 0.5 * relative(draw(pack, *packed, "a red crescent"), exact)


def test_a_lora_is_trained_upon_it(pack, kind):
    _, losses, _, _ = train(pack, load(pack, kind, vae="from checkpoint"), teach="both", steps=30)
    assert sum(losses["loss"][-6:]) < sum(losses["loss"][:6])


def test_what_core_saves_of_it_loads_again_in_eight_bits(pack, kind):
    stay_so(kind)
    from comfy_extras.nodes_model_merging import CheckpointSave, ModelSave

    model, clip, vae = load(pack, kind, vae="from checkpoint")
    ModelSave().save(model, f"flow_{kind}")
    saved(pack, f"flow_{kind}").rename(pack.base / "models" / "diffusion_models" / f"flow_{kind}.safetensors")
    CheckpointSave().save(model, clip, vae, f"whole_{kind}")
    saved(pack, f"whole_{kind}").rename(pack.base / "models" / "checkpoints" / f"whole_{kind}.safetensors")
    flow, _, _ = load(pack, f"flow_{kind}")
    whole, words, _ = load(pack, f"whole_{kind}")
    for again in (flow, whole):
        found = state(again)
        assert found[f"diffusion_model.{MATRIX}"].dtype == STORED[kind]
        assert found.keys() == state(model).keys()
        assert torch.equal(draw(pack, again, words), draw(pack, model, clip))
    assert write(words) == write(clip)
