"""Choices about pictures: the chances of whole answers, batched and alone, how they are written, what is refused."""

import json
import math
from typing import Any

import jsonschema
import pytest
import torch
from golden import GOLDEN, micro, micro_pipeline, picture
from PIL import Image
from torch import Tensor

from janusflow_core import JanusFlowPipeline
from janusflow_core.choices import Choice, spelled
from janusflow_core.scoring import YES_NO
from janusflow_core.world.scenes import COLORS, Object, Scene, render

QUESTION, OPTIONS = "What is it?", ["a cat", "a cat on a mat", "dog", "not a thing"]


def chance(pipe: JanusFlowPipeline, image: Any, text: str) -> float:
    """P(text) by writing it token by token, as `converse` writes, and noting how likely each token was."""
    ids, said = [*pipe.tokenizer.answer_ids(text), pipe.tokenizer.eos_id], []

    def forced(logits: Tensor, texts: Any) -> Tensor:
        token = ids[len(texts[0])]
        said.append(float(logits[0].double().log_softmax(dim=0)[token]))
        return torch.full_like(logits, -math.inf).index_fill(1, torch.tensor([token]), 0.0)

    turns = pipe.tokenizer.question_messages(QUESTION, 1)
    written = pipe.converse([turns], [[image]], max_new_tokens=len(ids), rules=[forced])
    assert written == [text] and len(said) == len(ids)
    return math.exp(sum(said))


def test_a_choice_has_the_chances_that_writing_each_answer_has():
    images = [picture("wide"), picture("gray")]
    for image, found in zip(images, micro().choose(images, QUESTION, OPTIONS), strict=True):
        chances = [chance(micro(), image, option) for option in OPTIONS]
        expected = {option: one / sum(chances) for option, one in zip(OPTIONS, chances, strict=True)}
        assert found.probabilities == pytest.approx(expected, abs=1e-5)
        assert found.answer == max(expected, key=expected.__getitem__) and list(found.probabilities) == OPTIONS


def test_batched_equals_alone_and_together_is_one_answer():
    files = [GOLDEN / "images" / f"{name}.png" for name in ("wide", "gray", "rgba")] * 4
    many = micro().choose(files, QUESTION, OPTIONS)
    assert len(many) == len(files)
    for file, found in zip(files, many, strict=True):
        alone = micro().choose(Image.open(file), QUESTION, OPTIONS)
        assert isinstance(alone, Choice) and alone.probabilities == pytest.approx(found.probabilities, abs=1e-5)
    assert isinstance(micro().choose(files[:2], QUESTION, OPTIONS, together=True), Choice)
    assert micro().choose([], QUESTION, OPTIONS) == []


def test_chances_of_all_ways_to_write_an_answer_are_added():
    plain = micro().choose(picture("wide"), QUESTION, ["yes", "Yes", "no", "No"]).probabilities
    both = micro().choose(picture("wide"), QUESTION, YES_NO)
    assert both == micro().yes_no(picture("wide"), QUESTION)
    expected = {"yes": plain["yes"] + plain["Yes"], "no": plain["no"] + plain["No"]}
    assert both.probabilities == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("options", [[], [""], ["a", " a "], ["a", "a"], {"yes": []}, {"yes": ["a"], "no": ["a"]}, {}])
def test_options_that_are_no_choice_are_refused(options: Any):
    with pytest.raises(ValueError, match="options must be different texts, at least one and none empty"):
        spelled(options)


def test_options_that_do_not_fit_the_context_are_refused():
    with pytest.raises(ValueError, match="but the model's context holds"):
        micro_pipeline(max_position_embeddings=100).choose(picture("wide"), QUESTION, ["word " * 60, "a"])


def test_the_bundled_model_tells_what_is_there():
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny", dtype=torch.float32)
    red = Object("circle", "red", 30, 40, 14, COLORS["red"])
    image = Image.fromarray(render(Scene((250, 250, 250), (red,))))
    there, absent = (pipe.yes_no(image, f"Is there {what}?") for what in ("a red circle", "a blue square"))
    assert there.probabilities["yes"] > 0.9 and absent.probabilities["no"] > 0.9
    color = pipe.choose(image, "What color is the circle?", list(COLORS))
    assert color.answer == "red" and sum(color.probabilities.values()) == pytest.approx(1.0)


# --- numbers and JSON -------------------------------------------------------------------------------------------


def test_numbers_are_of_the_range_batched_and_alone():
    images = [picture("wide"), picture("gray"), picture("rgba")] * 4
    for numbers in ((0, 100, 0), (-3, 3, 2), (1900, 2100, 0)):
        values = micro().number(images, QUESTION, *numbers)
        assert all(numbers[0] <= value <= numbers[1] for value in values) and len(values) == len(images)
        assert {type(value) for value in values} == {float if numbers[2] else int}
        assert values[1] == micro().number(images[1], QUESTION, *numbers)


def test_json_satisfies_its_schema_batched_and_alone():
    """Rows end after different numbers of tokens: each keeps its own place in the schema."""
    images = [picture("wide"), picture("gray"), picture("rgba")]
    part = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}}, "required": ["name"]}
    schema = {"type": "array", "items": {"anyOf": [part, {"type": "integer"}]}, "maxItems": 3}
    values = micro().structured(images, QUESTION, schema)
    for image, value in zip(images, values, strict=True):
        jsonschema.validate(value, schema)
        assert micro().structured(image, QUESTION, json.dumps(schema)) == value
    jsonschema.validate(micro().structured(images, QUESTION, schema, together=True), schema)


def test_json_that_was_cut_off_says_so():
    with pytest.raises(ValueError, match=r"the answer was cut off after \d+ letters of JSON: allow more tokens"):
        micro().structured(picture("wide"), QUESTION, {"const": "a rather long text"}, max_new_tokens=3)


def test_the_bundled_model_counts_and_fills_in():
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny", dtype=torch.float32)
    stars = [Object("star", "green", x, y, 14, COLORS["green"]) for x, y in ((24, 30), (70, 28), (48, 70))]
    image = Image.fromarray(render(Scene((250, 250, 250), tuple(stars))))
    assert pipe.number(image, "How many stars are there?") == 3
    color = {"enum": ["red", "green", "blue"]}
    assert pipe.structured(image, "What color is the star?", color) in color["enum"]
