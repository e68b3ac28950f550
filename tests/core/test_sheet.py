import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from janusflow_core.sheet import Axis, any_value, sheet, yes_or_no

KINDS = {"steps": int, "guidance": float, "prompt": str, "cfg_zero_star": yes_or_no}


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1))
def test_whole_numbers_are_read_as_they_are_written(values: list[int]):
    for parting in (",", ", ", " | "):
        assert Axis.parse(f"steps = {parting.join(map(str, values))}", {"steps": any_value}).values == tuple(values)


@pytest.mark.parametrize(
    ("text", "values", "labels"),
    [
        ("steps=5,10 , 20", (5, 10, 20), ["steps 5", "steps 10", "steps 20"]),
        ("guidance=1,2.50", (1.0, 2.5), ["guidance 1", "guidance 2.5"]),
        ("prompt=a heart, red | a star", ("a heart, red", "a star"), ["prompt a heart, red", "prompt a star"]),
        ("cfg_zero_star=no,Yes", (False, True), ["cfg_zero_star False", "cfg_zero_star True"]),
        ("steps=7,", (7,), ["steps 7"]),
        (f"prompt={'x' * 80}", ("x" * 80,), [f"prompt {'x' * 32}…"]),
    ],
)
def test_axes(text: str, values: tuple, labels: list[str]):
    axis = Axis.parse(text, KINDS)
    assert axis.values == values and axis.labels() == labels


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stops=1", "got 'stops' to go through, expected one of steps, guidance"),
        ("steps", "steps has no values to go through"),
        ("steps=,", "steps has no values to go through"),
        ("steps=5,many", "'many' is no value of steps"),
        ("cfg_zero_star=maybe", "'maybe' is no value of cfg_zero_star: expected yes or no"),
    ],
)
def test_axes_that_go_nowhere(text: str, words: str):
    with pytest.raises(ValueError, match=words):
        Axis.parse(text, KINDS)


def test_values_of_any_kind():
    found = [any_value(text) for text in ("3", "-2", "1.0", "1e3", "true", "False", "euler", "a heart")]
    assert found == [3, -2, 1.0, 1000.0, True, False, "euler", "a heart"]
    assert [type(value) for value in found] == [int, int, float, float, bool, bool, str, str]


COLORS = ["red", "green", "blue", "yellow", "cyan", "magenta"]


def places(whole: Image.Image, color: str) -> tuple[int, int, int, int]:
    """The box that a color fills."""
    target = np.array(Image.new("RGB", (1, 1), color))[0, 0]
    rows, columns = np.nonzero((np.asarray(whole) == target).all(-1))
    assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "the picture is whole"
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_every_picture_lies_whole_in_its_row_and_column():
    cells = [[Image.new("RGB", (40, 30), color) for color in line] for line in (COLORS[:3], COLORS[3:])]
    whole = sheet(cells, ["one", "two", "three"], ["first", "second"])
    boxes = [[places(whole, color) for color in line] for line in (COLORS[:3], COLORS[3:])]
    for line in boxes:
        assert len({(box[1], box[3]) for box in line}) == 1 and [box[0] for box in line] == sorted(
            box[0] for box in line
        )
        assert all(box[2] - box[0] == 40 and box[3] - box[1] == 30 for box in line)
    for above, below in zip(*boxes, strict=True):
        assert (above[0], above[2]) == (below[0], below[2]) and above[3] < below[1]


def test_labels_are_written_beside_the_pictures_and_never_on_them():
    cells = [[Image.new("RGB", (40, 30), "red"), Image.new("RGB", (20, 10), "blue")]]
    plain, labelled = (
        sheet(cells, ["", ""], []),
        sheet(cells, ["steps 5", "a label wider than the pictures"], ["cfg 2"]),
    )
    assert labelled.width > plain.width and labelled.height == plain.height
    for color, size in (("red", (40, 30)), ("blue", (20, 10))):
        box = places(labelled, color)
        assert (box[2] - box[0], box[3] - box[1]) == size
    assert (np.asarray(labelled.convert("L")) < 60).sum() > (np.asarray(plain.convert("L")) < 60).sum() + 100
