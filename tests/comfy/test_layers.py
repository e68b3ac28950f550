"""ComfyUI's layers as the model is built of them: the same products, and ComfyUI still in charge of its weights."""

import pytest
import torch
import torch.nn.functional as F

from janusflow_core.operations import LARGE

WIDE = LARGE // 512


@pytest.fixture(autouse=True)
def as_nodes_run():
    with torch.inference_mode():
        yield


@pytest.fixture(params=["disable_weight_init", "manual_cast"])
def layer(pack, request):
    """A large layer with weights, of ComfyUI's operations with and without casting."""
    import comfy.ops

    made = pack.module("nodes.native.layers").quick(getattr(comfy.ops, request.param))
    linear = made.Linear(WIDE, 512, dtype=torch.float32)
    random = torch.Generator().manual_seed(0)
    linear.weight = torch.nn.Parameter(torch.randn(512, WIDE, generator=random), requires_grad=False)
    linear.bias = torch.nn.Parameter(torch.randn(512, generator=random), requires_grad=False)
    assert made.LayerNorm is getattr(comfy.ops, request.param).LayerNorm
    return linear


@pytest.mark.parametrize("rows", [1, 9])
def test_a_large_layer_answers_as_comfyuis_own(layer, rows):
    x = torch.linspace(-1, 1, rows * WIDE).view(1, rows, WIDE)
    expected = F.linear(x.double(), layer.weight.double(), layer.bias.double()).float()
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-4)


def test_what_comfyui_does_to_a_weight_is_done(layer):
    x = torch.ones(9, WIDE)
    expected = F.linear(x, 2 * layer.weight, layer.bias)
    layer.weight_function = [lambda weight: 2 * weight]  # a LoRA of a model that is only partly loaded
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-3)


def test_a_weight_of_another_type_is_cast(pack):
    import comfy.ops

    linear = pack.module("nodes.native.layers").quick(comfy.ops.manual_cast).Linear(WIDE, 512, False)
    linear.weight = torch.nn.Parameter(torch.ones(512, WIDE, dtype=torch.bfloat16), requires_grad=False)
    answer = linear(torch.ones(9, WIDE))
    assert answer.dtype == torch.float32 and torch.equal(answer, torch.full((9, 512), float(WIDE)))


def test_a_cancel_is_heard_in_a_layer(layer):
    from comfy import model_management

    model_management.interrupt_current_processing(True)
    with pytest.raises(model_management.InterruptProcessingException):
        layer(torch.ones(9, WIDE))


def test_both_halves_are_built_of_them_in_the_numbers_that_a_cpu_computes_in(pack):
    model, clip, _ = pack.node("load")("janusflow-tiny", "none", "bf16")
    halves = model.model.diffusion_model, clip.cond_stage_model
    layers = [part for half in halves for part in half.modules() if isinstance(part, torch.nn.Linear)]
    assert layers and {type(part).__module__ for part in layers} == {pack.module("nodes.native.layers").__name__}
    numbers = {part.weight.dtype for part in halves[1].modules() if isinstance(part, torch.nn.Linear)}
    assert numbers == {model.model.get_dtype_inference()}
