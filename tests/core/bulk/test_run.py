"""Items worked through: in the same batches whatever happens, nothing twice, nothing lost, failures told."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from janusflow_core.bulk.answers import Answers, answer_items
from janusflow_core.bulk.drawing import Pictures, draw_items, pictures_told
from janusflow_core.bulk.items import Item
from janusflow_core.bulk.journal import Share
from janusflow_core.bulk.layouts import new_layout
from janusflow_core.bulk.run import Run, agreed, seed_of
from janusflow_core.captions import Report

ITEMS = [Item(f"{number:05}", f"prompt {number}") for number in range(11)]
ONE = Share()


class Painter:
    """Draws a picture whose color says its seed, whose chunks its prompt and which others were drawn with it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, prompts, seeds):
        self.batches.append(list(prompts))
        if "bad" in prompts:
            raise ValueError("that cannot be drawn")
        told = {"together": ", ".join(prompts)}
        colors = [tuple(seed.to_bytes(8, "big")[-3:]) for seed in seeds]
        return [
            (Image.new("RGB", (8, 8), color), told | {"prompt": p}) for color, p in zip(colors, prompts, strict=True)
        ]


def draw(out: Path, items=ITEMS, painter=None, share: Share = ONE, at_once: int = 4, on_item=None, **layout):
    place = Pictures(out, items, new_layout(**layout), seed=3)
    run = Run(place, {"steps": 30}, share)
    draw_items(run, place, painter or Painter(), at_once, on_item)
    return run.finish()


