"""Answers as JSON: whatever the model wants and whatever the schema, what is written parses and satisfies it."""

import math
import sys
from typing import Any

import jsonschema
import pytest
import torch
from golden import micro
from hypothesis import given, settings
from hypothesis import strategies as st

from janusflow_core.schemas import SchemaRule, bounded

TOKENS = 1500  # more than the longest answers under the bounds of `schemas` take

names = st.text("abcdefgh_", min_size=1, max_size=6)
leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, width: {"type": "integer", "minimum": low, "maximum": low + width},
        st.integers(-99, 99),
        st.integers(0, 99),
    ),
    st.just({"type": "integer"}),
    st.just({"type": "number"}),
    st.builds(
        lambda low, width: {"type": "number", "minimum": low, "maximum": low + width},
        st.integers(-9, 9),
        st.integers(1, 9),
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    st.just({"type": "string"}),
    st.sampled_from([{"type": "string", "format": "date"}, {"type": "string", "pattern": "^[a-c]{2,4}$"}]),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(names, st.integers(-9, 9), st.none()), min_size=1, max_size=4, unique_by=repr),
    ),
)


def nested(inner: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    fields = st.dictionaries(names, inner, max_size=4)
    return st.one_of(
        st.builds(lambda part, most: {"type": "array", "items": part, "maxItems": most}, inner, st.integers(0, 3)),
        st.builds(
            lambda parts, all_: {"type": "object", "properties": parts, "required": [*parts] if all_ else [*parts][:1]},
            fields,
            st.booleans(),
        ),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
    )


schemas = st.recursive(leaves, nested, max_leaves=6)


def written(rule: SchemaRule, seed: int, temperature: float) -> str:
    """What a model without knowledge writes, one that may prefer some tokens much over others, and repeats itself."""
    tokenizer, random, ids = micro().tokenizer, torch.Generator().manual_seed(seed), []
    liking = temperature * torch.randn(1, tokenizer.vocab_size + 5, generator=random)
    for _ in range(TOKENS):
        logits = rule(liking + torch.randn(liking.shape, generator=random), [ids])
        token = int(logits.argmax())
        assert logits[0, token] > -math.inf
        if token == tokenizer.eos_id:
            return tokenizer.decode(ids)
        ids.append(token)
    raise AssertionError(tokenizer.decode(ids))


@settings(max_examples=200, deadline=None)
@given(schemas, st.integers(0, 2**32), st.sampled_from([0.0, 5.0]))
def test_every_answer_parses_and_satisfies_its_schema(schema: dict[str, Any], seed: int, temperature: float):
    rule = SchemaRule(micro().tokenizer, schema)
    jsonschema.validate(rule.value(written(rule, seed, temperature)), schema)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_schema_leaves_open_has_an_end(seed: int):
    schema = {"type": "array", "items": {"type": ["string", "number", "object"]}}
    found = SchemaRule(micro().tokenizer, schema)
    text = written(found, seed, 8.0)
    assert (
        len(found.value(text)) <= 20
        and max([len(one) for one in found.value(text) if isinstance(one, str)] + [0]) <= 200
    )


def test_bounds_of_its_own_are_kept():
    kept = {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 999}, "type": {"type": "integer", "minimum": 5}},
        "additionalProperties": {"enum": [{"type": "string"}]},
    }
    inner = {"minimum": 5, "maximum": 10**9, "type": "integer"}
    assert bounded(kept) == {**kept, "properties": {**kept["properties"], "type": inner}}
    assert bounded({"type": ["string", "null"]}) == {"type": ["string", "null"], "maxLength": 200}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"not": {"type": "string"}}, "this schema cannot be followed (Unimplemented keys"),
        ({"type": "foo"}, "this schema cannot be followed (Invalid type: foo)"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "this schema cannot be followed (Unsatisfiable schema"),
        ("{", "the schema is not valid JSON"),
        ("[1]", "the schema holds a list, expected an object"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(schema: Any, words: str):
    with pytest.raises(ValueError) as error:
        SchemaRule(micro().tokenizer, schema)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_without_llguidance_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match='answers as JSON need llguidance: run `pip install "llguidance>=1.3"`'):
        SchemaRule(micro().tokenizer, {"type": "null"})
