"""The one word that is learnt anew: which scenes and prompts teach it, that it learns, and that nothing else does."""

import random
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import pytest
import torch

from janusflow_core import JanusFlowPipeline
from janusflow_core.attention import eager, segment_mask
from janusflow_core.checkpoint import load_model, open_checkpoint
from janusflow_core.train.loop import Budget
from janusflow_core.train.losses import IGNORE
from janusflow_core.train.machine import Machine
from janusflow_core.world import lessons, library, recipe, talk, word
from janusflow_core.world.lessons import as_prompts, questions_to_ask
from janusflow_core.world.scenes import Object, Scene

MACHINE = Machine(torch.device("cpu"), bf16=False, compiles=False)


def scene(*things: tuple[str, str, float, float]) -> Scene:
    return Scene((250, 250, 250), tuple(Object(shape, color, x, y, 12.0, (0, 0, 0)) for color, shape, x, y in things))


@pytest.fixture
def tiny() -> JanusFlowPipeline:
    return JanusFlowPipeline.from_pretrained("janusflow-tiny", device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("things", "fits"),
    [
        ([("red", "circle", 20, 50), ("blue", "star", 70, 50)], True),
        ([("red", "circle", 70, 50), ("blue", "star", 20, 50)], True),
        ([("red", "circle", 50, 20), ("blue", "star", 50, 70)], False),  # above
        ([("red", "circle", 20, 20), ("blue", "star", 70, 70)], False),  # neither
        ([("red", "circle", 20, 50), ("blue", "circle", 70, 50)], False),  # "two circles"
        ([("red", "circle", 20, 50)], False),
    ],
)
def test_two_shapes_beside_each_other_teach_it(things, fits):
    assert word.side_by_side(scene(*things)) == fits


def test_both_prompts_tell_the_same_scene_from_the_left():
    rng, lying = random.Random(0), scene(("red", "circle", 70, 50), ("blue", "star", 20, 50))
    pairs = {word.both_prompts(lying, rng) for _ in range(200)}
    asked = [(talk.parse_prompt(told), talk.parse_prompt(meant)) for told, meant in pairs]
    assert {told.text for told, _ in asked} == {"a star and a circle", "a blue star and a red circle"}
    assert all(told.kinds == meant.kinds and meant.relation == "left of" for told, meant in asked)
    assert len(pairs) == 2 * len(talk.PREFIXES)


@pytest.mark.parametrize("kind", [lessons.Lessons, word.WordLessons])
def test_all_of_a_lesson_goes_to_another_device(tiny, kind):
    examples = [("", scene(("red", "circle", 20, 50), ("blue", "star", 70, 50)))] * 4
    fitting = {"fitting": [0, 1]} if kind is word.WordLessons else {}
    lesson = kind(seed="any", tokenizer=tiny.tokenizer, examples=examples, draw=2, ask=1, **fitting)(0)
    found = [part for part in held(lesson.to(torch.device("meta"))) if isinstance(part, torch.Tensor)]
    assert len(found) >= 8 and all(tensor.is_meta for tensor in found)


def held(value: Any) -> Iterator[Any]:
    """All that a dataclass holds, and what the dataclasses in it do."""
    for part in vars(value).values():
        yield from held(part) if is_dataclass(part) else [part]


def test_a_word_is_read_as_another_vector_only_inside(tiny):
    model, tokenizer = tiny.model, tiny.tokenizer
    ids = torch.tensor([tokenizer.encode("a cross and a star")])
    (token,) = tokenizer.encode(word.WORD, bos=False)
    plain, other = model.encode_prompt(ids), torch.arange(192.0)
    with word.read_as(model, token, other):
        read = model.encode_prompt(ids)
    at = ids[0] == token
    assert at.sum() == 1 and torch.equal(read[0, at][0], other) and torch.equal(read[0, ~at], plain[0, ~at])
    assert torch.equal(model.encode_prompt(ids), plain)