def files(out: Path) -> dict[str, bytes]:
    """All below the folder that a run writes into, so that nothing of it can be left unseen."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"), key=str)
        if path.is_file()
    }


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """What one process makes in one go."""
    (tmp_path / "whole").mkdir()
    assert draw(tmp_path / "whole/pictures") == Report(11)
    return files(tmp_path / "whole")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "again").mkdir()
    return tmp_path / "again/pictures"


def test_every_prompt_becomes_a_picture_of_its_own_seed(whole: dict[str, bytes]):
    assert whole.keys() == {"pictures.jsonl", *(f"pictures/{item.id}.png" for item in ITEMS)}
    rows = [json.loads(line) for line in whole["pictures.jsonl"].splitlines()]
    assert rows[2] == {"id": "00002", "prompt": "prompt 2", "seed": seed_of(ITEMS[2], 3), "files": ["00002.png"]}


@given(st.text(), st.text(), st.integers(0, 2**63), st.integers(0, 2**63))
def test_a_seed_follows_from_id_and_seed_alone(one: str, other: str, seed: int, another: int):
    assert 0 <= seed_of(Item(one), seed) < 2**48
    assert seed_of(Item(one, "a"), seed) == seed_of(Item(one, "b"), seed)
    same = (one, seed) == (other, another)
    assert (seed_of(Item(one), seed) == seed_of(Item(other), another)) == same
    assert seed_of(Item(one, seed=another), seed) == another


@pytest.mark.parametrize("world", [2, 3, 7])
def test_any_number_of_processes_makes_the_same_bytes(whole: dict[str, bytes], out: Path, world: int):
    reports = [draw(out, share=Share(rank, world, launch="1")) for rank in range(world)]
    assert reports == [None] * (world - 1) + [Report(11)] and files(out.parent) == whole


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", range(1, 11))
@pytest.mark.parametrize("goes_on", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(whole: dict[str, bytes], out: Path, after: int, goes_on: int):
    """With another number of processes too; only a batch that was begun is computed again, and not written again."""

    def stop(done, total):
        if done == after:
            raise Stop

    with pytest.raises(Stop):
        draw(out, on_item=stop)
    written = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert len(written) == after
    painter = Painter()
    for rank in range(goes_on):
        draw(out, painter=painter, share=Share(rank, goes_on, launch="2"))
    assert files(out.parent) == whole
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert sorted(sum(painter.batches, [])) == sorted(item.prompt for item in ITEMS[after // 4 * 4 :])


def test_what_is_there_is_left_alone_and_what_is_gone_comes_again(whole: dict[str, bytes], out: Path):
    draw(out)
    painter = Painter()
    assert draw(out, painter=painter) == Report(0, 11) and painter.batches == []
    (out / "00005.png").unlink()
    assert draw(out, painter=painter) == Report(1, 10) and len(painter.batches) == 1
    assert files(out.parent) == whole


def test_the_batch_does_not_change_seeds(whole: dict[str, bytes], out: Path):
    draw(out, at_once=1)
    pixels = {name: Image.open(out / name).getpixel((0, 0)) for name in ("00000.png", "00007.png")}
    assert pixels == {name: tuple(seed_of(Item(name[:5]), 3).to_bytes(8, "big")[-3:]) for name in pixels}
    assert len(files(out.parent)) == len(whole)


# --- layouts ----------------------------------------------------------------------------------------------------


def test_several_pictures_of_each_count_their_seeds_on(out: Path):
    assert draw(out, ITEMS[:3], each=3) == Report(3)
    assert [path.name for path in sorted(out.iterdir())][:4] == [
        "00000_0.png",
        "00000_1.png",
        "00000_2.png",
        "00001_0.png",
    ]
    first = seed_of(ITEMS[0], 3)
    for number in range(3):
        color = (first + number).to_bytes(8, "big")[-3:]
        assert Image.open(out / f"00000_{number}.png").getpixel((0, 0)) == tuple(color)


def test_genevals_folders_hold_four_samples_and_the_row(out: Path):
    row = {"tag": "two_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
    assert draw(out, [Item("00000", row["prompt"], row=row)], kind="geneval") == Report(1)
    assert [*files(out)] == ["00000/metadata.jsonl", *(f"00000/samples/000{n}.png" for n in range(4))]
    assert json.loads((out / "00000/metadata.jsonl").read_text()) == row


def test_geneval_2_is_led_from_prompts_to_pictures(out: Path):
    draw(out, [*ITEMS[:2], Item("x")], kind="geneval2")
    paths = json.loads(out.with_name("pictures.paths.json").read_text())
    assert paths == {f"prompt {k}": str((out / f"0000{k}.png").resolve()) for k in range(2)}


def test_dpg_takes_a_square_of_four(out: Path):
    assert draw(out, ITEMS[:1], kind="dpg") == Report(1) and [*files(out)] == ["00000.png"]
    whole, first = Image.open(out / "00000.png"), seed_of(ITEMS[0], 3)
    assert whole.size == (16, 16)
    for number, spot in enumerate([(0, 0), (8, 0), (0, 8), (8, 8)]):
        assert whole.getpixel(spot) == tuple((first + number).to_bytes(8, "big")[-3:])


def test_mjhq_lies_in_folders_of_categories(out: Path):
    items = [replace(ITEMS[0], row={"category": "food"}), ITEMS[1]]
    report = draw(out, items, kind="mjhq")
    assert (
        report is not None
        and [*files(out)] == ["food/00000.jpg"]
        and Image.open(out / "food/00000.jpg").format == "JPEG"
    )
    assert report.failed == {"00001": "there is nothing to fill {category}/{id}.jpg with ('category')"}


def test_the_table_of_a_run_leads_to_its_pictures(out: Path):
    draw(out, [*ITEMS[:2], Item("x")], each=2)
    told = pictures_told(out.with_name("pictures.jsonl"))
    assert len({path for _, path in told}) == 4
    assert [prompt for prompt, _ in told] == ["prompt 0"] * 2 + ["prompt 1"] * 2
    assert all(path.is_file() for _, path in told)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"each": 0}, "got 0 pictures"),
        ({"kind": "dpg", "each": 3}, "3 pictures make no square"),
        ({"name": "{id}.gif"}, "ends in .png"),
        ({"name": "{id}.png", "each": 2}, "put {n} into it"),
    ],
)
def test_layouts_that_make_no_sense_are_refused(given, message: str):
    with pytest.raises(ValueError, match=message):
        new_layout(**given)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a//b", "a/../b", "x\n", "a:b", ".x", "x.", "", "c\\d", "x" * 300])
def test_no_id_leads_out_of_the_folder(out: Path, name: str):
    report = draw(out, [Item(name, "a prompt"), ITEMS[0]], name="{id}/{n}.png")
    assert report is not None and report.written == 1 and "is no name for a file" in report.failed[name]
    assert [*files(out.parent)] == ["pictures.jsonl", "pictures/00000/0.png"]


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_what_cannot_be_drawn_is_told_and_the_rest_goes_on(out: Path):
    items = [*ITEMS[:2], Item("a", "bad"), Item("b"), Item("c", "x", fault="line 7 is broken"), *ITEMS[2:4]]
    report = draw(out, items)
    assert report == Report(4, 0, {"a": "that cannot be drawn", "b": "it has no prompt", "c": "line 7 is broken"})
    rows = {row["id"]: row for row in map(json.loads, out.with_name("pictures.jsonl").read_text().splitlines())}
    assert [*rows] == [item.id for item in items] and rows["a"]["failed"] == "that cannot be drawn"
    mended = [replace(item, prompt=item.prompt.replace("bad", "good")) for item in items]
    again = draw(out, mended)
    assert again is not None and again.written == 1 and [*again.failed] == ["b", "c"]


def test_what_all_are_refused_for_ends_the_run(out: Path):
    """It is the settings' fault: thirty thousand failures would say the same."""

    def refuse(prompts, seeds):
        raise ValueError("steps must be at least 1")

    with pytest.raises(ValueError, match="steps must be at least 1"):
        draw(out, painter=refuse)
    assert draw(out) == Report(11)


