"""Where bulk work comes from: each kind of source tells the same items, and what is broken is told of, not lost."""

import csv
import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from webdataset import TarWriter

from janusflow_core.bulk.items import Item, open_items

PROMPTS = {"00000": "a red circle", "00001": "two blue stars"}


def told(items: list[Item]) -> dict[str, str]:
    assert not any(item.fault for item in items), [item.fault for item in items]
    return {item.id: item.prompt for item in items}


def picture(width: int) -> Image.Image:
    return Image.new("RGB", (width, 20), "red")


def png(width: int) -> bytes:
    file = BytesIO()
    picture(width).save(file, "PNG")
    return file.getvalue()


def widths(items: list[Item]) -> dict[str, int]:
    assert all(item.open for item in items)
    return {item.id: item.open().width for item in items if item.open}


def write(path: Path, rows: list[dict]) -> Path:
    """A table of these rows, by the ending of its name."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), "utf-8-sig")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), "utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


TABLES = [".jsonl", ".json", ".csv", ".parquet"]


# --- prompts ----------------------------------------------------------------------------------------------------


def test_a_line_of_a_text_is_a_prompt(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("# mine\na red circle\n\n  two blue stars \n", "utf-8")
    assert told(open_items(tmp_path / "prompts.txt")) == PROMPTS


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize("column", ["prompt", "Prompt", "text", "caption"])
def test_rows_without_ids_are_numbered_and_kept_whole(tmp_path: Path, suffix: str, column: str):
    rows = [{column: prompt, "tag": f"kind {number}"} for number, prompt in enumerate(PROMPTS.values())]
    items = open_items(write(tmp_path / f"rows{suffix}", rows))
    assert told(items) == PROMPTS and [dict(item.row) for item in items] == rows


@pytest.mark.parametrize("suffix", TABLES)
def test_rows_may_bring_ids_and_seeds_of_any_type(tmp_path: Path, suffix: str):
    rows = [{"prompt_id": 7, "prompt": "a", "seed": 5}, {"prompt_id": 301, "prompt": "b", "seed": 2**40}]
    items = open_items(write(tmp_path / f"rows{suffix}", rows))
    assert told(items) == {"7": "a", "301": "b"} and [item.seed for item in items] == [5, 2**40]


def test_an_object_of_rows_by_their_ids_is_a_table_too(tmp_path: Path):
    """As MJHQ-30K has it."""
    (tmp_path / "meta.json").write_text('{"b1": {"category": "food", "prompt": "a pie"}, "a2": "a tree"}', "utf-8")
    items = open_items(tmp_path / "meta.json")
    assert told(items) == {"b1": "a pie", "a2": "a tree"} and items[0].row["category"] == "food"


def test_a_folder_of_texts_is_prompts_by_their_names(tmp_path: Path):
    """As DPG-Bench has them."""
    (tmp_path / "more").mkdir()
    (tmp_path / "COCOval_1.txt").write_text("a pie\non a table\n", "utf-8")
    (tmp_path / "more/x.y.txt").write_text("a tree", "utf-8")
    assert told(open_items(tmp_path)) == {"COCOval_1": "a pie on a table", "more/x.y": "a tree"}


def test_other_names_of_columns_can_be_told(tmp_path: Path):
    """POPE asks under `text`."""
    rows = [{"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "no"}]
    picture(30).save(tmp_path / "a.png")
    (item,) = open_items(write(tmp_path / "pope.jsonl", rows), {"question": "text", "id": "label"})
    assert (item.id, item.question, item.row["label"]) == ("no", "Is there a dog?", "no")
    assert widths([item]) == {"no": 30}


# --- pictures ---------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_with_their_paths_as_ids(tmp_path: Path):
    (tmp_path / "in").mkdir()
    picture(30).save(tmp_path / "b.jpg")
    picture(31).save(tmp_path / "in/a.png")
    (tmp_path / "b.txt").write_text("a caption, which is no prompt here", "utf-8")
    assert widths(open_items(tmp_path)) == {"b.jpg": 30, "in/a.png": 31}


@pytest.mark.parametrize("column", ["image", "file_name", "image_path"])
@pytest.mark.parametrize("suffix", TABLES)
def test_a_table_names_pictures_from_its_own_folder_on(tmp_path: Path, suffix: str, column: str):
    (tmp_path / "in").mkdir()
    picture(30).save(tmp_path / "in/a.png")
    items = open_items(write(tmp_path / f"rows{suffix}", [{column: "in/a.png", "question": "What?"}]))
    assert widths(items) == {"00000": 30} and items[0].question == "What?"


@pytest.mark.parametrize("pattern", [False, True])
def test_parquet_holds_its_pictures_as_datasets_writes_them(tmp_path: Path, pattern: bool):
    for part, first in enumerate((0, 3)):
        rows = [
            {"image": {"bytes": png(30 + k), "path": f"{k}.png"}, "question": f"{k}?"} for k in range(first, first + 3)
        ]
        write(tmp_path / f"part-{part}.parquet", rows)
    items = open_items(tmp_path / "part-*.parquet" if pattern else tmp_path)
    assert widths(items) == {f"{k:05}": 30 + k for k in range(6)}
    assert [item.question for item in items] == [f"{k}?" for k in range(6)] and "image" not in items[0].row


@pytest.mark.parametrize("same", [False, True])
def test_tars_are_read_in_place_and_keys_that_meet_again_get_the_tars_name(tmp_path: Path, same: bool):
    for part in range(2):
        with TarWriter(str(tmp_path / f"part-{part}.tar")) as tar:
            tar.write({"__key__": "0" if same else f"{part}", "png": picture(30 + part), "txt": f"prompt {part}"})
    items = open_items(tmp_path)
    assert widths(items) == ({"part-0/0": 30, "part-1/0": 31} if same else {"0": 30, "1": 31})
    assert [item.prompt for item in items] == ["prompt 0", "prompt 1"]


# --- faults -----------------------------------------------------------------------------------------------------


def test_a_broken_row_is_an_item_with_a_fault_and_the_rest_goes_on(tmp_path: Path):
    lines = [b'{"prompt": "a"}', b"{not JSON", b'{"prompt": "\xff"}', b"[1]", b'{"seed": "x"}', b'{"prompt": "c"}']
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    items = open_items(tmp_path / "rows.jsonl")
    assert {item.id: item.prompt for item in items if not item.fault} == {"00000": "a", "00005": "c"}
    faults = [item.fault for item in items if item.fault]
    wrong = {2: "is not valid JSON", 3: "is not UTF-8", 4: "holds a list"}
    begun = [f"line {number} of rows.jsonl {what}" for number, what in wrong.items()]
    expected = [*begun, "seed in its row is 'x'"]
    assert all(fault.startswith(start) for fault, start in zip(faults, expected, strict=True)), faults


def test_a_row_that_comes_again_is_taken_once_and_one_of_another_prompt_is_told(tmp_path: Path):
    """DPG-Bench's table has a row for each question about a prompt."""
    rows = [{"item_id": "x", "text": "a", "question": ""}] * 3 + [{"item_id": "x", "text": "b", "question": ""}]
    first, again = open_items(write(tmp_path / "dpg.csv", rows))
    assert (first.id, first.fault) == ("x", "")
    assert again.id == "x (row 3)" and again.fault == "its id x is that of another row"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "there is no .*none.txt to work on"),
        ("some.xlsx", b"", "got some.xlsx to work on, expected a folder"),
        ("some.json", b"[1", "some.json is not valid JSON"),
        ("some.json", b"1", "some.json holds no list and no object of rows"),
        ("some.jsonl", b"\n", "some.jsonl holds nothing to do"),
        ("some.csv", b"\xff", "some.csv is not UTF-8"),
        ("some.parquet", b"nothing", "some.parquet is no parquet file"),
        ("some.tar", b"nothing", "some.tar is no tar that can be read"),
        ("some-*.tar", None, "expected a folder"),
    ],
)
def test_what_is_no_source_is_refused_in_one_sentence(tmp_path: Path, name: str, content, message: str):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
        open_items(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_picture_that_parquet_lacks_is_told_when_it_is_wanted(tmp_path: Path):
    rows = [{"image": {"bytes": png(30), "path": "a"}}, {"image": {"bytes": None, "path": None}}]
    first, second = open_items(write(tmp_path / "rows.parquet", rows))
    assert first.open and second.open and first.open().width == 30
    with pytest.raises(ValueError, match="row 1 of rows.parquet holds no picture"):
        second.open()
