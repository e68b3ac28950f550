"""janusflow train lora: a folder of pictures to a LoRA that generate takes, stopped and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import golden
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from janusflow_core.checkpoint import open_checkpoint
from janusflow_core.cli import main, parse
from janusflow_core.lora import base_hash
from janusflow_core.train import machine

SETTINGS = ["--steps", 4, "--batch", 2, "--rank", 2, "--dreams", 2, "--sample-every", 2, "--parts", "attention", "mlp"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return golden.write_folder(tmp_path_factory.mktemp("model") / "micro", golden.micro_pipeline(), codec=True)


@pytest.fixture
def pictures(tmp_path) -> Path:
    (tmp_path / "set").mkdir()
    for color in ("red", "green", "blue"):
        Image.new("RGB", (48, 40), color).save(tmp_path / "set" / f"{color}.png")
        (tmp_path / "set" / f"{color}.txt").write_text(f"a {color} thing", encoding="utf-8")
    return tmp_path / "set"


def command(model, pictures, out, *more):
    given = ["train", "lora", "--images", pictures, "--out", out, "--model", model, "--dtype", "fp32", *SETTINGS, *more]
    return [str(part) for part in given]


def run(capsys, *arguments):
    status = main(command(*arguments))
    return status, *capsys.readouterr()


def test_a_folder_becomes_a_lora_with_its_log_and_samples(capsys, model, pictures, tmp_path):
    out = tmp_path / "new" / "mine.safetensors"
    status, printed, _ = run(capsys, model, pictures, out, "--teach", "both", "--repa", 0.5)
    assert status == 0 and printed.strip() == str(out)
    beside = out.with_name("mine_run")
    assert sorted(path.name for path in beside.iterdir()) == [
        "log.jsonl", "state.safetensors", "step_000002_0.png", "step_000004_0.png",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (beside / "log.jsonl").read_text("utf-8").splitlines()]
    steps = [line for line in lines if "seconds" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4] and {"flow", "kept", "repa"} < set().union(*steps)
    samples = [line for line in lines if "picture" in line]
    assert samples[0]["texts"] == ["a blue thing", "a green thing", "a red thing"] and len(samples[1]["answers"]) == 3
    with Image.open(beside / samples[1]["picture"]) as picture:
        assert picture.size == (96, 32)
    with safe_open(out, "pt") as file:
        told, keys = file.metadata(), set(file.keys())
    weights = open_checkpoint(model).weights
    assert told["base_sha256"] == base_hash(weights, golden.micro().model.state_dict())
    recipe = json.loads(told["recipe"])
    assert (told["rank"], recipe["steps"], recipe["pictures"], recipe["teach"]) == ("2", 4, 3, "both")
    assert len(keys) == 2 * 7 * 3 and all(
        key.startswith("diffusion_model.language_model.model.layers.") for key in keys
    )
    drawn = [
        "generate",
        "a red thing",
        "--model",
        str(model),
        "--lora",
        str(out),
        "--steps",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert main(drawn) == 0


def test_stopped_by_ctrl_c_it_goes_on_to_the_same_lora(capsys, model, pictures, tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert run(capsys, model, pictures, whole, "--steps", 40)[0] == 0
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    started = [sys.executable, "-m", "janusflow_core.cli", *command(model, pictures, parts, "--steps", 40)]
    process = subprocess.Popen(started, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = tmp_path / "parts_run" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size > 300):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in complaint
    with safe_open(parts, "pt") as file:
        done = json.loads(file.metadata()["recipe"])["steps"]
    assert 0 < done < 40
    assert run(capsys, model, pictures, parts, "--steps", 40)[0] == 0
    one, other = load_file(whole), load_file(parts)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_more_steps_train_further_and_other_settings_do_not(capsys, model, pictures, tmp_path):
    out = tmp_path / "mine.safetensors"
    assert run(capsys, model, pictures, out)[0] == 0
    before = load_file(out)
    assert run(capsys, model, pictures, out, "--steps", 6)[0] == 0
    assert any((load_file(out)[key] != before[key]).any() for key in before)
    (pictures / "red.png").write_bytes(b"broken")  # it is refused before one looks at the pictures
    status, _, complaint = run(capsys, model, pictures, out, "--rank", 4)
    assert status == 2 and "run of other settings" in complaint and complaint.count("\n") == 1


def test_a_broken_picture_is_named_and_left_out(capsys, model, pictures, tmp_path):
    (pictures / "red.png").write_bytes(b"no picture")
    status, _, complaint = run(capsys, model, pictures, tmp_path / "mine.safetensors")
    assert status == 0 and complaint.startswith("janusflow: left out red.png: ")


def test_what_cannot_be_trained_is_said_before_anything_is(capsys, model, pictures, tmp_path):
    out = tmp_path / "mine.safetensors"
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    for given, told in (
        ((model, tmp_path / "empty", out), "holds no picture"),
        ((model, tmp_path / "gone", out), "no folder"),
        ((model, pictures, tmp_path / "mine.bin"), "ends in .safetensors"),
        ((model, pictures, taken), "exists already"),
        ((golden.write_folder(tmp_path / "bare", golden.micro_pipeline()), pictures, out), "brings no VAE"),
    ):
        status, _, complaint = run(capsys, *given)
        assert status == 2 and told in complaint and complaint.count("\n") == 1, complaint
    assert taken.read_bytes() == b"mine" and not out.exists() and not out.with_name("mine_run").exists()
    assert main(["train", "lora"]) == 2 and "--images FOLDER" in capsys.readouterr().err


def test_every_setting_can_be_said():
    recipe = parse(["train", "lora", "--images", "x", "--parts", "head", "mlp", "--kind", "dora", "--eight-bit"]).recipe
    assert recipe.settings.parts == ("head", "mlp") and recipe.settings.kind == "dora" and recipe.settings.eight_bit


def test_killed_it_goes_on_from_what_was_saved_in_the_same_numbers(capsys, model, pictures, tmp_path, monkeypatch):
    """SIGKILL leaves no time for anything: the state is that of the last minute, whole."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    more = ["--steps", 12, "--schedule", "constant", "--dtype", "bf16"]
    assert run(capsys, model, pictures, whole, *more)[0] == 0
    assert run(capsys, model, pictures, parts, *more[2:], "--steps", 6)[0] == 0  # its end is such a minute
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    started = [sys.executable, "-m", "janusflow_core.cli", *command(model, pictures, parts, *more[2:], "--steps", 4000)]
    process = subprocess.Popen(started, env=env, start_new_session=True)
    log = tmp_path / "parts_run" / "log.jsonl"
    before = log.stat().st_size
    while process.poll() is None and log.stat().st_size < before + 300:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    taken_up = [part for part in command(model, pictures, parts, *more) if part not in ("--dtype", "fp32", "bf16")]
    monkeypatch.setattr(machine, "trains_in_bf16", lambda device: False)  # whatever this machine is faster in
    assert main(taken_up) == 0
    one, other = load_file(whole), load_file(parts)
    assert all(torch.equal(one[key], other[key]) for key in one)
