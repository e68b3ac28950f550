"""The order of things that a GPU sees; what it records is not tested here."""

import pytest
import torch
from golden import micro, recipe
from torch import Tensor

from janusflow_core import graphs, model
from janusflow_core.guidance import Guidance


def test_a_step_is_captured_once_after_it_has_warmed_up(monkeypatch):
    events = []

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    def step() -> Tensor:
        events.append("step")
        return torch.zeros(1)

    monkeypatch.setattr(graphs, "captured", lambda step: (events.append("capture"), (Graph(), torch.ones(1)))[1])
    run = graphs.replayed(step)
    assert [run().item() for _ in range(5)] == [0, 0, 1, 1, 1]
    assert events == ["step", "step", "capture", "replay", "replay", "replay"]


def test_a_step_that_cannot_be_captured_stays_as_it_is(monkeypatch):
    def refuse(step):
        raise RuntimeError("no graph here")

    monkeypatch.setattr(graphs, "captured", refuse)
    run = graphs.replayed(lambda: torch.ones(1), before=1)
    assert run().item() == 1
    with pytest.warns(UserWarning, match="slower: no graph here"):
        assert run().item() == 1
    assert run().item() == 1


def test_a_fixed_flow_draws_what_a_free_one_draws_and_never_writes_into_what_it_gave(monkeypatch):
    """With a stand-in for the graph that keeps its result in one place, as a graph does."""
    kept = torch.empty(2, 4, 4, 6)
    monkeypatch.setattr(model, "replayed", lambda step: lambda: kept.copy_(step()))
    rows, z = [recipe("row", (5, 32), 0), recipe("other", (3, 32), 0)], recipe("z", (2, 4, 4, 6), 0)
    fixed = micro().model.guided(rows, None, Guidance(2.0), (4, 6), fixed=True)
    free = micro().model.guided(rows, None, Guidance(2.0), (4, 6))
    first = fixed(z, 0.2)
    second = fixed(2 * z, 0.7)
    torch.testing.assert_close(first, free(z, 0.2))
    torch.testing.assert_close(second, free(2 * z, 0.7))
