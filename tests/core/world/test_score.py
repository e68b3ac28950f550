"""Scores: what is counted, of a model whose pictures and answers are known."""

import random

import pytest
from PIL import Image

from janusflow_core.evaluation.scores import Score
from janusflow_core.world.judge import detect
from janusflow_core.world.scenes import BACKGROUNDS, Scene, render
from janusflow_core.world.score import draw_tasks, score_answers, score_pictures, score_round_trips
from janusflow_core.world.talk import NUMBERS, TASKS, caption, scene_for_prompt, tells

ALL, NONE = Score((True,) * 4), Score((False,) * 4)


def draw_what_is_asked(prompts, seed):
    return [Image.fromarray(render(scene_for_prompt(prompt, random.Random(seed)))) for prompt in prompts]


def draw_always_the_same(prompts, seed):
    return draw_what_is_asked(["a red circle and a blue square"] * len(prompts), seed)


def know_colors_and_counts(pictures, questions):
    return [read_off(detect(picture), question) for picture, question in zip(pictures, questions, strict=True)]


def read_off(objects, question):
    if question == "How many objects are there?":
        return NUMBERS[len(objects)]
    if question.startswith("What color is the "):
        return next(item.color for item in objects if item.shape == question[len("What color is the ") : -1])
    return ""


def test_pictures_are_counted_by_the_judge():
    right = score_pictures(draw_tasks(draw_what_is_asked, per_task=4))
    assert list(right) == list(TASKS) and all(score == ALL for score in right.values())
    assert score_pictures(draw_tasks(draw_always_the_same, per_task=4))["single"] == NONE
    held_out = draw_tasks(draw_what_is_asked, per_task=2, held_out=True)
    assert set(score_pictures(held_out)) == set(TASKS) - {"single", "two"}


def test_prompts_come_back_when_the_caption_tells_them():
    drawn, heard = draw_tasks(draw_what_is_asked, per_task=4), []

    def describe(pictures, questions):
        heard.extend(questions)
        return [caption(Scene(BACKGROUNDS[0], tuple(detect(picture)))) for picture in pictures]

    assert all(score == ALL for score in score_round_trips(drawn, describe, batch=5).values())
    assert heard == ["Describe the image."] * len(drawn)
    silent = score_round_trips(drawn, lambda pictures, questions: ["?"] * len(pictures))
    assert all(score == NONE for score in silent.values())


@pytest.mark.parametrize(
    ("caption", "prompt", "verdict"),
    [
        ("a red circle", "a circle", True),
        ("a red circle", "a photo of a red circle", True),
        ("a circle", "a red circle", False),
        ("a red circle", "a blue circle", False),
        ("three green stars", "three stars", True),
        ("two green stars", "three green stars", False),
        ("a red circle left of a blue square", "a blue square right of a red circle", True),
        ("a red circle left of a blue square", "a blue square left of a red circle", False),
        ("a red circle left of a blue square", "a square and a circle", True),
        ("a red circle left of a blue square", "a circle above a square", False),
        ("a red circle and a blue square", "a circle left of a square", False),
        ("a red circle and a blue square", "a blue circle and a red square", False),
        ("a red circle", "a red circle and a blue square", False),
        ("something else", "a red circle", False),
    ],
)
def test_a_caption_tells_a_prompt_or_not(caption, prompt, verdict):
    assert tells(caption, prompt) is verdict


def test_answers_are_counted_when_exactly_right():
    scores = score_answers(know_colors_and_counts, scenes=12)
    assert scores["color"].rate == 1.0 and scores["caption"].rate == 0.0
    yes = score_answers(lambda pictures, questions: ["yes"] * len(questions), scenes=12)["exists"]
    assert 0 < yes.right < yes.total
