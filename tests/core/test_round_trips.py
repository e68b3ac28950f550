"""What holds for every model, prompt, size and setting: nothing is lost on the way to disk and back."""

import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
from golden import micro, micro_dict, micro_tokenizer, new_model, recorded_vae
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from janusflow_core.canvas import latent_mask
from janusflow_core.checkpoint import load_model, open_checkpoint
from janusflow_core.cli.origin import Origin
from janusflow_core.config import JanusFlowConfig
from janusflow_core.convert import convert
from janusflow_core.layout import describe_files, save_folder
from janusflow_core.png import save_new
from janusflow_core.tokenizer import ASSISTANT, USER, Message
from janusflow_core.train.options import FineTuneOptions
from janusflow_core.weights import save_tensors

SMALL = st.integers(1, 3)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def shard(folder: Path, count: int) -> None:
    """Spread the weights of a folder over so many files with an index."""
    tensors = load_file(whole := folder / "model.safetensors")
    whole.unlink()
    names = {key: f"model-{number % count:05}.safetensors" for number, key in enumerate(tensors)}
    for name in {*names.values()}:
        save_tensors(folder / name, {key: tensors[key] for key, own in names.items() if own == name})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@settings(max_examples=8)
@given(heads=SMALL, layers=SMALL, mlp=SMALL, half=st.booleans(), shards=SMALL, vae=st.booleans())
def test_any_model_is_the_same_bits_after_every_layout(
    heads: int, layers: int, mlp: int, half: bool, shards: int, vae: bool
):
    shape = {"hidden_size": 8 * heads, "num_attention_heads": heads, "num_key_value_heads": heads}
    data = micro_dict(**shape, num_hidden_layers=layers, intermediate_size=16 * mlp)
    for part in ("vision_gen_enc_config", "vision_gen_dec_config"):
        data[part]["params"]["hidden_size"] = 8 * heads
    model = new_model(JanusFlowConfig.from_dict(data), seed=heads)
    model = model.bfloat16() if half else model
    parts = describe_files(model.config, micro_tokenizer(), micro().image_config)
    with tempfile.TemporaryDirectory() as room:
        folder, single, again = (Path(room) / name for name in ("folder", "single.safetensors", "again"))
        save_folder(folder, model.state_dict(), parts, micro_tokenizer().json, recorded_vae() if vae else None)
        shard(folder, shards)
        convert(folder, single)
        convert(single, again)
        for path in (folder, single, again):
            opened = open_checkpoint(path)
            found = load_model(opened).state_dict()
            assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
            assert (opened.read_vae() is None) != vae


@given(st.lists(st.tuples(TEXT, st.integers(0, 2)), min_size=1, max_size=3))
def test_pictures_stand_where_their_tags_do(turns: list[tuple[str, int]]):
    tokenizer = micro_tokenizer()
    tag, start = tokenizer.processor.image_tag, tokenizer.processor.image_start_tag
    messages = [Message(USER, tag * count + text) for text, count in turns] + [Message(ASSISTANT, "")]
    written = sum(message.content.count(tag) for message in messages)
    text = tokenizer.chat(messages)
    if text.count(start):  # is refused, as other tests show
        return
    ids = tokenizer.conversation_ids(text, written)
    size = len(tokenizer.picture_ids)
    begins = [place for place, token in enumerate(ids) if token == tokenizer.image_start_id]
    assert len(begins) == written and all(ids[place : place + size] == tokenizer.picture_ids for place in begins)
    assert int(tokenizer.image_mask(torch.tensor(ids)).sum()) == written * (size - 1)
    inside = {place + offset for place in begins for offset in range(size)}
    one_each = [token for place, token in enumerate(ids) if place not in inside or place in begins]
    plain = [tokenizer.image_id if token == tokenizer.image_start_id else token for token in one_each]
    assert plain == tokenizer.tagged_ids(text, written)


@given(SMALL, st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.floats(0, 1))
def test_a_mask_of_any_size_covers_latents_of_any_size(
    count: int, height: int, width: int, rows: int, columns: int, level: float
):
    like = torch.zeros(count, 4, rows, columns)
    mask = latent_mask(torch.full((height, width), level), like)
    assert mask.shape == (1, 1, rows, columns)
    torch.testing.assert_close(mask, torch.full_like(mask, level))
    drawn = latent_mask(torch.rand(count, height, width), like)
    assert drawn.shape == (count, 1, rows, columns) and 0 <= drawn.min() and drawn.max() <= 1


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.sampled_from(["euler", "heun", "ab2", "dpmpp_2m"]))
def test_latents_of_any_size_are_drawn_and_their_rows_are_their_own(rows: int, columns: int, count: int, solver: str):
    size = {"height": 16 * rows, "width": 16 * columns, "steps": 2, "solver": solver, "output": "latent"}
    together = micro().generate("a cat", num_images=count, seed=5, **size)
    assert together.shape == (count, 4, 2 * rows, 2 * columns) and together.isfinite().all()
    alone = micro().generate("a cat", seed=4 + count, **size)
    torch.testing.assert_close(together[-1:], alone, rtol=1e-4, atol=1e-5)


NUMBER = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=50)
@given(
    prompt=TEXT,
    negative_prompt=st.none() | TEXT,
    seed=st.integers(-(2**63), 2**64 - 1),
    guidance=st.none() | NUMBER,
    steps=st.none() | st.integers(1, 10**6),
    lora=st.lists(TEXT.filter(bool), max_size=3).map(tuple),
    cfg_zero_star=st.none() | st.booleans(),
)
def test_a_picture_remembers_any_settings(tmp_path_factory: pytest.TempPathFactory, **given_settings: object):
    told = Origin(width=16, height=16, **given_settings)
    path = save_new(tmp_path_factory.getbasetemp(), "remembered", Image.new("RGB", (16, 16)), told.chunks())
    assert Origin.of(path) == told
    path.unlink()


@given(
    steps=st.integers(1, 10**9),
    rank=st.integers(1, 1024),
    learning_rate=st.floats(0, 1),
    ratio=st.floats(0, 1, exclude_min=True, exclude_max=True),
    question=TEXT.filter(bool),
    seed=st.integers(0, 2**64),
)
def test_settings_of_a_training_survive_its_file(**given_settings: object):
    told = FineTuneOptions(**given_settings)
    assert FineTuneOptions.model_validate_json(told.model_dump_json()) == told


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["learning_rate", "alpha", "keep", "repa", "time_mean", "drop", "ratio"])
def test_a_training_takes_no_number_that_is_none(name: str, value: float):
    with pytest.raises(ValueError, match=name):
        FineTuneOptions(**{name: value})
