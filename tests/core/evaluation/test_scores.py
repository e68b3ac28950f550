"""What differs by more than chance: exact tests against plain counting, and files that keep every trial."""

import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janusflow_core.evaluation.results import (
    Results,
    Weights,
    as_text,
    compare,
    differing,
    read_results,
    sha256,
    versions,
    write_results,
)
from janusflow_core.evaluation.scores import Score, by_name, holm, overall, paired_chance, unpaired_chance, wilson

TRIALS = st.lists(st.booleans(), max_size=200).map(tuple)


def score(right: int, total: int) -> Score:
    return Score((True,) * right + (False,) * (total - right))


# --- one score --------------------------------------------------------------------------------------------------


@given(TRIALS)
def test_the_interval_holds_the_rate_and_stays_a_probability(trials):
    low, high = Score(trials).interval
    assert 0 <= low <= Score(trials).rate + 1e-12 and Score(trials).rate - 1e-12 <= high <= 1


def test_the_interval_is_wilsons():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # the textbook's
    assert wilson(40, 100)[1] - wilson(40, 100)[0] > wilson(400, 1000)[1] - wilson(400, 1000)[0]
    assert wilson(0, 0) == (0.0, 1.0)


def test_overall_is_the_mean_of_the_tasks():
    scores = by_name([("a", True), ("b", True), ("a", False)])
    assert scores == {"a": Score((True, False)), "b": Score((True,))} and overall(scores) == 0.75


# --- two scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (0, 8), (3, 3), (12, 4)])
def test_the_paired_chance_is_that_of_fair_coins(gained: int, lost: int):
    """All ways in which the coins can fall, counted: as far from the middle as they did, or farther."""
    one = [False] * gained + [True] * lost + [True] * 20
    other = [True] * gained + [False] * lost + [True] * 20
    coins = gained + lost
    far = sum(abs(2 * sum(way) - coins) >= abs(gained - lost) for way in itertools.product((0, 1), repeat=coins))
    assert paired_chance(one, other) == pytest.approx(far / 2**coins)


@pytest.mark.parametrize(("right", "of", "other", "of_other"), [(3, 5, 1, 4), (0, 3, 3, 3), (2, 4, 2, 4), (4, 6, 0, 5)])
def test_the_unpaired_chance_is_that_of_dealing_the_right_ones_out_anew(right, of, other, of_other):
    total, both = of + of_other, right + other
    deals = [sum(1 for place in chosen if place < of) for chosen in itertools.combinations(range(total), both)]
    likely = {k: deals.count(k) for k in set(deals)}
    unlikely = sum(count for count in likely.values() if count <= likely[right])
    assert unpaired_chance(score(right, of), score(other, of_other)) == pytest.approx(unlikely / len(deals))


def test_the_textbooks_tea_lady():
    assert unpaired_chance(score(3, 4), score(1, 4)) == pytest.approx(0.4857, abs=1e-4)


@given(TRIALS, TRIALS)
def test_chances_are_probabilities_and_alike_both_ways(one, other):
    chance = unpaired_chance(Score(one), Score(other))
    assert 0 < chance <= 1 + 1e-12 and chance == pytest.approx(unpaired_chance(Score(other), Score(one)))
    size = min(len(one), len(other))
    paired = paired_chance(one[:size], other[:size])
    assert 0 < paired <= 1 and paired == paired_chance(other[:size], one[:size])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_raises_chances_keeps_their_order_and_is_never_stricter_than_bonferroni(chances):
    adjusted = holm(chances)
    assert all(p <= a <= min(1.0, p * len(chances)) + 1e-12 for p, a in zip(chances, adjusted, strict=True))
    pairs = sorted(zip(chances, adjusted, strict=True))
    assert [a for _, a in pairs] == sorted(adjusted)


def test_holm_as_the_textbook_has_it():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


# --- files ------------------------------------------------------------------------------------------------------


def results(**changed) -> Results:
    groups = {"pictures": {"single": score(9, 10), "two": score(3, 10)}, "answers": {"color": score(50, 60)}}
    told = {
        "what": "shapes",
        "weights": (Weights(name="a.safetensors", sha256="0" * 64),),
        "settings": {"seed": 0, "per_task": 10, "guidance": 2.5},
        "versions": versions(),
        "device": "cpu",
        "seconds": 1.5,
        "scores": as_text(groups),
    }
    return Results(**{**told, **changed})


def test_a_file_keeps_all_of_it(tmp_path: Path):
    write_results(tmp_path / "a.json", results())
    assert read_results(tmp_path / "a.json") == results()
    assert results().groups()["pictures"]["single"] == score(9, 10)
    assert {"janusflow", "python", "torch"} <= results().versions.keys()


def test_a_checkpoint_is_told_by_its_bytes(tmp_path: Path):
    (tmp_path / "b.safetensors").write_bytes(b"b")
    one = sha256(tmp_path / "b.safetensors")
    assert one == "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"
    (tmp_path / "config.json").write_text("{}")
    assert sha256(tmp_path) == one
    (tmp_path / "a.safetensors").write_bytes(b"a")
    assert sha256(tmp_path) == "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"  # of ab


def test_the_same_trials_are_compared_one_by_one():
    """Nine that were gained and none lost are certain in pairs, and nothing without them."""
    worse, better = Score((True,) * 50 + (False,) * 50), Score((True,) * 59 + (False,) * 41)
    one, other = (results(scores=as_text({"pictures": {"single": own}})) for own in (worse, better))
    rows = {name: chance for name, _, _, chance in compare(one, other)}
    assert rows.keys() == {"pictures", "pictures: single"} and max(rows.values()) < 0.01
    assert rows["pictures"] == pytest.approx(2 * 2 / 2**9)  # two rows, Holm
    elsewhere = other.model_copy(update={"settings": {**other.settings, "seed": 1}})
    assert min(chance for *_, chance in compare(one, elsewhere)) > 0.2
    guided = other.model_copy(update={"settings": {**other.settings, "guidance": 1.0}})
    assert compare(one, guided) == compare(one, other)
    assert differing(one, guided) == {"guidance": ("2.5", "1.0")}


def test_what_both_have_is_compared():
    fewer = results(scores=as_text({"pictures": {"two": score(3, 10)}, "other": {"x": score(1, 2)}}))
    rows = compare(results(), fewer)
    assert [(name, a.total, b.total) for name, a, b, _ in rows] == [("pictures", 10, 10), ("pictures: two", 10, 10)]
    assert [chance for *_, chance in rows] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no a.json: expected the results of janusflow evaluate --out"),
        ("[]", "a.json holds a list"),
        ("{}", "a.json lacks what"),
        (json.dumps(results().model_dump() | {"scores": {"a": {"b": "012"}}}), "expected zeros and ones"),
        (json.dumps(results().model_dump() | {"seconds": math.inf}), "seconds in a.json is inf"),
    ],
)
def test_what_are_no_results_is_told(tmp_path: Path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_results(tmp_path / "a.json")


def test_different_things_are_not_compared():
    with pytest.raises(ValueError, match="one result is of shapes, the other of letters"):
        compare(results(), results(what="letters"))
