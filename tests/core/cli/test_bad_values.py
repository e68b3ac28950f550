"""Numbers, names and files that no command can use: one line, status 2, nothing begun and nothing left."""

import sys

import pytest
from golden import GOLDEN, micro_pipeline, new_codec, write_folder
from hardness import assert_sentence, bounded

from janusflow_core.cli import main

PICTURE = str(GOLDEN / "images" / "wide.png")
BEYOND = str(2**64)
CASES: dict[str, tuple[list[str], str]] = {
    "generate: no steps": (["generate", "a heart", "--steps", "-1"], "steps must be at least 1"),
    "generate: steps without end": (["generate", "a heart", "--steps", "9" * 20], "at most 1,000,000"),
    "generate: guided by nothing": (["generate", "a heart", "--guidance", "nan"], "guidance must be a number"),
    "generate: guided without limit": (["generate", "a heart", "--guidance", "inf"], "guidance must be a number"),
    "generate: shifted to nothing": (["generate", "a heart", "--shift", "0"], "shift must be a number above 0"),
    "generate: shifted by nothing": (["generate", "a heart", "--shift", "nan"], "shift must be a number above 0"),
    "generate: wide as a city": (["generate", "a heart", "--width", str(16 * 10**7)], "the model's context holds"),
    "generate: no height": (["generate", "a heart", "--height", "0"], "height must be a multiple of 16 pixels"),
    "generate: less than nothing": (["generate", "a heart", "--width", "-16"], "width must be a multiple of 16 pixels"),
    "generate: 65 bits of seed": (["generate", "a heart", "--seed", BEYOND], "whole number of 64 bits"),
    "generate: 64 bits and a sign": (["generate", "a heart", "--seed", str(-(2**64))], "whole number of 64 bits"),
    "generate: varied beyond": (
        ["generate", "a heart", "--variation-seed", BEYOND, "--variation-strength", "0.5"],
        "whole number of 64 bits",
    ),
    "generate: varied twice": (["generate", "a heart", "--variation-strength", "2"], "must lie in [0, 1]"),
    "generate: no pictures": (["generate", "a heart", "--num-images", "0"], "got --num-images 0"),
    "generate: none at once": (["generate", "a heart", "--batch-size", "0"], "got --batch-size 0"),
    "generate: not even noise": (["generate", "a heart", "--init-image", PICTURE, "--strength", "nan"], "strength"),
    "generate: 100,000 letters": (["generate", "heart " * 17_000], "make them shorter"),
    "generate: a folder in a file": (["generate", "a heart", "--out", f"{PICTURE}/out"], "there can be no folder"),
    "generate: a file as a folder": (["generate", "a heart", "--out", PICTURE], "name another with --out"),
    "generate: a device of no numbers": (["generate", "a heart", "--device", "meta"], "try cpu"),
    "generate: a device of no kind": (["generate", "a heart", "--device", "cuda:99"], "try cpu"),
    "generate: a line break as a model": (["generate", "a heart", "--model", "a\nb\x1b[2J"], "a\\nb\\x1b[2J"),
    "describe: colder than cold": (["describe", PICTURE, "--temperature", "-1"], "temperature must be 0"),
    "describe: no temperature": (["describe", PICTURE, "--temperature", "nan"], "temperature must be 0"),
    "describe: of all and more": (
        ["describe", PICTURE, "--temperature", "1", "--top-p", "2"],
        "top_p must lie in (0, 1]",
    ),
    "describe: no words": (["describe", PICTURE, "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
    "describe: fewer than none": (["describe", PICTURE, "--max-new-tokens", "-5"], "max_new_tokens must be at least 1"),
    "describe: words without end": (["describe", PICTURE, "--max-new-tokens", "9" * 12], "the model's context holds"),
    "describe: a seed beyond": (
        ["describe", PICTURE, "--temperature", "1", "--seed", BEYOND],
        "whole number of 64 bits",
    ),
    "describe: its own tag": (["describe", PICTURE, "--question", "<image_placeholder>" * 3], "expected 1, one per"),
    "describe: its start tag": (["describe", PICTURE, "--question", "<begin_of_image>"], "expected none"),
    "caption: none at once": (["caption", str(GOLDEN / "images"), "--batch", "0"], "got --batch 0"),
    "caption: no folder": (["caption", PICTURE], "there is no folder"),
    "evaluate: no pictures": (["evaluate", "shapes", "--per-task", "0"], "got --per-task 0"),
    "evaluate: no scenes": (["evaluate", "shapes", "--scenes", "-1"], "got --scenes -1"),
    "train: no time": (["train", "tiny", "--minutes", "nan"], "got --minutes nan"),
    "train: without end": (["train", "tiny", "--minutes", "inf"], "got --minutes inf"),
    "train: no recipe": (["train", "stage9"], "stage9 is neither a recipe's file nor one of stage1, stage2, stage3"),
    "train: a picture as a recipe": (["train", PICTURE], "is not UTF-8"),
    "train: nothing to begin with": (["train", "stage1", "--data", "a"], "the recipe names no start"),
    "train: nothing to learn from": (["train", "stage1", "--start", "janusflow-tiny"], "the recipe names no data"),
    "train: learning from nowhere": (
        ["train", "stage1", "--start", "janusflow-tiny", "--data", f"{PICTURE}/none"],
        "there is no",
    ),
    "train: no rate": (["train", "tiny", "--rate", "nan"], "got --rate nan"),
    "bench: nothing": (["bench", "generate", "--rounds", "0"], "of at least 1"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("model") / "micro", micro_pipeline(new_codec()), codec=True))


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_is_one_line(capsys, monkeypatch, tmp_path, record_property, model, name):
    monkeypatch.chdir(tmp_path)
    arguments, words = CASES[name]
    own = ["--model", model] * (arguments[0] in ("generate", "describe", "caption", "evaluate"))
    own = [] if "--model" in arguments else own
    with bounded():
        status = main([*arguments, *own])
    out, err = capsys.readouterr()
    record_property("message", err.strip())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert_sentence(err.removeprefix("janusflow: ").rstrip("\n"), words)
    assert list(tmp_path.iterdir()) == []


def test_the_seeds_go_on_behind_the_last_one(capsys, tmp_path, model):
    draw = ["generate", "a heart", "--model", model, "--steps", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*draw, "--seed", str(2**64 - 1), "--num-images", "2", "--variation-seed", str(2**64 - 1)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["janusflow_0_0.png", f"janusflow_{2**64 - 1}_0.png"]
    assert main([*draw, "--seed", "0"]) == 0
    first, again = ((tmp_path / f"janusflow_0_{k}.png") for k in range(2))
    assert first.stat().st_size == again.stat().st_size


@pytest.mark.skipif(sys.platform != "linux", reason="limits what a process may have")
def test_too_little_memory_is_one_line(tmp_path):
    """The limit stands for a small machine."""
    import subprocess

    code = (
        "import resource, sys\n"
        "from janusflow_core.cli import main\n"
        "import torch, janusflow_core.pipeline\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 10**8,) * 2)\n"
        "sys.exit(main(['generate', 'a heart', '--width', '1024', '--height', '1024', '--num-images', '64',"
        " '--batch-size', '64', '--steps', '1', '--model', sys.argv[1], '--out', sys.argv[2]]))"
    )
    model = write_folder(tmp_path / "micro", micro_pipeline(new_codec(), max_position_embeddings=10**5), codec=True)
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done
    assert "there is not enough memory" in done.stderr and done.stderr.count("\n") == 1
