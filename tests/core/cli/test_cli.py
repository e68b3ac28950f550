"""The commands as a user types them, on the golden model: what they write, print and refuse."""

import _thread
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
import tqdm
from PIL import Image

from janusflow_core import __version__
from janusflow_core.adapters import Adapter
from janusflow_core.checkpoint import open_checkpoint
from janusflow_core.cli import main, parse
from janusflow_core.cli.loading import path_and_strength
from janusflow_core.decoding import AT_MOST
from janusflow_core.image import open_image
from janusflow_core.lora import lora_path, save_lora
from janusflow_core.pipeline import JanusFlowPipeline

GOLDEN = Path(__file__).parents[2] / "golden"
FOLDERS = tempfile.TemporaryDirectory()  # for as long as the tests run
TINY = golden.write_folder(Path(FOLDERS.name) / "tiny", golden.pipeline())
VAE = golden.write_folder(Path(FOLDERS.name) / "with_vae", golden.pipeline(), codec=True) / "vae"
PICTURES = GOLDEN / "images"
CPU = ["--model", str(TINY), "--device", "cpu", "--dtype", "fp32"]
DRAW = [*CPU, "--vae", str(VAE), "--width", "64", "--height", "48", "--steps", "2"]
SAY = [*CPU, "--max-new-tokens", "6"]
PROMPTS = ["a red circle", "zwölf Kreise 红"]


@pytest.fixture(scope="module")
def pipe() -> JanusFlowPipeline:
    return JanusFlowPipeline.from_pretrained(TINY, vae=VAE, device="cpu", dtype=torch.float32)


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def in_a_process(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(GOLDEN.parents[1]), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=cwd, env=env, check=False)


def origin(path: str | Path) -> dict:
    """How a picture was made; its only text, so that ComfyUI does not take it for a workflow of its own."""
    with Image.open(path) as found:
        assert set(found.text) == {"janusflow"}
        return json.loads(found.text["janusflow"])


def assert_same(path: str | Path, picture: Image.Image) -> None:
    with Image.open(path) as found:
        assert found.size == picture.size and found.tobytes() == picture.tobytes()


# --- generate ---------------------------------------------------------------------------------------------------


def test_pictures_are_the_pipelines_and_know_their_origin(capsys, tmp_path, pipe):
    out = tmp_path / "new" / "folder"
    status, printed, _ = run(capsys, "generate", *PROMPTS, *DRAW, "--num-images", 2, "--seed", 7, "--out", out)
    paths = [Path(line) for line in printed.splitlines()]
    assert status == 0 and paths == [out / f"janusflow_{7 + k}_0.png" for k in range(4)] and len([*out.iterdir()]) == 4
    expected = pipe.generate(PROMPTS, width=64, height=48, steps=2, seed=7, num_images=2)
    for row, (path, picture) in enumerate(zip(paths, expected, strict=True)):
        assert_same(path, picture)
        assert origin(path) == {
            "prompt": PROMPTS[row // 2], "seed": 7 + row, "width": 64, "height": 48, "steps": 2, "guidance": 2.0,
            "guidance_start": 0.0, "guidance_end": 1.0, "guidance_rescale": 0.0, "cfg_zero_star": False,
            "solver": "euler", "shift": 1.0, "variation_strength": 0.0, "model": "tiny", "dtype": "fp32",
            "version": f"janusflow {__version__}"}  # fmt: skip


def test_the_origin_names_the_checkpoints_own_settings(capsys, tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny")
    (tmp_path / "tiny" / "drawing_config.json").write_text('{"steps": 1, "guidance": 4.5}')
    run(capsys, "generate", "a heart", "--model", tmp_path / "tiny", *DRAW[2:-2], "--out", tmp_path)
    made = origin(tmp_path / "janusflow_0_0.png")
    assert (made["steps"], made["guidance"]) == (1, 4.5)


def test_the_origin_makes_the_picture_again(capsys, tmp_path):
    run(capsys, "generate", "a heart", *DRAW, "--num-images", 2, "--guidance", 3, "--solver", "heun", "--out", tmp_path)
    made = origin(tmp_path / "janusflow_1_0.png")
    options = [part for name in ("seed", "steps", "guidance", "solver") for part in (f"--{name}", made[name])]
    run(capsys, "generate", made["prompt"], *DRAW, *options, "--out", tmp_path / "again")
    second, again = (Image.open(folder / "janusflow_1_0.png") for folder in (tmp_path, tmp_path / "again"))
    difference = np.asarray(again, dtype=int) - np.asarray(second, dtype=int)
    assert np.abs(difference).max() <= 1  # a batch of another size adds up in another order


def test_no_picture_is_overwritten(capsys, tmp_path):
    (tmp_path / "janusflow_0_1.png").write_text("mine")
    for _ in range(2):
        assert run(capsys, "generate", "a heart", *DRAW, "--out", tmp_path)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"janusflow_0_{k}.png" for k in range(3)]
    assert (tmp_path / "janusflow_0_1.png").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="Windows sets no limits to files")
