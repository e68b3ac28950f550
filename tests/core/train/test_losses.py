import math

import pytest
import torch
from golden import recipe
from torch.autograd import gradcheck

from janusflow_core.train.losses import IGNORE, autoregressive_loss, flow_loss, packed_autoregressive_loss, repa_loss

LABELS = torch.tensor([[2, IGNORE, 0, 4], [IGNORE, IGNORE, 1, IGNORE], [IGNORE] * 4])


def double(name: str, *shape: int) -> torch.Tensor:
    return recipe(name, shape, 0).double().requires_grad_()


def test_autoregressive_loss_is_the_mean_surprise_of_each_response():
    logits = recipe("logits", (3, 4, 5), 0)
    found = autoregressive_loss(logits, LABELS)
    for row, labels, loss in zip(logits.tolist(), LABELS.tolist(), found.tolist(), strict=True):
        surprise = [
            math.log(sum(math.exp(x) for x in scores)) - scores[label]
            for scores, label in zip(row, labels, strict=True)
            if label != IGNORE
        ]
        assert loss == pytest.approx(sum(surprise) / max(len(surprise), 1), abs=1e-6)
    assert found[2] == 0


def test_packed_answers_cost_what_they_cost_in_rows_of_their_own():
    """Answers of three tokens, of one, and of none."""
    logits, said = recipe("logits", (3, 4, 5), 0), LABELS != IGNORE
    owners = torch.arange(3)[:, None].expand(3, 4)[said]
    found = packed_autoregressive_loss(logits[said], LABELS[said], owners, 3)
    torch.testing.assert_close(found, autoregressive_loss(logits, LABELS))


def test_autoregressive_loss_of_certainty_and_of_ignorance():
    certain = torch.full((1, 1, 7), -50.0).index_fill_(2, torch.tensor([3]), 50.0)
    assert autoregressive_loss(certain, torch.tensor([[3]])).item() == pytest.approx(0, abs=1e-6)
    assert autoregressive_loss(torch.zeros(1, 1, 7), torch.tensor([[3]])).item() == pytest.approx(math.log(7))


def test_flow_loss_is_the_mean_squared_error_of_each_velocity():
    x, noise = recipe("x", (3, 4, 2, 2), 0), recipe("noise", (3, 4, 2, 2), 0)
    assert flow_loss(x - noise, x, noise).tolist() == [0, 0, 0]
    off = torch.tensor([0.5, -1.0, 2.0])[:, None, None, None]
    torch.testing.assert_close(flow_loss(x - noise + off, x, noise), torch.tensor([0.25, 1.0, 4.0]))


def test_repa_loss_is_minus_the_mean_cosine():
    target = recipe("target", (2, 3, 6), 0)
    torch.testing.assert_close(repa_loss(3 * target, target), torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(repa_loss(-target, target), torch.tensor([1.0, 1.0]))
    projected = recipe("projected", (2, 3, 6), 0)
    cosine = (projected * target).sum(-1) / (projected.norm(dim=-1) * target.norm(dim=-1))
    torch.testing.assert_close(repa_loss(projected, target), -cosine.mean(1))


def test_gradients_equal_finite_differences():
    assert gradcheck(lambda logits: autoregressive_loss(logits, LABELS), double("logits", 3, 4, 5))
    x, noise = double("x", 2, 4, 2, 2).detach(), double("noise", 2, 4, 2, 2).detach()
    assert gradcheck(lambda v: flow_loss(v, x, noise), double("velocity", 2, 4, 2, 2))
    target = double("target", 2, 3, 6).detach()
    assert gradcheck(lambda projected: repa_loss(projected, target), double("projected", 2, 3, 6))


def test_repa_target_gets_no_gradient():
    projected, target = double("projected", 2, 3, 6), double("target", 2, 3, 6)
    repa_loss(projected, target).sum().backward()
    assert target.grad is None and projected.grad.abs().sum() > 0


def test_losses_of_half_precision_are_computed_in_float32():
    x, noise = recipe("x", (2, 4, 2, 2), 0).bfloat16(), recipe("noise", (2, 4, 2, 2), 0).bfloat16()
    found = flow_loss(x, x, noise)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, flow_loss(x.float(), x.float(), noise.float()))
    logits = recipe("logits", (3, 4, 5), 0).bfloat16()
    torch.testing.assert_close(autoregressive_loss(logits, LABELS), autoregressive_loss(logits.float(), LABELS))
    assert repa_loss(logits, logits).dtype == torch.float32
