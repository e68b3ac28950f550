"""Scores: the interval against scipy-free arithmetic, the counting against a model whose answers are known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janusflow_core import shapes
from janusflow_core.evaluation import Score, overall, score_answers, score_pictures


@given(st.integers(0, 400), st.integers(1, 400))
def test_the_interval_holds_the_rate_and_stays_a_probability(right, total):
    score = Score(min(right, total), total)
    low, high = score.interval
    assert 0 <= low <= score.rate + 1e-12 and score.rate - 1e-12 <= high <= 1


def test_the_interval_is_wilsons():
    low, high = Score(8, 10).interval  # 0.8 of 10: the textbook's interval
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert (
        Score(40, 100).interval[1] - Score(40, 100).interval[0]
        > Score(400, 1000).interval[1] - Score(400, 1000).interval[0]
    )


def test_overall_is_the_mean_of_the_tasks():
    assert overall({"a": Score(1, 2), "b": Score(10, 10)}) == 0.75


class Oracle:
    """Stands where a pipeline stands, and knows the world by heart; `wrong` makes it err on purpose."""

    def __init__(self, wrong: bool) -> None:
        from janusflow_core import tiny

        self.tokenizer, self.wrong = tiny.build_tokenizer(), wrong

    def generate(self, prompts, **options):
        import random

        from PIL import Image

        asked = ["a red circle and a blue square"] * len(prompts) if self.wrong else prompts
        return [Image.fromarray(shapes.render(shapes.scene_for_prompt(prompt, random.Random(0)))) for prompt in asked]

    def converse(self, questions, pictures, **options):
        if self.wrong:
            return ["yes"] * len(questions)
        return [
            self._read(turns[0].content.partition("\n")[2], shown[0])
            for turns, shown in zip(questions, pictures, strict=True)
        ]

    @staticmethod
    def _read(question, picture):
        objects = shapes.detect(picture)
        if question == "How many objects are there?":
            return shapes.NUMBERS[len(objects)]
        if question.startswith("What color is the "):
            return next(item.color for item in objects if item.shape == question[len("What color is the ") : -1])
        return ""


def test_pictures_are_counted_by_the_judge():
    right = score_pictures(Oracle(wrong=False), per_task=4)
    assert list(right) == list(shapes.TASKS) and all(score == Score(4, 4) for score in right.values())
    assert score_pictures(Oracle(wrong=True), per_task=4)["single"] == Score(0, 4)
    assert set(score_pictures(Oracle(wrong=False), per_task=2, held_out=True)) == set(shapes.TASKS) - {"single", "two"}


def test_answers_are_counted_when_exactly_right():
    scores = score_answers(Oracle(wrong=False), scenes=12)
    assert scores["color"].rate == 1.0 and scores["caption"].rate == 0.0
    yes = score_answers(Oracle(wrong=True), scenes=12)["exists"]
    assert 0 < yes.right < yes.total
