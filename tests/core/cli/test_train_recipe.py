"""janusflow train RECIPE: a run with its log and samples, what the command line changes of a recipe, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import golden
import pytest
from PIL import Image

from janusflow_core.cli import main, parse, spelt_out
from janusflow_core.cli.recipes import ByRecipe
from janusflow_core.train.recipe import read_recipe

RECIPE = """
start: model
data: [{path: set}]
mixture: [{understanding: 1, generation: 1}]
steps: 4
batch: 4
at_once: 2
learning_rate: 1e-3
length: 300
precision: fp32
workers: 0
save_every: 2
samples: {every: 2, prompts: [a red thing, a green thing], pictures: [set/red.png]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    golden.write_folder(folder / "model", golden.micro_pipeline(), codec=True)
    (folder / "set").mkdir()
    for color in ("red", "green", "blue"):
        Image.new("RGB", (48, 40), color).save(folder / "set" / f"{color}.png")
        (folder / "set" / f"{color}.txt").write_text(f"a {color} thing", encoding="utf-8")
    (folder / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_a_run_leaves_checkpoints_a_log_and_samples(capsys, place, tmp_path):
    out = tmp_path / "out"
    status, printed, told = run(capsys, "train", place / "mine.yaml", "--out", out)
    assert status == 0 and printed.strip() == str(out / "step_0000004"), told
    assert {path.name for path in out.iterdir()} - {"log"} == {
        "step_0000002", "step_0000004", "log.jsonl", "step_0000002_0.png", "step_0000004_0.png",
    }  # fmt: skip
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    steps, shown = ([line for line in lines if ("seconds" in line) == which] for which in (True, False))
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(set(line) == {"step", "seconds", "flow", "repa", "answer"} for line in steps)
    assert [line["step"] for line in shown] == [2, 4] and shown[0]["prompts"] == ["a red thing", "a green thing"]
    assert len(shown[0]["answers"]) == 1 and Image.open(out / shown[0]["picture"]).size == (64, 32)
    again = run(capsys, "train", "recipe", place / "mine.yaml", "--out", out)
    assert again[:2] == (0, printed)  # nothing is left to do


def test_tensorboard_hears_every_step(capsys, place, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    run(capsys, "train", place / "mine.yaml", "--out", tmp_path / "out")
    (folder,) = {path.parent for path in (tmp_path / "out" / "log").glob("events*")}
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("flow")] == [1, 2, 3, 4]


def test_the_command_line_says_where_things_are(place, tmp_path):
    words = ["train", "stage2", "--start", "janusflow-tiny", "--data", "a", "b.jsonl", "--seed", "7", "--vae", "v"]
    command = parse(words).recipe
    assert isinstance(command, ByRecipe)
    recipe = command._changed(read_recipe(command.recipe))
    assert (recipe.start, recipe.vae, recipe.seed) == ("janusflow-tiny", "v", 7)
    assert [one.path for one in recipe.data] == ["a", "b.jsonl"]
    assert recipe.steps == read_recipe("stage2").steps
    kept = ByRecipe(recipe="x")._changed(read_recipe(place / "mine.yaml"))
    assert kept == read_recipe(place / "mine.yaml")


@pytest.mark.parametrize("words", [["train", "tiny"], ["train", "lora"], ["train", "--help"], ["describe", "train"]])
def test_other_words_stay_as_they_are(words):
    assert spelt_out(words) == words


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_keeps_the_step(place, tmp_path):
    (place / "long.yaml").write_text(
        RECIPE.replace("steps: 4", "steps: 1000").replace("save_every: 2", "save_every: 999")
    )
    out = tmp_path / "out"
    words = [sys.executable, "-m", "janusflow_core.cli", "train", str(place / "long.yaml"), "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not [*out.glob("step_*.png")] and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate(timeout=60)
    assert process.returncode == 130 and printed == "" and "Traceback" not in told, told
    (kept,) = (path for path in out.glob("step_*") if path.is_dir())
    assert json.loads((kept / "recipe.json").read_text())["steps"] == 1000
