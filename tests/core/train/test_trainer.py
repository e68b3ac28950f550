"""A recipe at work: what learns checkpoints that are models, stops and processes that change nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import micro, write_folder
from hardness import assert_sentence
from PIL import Image
from safetensors.torch import load_file

from janusflow_core.image import open_image
from janusflow_core.model import JanusFlow
from janusflow_core.pipeline import JanusFlowPipeline
from janusflow_core.train.recipe import ALL, PARTS, DataSet, Recipe, Shown, lasting, parse_recipe, parts_named
from janusflow_core.train.trainer import RECIPE, STATE, Trainer, steps_in

pytest.importorskip("accelerate", reason="training by a recipe needs accelerate")
ROOT = Path(__file__).parents[3]
TOLD = """
mixture: [{understanding: 1, generation: 2, text: 1}]
steps: 4
batch: 8
at_once: 4
learning_rate: 1e-3
warmup: 2
length: 300
question: What is it?
precision: fp32
workers: 0
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model in the official layout, captioned pictures and texts."""
    folder = tmp_path_factory.mktemp("trainer")
    write_folder(folder / "model", micro(), codec=True)
    (folder / "data").mkdir()
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / "data" / f"{number}.png")
        (folder / "data" / f"{number}.txt").write_text(f"picture {number}")
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": f"text {number}"}) for number in range(5)))
    (folder / "mine.yaml").write_text(f"start: model\ndata: [{{path: data}}, {{path: texts.jsonl}}]\n{TOLD}")
    return folder


def recipe(place: Path, **told) -> Recipe:
    data = (DataSet(path=str(place / "data")), DataSet(path=str(place / "texts.jsonl")))
    return parse_recipe(TOLD, "x").model_copy(update={"start": str(place / "model"), "data": data, **told})


def run(place: Path, out: Path, **told) -> Trainer:
    trainer = Trainer(recipe(place, **told), out)
    trainer.run()
    return trainer


def state(out: Path) -> dict[str, torch.Tensor]:
    return load_file(steps_in(out)[-1] / STATE)


def gradients(out: Path) -> torch.Tensor:
    """What the first step found: AdamW's first momenta after it."""
    return torch.cat([value.flatten() for key, value in sorted(state(out).items()) if key.endswith(".exp_avg")])


@cache
def names() -> list[str]:
    return [name for name, _ in JanusFlow(micro().model.config, device="meta").named_parameters()]


def test_every_weight_is_of_one_part():
    assert {sum(parts_named(part)(name) for part in ALL) for name in names()} == {1} and set(PARTS) == set(ALL)


def test_a_run_learns_all_that_it_is_shown(place: Path, tmp_path: Path):
    told: list[dict[str, float]] = []
    trainer = Trainer(recipe(place, steps=40, learning_rate=3e-3), tmp_path / "run")
    trainer.run(lambda part, means: told.append(dict(means)))
    assert trainer.stage.step == len(told) == 40 and set(told[0]) == {"flow", "repa", "answer", "text"}
    first, last = ({name: np.mean([one[name] for one in some]) for name in told[0]} for some in (told[:5], told[-5:]))
    assert last["answer"] < 0.5 * first["answer"] and last["text"] < 0.5 * first["text"]
    assert last["repa"] < first["repa"] - 0.3 and last["flow"] < first["flow"]


def test_a_checkpoint_is_a_model_of_the_averaged_weights(place: Path, tmp_path: Path):
    trainer = run(place, tmp_path / "run")
    (folder,) = steps_in(tmp_path / "run")
    assert folder.name == "step_0000004" and not [*tmp_path.rglob(".partial*")]
    pipe = JanusFlowPipeline.from_pretrained(folder, dtype=torch.float32)
    for name, weight in pipe.model.named_parameters():
        assert torch.equal(weight, trainer.stage.average[f"model.{name}"].bfloat16().float()), name
    assert pipe.generate("a cat", steps=2)[0].size == (32, 32)
    told = json.loads((folder / RECIPE).read_text())
    assert told == {**trainer.recipe.model_dump(mode="json"), "bf16": False}


@pytest.mark.parametrize("train", [("aligners", "generation"), ("language",), ("understanding",)])
def test_only_the_named_parts_learn(place: Path, tmp_path: Path, train):
    before = dict(micro().model.named_parameters())
    trainer = run(place, tmp_path / "run", train=train, steps=2)
    after = dict(trainer.objective.model.named_parameters())
    learns = parts_named(*train)
    changed = {name for name in names() if not torch.equal(before[name].float(), after[name].float())}
    assert changed == {name for name in names() if learns(name)}
    head = {f"projector.{name}" for name, _ in trainer.objective.projector.named_parameters()}  # type: ignore[union-attr]
    kept = {key.removeprefix("average.") for key in state(tmp_path / "run") if key.startswith("average.")}
    assert kept == {*(f"model.{name}" for name in changed), *head}


