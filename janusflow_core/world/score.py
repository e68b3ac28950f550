"""How well a checkpoint knows the embedded model's world: a GenEval of its own, and its questions, with intervals."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from PIL import Image

from ..evaluation.scores import Score, by_name
from . import talk
from .judge import judge
from .scenes import render

# (prompts, seed of the first) -> pictures; it knows the model, we do not
Draw = Callable[[Sequence[str], int], Sequence[Image.Image]]
# (pictures, a question about each) -> answers
Ask = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[str]]
Drawn = tuple[str, str, Image.Image]  # (task, prompt, what was drawn of it)
# (done, in all); may raise to cancel
OnProgress = Callable[[int, int], None]


def draw_tasks(
    draw: Draw,
    per_task: int = 25,
    *,
    seed: int = 0,
    held_out: bool = False,
    batch: int = 25,
    on_progress: OnProgress | None = None,
) -> list[Drawn]:
    """`per_task` prompts of each task with what was drawn of them; of held-out things only, if asked for."""
    tasks = [task for task in talk.TASKS if not (held_out and task in ("single", "two"))]
    asked = [(task, prompt) for task in tasks for prompt in talk.sample_prompts(task, per_task, seed, held_out)]
    drawn: list[Drawn] = []
    for first in range(0, len(asked), batch):
        rows = asked[first : first + batch]
        pictures = draw([prompt for _, prompt in rows], seed + first)
        drawn += [(task, prompt, picture) for (task, prompt), picture in zip(rows, pictures, strict=True)]
        if on_progress is not None:
            on_progress(len(drawn), len(asked))
    return drawn


def score_pictures(drawn: Sequence[Drawn]) -> dict[str, Score]:
    """How many pictures show, by the judge, strictly what was asked, and nothing else."""
    return by_name((task, judge(picture, prompt)) for task, prompt, picture in drawn)


def score_round_trips(
    drawn: Sequence[Drawn], ask: Ask, *, batch: int = 32, on_progress: OnProgress | None = None
) -> dict[str, Score]:
    """How many prompts come back: the model's own caption of its picture tells just what was asked."""
    results: list[tuple[str, bool]] = []
    for first in range(0, len(drawn), batch):
        rows = drawn[first : first + batch]
        captions = ask([picture for *_, picture in rows], ["Describe the image."] * len(rows))
        results += [
            (task, talk.tells(caption, prompt)) for (task, prompt, _), caption in zip(rows, captions, strict=True)
        ]
        if on_progress is not None:
            on_progress(len(results), len(drawn))
    return by_name(results)


def score_answers(
    ask: Ask, scenes: int = 60, *, seed: int = 0, batch: int = 32, on_progress: OnProgress | None = None
) -> dict[str, Score]:
    """Ask everything that can be asked of fresh renders; an answer counts when it is exactly the expected one."""
    rng = random.Random(seed + 10**9)
    drawn = [talk.sample_training_example(rng)[2] for _ in range(scenes)]
    asked = [(scene, *question) for scene in drawn for question in talk.questions(scene, rng)]
    results: list[tuple[str, bool]] = []
    for first in range(0, len(asked), batch):
        rows = asked[first : first + batch]
        pictures = [Image.fromarray(render(scene)) for scene, *_ in rows]
        answers = ask(pictures, [question for _, _, question, _ in rows])
        results += [(kind, answer == right) for (_, kind, _, right), answer in zip(rows, answers, strict=True)]
        if on_progress is not None:
            on_progress(len(results), len(asked))
    return by_name(results)
