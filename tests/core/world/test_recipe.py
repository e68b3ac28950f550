"""The recipe of the embedded model: its parts one by one, then all stages for a few steps."""

import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import golden
import psutil
import pytest
import torch
from safetensors.torch import load_file

from janusflow_core import JanusFlowPipeline
from janusflow_core.checkpoint import load_model, open_checkpoint
from janusflow_core.train.ahead import ahead
from janusflow_core.train.machine import Machine
from janusflow_core.world import codec, eyes, lessons, library, recipe, talk
from janusflow_core.world.scenes import COLORS, FRAME, SHAPES, Object, Scene, is_held_out


@pytest.fixture(scope="module")
def tokenizer():
    return recipe.build_tokenizer()


def test_tokenizer_reads_any_text_and_fits_the_model(tokenizer):
    assert tokenizer.vocab_size <= recipe.config().language.vocab_size
    assert tokenizer.decode(tokenizer.encode("Größe 你好 \n x")) == "Größe 你好 \n x"
    assert len(tokenizer.encode("a red circle left of a blue square", bos=False)) == 8  # a word is a token


def test_both_encoders_give_the_same_grid():
    config = recipe.config()
    assert config.vision.grid == FRAME // 16 == 6


def test_the_world_is_what_training_may_see():
    scenes = library.draw_scenes(5, 300)
    assert not any(is_held_out(scene) for scene in scenes)
    assert scenes == library.draw_scenes(5, 300) != library.draw_scenes(6, 300)


def test_rendered_scenes_span_minus_one_to_one():
    pixels = library.pictures(library.draw_scenes(0, 20))
    assert pixels.shape == (20, 3, 96, 96)
    assert -1 <= pixels.min() < -0.7 and 0.7 < pixels.max() <= 1


def test_crops_are_cut_from_their_own_picture():
    pixels = torch.arange(2 * 3 * 9 * 9.0).view(2, 3, 9, 9)
    cut = codec.crops(pixels, 4, torch.Generator().manual_seed(1))
    assert cut.shape == (2, 3, 4, 4)
    for picture, piece in zip(pixels, cut, strict=True):
        assert torch.isin(piece, picture).all()
        assert (piece[0, 1] - piece[0, 0] == 9).all()


def test_patch_labels_name_what_lies_there_and_its_middle():
    scene = Scene((250, 250, 250), (Object("star", "blue", 24.0, 72.0, 14.0, (35, 70, 215)),))
    what, center = (part.unflatten(1, (6, 6))[0] for part in eyes.patch_labels([scene]))
    expected = 1 + list(COLORS).index("blue") * len(SHAPES) + SHAPES.index("star")
    assert what[4, 1] == expected and what[0, 5] == 0
    assert center[4, 1].tolist() == [1.5, 4.5] and center[0, 5].tolist() == [0.0, 0.0]  # in patches


