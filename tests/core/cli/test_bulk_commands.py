"""janusflow bulk as a user types it: the same bytes from one process, from two, and after kills."""

import csv
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

from janusflow_core.bulk.items import Item
from janusflow_core.bulk.run import seed_of
from janusflow_core.cli import main

COUNT = 18
PLACE = ["--device", "cpu", "--dtype", "fp32"]
DRAWING = [*PLACE, "--width", "32", "--height", "32", "--steps", "2", "--batch-size", "4", "--seed", "5"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(golden.write_folder(tmp_path_factory.mktemp("models") / "micro", golden.micro_pipeline()))


@pytest.fixture(scope="module")
def painter(tmp_path_factory) -> str:
    """One that brings a VAE."""
    return str(golden.write_folder(tmp_path_factory.mktemp("models") / "painter", golden.pipeline(), codec=True))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"id": f"p{number}", "prompt": f"number {number} of them"} for number in range(COUNT)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("seen")
    for number in range(COUNT):
        Image.new("RGB", (40, 30), (10 * number, 255 - 9 * number, 7 * (number % 5))).save(folder / f"{number:02}.png")
    return folder


def bulk(*arguments: object, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, "-m", "janusflow_core.cli", "bulk", *map(str, arguments)]


def run(*arguments: object, launcher: tuple[str, ...] = ()) -> str:
    line = bulk(*arguments, launcher=launcher)
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


TWO = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, painter, prompts) -> dict[str, bytes]:
    """What one process draws in one go."""
    folder = tmp_path_factory.mktemp("drawn")
    told = run("draw", prompts, "--model", painter, *DRAWING, "--out", folder / "pictures")
    assert told == f"{COUNT} drawn\n"
    return files(folder)


def test_each_picture_is_the_one_that_its_origin_makes(drawn, painter, prompts, tmp_path, capsys):
    names = {*(f"pictures/p{number}.png" for number in range(COUNT)), "pictures.jsonl", "pictures.run.json"}
    assert drawn.keys() == names
    (tmp_path / "p7.png").write_bytes(drawn["pictures/p7.png"])
    again = ["generate", "--like", str(tmp_path / "p7.png"), "--model", painter, "--device", "cpu"]
    assert main([*again, "--out", str(tmp_path)]) == 0
    path = Path(capsys.readouterr().out.strip())
    rows = {row["id"]: row for row in map(json.loads, drawn["pictures.jsonl"].splitlines())}
    assert path.name == f"janusflow_{rows['p7']['seed']}_0.png"
    # Drawn alone it may differ in the last bit of a product.
    one, other = (Image.open(place).convert("RGB") for place in (path, tmp_path / "p7.png"))
    assert max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)) <= 1


def test_two_processes_draw_the_same_bytes(drawn, painter, prompts, tmp_path):
    told = run("draw", prompts, "--model", painter, *DRAWING, "--out", tmp_path / "pictures", launcher=TWO)
    assert told == f"{COUNT} drawn\n" and files(tmp_path) == drawn


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_run_draws_the_same_bytes(drawn, painter, prompts, tmp_path):
    """Killed at a moment that nobody chose, then stopped by Ctrl-C; every picture that is there is whole."""
    line = bulk("draw", prompts, "--model", painter, *DRAWING, "--out", tmp_path / "pictures")
    for ending, count in ((signal.SIGKILL, 3), (signal.SIGINT, 10)):
        process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while len([*tmp_path.glob("pictures/*.png")]) < count:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(ending)
        assert process.wait(60) == (130 if ending == signal.SIGINT else -ending)
        there = {name: content for name, content in files(tmp_path).items() if name.endswith(".png")}
        assert there.items() <= drawn.items()
    assert len(there) < COUNT
    run("draw", prompts, "--model", painter, *DRAWING, "--out", tmp_path / "pictures", launcher=TWO)
    assert files(tmp_path) == drawn