def test_parts_can_begin_anew(place: Path, tmp_path: Path):
    trainer = Trainer(recipe(place, renew=("generation",)), tmp_path / "run")
    old, new = dict(micro().model.named_parameters()), dict(trainer.objective.model.named_parameters())
    same = {name for name in names() if torch.equal(old[name].float(), new[name].float())}
    assert not any(parts_named("generation")(name) for name in same if "norm" not in name and "bias" not in name)
    assert all(parts_named("generation")(name) for name in names() if name not in same)


def test_a_step_is_the_same_however_it_is_divided(place: Path, tmp_path: Path):
    for name, told in {"once": {"at_once": 8}, "four": {"at_once": 2}, "again": {"checkpointing": True}}.items():
        run(place, tmp_path / name, steps=1, **told)
    once = gradients(tmp_path / "once")
    for name in ("four", "again"):
        torch.testing.assert_close(gradients(tmp_path / name), once, rtol=1e-4, atol=1e-6 * float(once.abs().max()))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_latents_of_fixed_crops_are_encoded_once(place: Path, tmp_path: Path, monkeypatch, weight: float):
    """And what is kept is what was encoded: a run that finds latents ends as one that makes them."""
    repa = parse_recipe(TOLD, "x").repa.model_copy(update={"weight": weight})
    first = run(place, tmp_path / "first", crops=2, steps=8, repa=repa)
    (file,) = (tmp_path / "first" / "latents").iterdir()
    assert first.stage.step == 8 and 0 < file.stat().st_size <= 2 * 11 * 2 * (4 * 4 * 4 + 1)
    (tmp_path / "second" / "latents").mkdir(parents=True)
    (tmp_path / "second" / "latents" / file.name).write_bytes(file.read_bytes())
    again = Trainer(recipe(place, crops=2, steps=8, repa=repa), tmp_path / "second")
    monkeypatch.setattr(again.codec, "encode", lambda pixels: pytest.fail("it is known"))
    again.run()
    assert_same(tmp_path / "first", tmp_path / "second")