def test_a_full_disk_ends_in_one_line(tmp_path):
    """A limit on the size of files stands for the full disk; 512 or 1024 bytes are less than a picture."""
    draw = [sys.executable, "-B", "-m", "janusflow_core.cli", "generate", "a heart", "--steps", "1", "--out", tmp_path]
    limited = ["sh", "-c", 'ulimit -f 1; exec "$0" "$@"', *draw]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and list(tmp_path.iterdir()) == [], done
    assert done.stderr.startswith(f"janusflow: nothing can be written to {tmp_path} (") and done.stderr.count("\n") == 1


def test_loras_have_their_strengths(capsys, tmp_path):
    layer = "language_model.model.layers.0.mlp.up_proj.weight"
    shape = golden.pipeline().model.get_parameter(layer).shape
    torch.manual_seed(0)
    file = tmp_path / "a:b.safetensors"
    save_lora(file, {layer: Adapter(torch.randn(2, shape[1]), torch.randn(shape[0], 2), 0.1)}, {})
    loras = ["--lora", f"{file}:0.5", "--lora", file]
    status, printed, _ = run(capsys, "generate", "a heart", *DRAW, *loras, "--out", tmp_path)
    changed = JanusFlowPipeline.from_pretrained(
        TINY, vae=VAE, device="cpu", dtype=torch.float32, loras=[(file, 0.5), (file, 1.0)]
    )
    (expected,) = changed.generate("a heart", width=64, height=48, steps=2)
    assert_same(printed.strip(), expected)
    assert status == 0 and origin(printed.strip())["lora"] == ["a:b.safetensors:0.5", "a:b.safetensors"]
    for given, told in ((f"{file}:strong", "expected a number"), ("gone:2", "no LoRA at gone:2"), ("gone", "at gone")):
        status, _, error = run(capsys, "describe", PICTURES / "bilevel.png", *SAY, "--lora", given)
        assert status == 2 and told in error and error.count("\n") == 1


def test_a_lora_that_ships_is_called_by_its_name():
    name = Path("janusflow-tiny-crescent")
    assert path_and_strength(f"{name}:-0.5") == (name, -0.5) and path_and_strength(str(name)) == (name, 1.0)
    assert lora_path(name).is_file() and lora_path(f"elsewhere/{name}") == Path("elsewhere") / name


def test_start_picture_mask_and_negative_prompt_reach_the_pipeline(capsys, tmp_path, pipe):
    start, mask = PICTURES / "wide.png", tmp_path / "mask.png"
    Image.linear_gradient("L").resize((64, 48)).save(mask)
    options = ["--init-image", start, "--mask", mask, "--strength", 0.5, "--negative-prompt", "None"]
    status, printed, _ = run(capsys, "generate", "a heart", *DRAW, *options, "--out", tmp_path)
    (expected,) = pipe.generate(
        "a heart",
        negative_prompt="None",
        width=64,
        height=48,
        steps=2,
        strength=0.5,
        init_image=open_image(start),
        mask=open_image(mask),
    )
    assert status == 0
    assert_same(printed.strip(), expected)
    made = origin(printed.strip())
    assert [made[name] for name in ("init_image", "mask", "strength")] == ["wide.png", "mask.png", 0.5]


