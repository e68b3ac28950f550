"""janusflow sweep: every cell is the picture that generate draws with the same settings."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import DRAW, TINY, VAE, run

from janusflow_core.pipeline import JanusFlowPipeline
from janusflow_core.sheet import sheet


@pytest.fixture(scope="module")
def pipe() -> JanusFlowPipeline:
    return JanusFlowPipeline.from_pretrained(TINY, vae=VAE, device="cpu", dtype=torch.float32)


def test_a_sheet_holds_what_generate_draws(capsys, tmp_path, pipe):
    axes = ["--columns", "steps=1,2,4", "--rows", "guidance=1,5"]
    status, printed, complaint = run(capsys, "sweep", "a heart", *DRAW, *axes, "--seed", 4, "--out", tmp_path)
    assert status == 0, complaint
    size = {"width": 64, "height": 48, "seed": 4}
    cells = [[pipe.generate("a heart", steps=s, guidance=g, **size)[0] for s in (1, 2, 4)] for g in (1.0, 5.0)]
    expected = sheet(cells, ["steps 1", "steps 2", "steps 4"], ["guidance 1", "guidance 5"])
    with Image.open(printed.strip()) as found:
        assert np.array_equal(np.asarray(found), np.asarray(expected))
        made = json.loads(found.text["janusflow_sweep"])
    assert (made["prompt"], made["seed"], made["columns"], made["rows"]) == ("a heart", 4, axes[1], axes[3])


def test_words_seeds_and_flags_can_change_and_one_row_is_enough(capsys, tmp_path, pipe):
    for columns, settings in (
        ("prompt=a heart|a star, red", [{"prompt": "a heart"}, {"prompt": "a star, red"}]),
        ("seed=3,9", [{"prompt": "a cat", "seed": 3}, {"prompt": "a cat", "seed": 9}]),
        ("cfg_zero_star=no,yes", [{"prompt": "a cat"}, {"prompt": "a cat", "cfg_zero_star": True}]),
        ("solver=euler,heun", [{"prompt": "a cat"}, {"prompt": "a cat", "solver": "heun"}]),
    ):
        given = ["a cat", *DRAW, "--columns", columns, "--rows", "", "--out", tmp_path]
        status, printed, complaint = run(capsys, "sweep", *given)
        assert status == 0, complaint
        cells = [pipe.generate(width=64, height=48, steps=2, **one)[0] for one in settings]
        with Image.open(printed.strip()) as found:
            whole = np.asarray(found)
        name = columns.partition("=")[0]
        values = [str(one.get(name, {"cfg_zero_star": False, "solver": "euler"}.get(name))) for one in settings]
        assert np.array_equal(whole, np.asarray(sheet([cells], [f"{name} {value}" for value in values], [])))


def test_each_prompt_and_seed_has_its_sheet(capsys, tmp_path):
    given = ["a heart", "a star", *DRAW, "--columns", "steps=1", "--rows", "", "--seed", 1, 5, "--out", tmp_path]
    status, printed, _ = run(capsys, "sweep", *given)
    assert status == 0 and [line.rpartition("_sweep_")[2] for line in printed.splitlines()] == [
        "1_0.png", "5_0.png", "1_1.png", "5_1.png"]  # fmt: skip


def test_a_sheet_tells_the_variation_that_its_cells_have(capsys, tmp_path, pipe):
    """Every sheet varies towards the same seed, the second one too."""
    varied = ["--variation-seed", 9, "--variation-strength", 0.5, "--seed", 1, 5]
    given = ["a heart", *DRAW, "--columns", "steps=2", "--rows", "", *varied, "--out", tmp_path]
    status, printed, complaint = run(capsys, "sweep", *given)
    assert status == 0, complaint
    for path, seed in zip(printed.splitlines(), (1, 5), strict=True):
        with Image.open(path) as found:
            made, whole = json.loads(found.text["janusflow_sweep"]), np.asarray(found)
        assert (made["seed"], made["variation_seed"]) == (seed, 9)
        how = {"seed": seed, "variation_seed": made["variation_seed"], "variation_strength": 0.5}
        cell = pipe.generate("a heart", width=64, height=48, steps=2, **how)[0]
        assert np.array_equal(whole, np.asarray(sheet([[cell]], ["steps 2"], [])))


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        (["--columns", "stops=1"], "got 'stops' to go through"),
        (["--rows", "steps=few"], "'few' is no value of steps"),
        (["--rows", "steps="], "steps has no values"),
        (["--columns", "solver=euler,rk45"], "'rk45' is unknown"),
        (["--columns", "steps=1,0"], "steps must be at least 1"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(capsys, tmp_path, axes, told):
    status, printed, complaint = run(capsys, "sweep", "a heart", *DRAW, *axes, "--out", tmp_path / "new")
    assert (status, printed) == (2, "") and told in complaint and complaint.count("\n") == 1
    assert not list(tmp_path.rglob("*.png"))
