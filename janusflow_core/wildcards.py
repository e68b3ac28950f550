"""Prompts that leave something to chance: `a {red|blue} circle`, and `a __color__ circle` from a list of colors."""

from __future__ import annotations

import random
import re
from functools import partial
from pathlib import Path

CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")  # the innermost; braces without a bar are text
LIST = re.compile(r"__([\w-]+(?:/[\w-]+)*)__")
DEEPEST, LONGEST = 100, 100_000  # lists may name others, but not each other


def expand(prompt: str, seed: int, lists: Path | None = None) -> str:
    """The prompt with every {choice|of these} and every __list__ replaced, the same for the same seed.

    `__color__` is a line of color.txt in the folder `lists`, in which lines may hold choices and lists in turn; empty
    ones and those that begin with # are left out. Without a folder only choices are replaced. Raises ValueError for a
    list that is not there, is empty or names itself.
    """
    chance, text = random.Random(seed), prompt
    for _ in range(DEEPEST):
        before = text
        if lists is not None:
            text = LIST.sub(partial(_line, lists, chance), text)
        text = CHOICE.sub(lambda found: chance.choice(found[1].split("|")).strip(), text)
        if text == before:
            return text
        if len(text) > LONGEST:
            break
    raise ValueError(f"the lists of {prompt!r} name each other without end: take one out of the other.")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines and those that begin with # are left out.

    Raises ValueError for a file that holds none, and what reading it raises.
    """
    prompts = _lines(path)
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one a line.")
    return prompts


def _line(lists: Path, chance: random.Random, found: re.Match[str]) -> str:
    path = lists / f"{found[1]}.txt"
    if not path.is_file():
        raise ValueError(f"there is no list {found[0]}: put {found[1]}.txt, a text a line, into {lists}.")
    lines = _lines(path)
    if not lines:
        raise ValueError(f"the list {path} is empty: write a text a line.")
    return chance.choice(lines)


def _lines(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text("utf-8-sig").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
