"""janusflow caption as a user types it: what it writes, and that it can be killed and go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import golden
import pytest
from PIL import Image

from janusflow_core.bulk.folder import ROOM
from janusflow_core.captions import PRESETS, read_table
from janusflow_core.cli import main

COUNT = 24
SETTINGS = ["--device", "cpu", "--dtype", "fp32", "--question", "Go on.", "--max-new-tokens", "40"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(golden.write_folder(tmp_path_factory.mktemp("models") / "micro", golden.micro_pipeline()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of different colors, half of them in a folder of their own."""
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for number in range(COUNT):
        path = tmp_path / "pictures" / ("more" if number % 2 else "") / f"{number:02}.png"
        Image.new("RGB", (40, 30), (10 * number, 255 - 9 * number, 7 * (number % 5))).save(path)
    return tmp_path / "pictures"


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text("utf-8") for path in folder.rglob("*.txt")}


def expected(folder: Path, question: str = "Go on.", tokens: int = 40) -> dict[str, str]:
    pipe = golden.micro_pipeline()
    pictures = sorted(folder.rglob("*.png"))
    answers = [pipe.describe(path, question, max_new_tokens=tokens) for path in pictures]
    return {path.stem: " ".join(answer.split()) for path, answer in zip(pictures, answers, strict=True)}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "janusflow_core.cli", "caption", *map(str, arguments)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}


def test_a_folder_gets_the_captions_that_the_library_gives(folder, model, capsys):
    (folder / "broken.png").write_bytes(b"nothing")
    assert main(["caption", str(folder), "--model", model, *SETTINGS]) == 1
    out, err = capsys.readouterr()
    assert out == f"{COUNT} captioned, 1 failed\n"
    assert "janusflow: broken.png: " in err and "Pillow" in err
    (folder / "broken.png").unlink()
    found = texts(folder)
    assert found == expected(folder) and len(set(found.values())) > 3
    # Nothing is left to do: not even the model is looked for.
    assert main(["caption", str(folder), "--model", "none-such"]) == 0
    assert capsys.readouterr().out == f"0 captioned, {COUNT} had a caption\n"


def test_a_table_a_preset_a_trigger_and_patterns(folder, model, capsys):
    table = folder / "metadata.csv"
    options = ["--ask", "tags", "--trigger", "sks", "--separator", "; ", "--include", "0*.png", "--exclude", "more/*"]
    settings = ["--device", "cpu", "--dtype", "fp32", "--max-new-tokens", "5", "--batch", "2", "--out", str(table)]
    assert main(["caption", str(folder), "--model", model, *settings, *options]) == 0
    assert capsys.readouterr().out == "5 captioned\n" and texts(folder) == {}
    wanted = expected(folder, PRESETS["tags"], 5)
    rows = {name: row["text"] for name, row in read_table(table).items()}
    assert rows == {f"0{number}.png": f"sks; {wanted[f'0{number}']}" for number in (0, 2, 4, 6, 8)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no folder nowhere: check the path"),
        ([".", "--include", "*.xyz"], "there is no picture to caption"),
        ([".", "--out", "captions.txt"], "captions.txt is no table, expected a name that ends in .jsonl or .csv"),
        ([".", "--batch", "0"], "got --batch 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(folder)
    assert main(["caption", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (folder / ROOM).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("exists", ["skip", "append"])
def test_a_killed_run_goes_on_and_every_caption_is_whole(folder, model, ending, exists):
    """Killed three times, at moments that nobody chose."""
    if exists == "append":
        for path in folder.rglob("*.png"):
            path.with_suffix(".txt").write_text("mine", encoding="utf-8")
    wanted = {name: text if exists == "skip" else f"mine, {text}" for name, text in expected(folder).items()}
    line = command(folder, "--model", model, *SETTINGS, "--batch", "2", "--exists", exists)

    def begun() -> int:
        return sum(text != "mine" for text in texts(folder).values())

    for count in (3, 9, 15):
        process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while begun() < count:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(ending)
        assert process.wait(60) == (130 if ending == signal.SIGINT else -ending)
        assert all(text in ("mine", wanted[name]) for name, text in texts(folder).items())
    assert begun() < COUNT
    subprocess.run(line, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    assert texts(folder) == wanted
    assert not [
        path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix not in (".png", ".txt", "")
    ]


@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_processes_share_a_folder(folder, model, form):
    """As `accelerate launch` and torchrun start them."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    table = folder / "metadata.jsonl"
    out = [] if form == "txt" else ["--out", str(table)]
    line = [*launcher, *command(folder, "--model", model, *SETTINGS, "--batch", "3", *out)[1:]]
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{COUNT} captioned\n"
    wanted = expected(folder)
    if form == "txt":
        assert texts(folder) == wanted
    else:
        assert {Path(name).stem: row["text"] for name, row in read_table(table).items()} == wanted
    assert not (folder / ROOM).exists()
