"""The loop: it ends when its time is over, and a stop in between changes nothing."""

from pathlib import Path

import pytest
import torch
from torch import nn

from janusflow_core.train.loop import Budget, Stage, fit, streams
from janusflow_core.train.optimizer import Optimizer


def new_stage(folder: Path) -> tuple[nn.Module, Stage]:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    named = dict(net.named_parameters())
    optimizer = Optimizer(named.items(), lambda name: name == "0.weight")
    return net, Stage("test", folder / "state.safetensors", named, optimizer, {"near": 1.0, "small": 0.1})


def terms_of(net: nn.Module, stop_at: int | None = None):
    def terms(step: int) -> dict[str, torch.Tensor]:
        if step == stop_at:
            raise KeyboardInterrupt
        _, generator = streams(7, step)
        x = torch.randn(3, 4, generator=generator)
        y = net(x)
        return {"near": (y - x[:, :2]).square().mean(dim=1), "small": y.abs().mean(dim=1)}

    return terms


def test_resumed_equals_never_stopped(tmp_path):
    straight, whole = new_stage(tmp_path / "a")
    fit(whole, Budget(steps=12), terms_of(straight))

    net, stage = new_stage(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        fit(stage, Budget(steps=12), terms_of(net, stop_at=5), every=0.0)  # saved after each step
    net, stage = new_stage(tmp_path / "b")
    assert stage.step == 5 and stage.seconds > 0
    fit(stage, Budget(steps=12), terms_of(net))
    assert stage.step == whole.step == 12
    for name, weight in straight.named_parameters():
        torch.testing.assert_close(dict(net.named_parameters())[name], weight, rtol=0, atol=0)
        torch.testing.assert_close(stage.average[name], whole.average[name], rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["state.safetensors"]


def test_a_finished_stage_does_nothing_more(tmp_path):
    net, stage = new_stage(tmp_path)
    fit(stage, Budget(steps=3), terms_of(net))
    net, stage = new_stage(tmp_path)
    fit(stage, Budget(steps=3), terms_of(net, stop_at=3))
    assert stage.step == 3


def test_the_average_follows_the_weights(tmp_path):
    net, stage = new_stage(tmp_path)
    weights = []

    def terms(step: int) -> dict[str, torch.Tensor]:
        weights.append(net[0].weight.detach().clone())
        return terms_of(net)(step)

    fit(stage, Budget(steps=4), terms)
    expected = weights[0]
    for weight in (*weights[1:], net[0].weight.detach()):
        expected = 0.99 * expected + 0.01 * weight
    torch.testing.assert_close(stage.average["0.weight"], expected)


def test_a_budget_counts_minutes_or_steps():
    assert Budget(minutes=2.0).progress(1000, 30.0) == 0.25 and Budget(minutes=2.0).progress(0, 500.0) == 1.0
    assert Budget(steps=8).progress(2, 1e9) == 0.25


def test_streams_are_a_function_of_seed_and_step():
    def drawn(seed: int, step: int) -> tuple[float, float]:
        words, generator = streams(seed, step)
        return words.random(), torch.rand(1, generator=generator).item()

    assert drawn(1, 2) == drawn(1, 2)
    assert len({drawn(seed, step) for seed in range(3) for step in range(3)}) == 9
