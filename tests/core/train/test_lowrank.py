"""Trained adapters: the outputs and gradients of PEFT's, and nothing left of them afterwards."""

import golden
import peft
import pytest
import torch

from janusflow_core.adapters import row_norms
from janusflow_core.lora import LoraStack, save_lora
from janusflow_core.model import Prefix
from janusflow_core.train.lowrank import PARTS, Adapters, chosen_layers

KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


def loss(model):
    """Something that depends on all layers: a velocity, and logits of a conversation with a picture."""
    generator = torch.Generator().manual_seed(3)
    dtype = model.vision_gen_dec_aligner.weight.dtype
    prefix = Prefix.join([torch.randn(5, model.config.language.hidden_size, generator=generator).to(dtype)], [5])
    z, size = torch.randn(1, 4, 4, 4, generator=generator), model.config.vision.image_size
    seen = torch.randn(1, 3, size, size, generator=generator).to(dtype)
    seen = model.embed_features(model.image_features(seen))
    positions = torch.arange(seen.shape[1])[None]
    mask = torch.ones(1, 1, seen.shape[1], seen.shape[1], dtype=torch.bool).tril()
    hidden = model.language_model.model(seen, positions, mask, None)
    v = model.velocity(z, torch.tensor([0.4]), prefix)
    return v.square().mean() + model.logits(hidden).float().square().mean()


def micro():
    return golden.micro_pipeline().model


def shaken(adapters):
    """The same, away from where they begin."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in adapters.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data += weight * 0.3 * noise.clamp(-2, 2) if "magnitude" in name else 0.2 * noise
    return adapters


def all_layers(model):
    return chosen_layers([model], PARTS)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_pefts(kind):
    model = micro()
    ours = shaken(Adapters(all_layers(model), rank=3, alpha=5.0, kind=kind))
    with ours:
        found = loss(model)
        found.backward()
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=list(ours.layers), **KINDS[kind])
    theirs = peft.get_peft_model(micro(), config).base_model.model
    for name, change in ours.changes.items():
        layer = theirs.get_submodule(name)
        layer.lora_A["default"].weight.data = change.down.data.clone()
        layer.lora_B["default"].weight.data = change.up.data.clone()
        if change.magnitude is not None:
            magnitude = layer.lora_magnitude_vector["default"].weight
            magnitude.data = change.magnitude.data.reshape(magnitude.shape).clone()
    expected = loss(theirs)
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for name, change in ours.changes.items():
        layer = theirs.get_submodule(name)
        golden.assert_close(change.down.grad, layer.lora_A["default"].weight.grad, 1e-4)
        golden.assert_close(change.up.grad, layer.lora_B["default"].weight.grad, 1e-4)
        if change.magnitude is not None:
            gradient = layer.lora_magnitude_vector["default"].weight.grad
            golden.assert_close(change.magnitude.grad, gradient.reshape(change.magnitude.shape), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_acts_in_training_is_what_the_file_does(kind, tmp_path):
    model, plain = micro(), micro()
    before = loss(model)
    with shaken(Adapters(all_layers(model), rank=3, alpha=5.0, kind=kind)) as adapters:
        trained = loss(model)
    assert torch.equal(loss(model), before) and not torch.allclose(trained, before, rtol=3e-3)
    save_lora(tmp_path / "lora.safetensors", adapters.adapters(), {})
    LoraStack(plain).add(tmp_path / "lora.safetensors")
    torch.testing.assert_close(loss(plain), trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_they_begin_as_no_change_and_are_the_same_for_the_same_seed(kind):
    model = micro()
    before = loss(model)
    with Adapters(all_layers(model), rank=2, kind=kind) as adapters:
        torch.testing.assert_close(loss(model), before, rtol=1e-5, atol=1e-6)
    again = dict(Adapters(all_layers(model), rank=2, kind=kind).named_parameters())
    other = dict(Adapters(all_layers(model), rank=2, kind=kind, seed=1).named_parameters())
    for name, weight in adapters.named_parameters():
        assert torch.equal(weight, again[name])
        assert torch.equal(weight, other[name]) == (not name.endswith("down")), name


@pytest.mark.parametrize("part", PARTS)
def test_only_the_chosen_part_is_trained(part):
    model = micro()
    layers = chosen_layers([model], [part])
    prefixes = {
        "attention": "language_model.model.layers.",
        "mlp": "language_model.model.layers.",
        "generation": "vision_gen_",
        "head": "language_model.lm_head",
    }
    assert layers and all(name.startswith(prefixes[part]) for name in layers)
    assert all((".self_attn." in name) == (part == "attention") for name in layers)
    with shaken(Adapters(layers, rank=2)) as adapters:
        loss(model).backward()
    assert all(weight.grad.abs().sum() > 0 for _, weight in adapters.named_parameters())
    assert all(weight.grad is None for weight in model.parameters())


def test_every_matrix_and_kernel_has_its_part():
    """But the depthwise kernels, the tables, and what only sees."""
    model = micro()
    matrices = {name.removesuffix(".weight") for name, weight in model.named_parameters() if weight.dim() > 1}
    left = matrices - all_layers(model).keys()
    assert all("depthwise" in n or "embed" in n or "vision_und" in n or "channelwise_norm" in n for n in left), left


def test_a_half_precision_model_has_float32_adapters():
    model = micro().to(torch.bfloat16)
    with shaken(Adapters(all_layers(model), rank=2, kind="dora")) as adapters:
        loss(model).backward()
    assert {w.dtype for _, w in adapters.named_parameters()} == {torch.float32}
    assert all(torch.isfinite(w.grad).all() for _, w in adapters.named_parameters())


def test_nothing_is_left_of_them_after_an_interrupt():
    model = micro()
    with pytest.raises(KeyboardInterrupt), Adapters(all_layers(model), rank=2):
        raise KeyboardInterrupt
    assert not any(layer._forward_hooks for layer in model.modules())


def test_a_copy_does_not_change_with_the_training():
    model = micro()
    adapters = Adapters(chosen_layers([model], ["mlp"]), rank=2, kind="dora")
    kept = adapters.adapters()
    shaken(adapters)
    name = next(iter(kept))
    assert kept[name].up.abs().sum() == 0
    torch.testing.assert_close(kept[name].rows, row_norms(model.get_parameter(name)))


def test_no_layer_is_refused():
    with pytest.raises(ValueError, match="choose some of attention, mlp"):
        Adapters({}, rank=2)