def test_the_best_of_some_is_kept_and_remembers_its_own_seed(capsys, tmp_path, pipe):
    prompts, how = ["a heart", "a {cat|dog|hat}"], ["--best-of", 3, "--seed", 11, "--batch-size", 4]
    status, printed, _ = run(capsys, "generate", *prompts, *DRAW, *how, "--out", tmp_path)
    lines = [line.split("\t") for line in printed.splitlines()]
    assert status == 0 and len(lines) == 2
    for row, (path, score) in enumerate(lines):
        made = origin(path)
        assert made["seed"] in range(11 + 3 * row, 14 + 3 * row) and "{" not in made["prompt"]
        scores = []
        for seed in range(11 + 3 * row, 14 + 3 * row):
            _, alone, _ = run(capsys, "generate", made["prompt"], *DRAW, "--seed", seed, "--out", tmp_path / "alone")
            scores.append(pipe.score(open_image(alone.strip()), made["prompt"]))
            if seed == made["seed"]:
                assert open_image(alone.strip()).tobytes() == open_image(path).tobytes()
        assert float(score) == pytest.approx(max(scores), abs=1e-3)
        assert scores[made["seed"] - 11 - 3 * row] == max(scores)


# --- describe ---------------------------------------------------------------------------------------------------


def test_one_answer_is_the_pipelines(capsys, pipe):
    path = PICTURES / "wide.png"
    status, printed, _ = run(capsys, "describe", path, *SAY, "--question", "What is this?")
    expected = pipe.describe(open_image(path), "What is this?", max_new_tokens=6)
    assert (status, printed.strip()) == (0, expected) and printed.endswith("\n")


def test_drawn_words_are_the_pipelines(capsys, pipe):
    options = {"temperature": 0.9, "top_p": 0.8, "seed": 5}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    _, printed, _ = run(capsys, "describe", PICTURES / "gray.png", *SAY, *flags)
    assert printed.strip() == pipe.describe(open_image(PICTURES / "gray.png"), max_new_tokens=6, **options)


def test_several_pictures_give_a_table(capsys, pipe):
    paths = [PICTURES / "wide.png", PICTURES / "rgba.png"]
    status, printed, _ = run(capsys, "describe", *paths, *SAY)
    answers = [" ".join(pipe.describe(open_image(path), max_new_tokens=6).split()) for path in paths]
    assert status == 0
    assert printed.splitlines() == [f"{path}\t{answer}" for path, answer in zip(paths, answers, strict=True)]


def test_more_pictures_than_a_batch_holds_keep_their_order_and_their_luck(capsys, pipe):
    paths = ([PICTURES / "wide.png", PICTURES / "rgba.png"] * AT_MOST)[: AT_MOST + 2]
    free = {"temperature": 2.0, "seed": 3}
    status, printed, _ = run(capsys, "describe", *paths, *SAY, "--temperature", "2", "--seed", "3")
    answers = [" ".join(pipe.describe(open_image(path), max_new_tokens=6, **free).split()) for path in paths[:2]]
    assert status == 0 and answers[0] != answers[1]
    expected = (answers * AT_MOST)[: AT_MOST + 2]
    assert printed.splitlines() == [f"{path}\t{answer}" for path, answer in zip(paths, expected, strict=True)]


def test_pictures_together_are_one_question(capsys, pipe):
    paths = [PICTURES / "wide.png", PICTURES / "rgba.png"]
    _, printed, _ = run(capsys, "describe", *paths, *SAY, "--together")
    assert printed.strip() == pipe.describe(paths, together=True, max_new_tokens=6)


