"""Captioned pictures: which are read, how they are cut, in which order they come, and what is refused."""

import pytest
import torch
from golden import micro_pipeline, new_codec, new_subject
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from janusflow_core.image import pixels, preprocess, resize_and_pad
from janusflow_core.train.examples import Captioned, Examples, batch_rows, read_folder, square_crop


def stock(folder, **texts):
    """Pictures of 40 x 30 pixels with these captions; None writes none."""
    folder.mkdir(exist_ok=True)
    for number, (name, text) in enumerate(texts.items()):
        Image.new("RGB", (40, 30), (9 * number, 100, 50)).save(folder / f"{name}.png")
        if text is not None:
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def test_a_folder_is_read_with_its_texts_below_it_too(tmp_path):
    stock(tmp_path / "set", b="a cat ", a="\ufeffein  Hund\n")
    stock(tmp_path / "set" / "more", c="two")
    (tmp_path / "set" / "notes.md").write_text("not a picture")
    found = read_folder(tmp_path / "set")
    assert [(one.name, one.text) for one in found] == [("a.png", "ein Hund"), ("b.png", "a cat"), ("more/c.png", "two")]
    assert found[0].open().size == (40, 30)


def test_a_caption_for_all_stands_in_where_there_is_none(tmp_path):
    found = read_folder(stock(tmp_path, a="a cat", b=None, c=""), "a thing")
    assert [one.text for one in found] == ["a cat", "a thing", "a thing"]


def test_what_cannot_be_learnt_from_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_folder(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no picture"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match=r"^b\.png of 2 pictures"):
        read_folder(stock(tmp_path / "one", a="a cat", b=None))
    with pytest.raises(ValueError, match=r"^a\.png and 1 more of 2 pictures have no caption"):
        read_folder(stock(tmp_path / "two", a=" ", b=None))
    (tmp_path / "one" / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8"):
        read_folder(tmp_path / "one")


def test_a_broken_picture_is_named_and_left_out(tmp_path):
    stock(tmp_path, a="a cat", b="a dog", c="a cow")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    examples, subject = Examples(), new_subject(micro_pipeline(new_codec()))
    for one in read_folder(tmp_path):
        examples.add(one, subject, draws=True, aligns=True, question="What?")
    assert examples.texts == ["a cat", "a cow"] and len(examples.latents) == len(examples.whole) == 2
    (problem,) = examples.problems
    assert problem.startswith("b.png: ")


def test_what_is_drawn_is_the_middle_and_what_is_described_the_whole():
    pipe = micro_pipeline(new_codec())
    picture = Image.new("RGB", (80, 40), "red")
    picture.paste("blue", (20, 0, 60, 40))
    examples = Examples()
    examples.add(
        Captioned("x", "a thing", lambda: picture), new_subject(pipe), draws=True, aligns=True, question="What?"
    )
    blue = Image.new("RGB", (32, 32), "blue")
    with torch.no_grad():
        latent = pipe.need_codec().encode(torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(1, 3, 32, 32))
        crop = pipe.model.image_features(preprocess(blue, pipe.image_config)[None])[0]
    torch.testing.assert_close(examples.latents[0], latent[0])
    torch.testing.assert_close(examples.aligned[0], crop)
    given, again = examples.whole[0]
    torch.testing.assert_close(given, preprocess(picture, pipe.image_config).half())
    with torch.no_grad():
        (decoded,) = pipe.need_codec().decode(
            pipe.need_codec().encode(pixels(resize_and_pad(picture, pipe.image_config))[None])
        )
    seen = preprocess(decoded.permute(1, 2, 0), pipe.image_config)
    torch.testing.assert_close(again, seen.half(), atol=0.01, rtol=0)
    assert examples.asked == [[("What?", "a thing")]]


@given(st.integers(1, 200), st.integers(1, 200))
def test_a_crop_is_the_middle_square_in_its_size(width, height):
    picture = Image.new("RGB", (width, height), "white")
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    picture.paste("black", (left, top, left + side, top + side))
    crop = square_crop(picture, 32)
    assert crop.size == (32, 32) and max(band[1] for band in crop.getextrema()) == 0


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_every_example_comes_once_an_epoch(count, size, seed):
    rows = [row for number in range(-(-3 * count // size)) for row in batch_rows(number, size, count, seed)]
    for epoch in range(3):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))
