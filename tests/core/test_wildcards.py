from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janusflow_core.wildcards import expand, read_prompts

plain = st.text(st.characters(exclude_characters="{}|_", exclude_categories=["Cs"]), max_size=30)


@given(plain, st.integers(0, 2**40))
def test_a_prompt_that_leaves_nothing_open_stays_as_it_is(prompt: str, seed: int):
    assert expand(prompt, seed) == prompt


@pytest.mark.parametrize("prompt", ["a {red} circle", 'say {"a": 1}', "__color__", "a | b", "{", "}|{"])
def test_braces_without_a_choice_and_lists_without_a_folder_are_text(prompt: str):
    assert expand(prompt, 0) == prompt


@given(st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), min_size=2, max_size=5), st.integers(0, 2**40))
def test_a_choice_is_one_of_its_texts_and_the_same_for_a_seed(texts: list[str], seed: int):
    prompt = f"a {{{' | '.join(texts)}}} circle"
    found = expand(prompt, seed)
    assert found in {f"a {text} circle" for text in texts} and found == expand(prompt, seed)


def test_seeds_choose_evenly_and_each_choice_by_itself():
    found = Counter(expand("{a|b} {a|b}", seed) for seed in range(4000))
    assert set(found) == {"a a", "a b", "b a", "b b"} and all(850 < count < 1150 for count in found.values())


def test_choices_hold_choices_and_nothing():
    assert {expand("{a {big|small} cat|a dog}{| at night}", seed) for seed in range(200)} == {
        f"{what}{when}" for what in ("a big cat", "a small cat", "a dog") for when in ("", "at night")
    }


def test_lists_hold_lists_and_choices(tmp_path: Path):
    (tmp_path / "animals").mkdir()
    (tmp_path / "color.txt").write_text("red\n\n# not this\n{dark|light} blue\n", "utf-8-sig")
    (tmp_path / "animals" / "wild.txt").write_text("a __color__ fox\n")
    found = {expand("__animals/wild__ and __color__", seed, tmp_path) for seed in range(300)}
    colors = ("red", "dark blue", "light blue")
    assert found == {f"a {one} fox and {other}" for one in colors for other in colors}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a __shape__", "no list __shape__: put shape.txt"),
        ("a __empty__", "empty.txt is empty"),
        ("a __loop__", "name each other without end"),
        ("a __bomb__", "name each other without end"),
        ("a __../secret__", None),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, prompt: str, words: str | None):
    folder = tmp_path / "lists"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("a secret")
    (folder / "empty.txt").write_text("# nothing\n")
    (folder / "loop.txt").write_text("more __loop__")
    (folder / "bomb.txt").write_text("__bomb__ and __bomb__")
    if words is None:  # no name of a list, so it is text: nothing is read outside the folder
        assert expand(prompt, 0, folder) == prompt
    else:
        with pytest.raises(ValueError, match=words):
            expand(prompt, 0, folder)


def test_prompts_of_a_file(tmp_path: Path):
    (tmp_path / "some.txt").write_text("a heart\n\n# a star\n  two crosses \n", "utf-8")
    assert read_prompts(tmp_path / "some.txt") == ["a heart", "two crosses"]
    (tmp_path / "none.txt").write_text("#\n")
    with pytest.raises(ValueError, match="none.txt holds no prompt"):
        read_prompts(tmp_path / "none.txt")