def test_latents_of_other_pictures_are_others(place: Path, tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    for path in (place / "data").iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    sources = (DataSet(path=str(data)), DataSet(path=str(place / "texts.jsonl")))
    for number in range(2):
        Trainer(recipe(place, crops=1, data=sources, steps=number + 1), tmp_path / "run").run()
        (data / "0.png").write_bytes((data / f"{number + 1}.png").read_bytes())
    assert len([*(tmp_path / "run" / "latents").iterdir()]) == 2


def test_the_last_checkpoints_are_kept(place: Path, tmp_path: Path):
    run(place, tmp_path / "run", steps=5, save_every=1, keep=2)
    assert [path.name for path in steps_in(tmp_path / "run")] == ["step_0000004", "step_0000005"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir() and path.name != "log") == [
        "step_0000004", "step_0000005"
    ]  # fmt: skip


def assert_same(one: Path, other: Path) -> None:
    a, b = state(one), state(other)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(place: Path, tmp_path: Path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run(place, straight, steps=6)
    trainer = Trainer(recipe(place, steps=6), stopped)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(stopped=lambda: trainer.stage.step == 3)
    assert [path.name for path in steps_in(stopped)] == ["step_0000003"]
    again = run(place, stopped, steps=6)
    assert again.stage.step == 6
    assert_same(straight, stopped)


def command(told: Path, out: Path, *before: str) -> list[str]:
    return [sys.executable, *before, "-m", "janusflow_core.cli", "train", str(told), "--out", str(out)]


ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGKILL")
def test_a_killed_run_loses_at_most_the_steps_since_its_last_checkpoint(place: Path, tmp_path: Path):
    text = (place / "mine.yaml").read_text().replace("steps: 4", "steps: 12\nsave_every: 2")
    (place / "killed.yaml").write_text(text)
    words = command(place / "killed.yaml", tmp_path / "killed")
    for least in (1, 3):
        process = subprocess.Popen(words, env=ALONE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len([*(tmp_path / "killed").glob("step_*")]) < least and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert steps_in(tmp_path / "killed")
    done = subprocess.run(words, env=ALONE, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "killed" / "step_0000012"), done.stderr
    assert not [*(tmp_path / "killed").glob(".partial*")]
    straight = command(place / "killed.yaml", tmp_path / "straight")
    subprocess.run(straight, env=ALONE, check=True, capture_output=True)
    assert_same(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.skipif(os.name == "nt", reason="gloo is not asked for there")
@pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])
def test_two_processes_find_the_gradients_of_one(place: Path, tmp_path: Path, shard: bool):
    """And write the same checkpoint, from which one process goes on."""
    run(place, tmp_path / "one", steps=1)
    name = f"two_{shard}.yaml"
    text = (place / "mine.yaml").read_text().replace("steps: 4", "steps: 1").replace("at_once: 4", "at_once: 2")
    shown = "samples: {every: 1, prompts: [a cat], pictures: [data/0.png]}"
    (place / name).write_text(f"{text}shard: {str(shard).lower()}\n{shown}\n")
    launched = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = command(place / name, tmp_path / "two", *launched)
    done = subprocess.run(words, env=ALONE, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "two" / "step_0000001"), done.stderr
    one, two = gradients(tmp_path / "one"), gradients(tmp_path / "two")
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6 * float(one.abs().max()))
    step, look = (json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines())
    assert step["step"] == look["step"] == 1 and Image.open(tmp_path / "two" / look["picture"]).size == (32, 32)
    assert run(place, tmp_path / "two", steps=2).stage.step == 2


def test_what_is_left_out_is_counted_and_named(place: Path, tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        (data / f"{number}.png").write_bytes(
            (place / "data" / f"{number}.png").read_bytes() if number else b"no picture"
        )
        (data / f"{number}.txt").write_text(f"picture {number}")
    (data / "bare.png").write_bytes(b"no picture")
    (data / "empty.png").write_bytes((place / "data" / "0.png").read_bytes())
    (data / "empty.txt").write_text("")
    (data / "lonely.txt").write_text("a text")
    sources = (DataSet(path=str(data)), DataSet(path=str(place / "texts.jsonl")))
    trainer = run(place, tmp_path / "run", data=sources, steps=3)
    assert set(trainer.problems.counts) == {"broken", "no caption", "no picture"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "left_out_0.jsonl").read_text().splitlines()]
    whats = {line["what"].split(":")[0] for line in lines}
    assert whats == {"0.png", "bare.png", "empty.png", "lonely.txt"}


def test_samples_are_drawn_and_said(place: Path, tmp_path: Path):
    shown = Shown(every=1, prompts=("a cat", "a dog"), pictures=(str(place / "data" / "0.png"),))
    trainer = Trainer(recipe(place, samples=shown, format="plain"), tmp_path / "run")
    drawn, said = trainer.look(open_image)
    assert [picture.size for picture in drawn] == [(32, 32)] * 2 and len(said) == 1 and isinstance(said[0], str)


def test_a_run_of_other_settings_is_refused(place: Path, tmp_path: Path):
    run(place, tmp_path / "run", steps=1)
    with pytest.raises(ValueError, match=r"is a run of other settings \(learning_rate 0.001, now 0.5\)") as raised:
        Trainer(recipe(place, learning_rate=0.5), tmp_path / "run")
    assert_sentence(str(raised.value))
    assert Trainer(recipe(place, steps=9, at_once=2, save_every=1), tmp_path / "run").stage.step == 1
    assert "crops" not in lasting(recipe(place))  # so that a key that is new leaves old runs alone
    assert "steps" not in lasting(recipe(place)) and "steps" in lasting(recipe(place, schedule="cosine"))


def half(place: Path) -> str:
    from janusflow_core.layout import describe_files, save_single

    pipe = micro()
    flow = JanusFlow(pipe.model.config, text=False, device="meta").state_dict()
    weights = {name: weight for name, weight in pipe.model.state_dict().items() if name in flow}
    parts = describe_files(pipe.model.config, pipe.tokenizer, pipe.image_config)
    save_single(place / "half.safetensors", weights, parts, pipe.tokenizer.json)
    return str(place / "half.safetensors")


def without_vae(place: Path) -> str:
    if not (place / "bare").exists():
        write_folder(place / "bare", micro())
    return str(place / "bare")


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (lambda place: {"start": ""}, "the recipe names no start, a checkpoint to begin with: add it, or name it with"),
        (lambda place: {"start": without_vae(place)}, "brings no VAE: name an SDXL VAE as vae in the recipe"),
        (lambda place: {"start": half(place)}, "is only a half of a JanusFlow: start from a whole one"),
        (lambda place: {"data": ()}, "the recipe names no data: add some under data, or name it with --data"),
        (lambda place: {"data": (DataSet(path=str(place / "none")),)}, "none to learn from: check the path"),
        (lambda place: {"data": (DataSet(path=str(place / "texts.jsonl")),)}, "the mixture has a share of"),
        (lambda place: {"repa": parse_recipe(TOLD + "repa: {layer: 9}", "x").repa}, "got layer 9 to align"),
        (lambda place: {"length": 10**6}, "length 1000000 is more than the 16384 tokens that the model can see"),
        (lambda place: {"batch": 7}, "a batch of 7 samples cannot be divided among 1 processes, 4 at once"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_followed_is_refused_in_a_sentence(place: Path, tmp_path: Path, told, sentence: str):
    with pytest.raises((ValueError, OSError)) as raised:
        Trainer(recipe(place, **told(place)), tmp_path / "run")
    assert sentence in str(raised.value)
    assert_sentence(str(raised.value))
