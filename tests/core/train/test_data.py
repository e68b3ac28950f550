"""Data sets: folders, JSONL and WebDataset tars give the same rows, and what is broken is counted and named."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hardness import assert_sentence
from PIL import Image

from janusflow_core.train.data import TASKS, LeftOut, Source, Task, bits, open_data

BOTH = bits({"understanding", "generation"})


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values)


def png(seed: int) -> bytes:
    held = io.BytesIO()
    picture(seed).save(held, "png")
    return held.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            told = tarfile.TarInfo(name)
            told.size = len(content)
            tar.addfile(told, io.BytesIO(content))


def write_jsonl(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(source: Source, task: Task) -> list[int]:
    return [int(row) for row in np.flatnonzero(source.tasks & bits({task}))]


def pixels(image: Image.Image) -> bytes:
    return image.tobytes()


def test_a_folder_gives_captioned_pictures_for_both_directions(tmp_path: Path):
    (tmp_path / "more").mkdir()
    for number, name in enumerate(("a.png", "more/b.PNG")):
        (tmp_path / name).write_bytes(png(number))
        (tmp_path / name).with_suffix(".txt").write_text(f"picture\n{number} ")
    source = open_data(tmp_path)
    assert rows(source, "understanding") == rows(source, "generation") == [0, 1] and rows(source, "text") == []
    for row in (0, 1):
        sample = source.sample(row, "generation")
        assert (sample.name, sample.text, sample.turns) == (source.name(row), f"picture {row}", ())
        assert sample.open is not None and pixels(sample.open()) == pixels(picture(row))
    assert source.problems.counts == {}


def test_a_folder_names_what_lacks_its_other_half(tmp_path: Path):
    for name in ("whole.png", "bare.png", "plain.jpg"):
        (tmp_path / name).write_bytes(png(0))
    for name in ("whole.txt", "lonely.txt"):
        (tmp_path / name).write_text("a text")
    source = open_data(tmp_path)
    assert [source.name(row) for row in rows(source, "generation")] == ["whole.png"]
    assert source.problems.counts == {"no caption": 2, "no picture": 1}
    assert str(source.problems) == "2 × no caption (bare.png and 1 more), 1 × no picture (lonely.txt)"


def test_an_empty_caption_is_found_when_it_is_read(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(LeftOut, match="it has no text") as raised:
        open_data(tmp_path).sample(0, "generation")
    assert raised.value.kind == "no caption"


OPENAI = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "a cat"}]
LLAVA = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cat"}]
ROWS: list[tuple[dict[str, object], set[str]]] = [
    ({"image": "a.png", "text": "a cat"}, {"understanding", "generation"}),
    ({"image": "a.png", "caption": "a cat", "task": "generation", "licence": "CC0"}, {"generation"}),
    ({"image": "a.png", "question": "What is it?", "answer": "a cat"}, {"understanding"}),
    ({"image": "a.png", "conversation": OPENAI}, {"understanding"}),
    ({"image": "a.png", "conversations": LLAVA}, {"understanding"}),
    ({"text": "once upon a time"}, {"text"}),
    ({"image": None, "question": "2 + 2?", "answer": "4"}, {"text"}),
    ({"image": "a.png", "text": "a cat", "question": "What?", "answer": "a cat", "task": "generation"}, {"generation"}),
]


@pytest.mark.parametrize(("row", "tasks"), ROWS)
def test_a_line_serves_the_tasks_that_it_has_what_is_needed_for(tmp_path: Path, row: dict, tasks: set[Task]):
    (tmp_path / "a.png").write_bytes(png(3))
    source = open_data(write_jsonl(tmp_path / "rows.jsonl", row))
    assert {task for task in TASKS if rows(source, task)} == tasks and not source.problems.counts
    for task in tasks:
        sample = source.sample(0, task)
        said = " ".join([sample.text, *(word for turn in sample.turns for word in turn)])
        assert "<image>" not in said and any(word in said for word in ("cat", "time", "4"))
        assert (sample.open is None) == (task == "text")
        if sample.open is not None:
            assert pixels(sample.open()) == pixels(picture(3))


BROKEN: list[tuple[str, object, str]] = [
    ("broken row", "{", "line 2 of rows.jsonl: its JSON is not valid JSON"),
    ("broken row", "[1]", "its JSON holds a list, expected an object"),
    ("broken row", {"text": 5}, "text in its JSON is 5, expected a valid string"),
    ("broken row", {"text": "a", "task": "drawing"}, "task in its JSON is 'drawing', expected 'understanding'"),
    ("no caption", {"image": "a.png"}, "it has no text"),
    ("no caption", {"image": "a.png", "text": "  "}, "it has no text"),
    ("no caption", {"image": "a.png", "question": "a", "answer": "b", "task": "generation"}, "it has no text"),
    ("no picture", {"text": "a cat", "task": "generation"}, "it has no picture"),
    ("no answer", {"image": "a.png", "question": "What?"}, "its questions and answers do not alternate"),
    ("no answer", {"image": "a.png", "conversation": [{"role": "user", "content": "What?"}]}, "do not alternate"),
    ("no answer", {"conversation": [{"role": "gpt", "content": "a"}, {"role": "user", "content": "b"}]}, "alternate"),
]


@pytest.mark.parametrize(("kind", "row", "told"), BROKEN)
def test_a_broken_line_is_counted_and_named(tmp_path: Path, kind: str, row: object, told: str):
    source = open_data(write_jsonl(tmp_path / "rows.jsonl", {"text": "whole"}, row, "", {"text": "whole too"}))
    assert rows(source, "text") == [0, 3] and source.name(3) == "line 4 of rows.jsonl"
    assert source.problems.counts == {kind: 1}
    (name,) = source.problems.found[kind]
    assert told in name and name.startswith("line 2 of rows.jsonl")


def test_lines_are_found_again_whatever_their_letters(tmp_path: Path):
    texts = ["grüße", "你好 世界", "😀" * 40, "plain"]
    source = open_data(write_jsonl(tmp_path / "rows.jsonl", *({"text": text} for text in texts)))
    assert [source.sample(row, "text").text for row in range(4)] == texts


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_tar(
        tmp_path / "shard-000.tar",
        {
            "some/0.png": png(0),
            "some/0.txt": b"picture 0",
            "1.jpg": png(1),
            "1.seg.png": png(9),
            "1.json": json.dumps({"question": "What?", "answer": "picture 1", "width": 40}).encode(),
        },
    )
    write_tar(
        tmp_path / "shard-001.tar",
        {
            "0.json": b'{"text": "only words"}',
            "bare.png": png(2),
            "wrong.png": png(2),
            "wrong.json": b"{",
            "2.png": png(2),
            "2.json": b'{"caption": "picture 2", "task": "generation"}',
        },
    )
    return tmp_path


@pytest.mark.parametrize("path", ["", "shard-*.tar"])
def test_tars_are_read_in_place(shards: Path, path: str):
    source = open_data(shards / path)
    drawn, read = ([source.name(row) for row in rows(source, task)] for task in ("generation", "understanding"))
    assert drawn == ["some/0 of shard-000.tar", "2 of shard-001.tar"]
    assert read == ["some/0 of shard-000.tar", "1 of shard-000.tar"]
    assert [source.sample(row, "text").text for row in rows(source, "text")] == ["only words"]
    for number, row in enumerate(rows(source, "understanding")):
        sample = source.sample(row, "understanding")
        assert f"picture {number}" in (sample.text, dict(sample.turns).get("What?"))
        assert sample.open is not None and pixels(sample.open()) == pixels(picture(number))
    assert source.problems.counts == {"no caption": 1, "broken row": 1}
    assert [*source.problems.found["no caption"]] == ["bare of shard-001.tar: it has no text"]


def test_what_webdataset_writes_is_read(tmp_path: Path):
    webdataset = pytest.importorskip("webdataset", reason="its writer is what tars are compared with")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"{number:05d}", "png": png(number), "json": {"caption": f"picture {number}"}})
    source = open_data(tmp_path / "a.tar")
    assert [source.sample(row, "generation").text for row in rows(source, "generation")] == [
        f"picture {number}" for number in range(3)
    ]


def test_a_broken_picture_in_a_tar_is_told_by_its_row(tmp_path: Path):
    write_tar(tmp_path / "a.tar", {"x.png": b"no picture", "x.txt": b"a cat"})
    sample = open_data(tmp_path / "a.tar").sample(0, "generation")
    with pytest.raises(ValueError, match="^x of a.tar is no picture that Pillow can read"):
        sample.open()  # type: ignore[misc]


def test_a_task_of_the_data_set_leaves_no_other(shards: Path):
    source = open_data(shards, "understanding")
    assert rows(source, "generation") == rows(source, "text") == [] and len(rows(source, "understanding")) == 2


def test_samples_and_sources_go_to_other_processes(shards: Path):
    for path in (shards, write_jsonl(shards / "rows.jsonl", {"image": "a.png", "text": "a cat"})):
        source = pickle.loads(pickle.dumps(open_data(path)))
        again = pickle.loads(pickle.dumps(source.sample(0, "generation")))
        assert again.text == source.sample(0, "generation").text


def no_tar(folder: Path) -> Path:
    (folder / "a.tar").write_bytes(b"not a tar at all" * 100)
    return folder / "a.tar"


def cut_tar(folder: Path) -> Path:
    write_tar(folder / "a.tar", {"x.png": png(0) * 20, "x.txt": b"a cat"})
    (folder / "a.tar").write_bytes((folder / "a.tar").read_bytes()[:3000])
    return folder / "a.tar"


def other_kind(folder: Path) -> Path:
    (folder / "a.parquet").write_bytes(b"PAR1")
    return folder / "a.parquet"


def nothing_but_broken(folder: Path) -> Path:
    return write_jsonl(folder / "a.jsonl", "{", {"image": "a"})


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: folder / "none", "there is no .*none to learn from: check the path"),
        (lambda folder: folder, "holds nothing to learn from: put pictures with texts into it"),
        (lambda folder: folder / "x-*.tar", "holds nothing to learn from"),
        (nothing_but_broken, r"holds nothing to learn from \(1 × broken row .*1 × no caption .*\): put"),
        (no_tar, "is no tar that can be read .*: copy it again"),
        (cut_tar, "is no tar that can be read .*: copy it again"),
        (other_kind, "got the data set .*, expected a folder, a .jsonl or a .tar: convert it"),
    ],
)
def test_what_is_no_data_set_is_refused_in_a_sentence(tmp_path: Path, make, told: str):
    with pytest.raises((ValueError, OSError), match=told) as raised:
        open_data(make(tmp_path))
    assert_sentence(str(raised.value))
