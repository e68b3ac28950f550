"""How well a picture shows a prompt, by the model's own answers: what is asked, and how answers become a score."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

Judging = Literal["both", "caption", "parts", "whole"]
IS_THERE = "Is there {}?"
# What stands between the things of a prompt, longer phrases first.
BETWEEN = re.compile(
    r"[,;.]+|\b(?:to the left of|to the right of|left of|right of|in front of|on top of|next to|above|below|under|"
    r"behind|beside|and|with|on|in)\b",
    re.IGNORECASE,
)
OPENING = re.compile(r"^\s*(?:an?|the)?\s*(?:photo|image|picture|painting|drawing)\s+of\s+", re.IGNORECASE)


def plain(prompt: str) -> str:
    """A prompt without `a photo of`, as a caption says it."""
    return OPENING.sub("", prompt).strip()


def parts(prompt: str) -> list[str]:
    """The things that a prompt names, in its order; the prompt itself where it names none."""
    named = (part.strip() for part in BETWEEN.split(plain(prompt)))
    return [*dict.fromkeys(part for part in named if part)] or [plain(prompt)]


def questions(prompt: str, by: Judging) -> list[str]:
    """The yes-or-no questions whose chances of yes are multiplied; none where the caption alone decides."""
    things = {"both": parts(prompt), "parts": parts(prompt), "whole": [plain(prompt)], "caption": []}[by]
    return [IS_THERE.format(thing) for thing in things]


def score(
    prompt: str, by: Judging, yes: Callable[[str], Sequence[float]], said: Callable[[str], Sequence[float]]
) -> list[float]:
    """The score of each picture, from 0 to 1: `yes` answers a question about each, `said` how likely a caption is."""
    factors = [yes(question) for question in questions(prompt, by)]
    if by in ("both", "caption"):
        factors.append(said(plain(prompt)))
    return [math.prod(chances) for chances in zip(*factors, strict=True)]
