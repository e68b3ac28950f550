"""Folders that are captioned: what stands where afterwards, whatever happens in between."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from janusflow_core.bulk.batches import halving
from janusflow_core.bulk.folder import ROOM, CaptionRun, caption_pictures
from janusflow_core.bulk.journal import DONE, Share
from janusflow_core.captions import CaptionOptions, Report, read_table
from janusflow_core.image import open_image

NAMES = ["a.png", "b.jpg", "in/c.png", "in/deep/d.webp", "in/e.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, each of a width of its own, and what is none."""
    root = tmp_path / "pictures"
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + number, 8), "red").save(root / name)
    (root / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(root / ".hidden" / "thumbnail.png")
    (root / "notes.md").write_text("no picture", encoding="utf-8")
    return root


def widths(pictures, seeds) -> list[str]:
    """A caption that tells pictures and seeds apart."""
    return [f"{picture.width} wide,\n seed {seed}" for picture, seed in zip(pictures, seeds, strict=True)]


def caption(folder: Path, describe=widths, at_once: int = 2, share: Share = Share(), table=None, **options):
    run = CaptionRun(folder, CaptionOptions(**options), {"question": "?"}, table, share)
    caption_pictures(run, open_image, describe, at_once, seed=7)
    return run.finish()


def texts(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in sorted(folder.rglob("*.txt"))}


EXPECTED = {name.rpartition(".")[0] + ".txt": f"{10 + k} wide, seed {7 + k}" for k, name in enumerate(NAMES)}


@pytest.mark.parametrize("at_once", [1, 2, 5, 64])
def test_every_picture_gets_a_text_beside_it_and_nothing_else_is_left(folder: Path, at_once: int):
    before = {path for path in folder.rglob("*")}
    assert caption(folder, at_once=at_once) == Report(5)
    assert texts(folder) == EXPECTED
    assert {path for path in folder.rglob("*")} - before == {folder / name for name in EXPECTED}


def test_pictures_with_a_caption_are_not_asked_about(folder: Path):
    (folder / "b.txt").write_text("mine", encoding="utf-8")
    (folder / "a.txt").write_text(" \n", encoding="utf-8")  # no caption yet
    asked = []
    assert caption(folder, lambda p, s: asked.extend(s) or widths(p, s)) == Report(4, 1)
    assert texts(folder) == {**EXPECTED, "b.txt": "mine"} and asked == [7, 9, 10, 11]
    assert caption(folder, lambda p, s: pytest.fail("nothing to ask")) == Report(0, 5)


@pytest.mark.parametrize(
    ("exists", "expected"),
    [("overwrite", "sks, 10 wide, seed 7"), ("append", "sks, mine, 10 wide, seed 7"),
     ("prepend", "sks, 10 wide, seed 7, mine")],
)  # fmt: skip
def test_a_caption_is_replaced_or_added_to(folder: Path, exists, expected):
    (folder / "a.txt").write_text("\ufeffmine\n", encoding="utf-8")
    assert caption(folder, exists=exists, trigger="sks") == Report(5)
    assert texts(folder)["a.txt"] == expected and texts(folder)["b.txt"] == "sks, 11 wide, seed 8"


def test_patterns_choose_and_numbers_stay_those_of_the_chosen(folder: Path):
    assert caption(folder, include=("*.png",), exclude=("in/e*",)) == Report(2)
    assert texts(folder) == {"a.txt": "10 wide, seed 7", "in/c.txt": "12 wide, seed 8"}


# --- tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_table_gets_all_captions_and_keeps_what_others_wrote(folder: Path, tmp_path: Path, suffix):
    table = tmp_path / "out" / f"metadata{suffix}"
    assert caption(folder, table=table) == Report(5)
    assert {row["file_name"]: row["text"] for row in read_table(table).values()} == {
        name: text for name, text in zip(NAMES, EXPECTED.values(), strict=True)
    }
    assert texts(folder) == {} and [*table.parent.iterdir()] == [table]
    lines = ['{"file_name": "a.png", "text": "old", "label": "x"}', '{"file_name": "gone.png", "text": "was here"}']
    rows = "file_name,text,label\na.png,old,x\ngone.png,was here,\n" if suffix == ".csv" else "\n".join(lines)
    table.write_text(rows, encoding="utf-8")
    assert caption(folder, table=table, exists="append") == Report(5)
    found = read_table(table)
    assert found["a.png"] == {"file_name": "a.png", "text": "old, 10 wide, seed 7", "label": "x"}
    assert found["gone.png"]["text"] == "was here" and len(found) == 6
    assert caption(folder, table=table) == Report(0, 5) and read_table(table) == found


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_pictures_that_cannot_be_read_are_reported_and_tried_again(folder: Path):
    (folder / "b.jpg").write_bytes(b"no picture")
    report = caption(folder)
    assert report is not None and report.written == 4 and [*report.failed] == ["b.jpg"]
    assert "Pillow" in report.failed["b.jpg"] and "b.txt" not in texts(folder)
    Image.new("RGB", (11, 8)).save(folder / "b.jpg")
    assert caption(folder) == Report(1, 4) and texts(folder) == EXPECTED


def test_two_pictures_of_one_name_do_not_share_a_text(folder: Path):
    Image.new("RGB", (50, 8)).save(folder / "b.png")
    report = caption(folder, exists="overwrite")
    assert report is not None and "share the .txt of b.jpg" in report.failed["b.png"]
    assert texts(folder)["b.txt"].startswith("11 wide")
    assert caption(folder) == Report(0, 6)  # what is there is left alone
    table = folder / "metadata.jsonl"
    assert caption(folder, table=table) == Report(6) and len(read_table(table)) == 6


def test_a_caption_that_nobody_can_read_is_not_lost(folder: Path):
    (folder / "a.txt").write_bytes(b"\xff\xfe\xfa")
    assert caption(folder) == Report(4, 1)
    report = caption(folder, exists="append")
    assert report is not None and "a.txt is not UTF-8" in report.failed["a.png"]
    assert (folder / "a.txt").read_bytes() == b"\xff\xfe\xfa"


def test_a_batch_that_does_not_fit_is_halved():
    sizes = []

    def tight(seeds):
        sizes.append(len(seeds))
        if len(seeds) > 2:
            raise torch.OutOfMemoryError
        return [str(seed) for seed in seeds]

    assert halving(tight, range(7)) == [*"0123456"] and max(sizes[2:]) < 7
    with pytest.raises(torch.OutOfMemoryError):
        halving(lambda seeds: tight([*seeds] * 3), [0])


@pytest.mark.parametrize("wrong", ["nowhere", "empty", "table.txt"])
def test_what_cannot_be_captioned_is_refused(folder: Path, wrong):
    (folder / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match="no folder|no picture to caption|no table"):
        CaptionRun(
            *((folder, CaptionOptions(), {}, Path(wrong)) if "." in wrong else (folder / wrong, CaptionOptions(), {}))
        )
    assert not (folder / ROOM).exists()


# --- stopped and taken up ---------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("exists", ["skip", "overwrite", "append", "prepend"])
@pytest.mark.parametrize("table", [None, "metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_stopped_run_goes_on_and_asks_nothing_twice(folder: Path, exists, table, after):
    path, asked = table and folder / table, []
    (folder / "a.txt").write_text("mine", encoding="utf-8")
    run = CaptionRun(folder, CaptionOptions(exists=exists), {"question": "?"}, path)

    def stop(done, total, text):
        if done == after:
            raise Stop

    def describe(pictures, seeds):
        asked.extend(seeds)
        return widths(pictures, seeds)

    with pytest.raises(Stop):
        caption_pictures(run, open_image, describe, 1, seed=7, on_caption=stop)
    written = len(asked)
    report = caption(folder, describe, table=path, exists=exists)
    assert len(asked) == len(set(asked)) and written == after
    assert report is not None and report.written == len(asked)
    kept = {"skip": "mine", "overwrite": "10 wide, seed 7"}.get(exists)
    mine = kept or ("mine, 10 wide, seed 7" if exists == "append" else "10 wide, seed 7, mine")
    assert texts(folder) == ({**EXPECTED, "a.txt": mine} if table is None else {"a.txt": "mine"})
    assert path is None or len(read_table(path)) == 5
    assert not (folder / ROOM).exists()


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_that_died_between_note_and_file_puts_the_file_in_place(folder: Path, rank: int):
    """Whichever of its processes it was, and however many go on."""
    (folder / "a.txt").write_text("mine", encoding="utf-8")
    run = CaptionRun(folder, CaptionOptions(exists="append"), {"question": "?"}, share=Share(rank, 3))
    run.journal.note("a.png", DONE, "mine, and more")
    with (folder / ROOM / f"{rank}.jsonl").open("a") as journal:
        journal.write('{"item": "b.jpg", "do')  # cut short
    assert caption(folder, exists="append") == Report(5)
    assert texts(folder) == {**EXPECTED, "a.txt": "mine, and more"}


def test_other_settings_begin_anew(folder: Path):
    run = CaptionRun(folder, CaptionOptions(exists="overwrite"), {"question": "Other?"})
    run.write("a.png", "by another question")
    assert caption(folder, exists="overwrite") == Report(5) and texts(folder) == EXPECTED


@pytest.mark.parametrize("world", [2, 3, 7])
@pytest.mark.parametrize("table", [None, "metadata.jsonl"])
def test_any_number_of_processes_writes_the_same(folder: Path, world: int, table):
    path = table and folder / table
    reports = [caption(folder, share=Share(rank, world, launch="1"), table=path) for rank in range(world)]
    assert reports == [None] * (world - 1) + [Report(5)]
    assert texts(folder) == EXPECTED if path is None else len(read_table(path)) == 5
    assert not (folder / ROOM).exists()


def test_fewer_processes_go_on_with_what_more_began(folder: Path):
    asked = []
    for rank in (0, 2):  # the second of three died
        caption(folder, share=Share(rank, 3, launch="1"), exists="append")
    report = caption(folder, lambda p, s: asked.extend(s) or widths(p, s), exists="append")
    assert report == Report(5) and asked == [8, 11] and texts(folder) == EXPECTED


def test_a_picture_that_was_mended_no_longer_counts_as_failed(folder: Path):
    (folder / NAMES[2]).write_bytes(b"no picture")
    caption(folder, share=Share(2, 3, launch="1"))
    Image.new("RGB", (12, 8)).save(folder / NAMES[2])
    assert caption(folder) == Report(5) and texts(folder) == EXPECTED


def test_a_launcher_says_which_share_is_ours(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Share.from_environment() == Share()
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert Share.from_environment() == Share(3, 4, 1, "29500")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing refuses root")
def test_a_folder_that_may_not_be_written_to_is_told(folder: Path):
    folder.chmod(0o500)
    try:
        with pytest.raises(OSError, match="nothing can be written to .*: free disk space or choose another folder"):
            caption(folder)
    finally:
        folder.chmod(0o700)


def test_a_full_disk_ends_the_run_with_a_sentence(folder: Path, monkeypatch):
    def full(*names):
        raise OSError(28, "No space left on device")

    run = CaptionRun(folder, CaptionOptions(), {"question": "?"})
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="nothing can be written to .*No space left"):
        caption_pictures(run, open_image, widths, 2)
    monkeypatch.undo()
    assert caption(folder) == Report(5)
    assert {name: json.dumps(text) for name, text in texts(folder).items()}.keys() == EXPECTED.keys()
