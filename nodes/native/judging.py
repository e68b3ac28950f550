"""What the nodes that judge pictures share: what they ask to see whether a picture shows a prompt."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from ...janusflow_core.scoring import Judging, Question, plain, score
from ...janusflow_core.understanding import DEFAULT_QUESTION
from .asking import ONE_BY_ONE, conversations
from .compat import io
from .tokens import Tokens

JUDGING: tuple[Judging, ...] = get_args(Judging)


def prompt_input() -> Any:
    return io.String.Input(
        "prompt",
        multiline=True,
        default="a red circle left of a blue square",
        tooltip="What the picture should show: usually what it was drawn by.",
    )


def by_input() -> Any:
    return io.Combo.Input(
        "by",
        options=list(JUDGING),
        default=JUDGING[0],
        advanced=True,
        tooltip="parts: how likely the model says yes for each thing, number and place that the prompt names. whole: "
        "for all of it at once. caption: how likely it describes the picture in just these words. both: caption times "
        "parts.",
    )


def scored(clip: Any, image: Tensor, prompt: str, by: str, node: str) -> list[float]:
    """What core's `score` gives each picture of a batch; raises ValueError in the name of a node."""
    if by not in JUDGING:
        raise ValueError(f"{node} judges by {', '.join(JUDGING)}, got {by!r}.")
    if not plain(prompt):
        raise ValueError(f"{node} got an empty prompt: write what the picture should show.")

    def ask(question: str) -> list[Tokens]:
        return conversations(clip, image, question, ONE_BY_ONE, node)

    def chance(question: Question) -> list[float]:
        return [choice.probabilities[question.wanted] for choice in clip.choose(ask(question.text), question.options)]

    def said(caption: str) -> list[float]:
        return [float(row.exp()) for row in clip.weigh(ask(DEFAULT_QUESTION), [caption])]

    return score(prompt, by, chance, said)
