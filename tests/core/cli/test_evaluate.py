"""janusflow evaluate as a user types it, on the bundled checkpoint."""

import hashlib
import json
from pathlib import Path

import pytest

from janusflow_core.checkpoint import BUNDLED
from janusflow_core.cli import main

FEW = ["evaluate", "shapes", "--per-task", "3", "--scenes", "4", "--steps", "4", "--device", "cpu", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("results") / "tiny.json"
    assert main([*FEW, "--guidance", "2.5", "--out", str(path)]) == 0
    return path


def test_results_say_what_was_measured_and_every_trial(kept: Path, capsys):
    told = json.loads(kept.read_text("utf-8"))
    checkpoint = BUNDLED / "janusflow-tiny.safetensors"
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert told["weights"] == [{"name": checkpoint.name, "sha256": digest, "strength": None}]
    expected = {"steps": 4, "guidance": 2.5, "dtype": "fp32", "seed": 0, "per_task": 3, "held_out": False, "shift": 1.0}
    assert expected.items() <= told["settings"].items() and told["settings"]["solver"]
    assert told["scores"].keys() == {"pictures", "there and back", "answers"} and told["device"] == "cpu"
    assert all(len(trials) == 3 for trials in told["scores"]["pictures"].values())


def test_another_run_is_compared_trial_by_trial(kept: Path, tmp_path: Path, capsys):
    other = tmp_path / "unguided.json"
    assert main([*FEW, "--guidance", "1", "--lora", "janusflow-tiny-crescent:0.5", "--out", str(other)]) == 0
    told = capsys.readouterr().out
    assert told.endswith(f"{other}\n") and "pictures   " in told and " of 3\n" in told
    assert json.loads(other.read_text())["weights"][1]["strength"] == 0.5
    assert main(["evaluate", "compare", str(kept), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["guidance", "2.5", "|", "1.0"] for line in lines)
    rows = {line[:34].strip(): line[34:].split() for line in lines if line.startswith(("pictures", "answers"))}
    a, b = (json.loads(path.read_text())["scores"]["pictures"] for path in (kept, other))
    for task in a:
        first, second = a[task].count("1") / 3, b[task].count("1") / 3
        assert [float(number) for number in rows[f"pictures: {task}"][:3]] == pytest.approx(
            [first, second, second - first], abs=1e-3
        )


def test_the_same_run_gives_the_same_trials(kept: Path, tmp_path: Path):
    assert main([*FEW, "--guidance", "2.5", "--out", str(tmp_path / "again.json")]) == 0
    one, other = (json.loads(path.read_text()) for path in (kept, tmp_path / "again.json"))
    assert one["scores"] == other["scores"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shapes", "--per-task", "0"], "got --per-task 0, expected at least 1"),
        (["shapes", "--scenes", "0"], "got --scenes 0, expected at least 1"),
        (["shapes", "--steps", "0"], "steps"),
        (["compare", "none.json", "other.json"], "has no none.json"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path: Path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
