"""What is asked to see whether a picture shows a prompt, and what best-of makes of the answers."""

import math

import pytest
import torch
from golden import micro, micro_pipeline, new_codec, picture
from PIL import Image

from janusflow_core import JanusFlowPipeline
from janusflow_core.scoring import NUMBERS, parts, plain, questions
from janusflow_core.world.scenes import COLORS, Object, Scene, render


@pytest.mark.parametrize(
    ("prompt", "things"),
    [
        ("a red circle", ["a red circle"]),
        ("a red circle left of a blue square", ["a red circle", "a blue square"]),
        ("a photo of a cat and a dog, a hat on the left", ["a cat", "a dog", "a hat", "the left"]),
        ("An image of a tree to the left of a house", ["a tree", "a house"]),
        ("three green stars", ["three green stars"]),
        ("a cat and a cat", ["a cat"]),
        ("sand in handcuffs", ["sand", "handcuffs"]),
        (" , ", [","]),
    ],
)
def test_a_prompt_falls_into_the_things_that_it_names(prompt: str, things: list[str]):
    assert parts(prompt) == things


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("an image of a red cross above a star", ["Is there a red cross?", "Is there a star?",
            "Is the red cross above the star?"]),
        ("a circle and a star", ["Is there a circle?", "Is there a star?"]),
        ("three green stars", ["How many green stars are there? 3"]),
        ("2 cats on the mat", ["How many cats are there? 2", "Is there the mat?", "Are the 2 cats on the mat?"]),
        ("one cat", ["Is there one cat?"]),
        ("a cat in a hat, a dog To The  Left of a tree", ["Is there a cat?", "Is there a hat?", "Is there a dog?",
            "Is there a tree?", "Is the cat in the hat?", "Is the dog to the left of the tree?"]),
        ("a cat beside a cat", ["Is there a cat?", "Is the cat beside the cat?"]),
        ("in the rain", ["Is there the rain?"]),
        ("three", ["Is there three?"]),
        (",", ["Is there ,?"]),
    ],
)  # fmt: skip
def test_each_thing_number_and_place_is_asked_for(prompt: str, asked: list[str]):
    told = [q.text if q.wanted == "yes" else f"{q.text} {q.wanted}" for q in questions(prompt, "parts")]
    assert told == asked and questions(prompt, "both") == questions(prompt, "parts")
    assert all(q.wanted in q.options for q in questions(prompt, "parts"))


def test_or_all_at_once_or_the_caption_alone():
    prompt = "a photo of a red circle above a star"
    assert plain(prompt) == "a red circle above a star"
    assert [q.text for q in questions(prompt, "whole")] == ["Is there a red circle above a star?"]
    assert questions(prompt, "caption") == []


def test_a_score_is_the_chance_of_every_answer_that_the_prompt_wants():
    images, prompt = [picture("wide"), picture("gray")], "a photo of two cats under a hat"
    both, caption, asked, whole = (micro().score(images, prompt, by=by) for by in ("both", "caption", "parts", "whole"))
    for row, image in enumerate(images):
        yes = [micro().yes_no(image, question) for question in ("Is there a hat?", "Are the two cats under the hat?")]
        number = micro().choose(image, "How many cats are there?", NUMBERS).probabilities["2"]
        expected = number * math.prod(one.probabilities["yes"] for one in yes)
        assert asked[row] == pytest.approx(expected, rel=1e-4)
        assert both[row] == pytest.approx(caption[row] * asked[row], rel=1e-5)
        expected = micro().yes_no(image, "Is there two cats under a hat?").probabilities["yes"]
        assert whole[row] == pytest.approx(expected, abs=1e-6)
        assert micro().score(image, prompt) == pytest.approx(asked[row], rel=1e-4)


def test_each_of_several_pictures_may_have_its_own_prompt():
    images, prompts = [picture("wide"), picture("gray"), picture("rgba")], ["a cat", "a hat", "a cat"]
    expected = [micro().score(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    assert micro().score(images, prompts) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="got 2 prompts and 3 pictures"):
        micro().score(images, prompts[:2])
    with pytest.raises(ValueError, match="an answer is empty"):
        micro().score(images, " ", by="caption")


def test_the_bundled_model_prefers_the_picture_that_shows_the_prompt():
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny", dtype=torch.float32)
    right, wrong = (
        (Object("circle", c, 26, 48, 14, COLORS[c]), Object("square", d, 70, 48, 14, COLORS[d]))
        for c, d in (("red", "blue"), ("blue", "red"))
    )
    images = [Image.fromarray(render(Scene((250, 250, 250), things))) for things in (wrong, right, wrong)]
    for by in ("both", "caption", "parts", "whole"):
        scores = pipe.score(images, "a red circle left of a blue square", by=by)
        assert max(scores) == scores[1] and all(0 <= score <= 1 for score in scores), by


@pytest.mark.parametrize("output", ["latent", "pixels", "pil"])
def test_best_of_keeps_of_each_prompts_candidates_the_one_with_the_best_score(output: str):
    pipe, prompts = micro_pipeline(new_codec()), ["a cat", "a hat"]
    how = {"steps": 2, "seed": 5, "width": 64, "height": 64}
    kept = pipe.generate(prompts, best_of=3, output=output, **how)
    rows = [prompt for prompt in prompts for _ in range(3)]
    every = pipe.generate(rows, output=output, **how)
    scores = torch.tensor(pipe.score(pipe.generate(rows, **how), rows)).view(2, 3)
    assert len(kept) == 2 and len({*scores.flatten().tolist()}) > 2
    for row, found in enumerate(kept):
        expected = every[3 * row + int(scores[row].argmax())]
        assert found.tobytes() == expected.tobytes() if output == "pil" else torch.equal(found, expected)


def test_best_of_needs_a_candidate_and_a_vae():
    with pytest.raises(ValueError, match="best_of must be at least 1, got 0"):
        micro().generate("a cat", best_of=0)
    with pytest.raises(ValueError, match="this checkpoint brings no VAE"):
        micro_pipeline().generate("a cat", best_of=2, output="latent", steps=1)