def test_a_vector_that_means_nothing_learns_the_word_and_nothing_else_changes(tiny, tmp_path, monkeypatch):
    model, tokenizer = tiny.model, tiny.tokenizer
    pictures = library.Library.build(tmp_path, tiny.codec.vae, model.vision_und_enc_model, "any", 32, MACHINE)
    (token,) = tokenizer.encode(word.WORD, bos=False)
    table = model.language_model.model.embed_tokens.weight
    with torch.no_grad():
        table[token] = torch.randn(192, generator=torch.Generator().manual_seed(0)) * table[token].std()
    for name, value in {"DRAWN": 8, "ASKED": 1, "OLD": 1.0, "RATE": 0.05}.items():
        monkeypatch.setattr(word, name, value)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    far = unlike(model, tokenizer)
    word.learn_word(tmp_path / "state.safetensors", model, tokenizer, pictures, MACHINE, Budget(steps=25))
    assert unlike(model, tokenizer) < 0.5 * far
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"language_model.model.embed_tokens.weight"}
    rows = (table != before["language_model.model.embed_tokens.weight"]).any(dim=1).nonzero().flatten().tolist()
    assert rows == [token]


def test_answers_draw_the_word_back_to_what_it_was(tiny, tmp_path, monkeypatch):
    """Set out from `left` alone and held by answers alone, it says again what it said, about pictures of no lesson."""
    model, tokenizer = tiny.model, tiny.tokenizer
    pictures = library.Library.build(tmp_path, tiny.codec.vae, model.vision_und_enc_model, "any", 32, MACHINE)
    (token,), (like,) = (tokenizer.encode(name, bos=False) for name in (word.WORD, word.MEANT))
    said, table = answers_of(tiny), model.language_model.model.embed_tokens.weight
    with word.read_as(model, token, table[like]):
        other = answers_of(tiny)
    settings = {"DRAWN": 1, "ASKED": 4, "OLD": 0.0, "RATE": 0.3, "WEIGHTS": {"flow": 0.0, "answer": 1.0}}
    for name, value in settings.items():
        monkeypatch.setattr(word, name, value)
    word.learn_word(tmp_path / "state.safetensors", model, tokenizer, pictures, MACHINE, Budget(steps=12))
    assert divergence(said, answers_of(tiny)) < 0.5 * divergence(said, other)


@torch.no_grad()
def answers_of(pipe: JanusFlowPipeline) -> torch.Tensor:
    """Logits of the tokens that answer questions about eight scenes."""
    examples = library.draw_examples(12, 8)
    questions = questions_to_ask(examples, pipe.tokenizer, random.Random(0))
    seen = pipe.model.vision_und_enc_model(library.pictures([scene for _, scene in examples]))
    embeddings = pipe.model.embed_conversation(questions.ids, questions.image_mask, seen)
    mask = segment_mask(questions.segments)
    hidden = pipe.model.language_model.model(embeddings, questions.positions, mask, None, eager)
    return pipe.model.logits(hidden[questions.labels != IGNORE])


def divergence(before: torch.Tensor, now: torch.Tensor) -> float:
    sizes = before.log_softmax(-1), now.log_softmax(-1)
    return torch.nn.functional.kl_div(sizes[1], sizes[0], log_target=True, reduction="batchmean").item()


@torch.no_grad()
def unlike(model, tokenizer) -> float:
    """How far what is drawn for `and` is from what is drawn for `left of`, of things and noise that no lesson had."""
    asked = ([f"a red heart {link} a blue cross", f"a star {link} a square"] for link in ("and", "left of"))
    told, meant = (as_prompts(texts, tokenizer) for texts in asked)
    z = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(7))
    one, other = (model.velocity(z, torch.tensor([0.1]), prompts.embedded(model)) for prompts in (told, meant))
    return (one - other).square().mean().item()


def test_the_recipe_finishes_a_checkpoint_that_is_there(tmp_path, monkeypatch):
    """With what the stage before left in its place, only the word is learnt."""
    for module, name in ((recipe, "DRAWN"), (word, "DRAWN"), (word, "ASKED")):
        monkeypatch.setattr(module, name, 4)
    (tmp_path / "joint.safetensors").write_bytes(open_checkpoint("janusflow-tiny").path.read_bytes())
    path = recipe.train(tmp_path, minutes=0.05, start="janusflow-tiny", processes=1, eyes=False)
    before, after = (open_checkpoint(name) for name in ("janusflow-tiny", path))
    one, other = (load_model(checkpoint).state_dict() for checkpoint in (before, after))
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        "language_model.model.embed_tokens.weight"
    }
    assert after.drawing == before.drawing
    assert not (tmp_path / "joint.state.safetensors").exists() and (tmp_path / "word.state.safetensors").exists()
