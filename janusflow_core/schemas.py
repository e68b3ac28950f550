"""JSON by construction: a rule under which an answer can only be JSON that satisfies a schema, by llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .tokenizer import JanusTokenizer
from .values import parse_json

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Where a schema sets no bound: a model that repeats itself would never come to an end.
MOST_LETTERS, MOST_ENTRIES, LARGEST, SMALLEST = 200, 20, 10**9, 10**-6
UNBOUNDED = {
    "string": (("maxLength", "enum", "const", "pattern", "format"), {"maxLength": MOST_LETTERS}),
    "array": (("maxItems", "enum", "const"), {"maxItems": MOST_ENTRIES}),
    "object": (("additionalProperties", "enum", "const"), {"additionalProperties": False}),
    "integer": (("enum", "const"), {"minimum": -LARGEST, "maximum": LARGEST}),
    "number": (("multipleOf", "enum", "const"), {"minimum": -LARGEST, "maximum": LARGEST, "multipleOf": SMALLEST}),
}

AS_THEY_ARE = ("enum", "const", "default", "examples", "allOf")  # parts of allOf bound each other


def bounded(schema: Any) -> Any:
    """A schema whose texts, lists, objects and numbers all have an end, as its own or as the bounds above say."""
    if isinstance(schema, list):
        return [bounded(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: value if key in AS_THEY_ARE else bounded(value) for key, value in schema.items()}
    types = schema.get("type")
    for kind in types if isinstance(types, list) else [types]:
        decided, bounds = UNBOUNDED.get(str(kind), ((), {}))
        parts = parts if any(key in schema for key in decided) else {**bounds, **parts}
    return parts


class SchemaRule:
    """A rule for `decoding.generate`: JSON without blanks that satisfies a schema, then the end.

    Raises ImportError without llguidance, ValueError for a schema that it does not take, with one sentence.
    """

    def __init__(self, tokenizer: JanusTokenizer, schema: str | Mapping[str, Any]) -> None:
        self.schema = parse_json(schema, "the schema") if isinstance(schema, str) else dict(schema)
        self._eos, self._size = tokenizer.eos_id, tokenizer.vocab_size
        self._first = _matcher(tokenizer, self.schema)
        self._rows: dict[int, tuple[LLMatcher, int]] = {}

    def __call__(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        allowed = torch.zeros(logits.shape, dtype=torch.uint8)
        for row, written in enumerate(texts):
            mask = self._at(row, written).compute_logit_bias()
            allowed[row, : self._size] = torch.frombuffer(bytearray(mask), dtype=torch.uint8)
        return logits.masked_fill(~allowed.bool().to(logits.device), float("-inf"))

    def value(self, text: str) -> Any:
        """What an answer holds; raises ValueError where it was cut off."""
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(
                f"the answer was cut off after {len(text)} letters of JSON: allow more tokens, or bound the schema by "
                "maxLength and maxItems."
            ) from error

    def _at(self, row: int, written: Sequence[int]) -> LLMatcher:
        """What knows how a row may go on; rows that begin anew get a new one."""
        matcher, read = self._rows.get(row, (self._first, 0)) if written else (self._first.deep_copy(), 0)
        matcher.consume_tokens(list(written[read:]))
        self._rows[row] = matcher, len(written)
        return matcher


def _matcher(tokenizer: JanusTokenizer, schema: dict[str, Any]) -> LLMatcher:
    try:
        from llguidance import LLMatcher, LLTokenizer
    except ImportError as error:
        raise ImportError('answers as JSON need llguidance: run `pip install "llguidance>=1.3"`.') from error
    slices = LLTokenizer.json_slices()
    known = LLTokenizer(tokenizer.whole, n_vocab=tokenizer.vocab_size, eos_token=tokenizer.eos_id, slices=slices)
    try:
        whole = json.dumps(bounded(schema))
        grammar = LLMatcher.grammar_from_json_schema(whole, defaults={"whitespace_flexible": False})
    except (RecursionError, ValueError) as error:
        raise ValueError(f"this schema cannot be followed ({error}): simplify it.") from error
    matcher = LLMatcher(known, grammar, log_level=0)
    if matcher.is_error() or not matcher.compute_logit_bias():
        reason = " ".join(matcher.get_error().split())[:200]
        raise ValueError(f"this schema cannot be followed ({reason}): simplify it.")
    return matcher
