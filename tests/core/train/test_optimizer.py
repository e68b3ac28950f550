"""The optimizer: who goes where, and how fast."""

import torch
from torch import nn

from janusflow_core.train.optimizer import Optimizer, schedule


def test_schedule_warms_up_holds_and_falls():
    factors = [schedule(step, 1000) for step in range(1000)]
    assert factors[0] < 0.05 and factors[50] == factors[499] == 1.0 and factors[-1] < 0.02
    assert all(a >= b for a, b in zip(factors[50:], factors[51:], strict=False))


def test_optimizer_sends_every_weight_one_way_and_moves_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 5))
    optimizer = Optimizer(net.named_parameters(), lambda name: name == "0.weight", steps=10)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step(0)
    assert len(optimizer.hidden) == 1 and len(optimizer.adam.param_groups[0]["params"]) == 3
    assert all((a != b).any() for a, b in zip(before, net.parameters(), strict=True))
    assert all(p.grad is None for p in net.parameters())
