"""Samples as tokens, as inference and as pre-training have them, and rows that hold several."""

import random

import numpy as np
import pytest
import torch
from golden import micro
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from janusflow_core.image import preprocess, resize_and_pad
from janusflow_core.tokenizer import ASSISTANT, SYSTEM_PROMPT, USER, Message
from janusflow_core.train.data import LeftOut, Sample, Task
from janusflow_core.train.losses import IGNORE
from janusflow_core.train.objective import normalised
from janusflow_core.train.packing import DRAWN, SEEN, TEXT, Writer, Written, in_bytes, pack, random_crop

LATENT = (4, 4, 4)
TURNS = (("What is it?", "a cat"), ("What color?", "black"))


def writer(**told) -> Writer:
    pipe = micro()
    return Writer(pipe.tokenizer, pipe.image_config, LATENT, **{"tokens": 5, "length": 400, **told})


def picture(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Red counts the columns, green the rows."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def sample(task: Task, text: str = "", turns: tuple[tuple[str, str], ...] = ()) -> Sample:
    return Sample("a", task, text, turns, None if task == "text" else picture)


def written(one: Sample, seed: int = 0, **told) -> Written:
    return writer(**told)(one, random.Random(seed))


def answers(found: Written) -> list[int]:
    """The ids that have labels, which are those of the next places."""
    at = [place for place, label in enumerate(found.labels) if label != IGNORE]
    assert [found.labels[place] for place in at] == [found.ids[place + 1] for place in at]
    return [found.labels[place] for place in at]


def test_what_is_read_in_a_chat_stands_as_inference_asks_it():
    tokenizer, found = micro().tokenizer, written(sample("understanding", turns=TURNS))
    said = [Message(USER, f"{tokenizer.processor.image_tag}\n{TURNS[0][0]}"), Message(ASSISTANT, TURNS[0][1])]
    said += [Message(USER, TURNS[1][0]), Message(ASSISTANT, TURNS[1][1])]
    assert found.ids == tokenizer.understanding_ids(said, 1)
    assert tokenizer.decode(answers(found), skip_special_tokens=False) == " a cat{0} black{0}".format(
        tokenizer.special["eos_token"]
    )
    assert [found.ids[at] for at, kind in enumerate(found.kinds) if kind == SEEN] == tokenizer.picture_ids[:-1]
    assert found.positions == [*range(len(found.ids))]
    assert found.picture is not None
    assert torch.equal(found.picture, in_bytes(resize_and_pad(picture(), micro().image_config)))


def test_what_is_read_in_pre_training_is_picture_question_and_caption():
    tokenizer, found = micro().tokenizer, written(sample("understanding", "a black cat"), format="plain")
    whole = tokenizer.decode(found.ids, skip_special_tokens=False)
    tags = "".join(tokenizer.decode([token], skip_special_tokens=False) for token in tokenizer.picture_ids)
    bos, eos = tokenizer.special["bos_token"], tokenizer.special["eos_token"]
    assert whole == f"{bos}{tags}Generate the caption of this picture. a black cat{eos}"
    assert tokenizer.decode(answers(found)) == " a black cat"


@pytest.mark.parametrize("format", ["plain", "chat"])
def test_all_of_a_text_is_learnt(format):
    tokenizer, found = micro().tokenizer, written(sample("text", "once upon a time"), format=format)
    assert found.ids == [*tokenizer.encode("once upon a time"), tokenizer.eos_id]
    assert answers(found) == found.ids[1:] and set(found.kinds) == {TEXT}


def test_a_long_text_is_cut():
    found = written(sample("text", "word " * 1000), length=50)
    assert len(found.ids) == 50 and found.ids[-1] == micro().tokenizer.eos_id


def test_a_conversation_without_picture_is_one_of_text():
    tokenizer, found = micro().tokenizer, written(sample("text", turns=TURNS))
    whole = tokenizer.decode(found.ids)
    assert whole.startswith(SYSTEM_PROMPT) and "User: What is it?\n\nAssistant: a cat" in whole
    assert tokenizer.decode(answers(found)) == " a cat black"


@pytest.mark.parametrize(("format", "before"), [("plain", "a black cat"), ("chat", "User: a black cat\n\nAssistant:")])
def test_what_is_drawn_stands_behind_its_prompt(format, before: str):
    tokenizer, found = micro().tokenizer, written(sample("generation", "a black cat"), format=format, drop=0.0)
    prompt = tokenizer.encode(before)
    assert found.ids[: len(prompt)] == prompt and found.kinds == [TEXT] * len(prompt) + [DRAWN] * 5
    assert found.positions == [*range(len(prompt) + 5)] and set(found.labels) == {IGNORE}
    assert found.noise is not None and found.noise.shape == LATENT and 0 < found.t < 1


def test_a_dropped_prompt_keeps_the_place_of_the_time():
    kept, dropped = (written(sample("generation", "a black cat"), drop=drop) for drop in (0.0, 1.0))
    assert dropped.ids[0] == kept.ids[0] == micro().tokenizer.bos_id
    assert dropped.kinds == [TEXT] + [DRAWN] * 5 and dropped.positions == [0, *kept.positions[-5:]]
    assert dropped.t == kept.t and torch.equal(dropped.noise, kept.noise)  # type: ignore[arg-type]


def test_prompts_are_dropped_at_their_rate():
    dropped = sum(len(written(sample("generation", "a cat"), seed).ids) == 6 for seed in range(1000))
    assert 70 < dropped < 130


def test_the_same_words_write_the_same():
    one, same, other = (written(sample("generation", "a cat"), seed) for seed in (1, 1, 2))
    assert one.t == same.t != other.t and torch.equal(one.noise, same.noise)  # type: ignore[arg-type]
    assert torch.equal(one.picture, same.picture)  # type: ignore[arg-type]


@given(width=st.integers(16, 120), height=st.integers(16, 120), seed=st.integers(0, 9))
def test_a_crop_is_a_whole_square_of_the_picture_the_right_way_round(width: int, height: int, seed: int):
    crop = np.asarray(random_crop(picture((width, height)), 16, random.Random(seed))).astype(int)
    side = min(width, height)
    assert crop.shape == (16, 16, 3)
    for axis, length in ((0, width), (1, height)):
        line = crop[8, :, 0] if axis == 0 else crop[:, 8, 1]
        assert (np.diff(line) >= 0).all() and line.min() >= 0 and line.max() < length
        assert abs((line[-1] - line[0]) - side * 15 / 16) <= max(3.0, side / 12)


def test_crops_come_from_anywhere():
    lefts = {random_crop(picture((80, 16)), 16, random.Random(seed)).getpixel((0, 0))[0] for seed in range(400)}  # type: ignore[index]
    assert len(lefts) > 50 and min(lefts) == 0 and max(lefts) == 64


@pytest.mark.parametrize(
    ("one", "told", "kind"),
    [
        (sample("understanding", "cat " * 500), "it needs [0-9]+ tokens, a row has 400", "too long"),
        (sample("generation", "cat " * 500), "it needs [0-9]+ tokens, a row has 400", "too long"),
    ],
)
def test_what_does_not_fit_a_row_is_left_out(one: Sample, told: str, kind: str):
    with pytest.raises(LeftOut, match=told) as raised:
        written(one)
    assert raised.value.kind == kind


@pytest.mark.parametrize("format", ["plain", "chat"])
def test_tags_of_pictures_in_a_text_are_no_pictures(format):
    tag = micro().tokenizer.processor.image_tag
    with pytest.raises(ValueError, match="tags"):
        written(sample("understanding", turns=((f"What is {tag}?", "a cat"),)), format=format)


def test_bytes_are_normalised_as_inference_normalises_pictures():
    image = micro().image_config
    found = normalised(in_bytes(resize_and_pad(picture(), image)), image)
    assert torch.allclose(found, preprocess(picture(), image), atol=1e-6)


# --- rows -------------------------------------------------------------------------------------------------------


def plain(length: int, task: Task = "text") -> Written:
    return Written(task, [*range(5, 5 + length)], [*range(length)], [*range(length)], [TEXT] * length)


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), length=st.integers(30, 80))
def test_every_sample_stands_whole_in_one_row(lengths: list[int], length: int):
    samples = [plain(count) for count in lengths]
    batch = pack(samples, writer(length=length))
    rows, longest = batch.ids.shape
    assert longest <= length and [sum(row) for row in batch.lengths] == [longest] * rows
    assert len(batch.tasks) == len(lengths)
    found = []
    for number in range(len(lengths)):
        row, at = (batch.owners == number).nonzero(as_tuple=True)
        assert len(set(row.tolist())) == 1 and at.tolist() == [*range(int(at[0]), int(at[0]) + len(at))]
        count = len(at)
        found.append(count)
        assert batch.ids[row, at].tolist() == [*range(5, 5 + count)]
        assert batch.labels[row, at].tolist() == batch.positions[row, at].tolist() == [*range(count)]
    assert sorted(found) == sorted(lengths)
    empty = batch.owners == -1
    assert (batch.labels[empty] == IGNORE).all()
    assert (batch.ids[empty] == micro().tokenizer.pad_id).all() and (batch.kinds[empty] == TEXT).all()


def test_a_row_is_filled_before_another_begins():
    batch = pack([plain(6), plain(6), plain(4), plain(3)], writer(length=10))
    assert batch.lengths == [[6, 4], [6, 3, 1]]


def test_pictures_are_in_the_order_of_the_rows():
    samples = [written(sample(task, "a cat"), seed) for seed, task in enumerate(["generation", "understanding"] * 2)]
    batch = pack(samples, writer(length=max(len(one.ids) for one in samples) + 12))
    drawn = [number for number, task in enumerate(batch.tasks) if task == "generation"]
    for place, number in enumerate(drawn):
        own = next(one for one in samples if one.noise is not None and torch.equal(one.noise, batch.noise[place]))
        row, at = (batch.owners == number).nonzero(as_tuple=True)
        assert batch.ids[row, at].tolist() == own.ids and batch.t[place].item() == pytest.approx(own.t)
