"""How well a picture shows a prompt, by the model's own answers: what is asked, and how answers become a score."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# What a model may write for each: whichever it prefers, the chances of both count.
YES_NO = {"yes": ("yes", "Yes"), "no": ("no", "No")}
Judging = Literal["parts", "whole", "caption", "both"]
# What stands between the things of a prompt, longer phrases first: where one is to the other, or nothing of it.
PLACES = r"(?:to the )?(?:left|right) of|in front of|on top of|next to|above|below|under|behind|beside|on|in"
BETWEEN = re.compile(rf"([,;.]+|\b(?:{PLACES}|and|with)\b)", re.IGNORECASE)
OPENING = re.compile(r"^\s*(?:an?|the)?\s*(?:photo|image|picture|painting|drawing)\s+of\s+", re.IGNORECASE)
WORDS = (  # numbers as a model may write them
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
NUMBERS = {str(number): (word, str(number)) for number, word in enumerate(WORDS[:11])}
SEVERAL = re.compile(rf"({'|'.join(WORDS[2:11])}|[2-9]|10)\s+(.+)", re.IGNORECASE)
ARTICLE = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """What is asked, the answers with their spellings, and the one that speaks for the prompt."""

    text: str
    options: Mapping[str, Sequence[str]]
    wanted: str


def plain(prompt: str) -> str:
    """A prompt without `a photo of`, as a caption says it."""
    return " ".join(OPENING.sub("", prompt).split())


def parts(prompt: str) -> list[str]:
    """The things that a prompt names, in its order; the prompt itself where it names none."""
    return [*dict.fromkeys(thing for thing, _ in _named(prompt))] or [plain(prompt)]


def _named(prompt: str) -> list[tuple[str, str]]:
    """The things that a prompt names, each with what stands before it."""
    _, *pieces = re.split(BETWEEN, f",{plain(prompt)}")
    pairs = zip(pieces[::2], map(str.strip, pieces[1::2]), strict=True)
    return [(thing, before.lower()) for before, thing in pairs if thing]


def questions(prompt: str, by: Judging) -> list[Question]:
    """The questions whose chances of the wanted answer are multiplied; none where the caption alone decides.

    By parts: whether each thing is there, or how many of them, and whether it lies where it should to the one before.
    """
    if by == "caption":
        return []
    if by == "whole":
        return [_is_there(plain(prompt))]
    named = _named(prompt)
    pairs = zip(named, named[1:], strict=False)
    places = [(one, place, other) for (one, _), (other, place) in pairs if re.fullmatch(PLACES, place)]
    return [_about(thing) for thing in parts(prompt)] + [_lies(*place) for place in places]


def _about(thing: str) -> Question:
    found = SEVERAL.fullmatch(thing)
    if found is None:
        return _is_there(thing)
    number = next(number for number, spellings in NUMBERS.items() if found[1].lower() in spellings)
    return Question(f"How many {found[2]} are there?", NUMBERS, number)


def _is_there(thing: str) -> Question:
    return Question(f"Is there {thing}?", YES_NO, "yes")


def _lies(one: str, place: str, other: str) -> Question:
    verb = "Are" if SEVERAL.fullmatch(one) else "Is"
    return Question(f"{verb} the {ARTICLE.sub('', one)} {place} the {ARTICLE.sub('', other)}?", YES_NO, "yes")


def score(
    prompt: str, by: Judging, chance: Callable[[Question], Sequence[float]], said: Callable[[str], Sequence[float]]
) -> list[float]:
    """The score of each picture, from 0 to 1.

    `chance` says how likely the wanted answer to a question about each is, `said` how likely a caption is.
    """
    factors = [chance(question) for question in questions(prompt, by)]
    if by in ("both", "caption"):
        factors.append(said(plain(prompt)))
    return [math.prod(chances) for chances in zip(*factors, strict=True)]