def test_a_batch_that_does_not_fit_is_halved(whole: dict[str, bytes], out: Path):
    painter = Painter()

    def tight(prompts, seeds):
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return painter(prompts, seeds)

    assert draw(out, painter=tight) == Report(11) and max(map(len, painter.batches)) == 2
    assert files(out.parent).keys() == whole.keys()


def test_a_full_disk_ends_the_run_with_a_sentence(whole: dict[str, bytes], out: Path, monkeypatch):
    def full(self, *given, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="nothing can be written to .*No space left"):
        patch.setattr(Image.Image, "save", full)
        draw(out)
    assert draw(out) == Report(11) and files(out.parent) == whole


# --- what is agreed on ------------------------------------------------------------------------------------------


def test_settings_stay_those_of_the_first_process(tmp_path: Path):
    out, told = tmp_path / "pictures", {"steps": 30, "guidance": None, "vae": Path("a/b")}
    first = agreed(out, told, {"dtype": lambda: "bf16"})
    assert first == {"steps": 30, "guidance": None, "vae": str(Path("a/b")), "dtype": "bf16"}
    assert agreed(out, told, {"dtype": lambda: pytest.fail("nothing is to be found out")}) == first
    assert json.loads((tmp_path / "pictures.run.json").read_text()) == first and len([*tmp_path.iterdir()]) == 1
    assert agreed(out, {**told, "steps": 40}, {"dtype": lambda: "fp32"})["steps"] == 40  # nothing was made yet
    assert agreed(out, told, {"dtype": lambda: "bf16"}) == first
    out.mkdir()
    with pytest.raises(
        ValueError, match="pictures is made with steps 30, not 20: name another with --out, or delete it"
    ):
        agreed(out, {**told, "steps": 20})
    with pytest.raises(ValueError, match="made with dtype 'bf16', not 'fp32'"):
        agreed(out, {**told, "dtype": "fp32"})


def test_a_process_that_comes_second_takes_what_the_first_found(tmp_path: Path):
    """The other is faster while this one still measures."""
    out = tmp_path / "pictures"

    def slowly() -> str:
        assert agreed(out, {"steps": 30}, {"dtype": lambda: "fp32"})["dtype"] == "fp32"
        return "bf16"

    assert agreed(out, {"steps": 30}, {"dtype": slowly})["dtype"] == "fp32"


# --- answers ----------------------------------------------------------------------------------------------------


def asked(width: int) -> Item:
    return Item(
        f"{width}", "", "How wide?" if width % 2 else "", lambda: Image.new("RGB", (width, 8)), row={"label": width}
    )


