"""Recipes: the paper's table as files, and every slip told in one sentence."""

from pathlib import Path

import pytest
from hardness import assert_sentence

from janusflow_core.train.recipe import ALL, Recipe, bundled_recipes, parse_recipe, read_recipe

LEAST = "steps: 10\nbatch: 4\nlearning_rate: 1e-4\nmixture: [{text: 1}]\n"
# Table 1 of the paper: parts, rate, warm-up, steps, batch, and the shares from the beginning and later.
STAGES = {
    "stage1": ({"aligners", "generation"}, 1e-4, 2000, 10_000, 512, [(50, 50, 0)]),
    "stage2": ({"aligners", "generation", "language"}, 1e-4, 2000, 390_000, 512, [(30, 50, 20), (14, 80, 6)]),
    "stage3": (set(ALL), 2e-5, 1000, 26_000, 256, [(21, 70, 9)]),
}


def test_the_papers_stages_ship():
    assert bundled_recipes() == [*STAGES]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_that_of_the_paper(name: str):
    recipe, (parts, rate, warmup, steps, batch, shares) = read_recipe(name), STAGES[name]
    assert set(recipe.train) == parts and recipe.learning_rate == rate and recipe.warmup == warmup
    assert (recipe.steps, recipe.batch, recipe.schedule) == (steps, batch, "constant")
    assert [tuple(phase.named().values()) for phase in recipe.mixture] == shares
    assert [phase.from_step for phase in recipe.mixture] == [0, 10_000][: len(shares)]
    assert (recipe.betas, recipe.weight_decay, recipe.clip, recipe.average) == ((0.9, 0.95), 0.0, 1.0, 0.99)
    assert (recipe.length, recipe.drop, recipe.time_mean) == (4096, 0.1, 0.0)
    assert (recipe.repa.weight, recipe.repa.layer, recipe.repa.projector) == (1.0, 6, "mlp")
    assert set(recipe.renew) == (parts if name == "stage1" else set())
    assert recipe.format == ("chat" if name == "stage3" else "plain")


def test_paths_of_a_recipe_begin_where_it_lies(tmp_path: Path):
    (tmp_path / "model").mkdir()
    text = "start: model\ndata: [{path: pictures}, {path: /all/of.jsonl, times: 2}]\nsamples: {pictures: [a.png]}\n"
    (tmp_path / "mine.yaml").write_text(LEAST + text)
    recipe = read_recipe(tmp_path / "mine.yaml")
    assert [one.path for one in recipe.data] == [str(tmp_path / "pictures"), "/all/of.jsonl"]
    assert recipe.start == str(tmp_path / "model") and recipe.samples.pictures == (str(tmp_path / "a.png"),)
    (tmp_path / "mine.yaml").write_text(LEAST + "start: janusflow-tiny\n")
    assert read_recipe(tmp_path / "mine.yaml").start == "janusflow-tiny"


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001", "1E-4", ".1e-3"])
def test_numbers_are_read_as_people_write_them(number: str):
    assert parse_recipe(LEAST.replace("1e-4", number), "x").learning_rate == pytest.approx(1e-4)


def test_the_recipe_of_the_page_is_one():
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text("utf-8")
    (told,) = (block.partition("```")[0] for block in page.split("```yaml\n")[1:])
    recipe = parse_recipe(told, "the page")
    assert recipe.steps == 200 and recipe.start == "janusflow-tiny"
    table = page.partition("| | stage1 |")[2].partition("\n\n")[0]
    for name in STAGES:
        found = read_recipe(name)
        told = [
            f"{found.steps:,}",
            f"{found.warmup:,}",
            f"{found.learning_rate:.0e}".replace("e-0", "e-"),
            str(found.batch),
        ]
        told += [" : ".join(map(str, phase.named().values())) for phase in found.mixture]
        assert all(figure in table for figure in told), name


def test_all_that_is_left_out_has_a_value():
    assert Recipe.model_validate(parse_recipe(LEAST, "x").model_dump()) == parse_recipe(LEAST, "x")


WRONG = {
    LEAST + "learning_rte: 1\n": "mine.yaml has an unknown key learning_rte: did you mean learning_rate?",
    "learning_rte: 1\n": "mine.yaml has an unknown key learning_rte: did you mean learning_rate?",
    LEAST.replace("text", "txt"): "mine.yaml has an unknown key mixture.0.txt: did you mean text?",
    LEAST + "samples: {evry: 5}\n": "mine.yaml has an unknown key samples.evry: did you mean every?",
    LEAST + "qqqqqqq: 1\n": "mine.yaml has an unknown key qqqqqqq: take it out",
    "steps: 10\n": "mine.yaml lacks mixture: add it",
    LEAST.replace("10", "-1"): "steps in mine.yaml is -1, expected greater than or equal to 1: correct the recipe",
    LEAST.replace("10", "ten"): "steps in mine.yaml is 'ten', expected a valid integer: correct the recipe",
    LEAST.replace("1e-4", ".nan"): "learning_rate in mine.yaml is nan, expected a finite number: correct the recipe",
    LEAST + "train: [languag]\n": "train.0 in mine.yaml is 'languag', expected 'language', 'understanding'",
    LEAST.replace("{text: 1}", "{text: 0}"): "expected phases that each have a share above 0: correct the recipe",
    LEAST.replace("{text: 1}", "{text: 1}, {text: 2}"): "expected phases whose from_step begins with 0 and grows",
    LEAST.replace("{text: 1}", "{text: 1, from_step: 5}"): "expected phases whose from_step begins with 0 and grows",
    "[1, 2]": "mine.yaml holds no keys and values: see docs/training.md",
    "": "mine.yaml holds no keys and values: see docs/training.md",
    "a: [": "mine.yaml is not valid YAML (",
    "[" * 5000: "mine.yaml is not valid YAML (",
    "!!python/object/apply:os.system ['ls']": "mine.yaml is not valid YAML (could not determine a constructor",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_a_slip_is_told_in_a_sentence(tmp_path: Path, text: str):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError) as raised:
        read_recipe(tmp_path / "mine.yaml")
    assert WRONG[text] in str(raised.value)
    assert_sentence(str(raised.value))


def test_a_recipe_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(FileNotFoundError, match="stage9 is neither a recipe's file nor one of stage1, stage2, stage3"):
        read_recipe("stage9")
