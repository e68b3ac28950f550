"""Probabilities of whole answers: equal to each answer written out by itself, and to all that could be said."""

import pytest
import torch
from golden import CONVERSATIONS, conversation_inputs, pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janusflow_core import choices
from janusflow_core.attention import left_padded_mask
from janusflow_core.choices import Tree, option_scores

EOS = 3
NAMES = [*CONVERSATIONS]  # with several pictures and with none, of different lengths
answers = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=8, unique_by=tuple)


def scored(names: list[str], asked: list[list[int]]) -> Tensor:
    pipe = pipeline()
    _, real, embeddings = conversation_inputs(pipe, names)
    model = pipe.model
    return option_scores(
        model.language_model.model, model.logits, model.encode_prompt, embeddings, real, asked, eos=EOS
    )


@torch.no_grad()
def enumerated(name: str, asked: list[list[int]]) -> Tensor:
    """Each option behind its prompt by itself, the whole read at once without a cache."""
    pipe = pipeline()
    _, real, embeddings = conversation_inputs(pipe, [name])
    found = []
    for option in asked:
        said = pipe.model.encode_prompt(torch.tensor([option]))
        whole = torch.cat((embeddings, said.to(embeddings)), dim=1)
        everything = torch.ones(whole.shape[:2], dtype=torch.bool)
        positions = torch.arange(whole.shape[1])[None]
        hidden = pipe.model.language_model.model(whole, positions, left_padded_mask(everything, 0))
        log_p = pipe.model.logits(hidden[0, -len(option) - 1 :]).float().log_softmax(dim=-1)
        found.append(sum(log_p[place, token] for place, token in enumerate([*option, EOS])))
    return torch.stack(found)


@settings(max_examples=15)
@given(answers)
def test_scores_are_those_of_every_answer_written_by_itself(asked: list[list[int]]):
    found = scored(NAMES, asked)
    expected = torch.stack([enumerated(name, asked) for name in NAMES])
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(found.softmax(dim=1), expected.softmax(dim=1), atol=1e-5)


def test_a_large_vocabulary_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch):
    asked = [[1], [1, 2], [1, 2, 4], [5, 2]]
    whole = scored(NAMES, asked)
    monkeypatch.setattr(choices, "LOGITS_AT_ONCE", 1)
    assert torch.allclose(scored(NAMES, asked), whole, atol=1e-5)


@given(answers)
def test_what_begins_alike_is_read_once(asked: list[list[int]]):
    tree = Tree.of(asked)
    begun = {tuple(option[:end]) for option in asked for end in range(1, len(option) + 1)}
    assert len(tree.ids) == len(begun)
    spoken = [[tree.ids[node - 1] for node in way[1:]] for way in tree.ways]
    assert spoken == [list(option) for option in asked]
    for way in tree.ways:
        for place, node in enumerate(way[1:], 1):
            assert set(tree.seen()[node - 1].nonzero().flatten().tolist()) == {n - 1 for n in way[1 : place + 1]}


@pytest.mark.parametrize("asked", [[], [[]], [[1], []], [[1, 2], [1, 2]]])
def test_options_must_be_texts_and_different(asked: list[list[int]]):
    with pytest.raises(ValueError, match="options must be different texts, at least one and none empty"):
        Tree.of(asked)
