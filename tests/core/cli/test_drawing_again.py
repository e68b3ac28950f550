"""janusflow generate: every setting reaches the pipeline and the PNG, which --like draws again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_cli import CPU, DRAW, PICTURES, TINY, VAE, assert_same, origin, run

from janusflow_core.image import open_image
from janusflow_core.pipeline import JanusFlowPipeline

EVERY = {
    "negative_prompt": "blue",
    "guidance": 3.5,
    "guidance_start": 0.3,
    "guidance_end": 0.6,
    "guidance_rescale": 0.4,
    "cfg_zero_star": True,
    "solver": "dpmpp_2m",
    "shift": 2.0,
    "steps": 5,
    "variation_strength": 0.3,
    "strength": 0.9,
    "differential": True,
}


@pytest.fixture(scope="module")
def pipe() -> JanusFlowPipeline:
    return JanusFlowPipeline.from_pretrained(TINY, vae=VAE, device="cpu", dtype=torch.float32)


def options(values: dict) -> list[str]:
    """The values as a user types them; true ones are flags."""
    typed = []
    for name, value in values.items():
        typed += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return typed


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    path = tmp_path / "grey.png"
    Image.linear_gradient("L").resize((64, 48)).save(path)
    return path


def test_every_setting_reaches_the_pipeline_and_the_picture(capsys, tmp_path, pipe, grey):
    files = ["--init-image", PICTURES / "wide.png", "--mask", grey]
    given = [*DRAW[:-2], *options(EVERY), *files, "--seed", 5, 3, "--variation-seed", 9, "--out", tmp_path]
    status, printed, complaint = run(capsys, "generate", "a heart", *given)
    assert status == 0, complaint
    expected = pipe.generate(
        ["a heart"] * 2,
        width=64,
        height=48,
        seed=[5, 3],
        variation_seed=9,
        init_image=open_image(PICTURES / "wide.png"),
        mask=open_image(grey),
        **EVERY,
    )
    for row, (path, picture) in enumerate(zip(printed.splitlines(), expected, strict=True)):
        assert_same(path, picture)
        made = origin(path)
        assert {name: made[name] for name in EVERY} == EVERY
        assert (made["seed"], made["variation_seed"], made["width"], made["height"]) == ((5, 3)[row], 9 + row, 64, 48)
        assert (made["init_image"], made["mask"], made["dtype"]) == ("wide.png", "grey.png", "fp32")


def test_each_setting_changes_the_picture(capsys, tmp_path, grey):
    files = {"init_image": str(PICTURES / "wide.png"), "mask": str(grey)}
    whole = {**EVERY, **files, "variation_seed": 9}

    def drawn(values: dict) -> bytes:
        status, printed, complaint = run(capsys, "generate", "a heart", *DRAW[:-2], *options(values), "--out", tmp_path)
        assert status == 0, complaint
        with Image.open(printed.strip()) as picture:
            return picture.tobytes()

    every = drawn(whole)
    for left_out in EVERY:
        # A checkpoint's own steps and guidance are others than these.
        assert drawn({name: value for name, value in whole.items() if name != left_out}) != every, left_out


def test_like_draws_the_same_picture_again(capsys, tmp_path, grey):
    files = ["--init-image", PICTURES / "wide.png", "--mask", grey]
    place = [*CPU, "--vae", VAE, "--out"]
    given = [*options(EVERY), *files, "--seed", 8, "--variation-seed", 9, "--width", 64, "--height", 48]
    _, first, _ = run(capsys, "generate", "a heart", *given, *place, tmp_path)
    status, again, complaint = run(capsys, "generate", "--like", first.strip(), *files, *place, tmp_path / "again")
    assert status == 0, complaint
    assert_same(again.strip(), Image.open(first.strip()))
    assert origin(again.strip()) == origin(first.strip())


def test_like_changes_what_is_said_besides(capsys, tmp_path, pipe):
    _, first, _ = run(capsys, "generate", "a heart", *DRAW, "--seed", 8, "--guidance", 3, "--out", tmp_path)
    like = ["generate", "--like", first.strip(), *CPU, "--vae", VAE, "--out", tmp_path]
    _, printed, _ = run(capsys, *like, "--guidance", 0, "--num-images", 2)
    paths = printed.splitlines()
    expected = pipe.generate("a heart", num_images=2, width=64, height=48, steps=2, guidance=0.0, seed=8)
    for path, picture in zip(paths, expected, strict=True):
        assert_same(path, picture)
    assert [origin(path)["seed"] for path in paths] == [8, 9] and origin(paths[0])["guidance"] == 0
    _, other, _ = run(capsys, *like, "a star", "--seed", 0)
    assert_same(other.strip(), pipe.generate("a star", width=64, height=48, steps=2, guidance=3.0, seed=0)[0])


def with_origin(path: Path, text: str, key: str = "janusflow") -> Path:
    info = PngInfo()
    info.add_text(key, text)
    Image.new("RGB", (32, 16)).save(path, pnginfo=info)
    return path


def test_an_older_picture_is_drawn_at_its_own_size(capsys, tmp_path):
    made = {"prompt": "a heart", "seed": 1, "steps": 1, "guidance": 2, "solver": "euler", "model": "tiny"}
    old = with_origin(tmp_path / "old.png", json.dumps({**made, "unheard_of": 3}))
    status, printed, complaint = run(capsys, "generate", "--like", old, *CPU, "--vae", VAE, "--out", tmp_path)
    assert status == 0, complaint
    with Image.open(printed.strip()) as picture:
        assert picture.size == (32, 16)


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        (None, "does not say how janusflow drew it: it was changed, or made elsewhere"),
        ("workflow", "drop it on ComfyUI's canvas"),
        ("{", "is damaged"),
        ("[1]", "is damaged"),
        ('{"seed": 1}', "lacks prompt"),
        ('{"prompt": "a heart", "steps": "many"}', "steps in"),
        ('{"prompt": "a heart", "init_image": "cat.png"}', "drawn with cat.png: say where that is with --init-image"),
        ('{"prompt": "a heart", "mask": "cat.png"}', "say where that is with --mask"),
        ('{"prompt": "a heart", "lora": ["mine.safetensors:0.5"]}', "the LoRA mine.safetensors:0.5: say where"),
        ('{"prompt": "a heart", "solver": "rk45"}', "'rk45' is unknown"),
        ('{"prompt": "a heart", "dtype": "fp16"}', "dtype in"),
        ('{"prompt": "a heart", "lora": ["/tmp/mine.safetensors"]}', "the LoRA mine.safetensors: say where"),
    ],
)
def test_pictures_that_cannot_be_drawn_again(capsys, tmp_path, origin, told):
    path = tmp_path / "some.png"
    if origin is None:
        Image.new("RGB", (32, 16)).save(path)
    else:
        with_origin(path, origin, "workflow" if origin == "workflow" else "janusflow")
    status, printed, complaint = run(capsys, "generate", "--like", path, *CPU, "--vae", VAE, "--out", tmp_path)
    assert (status, printed) == (2, "") and told in complaint and complaint.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["some.png"]


def test_a_picture_of_another_model_asks_for_it(capsys, tmp_path):
    path = with_origin(tmp_path / "some.png", '{"prompt": "a heart", "model": "mine.safetensors"}')
    status, _, complaint = run(capsys, "generate", "--like", path)
    assert status == 2 and "was drawn by mine.safetensors: say where that is with --model" in complaint
    status, _, complaint = run(capsys, "generate", "--like", PICTURES.parent / "README.md")
    assert status == 2 and "is no picture that can be read" in complaint


def test_lists_of_prompts_wildcards_and_batches(capsys, tmp_path, pipe):
    (tmp_path / "color.txt").write_text("red\nblue\ngreen\n")
    (tmp_path / "prompts.txt").write_text("# mine\na __color__ {circle|star}\n")
    lists = ["--prompts", tmp_path / "prompts.txt", "--wildcards", tmp_path]
    given = ["a heart", *lists, "--num-images", 5, "--batch-size", 3, "--seed", 2, "--out", tmp_path]
    status, printed, complaint = run(capsys, "generate", *DRAW, *given)
    assert status == 0, complaint
    made = [origin(path) for path in printed.splitlines()]
    assert [one["seed"] for one in made] == list(range(2, 12)) and {one["prompt"] for one in made[:5]} == {"a heart"}
    chosen = [one["prompt"].split() for one in made[5:]]
    assert len({*map(tuple, chosen)}) > 1
    assert all(color in ("red", "blue", "green") and shape in ("circle", "star") for _, color, shape in chosen)
    for row in (0, 4, 9):
        expected = pipe.generate(made[row]["prompt"], seed=2 + row, width=64, height=48, steps=2)[0]
        with Image.open(printed.splitlines()[row]) as found:
            assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1


def test_seeds_count_on_from_batch_to_batch(capsys, tmp_path):
    given = ["a heart", *DRAW, "--num-images", 3, "--seed", 4, "--variation-seed", 9, "--variation-strength", 0.5]
    drawn = []
    for size in (3, 1):
        status, printed, complaint = run(
            capsys, "generate", *given, "--batch-size", size, "--out", tmp_path / str(size)
        )
        assert status == 0, complaint
        drawn.append(printed.splitlines())
    for together, alone in zip(*drawn, strict=True):
        assert origin(together) == origin(alone)
        first, second = (np.asarray(Image.open(path), dtype=int) for path in (together, alone))
        assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--seed", "1", "2", "--num-images", "3"], "got 2 seeds for 3 pictures of a prompt"),
        (["--num-images", "0"], "got --num-images 0, expected at least 1"),
        (["--batch-size", "0"], "got --batch-size 0, expected at least 1"),
        (["--guidance-start", "0.8", "--guidance-end", "0.2"], "got 0.8 and 0.2"),
        (["--guidance-rescale", "2"], "must lie in [0, 1], got 2.0"),
        (["--shift", "0"], "shift must be a number above 0"),
        (["--variation-strength", "2"], "strength of a variation must lie in [0, 1], got 2.0"),
        (["--mask", str(PICTURES / "wide.png")], "without --init-image"),
        (["--prompts", "no-such.txt"], "no-such.txt"),
    ],
)
def test_bad_settings_are_refused_in_one_line(capsys, tmp_path, given, told):
    status, printed, complaint = run(capsys, "generate", "a heart", *DRAW, *given, "--out", tmp_path / "new")
    assert (status, printed) == (2, "") and told in complaint and complaint.count("\n") == 1
