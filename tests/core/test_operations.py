import pytest
import torch
import torch.nn.functional as F
from golden import config
from hypothesis import given
from hypothesis import strategies as st

from janusflow_core.model import JanusFlow
from janusflow_core.operations import LARGE, Linear, onednn_is_faster, onednn_linear, onednn_serves

ROWS, WIDE = 512, LARGE // 512  # the smallest weight that counts as large

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


class Packed(torch.Tensor):
    """A weight that is more than its numbers, as quantised ones are."""


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@needs_onednn
@given(
    st.lists(st.integers(0, 5), max_size=3),
    st.integers(1, 70),
    st.integers(1, 70),
    st.booleans(),
    st.sampled_from(["dense", "part of more", "transposed", "repeated"]),
)
@torch.no_grad()
def test_a_product_by_onednn_is_the_product(rows: list[int], width: int, out: int, biased: bool, layout: str) -> None:
    x, weight, bias = random(*rows, 2 * width)[..., :width], random(out, width), random(out) if biased else None
    if layout == "dense":
        x = x.contiguous()
    elif layout == "transposed" and len(rows) > 1:
        x = x.transpose(0, 1)
    elif layout == "repeated":
        x = x.expand(3, *x.shape)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(onednn_linear(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 7])
def test_a_large_layer_answers_as_torchs_own(rows: int) -> None:
    layer = Linear(WIDE, ROWS)
    x = random(rows, WIDE)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-4)


def test_training_gets_its_gradients() -> None:
    layer, plain = Linear(WIDE, ROWS), torch.nn.Linear(WIDE, ROWS)
    plain.load_state_dict(layer.state_dict())
    for one in (layer, plain):
        one(random(3, WIDE)).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)


@torch.no_grad()
def test_onednn_takes_only_what_it_can_do_faster() -> None:
    x, weight = random(5, WIDE), random(ROWS, WIDE)
    assert onednn_serves(x, weight) == onednn_is_faster(False, torch.get_num_threads())
    assert onednn_serves(x[:1], weight) == onednn_is_faster(True, torch.get_num_threads())
    assert not onednn_serves(x, weight[:-1])
    assert not onednn_serves(x, weight.as_subclass(Packed))
    assert not onednn_serves(x.bfloat16(), weight.bfloat16())
    assert not onednn_serves(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn_serves(x, weight)
    with torch.enable_grad():
        assert not onednn_serves(x, weight)


@torch.no_grad()
def test_it_is_compiled_as_one_with_what_surrounds_it() -> None:
    layer, x = Linear(WIDE, ROWS), random(3, WIDE)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=0)


def test_measuring_takes_no_noise_from_anyone() -> None:
    before = torch.get_rng_state()
    onednn_is_faster.__wrapped__(False, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_librarys_model_is_built_of_these_layers() -> None:
    model = JanusFlow(config("tiny"), device="meta")
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert layers and all(type(layer) is Linear for layer in layers)