def test_what_eyes_are_taught_costs_nothing_when_told_right():
    """A head that says kind, row, column and middle of each patch; each wrong one shows in its own loss only."""
    what, center = eyes.patch_labels(library.draw_scenes(4, 3))
    at, one_hot = torch.arange(36), torch.nn.functional.one_hot
    parts = {
        "what": one_hot(what, eyes.KINDS),
        "row": one_hot(at // 6, 6).expand(3, 36, 6),
        "column": one_hot(at % 6, 6).expand(3, 36, 6),
    }
    right = {**{name: 50.0 * part for name, part in parts.items()}, "center": center}
    told = eyes.sight_losses(torch.cat([*right.values()], dim=-1), what, center)
    assert all(loss.shape == (3, 36) and loss.max() < 1e-6 for loss in told.values())
    for wrong in right:
        mixed = {name: value.roll(1, dims=-1) if name == wrong else value for name, value in right.items()}
        told = eyes.sight_losses(torch.cat([*mixed.values()], dim=-1), what, center)
        assert {name for name, loss in told.items() if loss.max() > 0.01} == {wrong}


def test_normalising_latents_keeps_pictures_and_gives_unit_scale():
    torch.manual_seed(0)
    vae = codec.autoencoder().eval()
    x = library.pictures(library.draw_scenes(0, 4))
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mean).sample
        codec.normalise_latents(vae, x)
        latents = vae.encode(x).latent_dist.mean
        after = vae.decode(latents).sample
    scaled = latents * codec.VAE.scaling_factor
    assert (scaled.mean(dim=(0, 2, 3)).abs() < 1e-3).all() and (scaled.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3
    assert (after - before).abs().max() < 1e-3


def test_a_preview_shows_latents_in_their_colors():
    """On the bundled VAE: what is drawn comes out in its color, which no linear map of four channels can do."""
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny", device="cpu", dtype=torch.float32)
    x = library.pictures(library.draw_scenes(3, 40))
    shown = pipe.drawing.preview.decode(pipe.codec.encode((x + 1) / 2))
    colors = torch.nn.functional.avg_pool2d(x, 8)
    assert (shown - colors).square().mean().sqrt() < 0.1 < colors.std()


@pytest.mark.parametrize("processes", [1, 2])
def test_all_stages_run_and_leave_a_checkpoint_that_loads(tmp_path, processes):
    path = recipe.train(tmp_path, minutes=0.05, processes=processes)
    assert open_checkpoint(path).has_flow and open_checkpoint(path).has_text
    pipe = JanusFlowPipeline.from_pretrained(path, device="cpu", dtype=torch.float32)
    assert (pipe.drawing.guidance, pipe.drawing.solver) == (3.0, "renoise") and pipe.drawing.preview is not None
    assert pipe.generate("a heart", steps=2)[0].size == (96, 96)
    assert isinstance(pipe.describe(pipe.generate("a heart", steps=1)[0], max_new_tokens=3), str)
    changed = path.stat().st_mtime_ns
    assert recipe.train(tmp_path, minutes=0.05).stat().st_mtime_ns == changed  # what is done is not done again
    assert not list(tmp_path.rglob("*partial*"))


def noted(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Any]:
    """What makes the steps of a stage, as the stage begins."""
    makers: list[Any] = []

    def note(make: Any, *rest: Any) -> Any:
        makers.append(make)
        return ahead(make, *rest)

    monkeypatch.setattr(module, "ahead", note)
    return makers


def last_stage_changed(before: dict, after: dict) -> bool:
    """Whether the last stage changed anything in a checkpoint: of few steps only small weights show it in bfloat16."""
    return any(
        not torch.equal(weight, after[name])
        for name, weight in before.items()
        if not name.startswith("vision_und_enc_model.")
    )


def test_training_goes_on_from_a_checkpoint_whose_vae_stays(tmp_path, monkeypatch):
    before = JanusFlowPipeline.from_pretrained("janusflow-tiny", device="cpu", dtype=torch.float32)
    sights, written = noted(monkeypatch, eyes), noted(monkeypatch, recipe)
    path = recipe.train(tmp_path, minutes=0.05, start="janusflow-tiny", processes=1)
    after = JanusFlowPipeline.from_pretrained(path, device="cpu", dtype=torch.float32)
    one, other = (pipe.codec.vae.state_dict() for pipe in (before, after))
    assert all(torch.equal(one[key], other[key]) for key in one)
    eyes_of = "vision_und_enc_model.vision_tower.blocks.0.mlp.fc1.weight"
    # Of few steps the average in bfloat16 may not tell: the state holds all digits of the last one.
    drawn, state = "vision_gen_dec_aligner.weight", load_file(tmp_path / "joint.state.safetensors")
    for name, now in ((drawn, state[f"trained.{drawn}"]), (eyes_of, after.model.state_dict()[eyes_of])):
        moved = before.model.state_dict()[name].flatten(), now.flatten()
        assert not torch.equal(*moved) and torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.9, name
    stored = before.model.state_dict()[drawn].flatten(), after.model.state_dict()[drawn].flatten()
    assert torch.nn.functional.cosine_similarity(*stored, dim=0) > 0.9
    assert last_stage_changed(before.model.state_dict(), after.model.state_dict())
    # Both stages see what follows from the weights that they began with, not again what made those.
    model = before.model
    assert [one.seed for one in sights] == [f"1000000/{library.fingerprint(model.vision_und_enc_model)}"]
    model.vision_und_enc_model.load_state_dict(load_file(tmp_path / "eyes.safetensors"))
    assert [one.seed for one in written] == [f"3000000/{library.fingerprint(model)}"]


def test_eyes_that_see_well_enough_are_left_alone(tmp_path):
    path = recipe.train(tmp_path, minutes=0.05, start="janusflow-tiny", processes=1, eyes=False)
    before, after = (load_model(open_checkpoint(name)).state_dict() for name in ("janusflow-tiny", path))
    same = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert same >= {name for name in before if name.startswith("vision_und_enc_model.")}
    assert last_stage_changed(before, after)
    state, head = load_file(tmp_path / "joint.state.safetensors"), "language_model.lm_head.weight"
    assert not torch.equal(before[head].float(), state[f"trained.{head}"])


def test_the_library_holds_more_of_what_is_drawn_right_last():
    drawn = [talk.parse_prompt(prompt).task for number in range(10) for prompt, _ in library.chunk("any", 200, number)]
    shares = [drawn.count(task) / len(drawn) for task in talk.TASKS]
    assert shares == pytest.approx([weight / sum(talk.DRAWN_WEIGHTS) for weight in talk.DRAWN_WEIGHTS], abs=0.03)


def in_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE
    except ProcessLookupError:
        return False


@pytest.mark.skipif(os.name == "nt", reason="looks for what is left of a process group")
def test_an_interrupt_ends_every_process_and_leaves_no_result(tmp_path):
    code = "import signal, sys; from pathlib import Path; from janusflow_core.world.recipe import train\n"
    # A shell that starts the tests in the background makes their processes deaf to it.
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "if __name__ == '__main__': train(Path(sys.argv[1]), minutes=9, processes=2)\n"
    (tmp_path / "run.py").write_text(code)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    running = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in running.stderr:  # both processes are at work once the first has measured
        if "matrix products" in line:
            break
    running.send_signal(signal.SIGINT)  # to the parent alone: a terminal would tell the children too
    assert running.wait(60) != 0
    deadline = time.monotonic() + 10
    while alive := [p for p in psutil.process_iter(["status"]) if in_group(p, running.pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)
    assert not list(tmp_path.rglob("janusflow-tiny.safetensors"))


def test_a_start_of_another_shape_is_refused(tmp_path):
    path = golden.write_folder(tmp_path / "micro", golden.micro(), codec=True)
    with pytest.raises(ValueError, match="micro lacks the embedded model's shapes or its VAE"):
        recipe.train(tmp_path / "out", minutes=1, start=path)
    assert not (tmp_path / "out").exists()


def test_a_row_asks_the_same_of_both_things(tokenizer):
    rng = random.Random(0)
    scene = talk.scene_for_prompt("a red circle left of a blue square", rng)
    row = lessons.questions_to_ask([("", scene)] * 120, tokenizer, rng)
    assert row.ids.shape == (120, lessons.CONVERSATION_TOKENS)
    texts = [tokenizer.decode(ids.tolist()) for ids in row.ids]
    both = [text for text in texts if "Where is the circle?" in text and "Where is the square?" in text]
    assert 5 < len(both) < 120 and all("left of the square" in text and "right of the circle" in text for text in both)
    lies = re.compile(r"Is the (?:circle|square) (?:left of|right of|above|below) the (?:circle|square)\?")
    assert all(len(lies.findall(text)) >= 2 for text in texts)


def test_every_prompt_and_conversation_fits_its_fixed_length(tokenizer):
    rng, examples = random.Random(1), library.draw_examples(5, 600)
    assert lessons.questions_to_ask(examples, tokenizer, rng).ids.shape == (600, lessons.CONVERSATION_TOKENS)
    prompts = lessons.prompts_to_draw(examples, tokenizer, rng)
    assert prompts.ids.shape == (600, lessons.PROMPT_TOKENS)
    dropped = [length == 1 for length in prompts.lengths]
    assert 30 < sum(dropped) < 90 and not any(length == 1 for length in prompts.whole)
    for ids, length, whole, gone in zip(prompts.ids, prompts.lengths, prompts.whole, dropped, strict=True):
        assert gone or length == whole
        assert (ids[length:] == tokenizer.pad_id).all()


def test_every_prompt_is_one_that_its_scene_fits(tokenizer):
    examples = library.draw_examples(6, 300)
    prompts = lessons.prompts_to_draw(examples, tokenizer, random.Random(2))
    rows = zip(prompts.ids.tolist(), prompts.lengths, examples, strict=True)
    for ids, (_, scene) in ((ids[:length], example) for ids, length, example in rows if length > 1):
        found = re.fullmatch("User: (.*)\n\nAssistant:", tokenizer.decode(ids))
        assert talk.tells(talk.caption(scene), found[1])


def test_lessons_depend_on_their_number_alone_whoever_makes_them(tokenizer):
    """In worker processes as on the spot, from any number on."""
    written = lessons.Lessons("seed", tokenizer, library.draw_examples(5, 50), draw=6, ask=2)
    here, there = ([*ahead(written, range(2, 6), workers)] for workers in (0, 2))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.drawn, other.drawn) and torch.equal(one.prompts.ids, other.prompts.ids)
        assert torch.equal(one.asked, other.asked) and torch.equal(one.questions.ids, other.questions.ids)
    assert not torch.equal(here[0].drawn, here[1].drawn)
    sent = pickle.loads(pickle.dumps(written))  # as where workers are not forked
    assert torch.equal(sent(2).questions.ids, here[0].questions.ids)
    assert torch.equal(next(ahead(written, range(5, 6))).drawn, here[3].drawn)


@pytest.mark.parametrize("parts", [1, 2])
def test_what_is_encoded_lies_beside_its_example_whoever_encoded_it(tmp_path, monkeypatch, parts):
    """Processes take every other chunk: here one after the other, the first of them last."""
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny", device="cpu", dtype=torch.float32)
    machine, encoder = Machine(torch.device("cpu"), bf16=False, compiles=False), pipe.model.vision_und_enc_model
    monkeypatch.setattr(library, "world", lambda: parts)
    for part in reversed(range(parts)):
        monkeypatch.setattr(library, "rank", lambda part=part: part)
        with nullcontext() if part == 0 else pytest.raises(FileNotFoundError):  # the others are not there yet
            whole = library.Library.build(tmp_path, pipe.codec.vae, encoder, "any", 3 * library.CHUNK, machine)
    shown = library.pictures([scene for _, scene in whole.examples[:: library.CHUNK - 1]])
    with torch.no_grad():
        torch.testing.assert_close(encoder(shown), whole.features[:: library.CHUNK - 1].float(), atol=2e-2, rtol=0)
    latents = pipe.codec.encode((shown + 1) / 2)
    torch.testing.assert_close(latents, whole.latents[:: library.CHUNK - 1].float(), atol=2e-2, rtol=0)
    assert len(whole.examples) == 3 * library.CHUNK and len([*tmp_path.iterdir()]) == parts


def test_a_library_is_read_where_it_was_built(tmp_path):
    """What is encoded belongs to the example beside it."""
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny", device="cpu", dtype=torch.float32)
    machine = Machine(torch.device("cpu"), bf16=False, compiles=False)
    encoder = pipe.model.vision_und_enc_model
    whole = library.Library.build(tmp_path, pipe.codec.vae, encoder, "any", 2 * library.CHUNK, machine)
    assert whole.examples[library.CHUNK :] == library.chunk("any", library.CHUNK, 1)
    shown = library.pictures([whole.examples[40][1]])
    assert torch.allclose(pipe.codec.encode((shown + 1) / 2), whole.latents[40:41].float(), atol=2e-2)
    with torch.no_grad():
        assert torch.allclose(encoder(shown), whole.features[40:41].float(), atol=2e-2)
    again = library.Library.build(tmp_path, pipe.codec.vae, encoder, "any", 2 * library.CHUNK, machine)
    assert torch.equal(again.latents, whole.latents) and len([*tmp_path.iterdir()]) == 1
    other = library.Library.build(tmp_path, pipe.codec.vae, encoder, "another", 2 * library.CHUNK, machine)
    assert not set(map(repr, whole.examples)) & set(map(repr, other.examples)) and len([*tmp_path.iterdir()]) == 2


def test_a_fingerprint_tells_weights_apart():
    torch.manual_seed(0)
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert library.fingerprint(one) != library.fingerprint(other)
    other.load_state_dict(one.state_dict())
    assert library.fingerprint(one) == library.fingerprint(other)