def test_a_finished_run_needs_no_model_and_other_settings_are_refused(drawn, prompts, tmp_path, capsys):
    for name, content in drawn.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    painter = json.loads(drawn["pictures.run.json"])["model"]
    given = ["bulk", "draw", str(prompts), "--out", str(tmp_path / "pictures"), *DRAWING]
    assert main([*given, "--model", painter]) == 0 and capsys.readouterr().out == f"0 drawn, {COUNT} were there\n"
    assert main([*given, "--model", painter, "--guidance", "3"]) == 2
    assert "pictures is made with guidance None, not 3.0: name another with --out" in capsys.readouterr().err
    assert files(tmp_path) == drawn


def test_what_cannot_be_drawn_is_told(painter, tmp_path, capsys):
    (tmp_path / "prompts.csv").write_text("id,description\na,a cat\n../b,a dog\nc,\n", "utf-8")
    given = ["bulk", "draw", str(tmp_path / "prompts.csv"), "--columns", "prompt=description", "--model", painter]
    assert main([*given, *DRAWING, "--out", str(tmp_path / "out")]) == 1
    told, wrong = capsys.readouterr()
    assert told == "1 drawn, 2 failed\n" and [*(tmp_path / "out").iterdir()] == [tmp_path / "out/a.png"]
    first, second = wrong.strip().splitlines()
    assert first.startswith("janusflow: ../b: ../b.png is no name for a file")
    assert second == "janusflow: c: it has no prompt"


def test_answers_are_those_of_the_library_from_one_process_and_from_two(model, pictures, tmp_path):
    settings = ["--model", model, *PLACE, "--question", "Go on.", "--max-new-tokens", "12", "--batch-size", "4"]
    assert run("describe", pictures, *settings, "--out", tmp_path / "one.jsonl") == f"{COUNT} answered\n"
    rows = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text("utf-8").splitlines()]
    pipe = golden.micro_pipeline()
    wanted = [pipe.describe(pictures / row["id"], "Go on.", max_new_tokens=12).strip() for row in rows]
    assert [row["response"] for row in rows] == wanted and len({*wanted}) > 2
    run("describe", pictures, *settings, "--out", tmp_path / "two.jsonl", launcher=TWO)
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_each_row_is_asked_its_own_question_by_its_own_seed(model, pictures, tmp_path, capsys):
    rows = [
        {"question_id": k, "image": str(pictures / "03.png"), "text": f"Question {k}?", "label": "yes"} for k in (4, 9)
    ]
    (tmp_path / "pope.json").write_text(json.dumps(rows), "utf-8")
    given = ["bulk", "describe", str(tmp_path / "pope.json"), "--columns", "question=text", "--model", model, *PLACE]
    free = ["--temperature", "1", "--max-new-tokens", "8", "--out", str(tmp_path / "answers.csv")]
    assert main([*given, *free]) == 0
    assert capsys.readouterr().out == "2 answered\n"
    header = (tmp_path / "answers.csv").read_text("utf-8").splitlines()[0]
    assert header == "question_id,image,text,label,question,id,response"
    pipe, how = golden.micro_pipeline(), {"temperature": 1.0, "max_new_tokens": 8}
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            seed = seed_of(Item(row["id"]), 0)
            wanted = pipe.describe(pictures / "03.png", f"Question {row['id']}?", seed=seed, **how)
            assert row["response"] == wanted.strip()
    again = [*given, *free[:-1], str(tmp_path / "again.csv"), "--batch-size", "1"]
    assert main(again) == 0
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "answers.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["draw", "nowhere.txt"], "there is no nowhere.txt to work on: check the path"),
        (["draw", "p.txt", "--batch-size", "0"], "got --batch-size 0, expected at least 1"),
        (["draw", "p.txt", "--each", "0"], "got 0 pictures of each prompt"),
        (["draw", "p.txt", "--steps", "0"], "steps must be"),
        (["draw", "p.txt", "--columns", "promt=x"], "got --columns promt=x, expected id or prompt or"),
        (["draw", "p.txt", "--name", "{id}.gif"], "expected one that ends in .png"),
        (["describe", "p.txt", "--out", "x.txt"], "got x.txt for the answers"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, monkeypatch, capsys, painter, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a cat\na dog\n", "utf-8")
    assert main(["bulk", *arguments, "--model", painter, *PLACE]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
    assert not [*Path().glob("*.png")]
