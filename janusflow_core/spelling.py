"""What may be written at all: rules under which an answer can only be a number.

A rule lets through the tokens with which the text is still the beginning of an allowed one, and the closing token only
where it is one. Since every allowed text is short, an answer always ends as one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from .scoring import WORDS
from .tokenizer import JanusTokenizer

NUMBER = re.compile(r"(?P<sign>-?)(?P<whole>0|[1-9][0-9]*)?(?P<point>\.(?P<part>[0-9]*))?")


@dataclass(frozen=True)
class Numbers:
    """Numbers from `minimum` to `maximum` with at most so many `decimals`, in digits, or in words up to twenty.

    Raises ValueError for a range that holds none, or that has no end.
    """

    minimum: float = 0
    maximum: float = 100
    decimals: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum)) or self.minimum > self.maximum:
            raise ValueError(f"a number must lie between two numbers, got {self.minimum} and {self.maximum}.")
        if not 0 <= self.decimals <= 12:
            raise ValueError(f"decimals must lie between 0 and 12, got {self.decimals}.")
        if not any(self._holds(Fraction(0), None, sign) for sign in (1, -1)):
            raise ValueError(
                f"there is no number of {self.decimals} decimals between {self.minimum} and {self.maximum}."
            )

    @property
    def longest(self) -> int:
        """How many letters one has at most."""
        whole = max(len(str(int(abs(end)))) for end in (self.minimum, self.maximum))
        return max(whole + self.decimals + 2, *map(len, WORDS))

    def begins(self, text: str) -> bool:
        """Whether one of them begins so."""
        found = NUMBER.fullmatch(text)
        return any(word.startswith(text) for word in self._words) or (found is not None and self._can_become(found))

    def ends(self, text: str) -> bool:
        """Whether this is one of them."""
        found = NUMBER.fullmatch(text)
        if text in self._words or found is None or not found["whole"] or found["point"] == ".":
            return text in self._words
        number, sign = Fraction(text), -1 if found["sign"] else 1
        return self._within(number) and len(found["part"] or "") <= self.decimals and (number != 0 or sign > 0)

    def value(self, text: str) -> float:
        """The number that a text stands for; an int where there are no decimals."""
        number = Fraction(WORDS.index(text) if text in WORDS else text)
        return float(number) if self.decimals else int(number)

    def takes(self, piece: str) -> bool:
        """Whether a piece of text can be a part of one."""
        return bool(piece) and (bool(re.fullmatch(r"[-.0-9]+", piece)) or any(piece in word for word in self._words))

    @cached_property
    def _range(self) -> tuple[Fraction, Fraction]:
        return Fraction(str(self.minimum)), Fraction(str(self.maximum))  # 0.1 as it is written, not as it is stored

    @cached_property
    def _words(self) -> tuple[str, ...]:
        return tuple(word for number, word in enumerate(WORDS) if self._within(Fraction(number)))

    def _within(self, number: Fraction) -> bool:
        return self._range[0] <= number <= self._range[1]

    def _can_become(self, found: re.Match[str]) -> bool:
        """Whether some digits behind it, or none, lead into the range."""
        sign, whole, part = -1 if found["sign"] else 1, found["whole"], found["part"]
        if not whole:
            signs = (-1,) if found["sign"] else (1, -1)
            return not found["point"] and any(self._holds(Fraction(0), None, either) for either in signs)
        if part is not None:
            start = Fraction(f"{whole}.{part}0")
            return max(len(part), 1) <= self.decimals and self._holds(start, start + Fraction(1, 10 ** len(part)), sign)
        longer = range(1 if whole == "0" else self.longest)
        return any(self._holds(int(whole) * Fraction(10**k), (int(whole) + 1) * Fraction(10**k), sign) for k in longer)

    def _holds(self, start: Fraction, end: Fraction | None, sign: int) -> bool:
        """Whether the range has numbers with this sign whose size lies between `start` and below `end`."""
        low, high = sorted(sign * bound for bound in self._range)
        step = Fraction(1, 10**self.decimals)
        first = math.ceil(max(start, low) / step) * step
        first += step if first == 0 and sign < 0 else 0  # there is no -0
        return first <= high and (end is None or first < end)


class Spelled:
    """A rule for `decoding.generate`: texts of one kind only, with or without a space before them.

    `begins` and `ends` judge a text without it, `takes` whether a piece can be a part of one at all.
    """

    def __init__(
        self,
        tokenizer: JanusTokenizer,
        begins: Callable[[str], bool],
        ends: Callable[[str], bool],
        takes: Callable[[str], bool],
    ) -> None:
        self._tokenizer, self._begins, self._ends = tokenizer, begins, ends
        self._pieces = {
            token: text
            for token, text in enumerate(tokenizer.token_texts)
            if takes(text.removeprefix(" ")) or text == " "
        }

    def __call__(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        for row, written in enumerate(texts):
            text = "".join(self._pieces.get(token, "") for token in written)
            tokens = [token for token, piece in self._pieces.items() if self._goes_on(text + piece)]
            if self._ends(text.removeprefix(" ")):
                tokens.append(self._tokenizer.eos_id)
            allowed[row, tokens] = True
        return logits.masked_fill(~allowed, float("-inf"))

    def _goes_on(self, text: str) -> bool:
        return self._begins(text.removeprefix(" "))
