"""Eight-bit weights: how exact they are, what is written of them, and what is said about files that are wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import micro, write_folder
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from janusflow_core.checkpoint import load_model, open_checkpoint
from janusflow_core.convert import convert
from janusflow_core.quantized import FORMATS, Quantization, dequantize, describe, is_quantizable, quantize_matrix
from janusflow_core.weights import json_tensor, tensor_json

KINDS: list[Quantization] = ["fp8", "int8"]
LAYER = "language_model.model.layers.0.mlp.up_proj"

kinds = pytest.mark.parametrize("kind", KINDS)
matrices = st.builds(
    lambda rows, columns, power, seed: (
        torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    ),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(-12, 12),
    st.integers(0, 2**32),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "micro", micro())


def quantized(folder: Path, kind: Quantization) -> Path:
    convert(folder, folder.with_name(f"{kind}.safetensors"), quantize=kind)
    return folder.with_name(f"{kind}.safetensors")


def restored(weight: Tensor, kind: Quantization, dtype: torch.dtype = torch.float32) -> Tensor:
    return dequantize(*quantize_matrix(weight, kind), json.loads(describe(kind)), dtype)


@given(matrices)
def test_int8_is_exact_to_half_a_step_of_each_row(weight: Tensor):
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((restored(weight, "int8") - weight).abs() <= 0.501 * step).all()


@given(matrices)
def test_fp8_is_exact_to_a_sixteenth_of_each_value(weight: Tensor):
    """Three bits behind the point, until 2^-6 times the scale, from where on steps are equal."""
    numbers, scale = quantize_matrix(weight, "fp8")
    assert torch.equal(scale.log2(), scale.log2().round()) and numbers.float().abs().max() > 448 / 2 - 16
    assert ((restored(weight, "fp8") - weight).abs() <= torch.maximum(weight.abs() / 16, scale * 2.0**-10)).all()


@given(matrices, st.sampled_from(KINDS))
def test_what_was_quantised_is_quantised_to_itself(weight: Tensor, kind: Quantization):
    once = restored(weight, kind)
    assert torch.allclose(restored(once, kind), once, rtol=1e-6, atol=0.0)


@kinds
def test_a_matrix_of_zeros_stays_one(kind: Quantization):
    assert not restored(torch.zeros(3, 4), kind).count_nonzero()


@kinds
def test_only_the_matrices_of_the_layers_are_quantised(folder: Path, kind: Quantization):
    file, exact = load_file(quantized(folder, kind)), load_model(open_checkpoint(folder)).state_dict()
    packed = {key for key, weight in exact.items() if is_quantizable(key, weight.shape)}
    assert {key.rsplit(".", 2)[1] for key in packed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        *("qkv", "proj", "fc1", "fc2"),
    }
    for key, weight in exact.items():
        if key in packed:
            assert file[key].element_size() == 1 and file[key].shape == weight.shape, key
            assert (
                json.loads(tensor_json(file[f"{key.removesuffix('.weight')}.comfy_quant"]))["format"] == FORMATS[kind]
            )
        else:
            assert torch.equal(file[key], weight), key


@kinds
def test_the_library_reads_them_as_ordinary_weights(folder: Path, kind: Quantization):
    exact, found = (load_model(open_checkpoint(path)) for path in (folder, quantized(folder, kind)))
    for (key, expected), weight in zip(exact.state_dict().items(), found.state_dict().values(), strict=True):
        near = restored(expected, kind, expected.dtype) if is_quantizable(key, expected.shape) else expected
        assert torch.equal(weight, near), key


@kinds
def test_conversion_without_it_makes_ordinary_weights_again(folder: Path, tmp_path: Path, kind: Quantization):
    packed = quantized(folder, kind)
    convert(packed, tmp_path / "plain.safetensors")
    plain, read = open_checkpoint(tmp_path / "plain.safetensors"), open_checkpoint(packed)
    assert {weight.dtype for weight in load_file(plain.path).values()} == {read.dtype, torch.uint8}
    assert all(torch.equal(plain.weights.read(key), read.weights.read(key)) for key in plain.weights)


def test_a_folder_is_not_quantised(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"^target: quantised layers go into one file only, .*\.safetensors\.$"):
        convert(folder, tmp_path / "target", quantize="fp8")
    assert not (tmp_path / "target").exists()


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], Any], **more: str) -> Path:
    weights = load_file(path)
    change(weights)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(weights, path, {**metadata, **more})
    return path


@kinds
def test_descriptions_in_the_metadata_are_read_too(folder: Path, kind: Quantization):
    """As ComfyUI's guide to quantisation has it, and its older files."""
    path = quantized(folder, kind)
    expected = load_model(open_checkpoint(path)).state_dict()
    layers = {
        key[:-12]: json.loads(tensor_json(v)) for key, v in load_file(path).items() if key.endswith("comfy_quant")
    }

    def drop(weights: dict[str, Tensor]) -> None:
        for layer in layers:
            del weights[f"{layer}.comfy_quant"]

    rewrite(path, drop, _quantization_metadata=json.dumps({"format_version": "1.0", "layers": layers}))
    found = load_model(open_checkpoint(path)).state_dict()
    assert layers and all(torch.equal(found[key], weight) for key, weight in expected.items())


def said(**description: Any) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: weights.update({f"{LAYER}.comfy_quant": json_tensor(json.dumps(description))})


def scale(value: Tensor) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: weights.update({f"{LAYER}.weight_scale": value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (said(format="nvfp4"), "its format is 'nvfp4', read are float8_e4m3fn"),
        (said(format="int8_tensorwise", convrot=True), "those without rotation"),
        (said(format="int8_tensorwise", params={"convrot": True}), "those without rotation"),
        (said(format="float8_e4m3fn"), "it holds int8, its format is float8_e4m3fn"),
        (said(), "its format is 'None'"),
        (lambda weights: weights.update({f"{LAYER}.comfy_quant": json_tensor("{")}), "Expecting property name"),
        (lambda weights: weights.update({f"{LAYER}.comfy_quant": json_tensor("[1]")}), "its format is 'None'"),
        (lambda weights: weights.update({f"{LAYER}.comfy_quant": torch.tensor([1.0]).bfloat16()}), "BFloat16"),
        (lambda weights: weights.pop(f"{LAYER}.weight_scale"), "it has no scale, one of another shape"),
        (scale(torch.ones(3, 1)), "it has no scale, one of another shape"),
        (scale(torch.tensor(float("nan"))), "one that is not finite"),
        (scale(torch.tensor(1)), "it has no scale"),
    ],
)
def test_a_layer_that_cannot_be_read_is_named_in_one_sentence(folder: Path, change: Callable, words: str):
    path = rewrite(quantized(folder, "int8"), change)
    with pytest.raises(ValueError) as error:
        load_model(open_checkpoint(path))
    text = str(error.value)
    assert f"int8.safetensors: {LAYER}.weight is no quantised layer that can be read" in text and words in text
    assert text.endswith("janusflow convert --quantize`.") and "\n" not in text


def test_eight_bits_without_a_description_are_refused(folder: Path):
    path = rewrite(quantized(folder, "int8"), lambda weights: weights.pop(f"{LAYER}.comfy_quant"))
    with pytest.raises(ValueError, match=rf"{LAYER}\.weight_scale is not part of JanusFlow"):
        load_model(open_checkpoint(path))