def answer(table: Path, items, share: Share = ONE, on_item=None, batches=None):
    def say(pictures, questions, seeds):
        if batches is not None:
            batches.append([picture.width for picture in pictures])
        told = zip(pictures, questions, seeds, strict=True)
        return [f"{question} {picture.width}, \n seed {seed}" for picture, question, seed in told]

    place = Answers(table, items, "Describe it.")
    run = Run(place, {"question": "Describe it."}, share)
    answer_items(run, place, lambda picture: picture, say, 4, 3, on_item)
    return run.finish()


WIDTHS = [asked(width) for width in range(10, 21)]


def rows_of(table: Path) -> list[dict]:
    return [dict(row) for row in Answers(table, [], "").rows.values()]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_answers_stand_in_a_table_with_all_that_was_known(tmp_path: Path, suffix: str):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    table = tmp_path / f"answers{suffix}"
    broken = Item("x", open=lambda: (_ for _ in ()).throw(ValueError("no picture that Pillow can read")))
    report = answer(table, [*WIDTHS, broken, Item("y")])
    assert report == Report(11, 0, {"x": "no picture that Pillow can read", "y": "it has no picture"})
    rows = rows_of(table)
    assert [row["id"] for row in rows] == [*(item.id for item in WIDTHS), "x", "y"]
    told = {key: rows[1][key] for key in ("id", "question", "response")}
    assert told == {"id": "11", "question": "How wide?", "response": f"How wide? 11, \n seed {seed_of(WIDTHS[1], 3)}"}
    assert rows[0]["question"] == "Describe it." and str(rows[0]["label"]) == "10" and rows[-1]["failed"]
    batches: list = []
    assert answer(table, WIDTHS, batches=batches) == Report(0, 11) and batches == []
    assert rows_of(table) == rows  # rows of what is no longer asked about stay


def test_answers_that_are_only_noted_yet_hold_to_their_settings(tmp_path: Path):
    table, told = tmp_path / "answers.jsonl", {"question": "Describe it."}
    agreed(table, told)
    with pytest.raises(Stop):
        answer(table, WIDTHS, on_item=lambda done, total: (_ for _ in ()).throw(Stop))
    with pytest.raises(ValueError, match="made with question 'Describe it.', not 'Other'"):
        agreed(table, {"question": "Other"})


@pytest.mark.parametrize("after", [1, 4, 7])
def test_answers_of_a_stopped_run_are_the_same(tmp_path: Path, after: int):
    def stop(done, total):
        if done == after:
            raise Stop

    answer(tmp_path / "whole.jsonl", WIDTHS)
    with pytest.raises(Stop):
        answer(tmp_path / "again.jsonl", WIDTHS, on_item=stop)
    batches: list = []
    for rank in range(2):
        answer(tmp_path / "again.jsonl", WIDTHS, Share(rank, 2, launch="1"), batches=batches)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(sum(batches, [])) == [item.open().width for item in WIDTHS[after // 4 * 4 :] if item.open]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("answers.txt", None, "got answers.txt for the answers, expected a name in .jsonl, .csv, .parquet"),
        ("answers.jsonl", '{"file_name": "a.png"}\n', "answers.jsonl holds something else than answers"),
        ("answers.jsonl", "{broken\n", "answers.jsonl holds something else than answers"),
    ],
)
def test_what_is_no_table_of_answers_is_left_alone(tmp_path: Path, name: str, content, message: str):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        answer(tmp_path / name, WIDTHS)
    assert content is None or (tmp_path / name).read_text() == content


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_half_a_character_is_named_and_keeps_nobody_from_their_answers(tmp_path: Path, suffix: str):
    """Scraped texts and old names of files have them; UTF-8 has no word for them, JSON has."""
    table = tmp_path / f"answers{suffix}"
    half = replace(WIDTHS[0], id="\ud800", question="\udcff?")
    report = answer(table, [half, *WIDTHS[1:3]])
    assert report is not None and report.written + len(report.failed) == 3 and report.written >= 2
    assert len(rows_of(table)) == 3
    if suffix == ".jsonl":
        assert rows_of(table)[0]["id"] == "\ud800"
