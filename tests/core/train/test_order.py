"""The order of samples: permutations without lists, shares that are kept exactly, nothing drawn twice."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janusflow_core.train.order import Mixture, Phase, shuffled

NAMES = ("understanding", "generation", "text")
SHARES = st.tuples(*[st.integers(0, 100)] * 3).filter(any).map(lambda shares: dict(zip(NAMES, shares, strict=True)))


@given(count=st.integers(1, 400), key=st.text(max_size=8))
def test_every_thing_stands_at_one_place(count: int, key: str):
    assert sorted(shuffled(place, count, key) for place in range(count)) == list(range(count))


def test_orders_of_other_keys_are_other_orders():
    orders = {tuple(shuffled(place, 50, f"0/{epoch}") for place in range(50)) for epoch in range(100)}
    assert len(orders) == 100 and tuple(range(50)) not in orders


def test_no_place_is_preferred():
    """Chi square over what comes first of seven in 7,000 orders: 22.5 is passed once in a thousand seeds."""
    first = Counter(shuffled(0, 7, f"key {number}") for number in range(7000))
    assert sum((first[thing] - 1000) ** 2 / 1000 for thing in range(7)) < 22.5


def test_neighbours_do_not_stay_together():
    order = [shuffled(place, 10_000, "a") for place in range(10_000)]
    steps = [abs(a - b) for a, b in zip(order, order[1:], strict=False)]
    assert 3000 < sum(steps) / len(steps) < 3700  # a third of the length, as of places drawn at random


@pytest.mark.parametrize("place", [-1, 5])
def test_a_place_outside_is_refused(place: int):
    with pytest.raises(ValueError, match=f"got place {place}, expected 0 to 4"):
        shuffled(place, 5, "a")


@given(st.lists(st.tuples(st.integers(1, 60), SHARES), min_size=1, max_size=3))
def test_tasks_count_on_and_keep_their_shares(told: list[tuple[int, dict[str, int]]]):
    lengths, shares = zip(*told, strict=True)
    firsts = [sum(lengths[:number]) for number in range(len(lengths))]
    mixture = Mixture([Phase(first, some) for first, some in zip(firsts, shares, strict=True)])
    counted, within = Counter(), Counter()
    for number in range(sum(lengths)):
        if number in firsts:
            within, some = Counter(), shares[firsts.index(number)]
        task, own = mixture.at(number)
        assert own == counted[task]
        counted[task] += 1
        within[task] += 1
        for name in NAMES:
            assert abs(within[name] - within.total() * some[name] / sum(some.values())) < 1.5


def test_a_cycle_is_spread_evenly():
    mixture = Mixture([Phase(0, {"understanding": 30, "generation": 50, "text": 20})])
    letters = "".join(mixture.at(number)[0][0] for number in range(20))
    assert letters == "gutguggtug" * 2


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([], "phases of a mixture must begin with the first sample"),
        ([Phase(1, {"text": 1})], "phases of a mixture must begin with the first sample"),
        ([Phase(0, {"text": 1}), Phase(0, {"text": 1})], "follow one another"),
        ([Phase(0, {"text": 0})], "whole numbers, not all of them 0"),
    ],
)
def test_wrong_phases_are_refused(phases: list[Phase], told: str):
    with pytest.raises(ValueError, match=told):
        Mixture(phases)
