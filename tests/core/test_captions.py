"""What is kept of captions: the text that is composed, the pictures that are taken, the tables that are written."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janusflow_core.captions import CaptionOptions, Report, read_table, table_text

words = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1)


@given(words, words, words, st.sampled_from(["skip", "overwrite", "append", "prepend"]), st.booleans())
def test_a_text_holds_the_trigger_once_in_front_and_all_that_is_to_stay(old, new, trigger, exists, has_one):
    options = CaptionOptions(exists=exists, trigger=trigger, separator=" | ")
    text = options.compose(old if has_one else "", new)
    assert text.startswith(trigger) and new in text
    assert not has_one or exists not in ("append", "prepend") or old in text
    assert options.compose("", text) == text


@pytest.mark.parametrize(
    ("exists", "expected"),
    [("skip", "new"), ("overwrite", "new"), ("append", "old, new"), ("prepend", "new, old")],
)
def test_an_old_caption_stays_where_it_should(exists, expected):
    assert CaptionOptions(exists=exists).compose("old", "new") == expected
    assert CaptionOptions(exists=exists).compose("", "new") == "new"
    assert CaptionOptions(exists=exists, trigger="sks").compose("old", "new") == f"sks, {expected}"
    assert CaptionOptions(exists="append", trigger="sks").compose("sks, old", "new") == "sks, old, new"


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        ((), (), {"a.png", "b.JPG", "in/a.png", "in/deep/c.webp"}),
        (("*.png",), (), {"a.png", "in/a.png"}),
        (("*.jpg",), (), {"b.JPG"}),
        ((), ("in/*",), {"a.png", "b.JPG"}),
        (("in/*",), ("*.webp",), {"in/a.png"}),
        (("a.*",), ("in/*",), {"a.png"}),
    ],
)
def test_patterns_take_paths_and_names(include, exclude, taken):
    options = CaptionOptions(include=include, exclude=exclude)
    assert {name for name in ("a.png", "b.JPG", "in/a.png", "in/deep/c.webp") if options.takes(name)} == taken


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="exists is 'keep', expected one of skip, overwrite, append, prepend"):
        CaptionOptions(exists="keep")  # pyright: ignore[reportArgumentType]


@given(st.dictionaries(words, words, max_size=5), st.sampled_from([".jsonl", ".csv"]))
def test_a_table_is_read_as_it_was_written(tmp_path_factory, texts, suffix):
    table = {name: {"file_name": name, "text": text} for name, text in texts.items()}
    path = tmp_path_factory.mktemp("tables") / f"captions{suffix}"
    path.write_text(table_text(table, suffix), encoding="utf-8", newline="")
    assert read_table(path) == table


def test_tables_are_what_other_programs_read(tmp_path: Path):
    table = {"b.png": {"file_name": "b.png", "text": 'a "red", circle'}, "a.png": {"file_name": "a.png", "text": "ü"}}
    assert [json.loads(line)["file_name"] for line in table_text(table, ".jsonl").splitlines()] == ["a.png", "b.png"]
    rows = list(csv.reader(table_text(table, ".csv").splitlines()))
    assert rows == [["file_name", "text"], ["a.png", "ü"], ["b.png", 'a "red", circle']]
    assert read_table(tmp_path / "none.csv") == {}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"file_name": "a.png"}\n{"text": "b"}\n', "a row that does not fit"),
        ("a.jsonl", "what\n", "line 1 of .*a.jsonl is not valid JSON"),
        ("a.csv", "text\nhello\n", "a row that does not fit"),
        ("a.csv", "file_name,text\na.png,hello,more\n", "a row that does not fit"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, name, text, words):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / name)


def test_a_report_names_what_there_is():
    assert str(Report(3)) == "3 captioned"
    assert str(Report(0, 2, {"a.png": "broken"})) == "0 captioned, 2 had a caption, 1 failed"
