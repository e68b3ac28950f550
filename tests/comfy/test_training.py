"""REPA Fine-tune: what it makes is what the core makes, it goes where LoRAs go, and it leaves nothing behind."""

import json
import threading

import pytest
import torch
from golden import relative
from graphs import PROMPT, assert_sentence, tiny
from inprocess import draw
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from janusflow_core.lora import LoraStack

SETTINGS = {
    "teach": "generation",
    "steps": 4,
    "batch_size": 2,
    "rank": 4,
    "learning_rate": 0.01,
    "seed": 1,
    "name": "test",
    "resume": False,
    "folder": "none",
    "repa": {"repa": "off"},
    "kind": "lora",
    "schedule": "cosine",
    "accumulate": 1,
    "dreams": 2,
    "drop": 0.1,
    "preview_every": 0,
}


@pytest.fixture(autouse=True)
def as_nodes_run():
    with torch.inference_mode():
        yield


def pictures(count=3, size=96):
    """Pictures (1, size, size, 3) in inference mode, as a graph brings them, with their texts."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(count, 4, 4, 3, generator=generator)
    images = blocks.repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)
    return [image[None] for image in images], [f"a pattern of kind {number}" for number in range(count)]


def train(pack, loaded=None, **changed):
    model, clip, vae = loaded or pack.tiny
    images, texts = changed.pop("pictures", pictures())
    given = {"model": model, "clip": clip, "vae": vae, "images": images, "texts": texts, **SETTINGS, **changed}
    node = pack.node("finetune")
    given["repa"] = {name: [value] for name, value in given["repa"].items()}  # as the server hands them over
    return node(**{name: value if name in ("images", "texts", "repa") else [value] for name, value in given.items()})


@pytest.mark.parametrize("teach", ["generation", "captioning", "both"])
def test_the_lora_learns_and_is_loaded_whole_by_native_loaders(pack, teach, caplog):
    import nodes

    lora, losses, steps, report = train(pack, teach=teach, steps=30, repa={"repa": "on", "weight": 0.5})
    assert steps == 30 == len(losses["loss"]) and "3 pictures" in report and report.startswith("finished")
    assert sum(losses["loss"][-6:]) < sum(losses["loss"][:6])
    path = pack.base / "models" / "loras" / "trained.safetensors"
    save_file(lora, path)
    model, clip, _ = pack.tiny
    plain = draw(pack, model, clip)
    changed = nodes.LoraLoader().load_lora(model, clip, "trained.safetensors", 1.0, 1.0)
    assert "not loaded" not in caplog.text.lower()
    pipe = tiny()
    stack = LoraStack(pipe.model)
    stack.add(path)
    try:
        expected = pipe.generate(PROMPT, steps=3, guidance=2.0, seed=3, output="latent")
    finally:
        stack.clear()
    assert relative(draw(pack, *changed), expected) <= 1e-4 and relative(expected, plain) > 1e-3


def test_nothing_is_left_behind(pack):
    from comfy import model_management

    model, clip, _ = pack.tiny
    plain, before = draw(pack, model, clip), len(model_management.current_loaded_models)
    train(pack, teach="both", kind="dora")
    assert not model_management.in_training and torch.is_inference_mode_enabled()
    assert len(model_management.current_loaded_models) <= before + 1  # the VAE stays, for whoever is next
    assert not any(part._forward_hooks for half in (model.model, clip.patcher.model) for part in half.modules())
    assert torch.equal(draw(pack, model, clip), plain)


def test_same_seed_same_lora_and_resumed_equals_never_stopped(pack):
    whole, _, _, _ = train(pack, teach="both", steps=6)
    parts, _, steps, _ = train(pack, teach="both", steps=3)
    assert steps == 3
    parts, losses, steps, report = train(pack, teach="both", steps=6, resume=True)
    assert steps == 6 and len(losses["loss"]) == 6 and "steps 3 to 6" in report
    again, losses, steps, report = train(pack, teach="both", steps=6, resume=True)  # there is nothing left to do
    assert steps == 6 and len(losses["loss"]) == 6 and all(torch.equal(parts[key], again[key]) for key in parts)
    # The learning rate falls over all steps, so that the first half of a longer run is another.
    again, _, _, _ = train(pack, teach="both", steps=6)
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)


def test_a_cancelled_run_keeps_what_it_learnt_and_goes_on(pack):
    from comfy import model_management

    whole, _, _, _ = train(pack, schedule="constant", steps=8)
    module = pack.module("nodes.native.training")
    plain = module.Run._tell

    def cancel_at_5(run, step, means, rate):
        plain(run, step, means, rate)
        if step == 5:
            model_management.interrupt_current_processing()

    module.Run._tell = cancel_at_5
    try:
        with pytest.raises(model_management.InterruptProcessingException):
            train(pack, schedule="constant", steps=8)
    finally:
        module.Run._tell = plain
    assert not model_management.in_training
    kept = pack.base / "output" / "loras" / "test_5_steps.safetensors"
    with safe_open(kept, "pt") as file:
        assert json.loads(file.metadata()["recipe"])["steps"] == 5 and file.metadata()["base"] == "janusflow-tiny"
    assert load_file(kept).keys() == whole.keys()
    gone_on, _, _, _ = train(pack, schedule="constant", steps=8, resume=True)
    assert all(torch.equal(gone_on[key], whole[key]) for key in whole)


def test_other_settings_begin_anew_where_nothing_is_lost_and_are_refused_where_something_is(pack):
    train(pack, steps=3)
    lora, _, steps, report = train(pack, steps=3, rank=2, resume=True)
    assert steps == 3 and "steps 0 to 3" in report and {len(lora[key]) for key in lora if "lora_down" in key} == {2}
    state = pack.base / "output" / "loras" / "test_run" / "state.safetensors"
    with safe_open(state, "pt") as file:
        told = file.metadata()
    save_file(load_file(state), state, {**told, "memory": "{}"})  # as a run leaves it that was stopped
    with pytest.raises(ValueError) as error:
        train(pack, steps=3, rank=4, resume=True)
    assert_sentence(str(error.value), "other settings (rank 2, now 4)")
    with pytest.raises(ValueError) as error:  # before anything is looked at: one picture would be refused as well
        train(pack, steps=3, rank=4, resume=True, pictures=pictures(1))
    assert_sentence(str(error.value), "other settings (rank 2, now 4)")


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8_e4m3fn"])
def test_stored_in_fewer_bits_it_learns_too(pack, weight_dtype):
    loaded = pack.node("load")("janusflow-tiny", "from checkpoint", weight_dtype)
    _, losses, _, _ = train(pack, loaded, teach="both", steps=30, kind="dora")
    assert sum(losses["loss"][-6:]) < sum(losses["loss"][:6])


def test_a_lora_upon_the_model_is_part_of_what_learns(pack):
    """Trained upon another LoRA, the first loss is that of the changed model."""
    import nodes

    lora, losses, _, _ = train(pack, steps=30)
    save_file(lora, pack.base / "models" / "loras" / "first.safetensors")
    model, clip, vae = pack.tiny
    changed = nodes.LoraLoader().load_lora(model, clip, "first.safetensors", 1.0, 1.0)
    _, further, _, _ = train(pack, (*changed, vae), steps=4)
    _, anew, _, _ = train(pack, steps=4)
    assert further["loss"][0] < anew["loss"][0]


def test_a_folder_of_inputs_is_read_and_its_broken_pictures_are_named(pack):
    from PIL import Image

    folder = pack.base / "input" / "set"
    folder.mkdir()
    images, texts = pictures()
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    (folder / "9.png").write_bytes(b"broken")
    (folder / "9.txt").write_text("a broken one", encoding="utf-8")
    by_folder, _, _, report = train(pack, pictures=(None, None), folder="set")
    by_graph, _, _, _ = train(pack)
    assert "left out 9.png" in report and "3 pictures" in report
    for key in by_graph:  # 8 bits lie between the two
        assert relative(by_folder[key].float() + 1e-6, by_graph[key].float() + 1e-6) < 0.2, key


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pictures": (None, None)}, "no pictures"),
        ({"pictures": (pictures()[0], ["a", "b"])}, "3 pictures and 2 texts"),
        ({"pictures": (pictures()[0], ["a", " ", "c"])}, "Text 2 of 3 is empty"),
        ({"pictures": pictures(1)}, "one picture"),
        ({"pictures": pictures(size=16)}, "too few"),
        ({"folder": "set"}, "both images and the folder"),
        ({"name": "../up"}, "no file's name"),
        ({"repa": {"repa": "on", "layer": 40}}, "layer"),
    ],
)
def test_bad_input_is_one_sentence(pack, changed, words):
    with pytest.raises(ValueError) as error:
        train(pack, **changed)
    assert_sentence(str(error.value), words)


def test_other_models_are_refused(pack):
    model, clip, vae = pack.tiny
    for loaded, words in (((*pack.sdxl(), vae), "JanusFlow's MODEL"), ((model, clip, None), "no VAE")):
        with pytest.raises(ValueError) as error:
            train(pack, loaded)
        assert_sentence(str(error.value), words)


def test_it_runs_in_a_thread_as_the_server_runs_it(pack):
    found = []
    thread = threading.Thread(target=lambda: found.append(run_in_inference_mode(pack)))
    thread.start()
    thread.join()
    assert found and found[0][2] == 4


def run_in_inference_mode(pack):
    with torch.inference_mode():
        return train(pack)
