"""The benchmark of drawing: that both ways draw the same, that arithmetic is counted right, and what it prints."""

import json

import pytest
import torch
import torch.nn.functional as F
from golden import TRAJECTORY, VELOCITY, assert_close, micro, read_json

from janusflow_core.attention import eager, sdpa
from janusflow_core.bench.generate import Drawing, measure, take_turns
from janusflow_core.bench.peers import AuthorsWay
from janusflow_core.bench.sizes import DRAWN, arithmetic, latent_side, peak, random_flow
from janusflow_core.checkpoint import open_checkpoint
from janusflow_core.cli import main
from janusflow_core.config import JanusFlowConfig
from janusflow_core.model import JanusFlow
from janusflow_core.operations import onednn_linear

CPU = torch.device("cpu")


def micro_flow() -> JanusFlow:
    """What draws in the micro model, which has weights where random ones are zero."""
    model = JanusFlow(micro().model.config, text=False).requires_grad_(False).eval()
    whole = micro().model.state_dict()
    model.load_state_dict({name: whole[name] for name in model.state_dict()})
    return model


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_the_authors_way_draws_what_ours_draws(ours: bool, weight: float):
    model = micro_flow()
    drawing = Drawing.random(model, 5, 3, 4)
    z = theirs = drawing.z
    velocity, peer = drawing.begin(weight), AuthorsWay(model, ours)
    seen = torch.tensor(3 * [5 * [1]] + 3 * [[1, 0, 0, 0, 0]])
    for step in range(4):
        z = z + velocity(z, step / 4) / 4
        theirs = peer.step(theirs, step / 4, 1 / 4, drawing.rows.repeat(2, 1, 1), seen, weight)
    assert_close(z, theirs, TRAJECTORY)


def test_the_authors_state_is_as_coarse_as_their_weights():
    drawing = Drawing.random(random_flow("tiny", torch.bfloat16, CPU), 5, 1, 12)
    assert drawing.as_authors(AuthorsWay(drawing.model)).dtype == torch.bfloat16
    assert drawing.both(2.0).dtype == torch.float32


def test_a_row_for_every_length_batch_and_guidance():
    model = random_flow("tiny", torch.float32, CPU)
    rows = list(measure(model, 4, [2, 6], [1, 2], [2.0, 1.0], steps=10, rounds=1))
    seen = [(row.prompt_tokens, row.batch, row.guidance) for row in rows]
    assert seen == [(length, batch, weight) for length in (2, 6) for batch in (1, 2) for weight in (2.0, 1.0)]
    for row in rows:
        assert row.ratio == row.peer_s / row.ours_s and row.ours_s > row.prompt_s / 10 > 0
        assert row.difference < VELOCITY and row.of_peak > 0 and row.same_layers_s > 0
    assert rows[0].peer_s == rows[1].peer_s  # it takes both branches, whatever the guidance


@torch.no_grad()
def test_arithmetic_is_the_same_by_every_library():
    x, weight = torch.ones(3, 5, 8), torch.ones(7, 8)
    q, k = torch.ones(2, 3, 5, 4), torch.ones(2, 3, 9, 4)
    assert arithmetic(lambda: F.linear(x, weight)) == 2 * 3 * 5 * 8 * 7
    assert arithmetic(lambda: onednn_linear(x, weight)) == 2 * 3 * 5 * 8 * 7
    assert arithmetic(lambda: eager(q, k, k, None)) == 2 * (2 * 2 * 3 * 5 * 9 * 4)
    assert arithmetic(lambda: sdpa(q, k, k, None)) == 2 * (2 * 2 * 3 * 5 * 9 * 4)


def test_what_is_brief_is_done_several_times_in_its_turn():
    calls: list[str] = []
    take_turns([lambda: calls.append("a"), lambda: calls.append("b")], 2, CPU)
    assert calls[:4] == ["a", "a", "b", "b"] and calls.count("a") > 100
    turns = "".join(calls[4:])
    assert [len(turn) > 100 for turn in turns.replace("ab", "a b").replace("ba", "b a").split()] == 4 * [True]


def test_the_fastest_products_are_measured():
    assert 1e9 < peak(CPU, torch.float32) < 1e14


def test_sizes_are_those_of_the_bundled_and_of_the_official_model():
    bundled = open_checkpoint("janusflow-tiny")
    assert (bundled.config.flow.channels, bundled.image.image_size) == (DRAWN["tiny"][0], 8 * latent_side("tiny"))
    official = JanusFlowConfig.from_dict(read_json("official_config.json"))
    assert (official.flow.channels, official.vision.image_size) == (DRAWN["full"][0], 8 * latent_side("full"))


def test_the_command_prints_json_or_a_table(capsys):
    small = ["bench", "generate", "--device", "cpu", "--rounds", "1", "--prompt-tokens", "4", "--batch", "1"]
    assert main([*small, "--dtype", "fp32", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["size"], line["guidance"], line["dtype"]) for line in lines] == [
        ("tiny", 2.0, "float32"),
        ("tiny", 1.0, "float32"),
    ]
    assert main([*small, "--guidance", "1"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["prompt", "batch", "guidance"] and row.split()[:3] == ["4", "1", "1"]


def test_what_cannot_be_measured_is_refused(capsys):
    assert main(["bench", "generate", "--batch", "0"]) == 2
    assert "of at least 1" in capsys.readouterr().err