def test_what_is_no_picture_is_named_and_skipped(capsys, tmp_path):
    good, (bad, none) = PICTURES / "wide.png", (tmp_path / "bad.png", tmp_path / "none.png")
    bad.write_text("no picture")
    status, printed, complaint = run(capsys, "describe", bad, good, none, good, *SAY)
    assert status == 1 and [line.split("\t")[0] for line in printed.splitlines()] == [str(good)] * 2
    assert [line.startswith("janusflow: ") for line in complaint.splitlines()] == [True, True]
    assert str(bad) in complaint and str(none) in complaint


def test_choices_come_with_their_chances_for_programs_and_for_people(capsys, pipe):
    paths, options = [PICTURES / "wide.png", PICTURES / "rgba.png"], ["yes", "no", "a heart"]
    asked = ["describe", *paths, *SAY, "--question", "Is it?", "--choices", "yes,no, a heart"]
    expected = pipe.choose([open_image(path) for path in paths], "Is it?", options)
    status, printed, _ = run(capsys, *asked, "--json")
    rows = [json.loads(line) for line in printed.splitlines()]
    assert status == 0 and [list(row) for row in rows] == [["picture", "answer", "probabilities"]] * 2
    for row, path, choice in zip(rows, paths, expected, strict=True):
        assert (row["picture"], row["answer"]) == (str(path), choice.answer)
        assert row["probabilities"] == pytest.approx(choice.probabilities, abs=1e-5)
    _, printed, _ = run(capsys, *asked)
    chances = [choice.probabilities[choice.answer] for choice in expected]
    lines = [f"{path}\t{one.answer}\t{chance:.4f}" for path, one, chance in zip(paths, expected, chances, strict=True)]
    assert printed.splitlines() == lines
    _, printed, _ = run(capsys, *asked, "--json", "--together")
    assert json.loads(printed)["pictures"] == [str(path) for path in paths]


