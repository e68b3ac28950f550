"""Numbers by construction: what may begin one, what is one, and that every answer under the rule is one."""

import math
from fractions import Fraction

import pytest
import torch
from golden import micro
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from janusflow_core.spelling import WORDS, Numbers, Spelled

bounds = st.decimals(-2000, 2000, allow_nan=False, places=2).map(float)


@st.composite
def ranges(draw: st.DrawFn) -> Numbers:
    low, high = sorted((draw(bounds), draw(bounds)))
    try:
        return Numbers(low, high, draw(st.integers(0, 3)))
    except ValueError:
        assume(False)
        raise


def every(numbers: Numbers) -> list[str]:
    """All of them in digits, by counting."""
    step = Fraction(1, 10**numbers.decimals)
    first = math.ceil(Fraction(str(numbers.minimum)) / step)
    last = math.floor(Fraction(str(numbers.maximum)) / step)
    return [str(float(count * step)) if numbers.decimals else str(count) for count in range(first, last + 1)]


@settings(max_examples=60)
@given(st.integers(-130, 130), st.integers(0, 130), st.integers(0, 1))
def test_beginnings_are_just_the_beginnings_of_numbers_in_the_range(low: int, width: int, decimals: int):
    numbers = Numbers(low / 10 if decimals else low, (low + width) / 10 if decimals else low + width, decimals)
    plain = {text.removesuffix(".0") for text in every(numbers)} | {text for text in every(numbers) if decimals}
    texts = plain | {word for number, word in enumerate(WORDS) if numbers.minimum <= number <= numbers.maximum}
    begun = {text[:end] for text in texts for end in range(len(text) + 1)}
    letters = "0123456789.-ntw"
    for text in {begin + letter for begin in begun for letter in letters} | begun:
        assert numbers.begins(text) == (text in begun), text
        assert numbers.ends(text) == (text in texts), text
    assert all(
        len(text) <= numbers.longest and numbers.minimum <= numbers.value(text) <= numbers.maximum for text in texts
    )


class Random:
    """A model without knowledge: logits from a seed, so that what is written is only what the rule lets through."""

    def __init__(self, rule: Spelled, seed: int) -> None:
        self.rule, self.random = rule, torch.Generator().manual_seed(seed)

    def write(self, longest: int) -> list[int]:
        tokenizer, written = micro().tokenizer, []
        for _ in range(longest + 2):
            logits: Tensor = self.rule(torch.randn(1, tokenizer.vocab_size, generator=self.random), [written])
            token = int(logits.argmax())
            assert logits[0, token] > -math.inf
            if token == tokenizer.eos_id:
                return written
            written.append(token)
        raise AssertionError(tokenizer.decode(written))


@settings(max_examples=60, deadline=None)
@given(ranges(), st.integers(0, 2**32))
def test_whatever_the_model_wants_it_writes_a_number_of_the_range(numbers: Numbers, seed: int):
    tokenizer = micro().tokenizer
    rule = Spelled(tokenizer, numbers.begins, numbers.ends, numbers.takes)
    text = tokenizer.decode(Random(rule, seed).write(numbers.longest)).strip()
    assert numbers.ends(text) and numbers.minimum <= numbers.value(text) <= numbers.maximum


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((2, 1, 0), "must lie between two numbers"),
        ((-math.inf, 1, 0), "must lie between two numbers"),
        ((0, math.nan, 0), "must lie between two numbers"),
        ((0, 1, 13), "decimals must lie between 0 and 12"),
        ((0.2, 0.8, 0), "there is no number of 0 decimals between 0.2 and 0.8"),
    ],
)
def test_a_range_without_numbers_is_refused(given: tuple, words: str):
    with pytest.raises(ValueError, match=words):
        Numbers(*given)
