"""The optimizer: who goes where, how fast, and on again after a stop."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from janusflow_core.train.muon import Muon
from janusflow_core.train.optimizer import Optimizer, schedule
from janusflow_core.weights import write_tensors


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 5))


def new_optimizer(net: nn.Module) -> Optimizer:
    return Optimizer(net.named_parameters(), lambda name: name == "0.weight")


def learn(net: nn.Module, optimizer: Optimizer, seed: int) -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    net(x).square().sum().backward()
    optimizer.step(1.0)


def test_schedule_warms_up_holds_and_falls():
    factors = [schedule(step / 1000, step) for step in range(1000)]
    assert factors[0] < 0.05 and factors[50] == factors[499] == 1.0 and factors[-1] < 0.02
    assert all(a >= b for a, b in zip(factors[50:], factors[51:], strict=False))
    assert schedule(0.25, 1000, hold=0.1) == 0.75 / 0.9


def test_optimizer_sends_every_weight_one_way_and_moves_it():
    net = network()
    optimizer, before = new_optimizer(net), [p.detach().clone() for p in net.parameters()]
    learn(net, optimizer, 0)
    assert len(optimizer.hidden) == 1 and len(optimizer.parts["adam"].param_groups[0]["params"]) == 3
    assert all((a != b).any() for a, b in zip(before, net.parameters(), strict=True))
    assert all(p.grad is None for p in net.parameters())


def test_muon_by_stacks_is_torchs_muon():
    """Several of a shape, tall, wide and alone; one without a gradient stays as it is."""
    shapes = [(8, 8), (8, 8), (8, 20), (20, 8), (20, 8), (8, 8)]
    generator = torch.Generator().manual_seed(0)
    mine = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(weight.detach().clone()) for weight in mine]
    calls = []

    def noting(function):
        return lambda stacks: calls.append(len(stacks)) or function(stacks)

    optimizers = Muon(mine, lr=0.02, compiled=noting), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)
    start = [weight.detach().clone() for weight in mine]
    for _ in range(5):
        for one, other in zip(mine[:-1], theirs[:-1], strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, before in zip(mine, theirs, start, strict=True):
        moved = (other - before).norm()
        assert (one - other).norm() <= 0.01 * moved  # both in bfloat16, summed in another order
    assert torch.equal(mine[-1], start[-1]) and not torch.equal(mine[0], start[0])
    assert calls == [3] * 5  # all stacks of a step in one call, for one order to a GPU


def test_a_restored_optimizer_goes_on_as_if_it_had_never_stopped():
    straight, stopped = network(), network()
    optimizer = new_optimizer(straight)
    for seed in range(4):
        learn(straight, optimizer, seed)
    first = new_optimizer(stopped)
    for seed in range(2):
        learn(stopped, first, seed)
    second = new_optimizer(stopped)
    second.restore((key, value.clone()) for key, value in first.tensors().items())
    for seed in range(2, 4):
        learn(stopped, second, seed)
    for a, b in zip(straight.parameters(), stopped.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_eight_bits_learn_and_go_on_as_if_they_had_never_stopped(tmp_path):
    pytest.importorskip("bitsandbytes", reason="an optional library")
    straight, stopped = (nn.Sequential(nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 64)) for _ in range(2))
    x = torch.ones(2, 128)
    stopped.load_state_dict(straight.state_dict())

    def learn_on(net, optimizer, steps):
        for _ in range(steps):
            loss = (net(x) - 3).square().mean()
            loss.backward()
            optimizer.step(1.0)
        return loss.item()

    optimizer = Optimizer(straight.named_parameters(), adam_lr=0.01, eight_bit=True)
    assert learn_on(straight, optimizer, 1) > 2 * learn_on(straight, optimizer, 9)
    first = Optimizer(stopped.named_parameters(), adam_lr=0.01, eight_bit=True)
    learn_on(stopped, first, 4)
    write_tensors(tmp_path / "state.safetensors", first.tensors())
    second = Optimizer(stopped.named_parameters(), adam_lr=0.01, eight_bit=True)
    second.restore(load_file(tmp_path / "state.safetensors").items())
    learn_on(stopped, second, 6)
    assert any(value.dtype == torch.uint8 for value in second.tensors().values())
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), stopped.parameters(), strict=True))


def test_eight_bits_without_their_library_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ImportError, match=r'pip install "bitsandbytes'):
        Optimizer(network().named_parameters(), eight_bit=True)