def test_a_schema_makes_json_and_any_answer_can_be_told_as_json(capsys, pipe, tmp_path):
    path, schema = PICTURES / "wide.png", {"enum": ["red", {"a": 1}, None]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    asked = ["describe", path, *SAY, "--question", "What?"]
    expected = pipe.structured(open_image(path), "What?", schema)
    _, printed, _ = run(capsys, *asked, "--schema", tmp_path / "schema.json", "--json")
    assert json.loads(printed) == {"picture": str(path), "answer": expected}
    _, printed, _ = run(capsys, *asked, "--json")
    words = pipe.describe(open_image(path), "What?", max_new_tokens=6)
    assert json.loads(printed) == {"picture": str(path), "answer": words}


# --- convert ----------------------------------------------------------------------------------------------------


def test_folder_to_file_and_back_keeps_every_weight(capsys, tmp_path):
    single, folder = tmp_path / "tiny.safetensors", tmp_path / "again"
    status, printed, _ = run(capsys, "convert", TINY, single, "--vae", VAE)
    assert status == 0 and str(single) in printed and f"{single.stat().st_size / 1e6:,.1f} MB" in printed
    assert run(capsys, "convert", single, folder)[0] == 0
    before, after = open_checkpoint(TINY), open_checkpoint(folder)
    assert before.config == after.config and after.vae_weights is not None and len(list(after.weights)) > 100
    assert all(torch.equal(before.weights.read(key), after.weights.read(key)) for key in after.weights)
    own_vae = ["--model", single, "--width", 64, "--height", 48, "--steps", 1, "--out", tmp_path]
    assert run(capsys, "generate", "a heart", *own_vae)[0] == 0


def test_weights_are_cast(capsys, tmp_path):
    assert run(capsys, "convert", TINY, tmp_path / "half.safetensors", "--dtype", "bf16")[0] == 0
    weights = open_checkpoint(tmp_path / "half.safetensors").weights
    assert weights.read("vision_gen_dec_aligner.weight").dtype == torch.bfloat16


def test_layers_are_quantised(capsys, tmp_path):
    status, printed, _ = run(capsys, "convert", TINY, tmp_path / "small.safetensors", "--quantize", "int8")
    assert status == 0 and "the same but for the layers, which are in int8 now" in printed
    with_vae = ["--model", tmp_path / "small.safetensors", "--vae", VAE, "--width", 64, "--height", 48]
    assert run(capsys, "generate", "a heart", *with_vae, "--steps", 1, "--out", tmp_path)[0] == 0
    weights = open_checkpoint(tmp_path / "small.safetensors").weights
    assert weights.is_quantized("language_model.model.layers.0.mlp.up_proj.weight")


# --- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "told"), [
    (["generate", *DRAW], "no prompt"),
    (["generate", "a heart", " ", *DRAW], "an empty one"),
    (["generate", "a heart", *DRAW, "--width", "50"], "multiple of 16"),
    (["generate", "a heart", *DRAW, "--steps", "0"], "steps must be at least 1"),
    (["generate", "a heart", *DRAW, "--strength", "0.5"], "--init-image"),
    (["generate", "a heart", *DRAW, "--device", "cuba"], "try cpu"),
    (["generate", "a heart", *CPU], "no VAE"),
    (["generate", "a heart", *DRAW, "--best-of", "0"], "got --best-of 0, expected at least 1"),
    (["generate", "a heart", *DRAW, "--best-of", "2", "--seed", "1", "2"], "give one seed"),
    (["sweep", "a heart", *DRAW, "--best-of", "2"], "leave it out"),
    (["generate", "a heart", "--model", "no-such-model"], "no-such-model"),
    (["describe", *SAY], "no picture"),
    (["describe", "no-such.png", *SAY], "no-such.png"),
    (["describe", "no-such.png", "neither.png", *SAY], "no-such.png"),
    (["describe", str(PICTURES), *SAY], "is a folder: name its pictures"),
    (["describe", str(PICTURES / "*.jpeg"), *SAY], "leave the quotes away"),
    (["describe", str(PICTURES / "wide.png"), *SAY, "--question", " "], "the question is empty"),
    (["describe", str(TINY / "config.json"), *SAY], "config.json"),
    (["describe", str(PICTURES / "wide.png"), *SAY, "--choices", "a,,b"], "options must be different texts"),
    (["describe", str(PICTURES / "wide.png"), *SAY, "--choices", "a", "--schema", "x"], "leave one out"),
    (["describe", str(PICTURES / "wide.png"), *SAY, "--schema", "no-such.json"], "no-such.json"),
    (["convert", str(VAE), "x.safetensors"], "config.json"),
    (["convert", str(TINY), str(PICTURES)], "exists already"),
    (["convert", str(TINY), "x.ckpt"], ".safetensors"),
    (["convert", str(TINY), "x", "--quantize", "fp8"], "quantised layers go into one file only"),
    (["demo", "--comfyui", "no-such-folder"], ""),
])  # fmt: skip
def test_an_error_is_one_line_and_status_2(capsys, monkeypatch, tmp_path, arguments, told):
    monkeypatch.chdir(tmp_path)
    status, printed, complaint = run(capsys, *arguments)
    assert (status, printed) == (2, "") and told in complaint
    assert complaint.startswith("janusflow: ") and complaint.count("\n") == 1 and "Traceback" not in complaint
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_option_is_refused_by_name(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", "a heart", "--step", "3"])
    assert ended.value.code == 2 and "--steps" in capsys.readouterr().err


def test_without_tyro_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    status, _, complaint = run(capsys, "--help")
    assert status == 2 and 'pip install "tyro>=1.0"' in complaint


def interrupt_while(function: str) -> None:
    """Press Ctrl-C once the main thread is inside `function`: a library being imported might swallow it."""
    names: list[str] = []
    while function not in names:
        time.sleep(0.05)
        frame, names = sys._current_frames()[threading.main_thread().ident], []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
    _thread.interrupt_main()


@pytest.mark.skipif(os.name == "nt", reason="interrupts the main thread as Ctrl-C does on POSIX")
def test_control_c_ends_with_130_and_leaves_no_picture(capsys, tmp_path):
    # A shell that starts the tests in the background makes them deaf to it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    presser = threading.Thread(target=interrupt_while, args=["integrate"], daemon=True)
    presser.start()
    assert run(capsys, "generate", "a heart", *DRAW, "--steps", 1_000_000, "--out", tmp_path)[0] == 130
    presser.join()
    signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []


# --- train ------------------------------------------------------------------------------------------------------


def test_training_has_a_budget_and_a_start():
    command = parse(["train", "tiny", "--minutes", "2.5", "--from", "a.safetensors"])
    recipe = command.recipe
    assert (recipe.minutes, recipe.start, recipe.out) == (2.5, Path("a.safetensors"), Path("runs/tiny"))


def test_training_without_time_is_refused(capsys, tmp_path):
    status, _, complaint = run(capsys, "train", "tiny", "--no-eyes", "--out", tmp_path / "out")
    assert status == 2 and "name the checkpoint with --from" in complaint and not (tmp_path / "out").exists()
    status, _, complaint = run(capsys, "train", "tiny", "--rate", 1.5, "--out", tmp_path / "out")
    assert status == 2 and "got --rate 1.5" in complaint and not (tmp_path / "out").exists()
    status, _, complaint = run(capsys, "train", "tiny", "--minutes", 0, "--out", tmp_path / "out")
    assert status == 2 and "--minutes 0" in complaint and not (tmp_path / "out").exists()


class Terminal(io.StringIO):
    """A stderr that somebody looks at."""

    def isatty(self) -> bool:
        return True


class EveryStep(tqdm.tqdm):
    """A bar that leaves out no step, however fast they come."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, mininterval=0, **options)


@pytest.mark.parametrize(("arguments", "shown"), [
    (["generate", "a heart", *DRAW], ["loading", "drawing", "2/2"]),
    (["describe", str(PICTURES / "wide.png"), str(PICTURES / "gray.png"), *SAY], ["loading", "2/2"]),
    (["convert", str(TINY), "single.safetensors"], ["converting", "100%"]),
    (["doctor", "--model", str(TINY)], ["looking around"]),
])  # fmt: skip
def test_what_takes_longer_is_seen_on_a_terminal(monkeypatch, tmp_path, arguments, shown):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", seen := Terminal())
    monkeypatch.setattr(tqdm, "tqdm", EveryStep)
    main(arguments)
    assert all(part in seen.getvalue() for part in shown)


def test_the_version_is_told(capsys):
    assert run(capsys, "--version") == (0, f"janusflow {__version__}\n", "")


# --- as a program -----------------------------------------------------------------------------------------------


def test_help_comes_at_once_and_without_torch():
    code = (
        "import sys, janusflow_core.cli as cli\ntry: cli.main(['generate', '--help'])\n"
        "finally: print('loaded:', [name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    begun = time.monotonic()
    done = in_a_process("-c", code)
    assert time.monotonic() - begun < 3
    assert "--negative-prompt" in done.stdout and done.stdout.endswith("loaded: []\n")


def test_the_program_prints_paths_only(tmp_path, pipe):
    done = in_a_process("-m", "janusflow_core.cli", "generate", PROMPTS[1], *DRAW, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "janusflow_0_0.png\n") and "Traceback" not in done.stderr
    assert_same(tmp_path / "janusflow_0_0.png", pipe.generate(PROMPTS[1], width=64, height=48, steps=2)[0])


def test_the_program_fails_without_a_traceback(tmp_path):
    done = in_a_process("-m", "janusflow_core.cli", "describe", "no-such.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "janusflow: no picture at no-such.png: check the path\n"
