"""The last stage of the embedded model: one word is learnt anew, so that `a circle and a star` is drawn like `left of`.

`and` leaves open which of two places holds what. The places decide that at once and each by itself, so that both may
hold the same; told that the first thing lies left of the other they hardly ever fail. So the vector that stands for the
word is trained, and nothing else, until prompts with it have the velocities of those with `left of`. Answers read it
too, in the system prompt, in questions and in their own words: they are held to what they were.

B pictures, D hidden size.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import sampling
from ..attention import Attention, segment_mask
from ..model import JanusFlow, flow_tokens
from ..tokenizer import JanusTokenizer
from ..train.ahead import ahead
from ..train.conversations import Packed, moved
from ..train.loop import Budget, Stage, fit, streams
from ..train.losses import IGNORE, kept_loss
from ..train.machine import Machine, training_attention, world
from ..train.optimizer import Optimizer
from . import talk
from .lessons import Prompts, as_prompts, questions_to_ask
from .library import Example, Library, seed_of
from .scenes import Scene, relation

WORD, MEANT = " and", " left"  # the token that learns, and the one whose vector it sets out from
OLD = 0.35  # of its own vector that is left at the start
WEIGHTS = {"flow": 1.0, "answer": 0.02}  # much more of the second undoes the first
DRAWN, ASKED = 96, 24  # in a step, on a CPU
RATE = 0.01
TIME_MEAN = -1.4  # of the times' logit: what lies where is decided early


@dataclass(frozen=True)
class WordLesson:
    """Numbers of scenes to draw, prompts with the word and as it is meant; numbers of scenes to ask about, and what."""

    drawn: Tensor
    told: Prompts
    meant: Prompts
    asked: Tensor
    questions: Packed

    def to(self, device: torch.device) -> WordLesson:
        """The same on another device."""
        told, meant, questions = moved(self.told, device), moved(self.meant, device), self.questions.to(device)
        return WordLesson(self.drawn.to(device), told, meant, self.asked.to(device), questions)


@dataclass(frozen=True)
class WordLessons:
    """The lesson of a step by its number: some of the `fitting` examples to draw, and some of all to ask about."""

    seed: str
    tokenizer: JanusTokenizer
    examples: Sequence[Example]
    fitting: Sequence[int]
    draw: int
    ask: int

    def __call__(self, step: int) -> WordLesson:
        rng, _ = streams(self.seed, step)
        drawn, asked = rng.choices(self.fitting, k=self.draw), rng.choices(range(len(self.examples)), k=self.ask)
        pairs = [both_prompts(self.examples[number][1], rng) for number in drawn]
        told, meant = (as_prompts(texts, self.tokenizer) for texts in zip(*pairs, strict=True))
        questions = questions_to_ask([self.examples[number] for number in asked], self.tokenizer, rng)
        return WordLesson(torch.tensor(drawn), told, meant, torch.tensor(asked), questions)


def side_by_side(scene: Scene) -> bool:
    """Whether a scene has two things of two shapes and one lies left of the other."""
    shapes = {item.shape for item in scene.objects}
    return len(scene.objects) == len(shapes) == 2 and relation(*scene.objects) in ("left of", "right of")


def both_prompts(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A prompt with `and` for a scene that is `side_by_side`, the left thing first, and the same with `left of`."""
    things = sorted(scene.objects, key=lambda item: item.x)
    colored = rng.random() < 0.5
    kinds = tuple((item.color if colored else None, item.shape) for item in things)
    opening = rng.choice(talk.PREFIXES)
    told, meant = (opening + talk.Request(kinds, relation=link).text for link in (None, "left of"))
    return told, meant


@contextmanager
def read_as(model: JanusFlow, token: int, vector: Tensor) -> Iterator[None]:
    """Inside, a token of the model's words stands for this vector (D,) in place of its own."""

    def put(module: nn.Module, args: tuple[Tensor], embeddings: Tensor) -> Tensor:
        return torch.where((args[0] == token)[..., None], vector.to(embeddings), embeddings)

    hook = model.language_model.model.embed_tokens.register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


def learn_word(
    state: Path, model: JanusFlow, tokenizer: JanusTokenizer, library: Library, machine: Machine, budget: Budget
) -> None:
    """Train the vector of the one word, and put the mean of its last values in the model's table."""
    (token,), (like,) = (tokenizer.encode(word, bos=False) for word in (WORD, MEANT))
    table = model.requires_grad_(False).language_model.model.embed_tokens.weight
    vector, seed = nn.Parameter(table[like] + OLD * table[token]), seed_of("word", model)
    stage = Stage("word", state, {"and": vector}, Optimizer([("and", vector)], adam_lr=RATE), WEIGHTS, decay=0.95)
    draw, ask = (max(count // world(), 1) * machine.times for count in (DRAWN, ASKED))
    fitting = [number for number, (_, scene) in enumerate(library.examples) if side_by_side(scene)]
    written = WordLessons(seed, tokenizer, library.examples, fitting, draw, ask)
    lessons = ahead(written, itertools.count(stage.step), machine.workers)
    attention = training_attention(machine.device)

    def terms(step: int) -> dict[str, Tensor]:
        lesson, (_, generator) = next(lessons).to(machine.device), streams(seed, step, machine.device)
        z, t = noisy(library.latents[lesson.drawn].float(), generator)
        seen = library.features[lesson.asked].float()

        def given(prompts: Prompts) -> tuple[Tensor, Tensor]:
            return velocity(model, prompts, z, t, attention), answers(model, lesson, seen, attention)

        with machine.autocast():
            with torch.no_grad():
                wanted, before = given(lesson.meant)
            with read_as(model, token, vector):
                found, now = given(lesson.told)
        kept = kept_loss(now, before, lesson.questions.labels != IGNORE)
        return {"flow": (found - wanted).square().mean(dim=(1, 2, 3)), "answer": kept}

    fit(stage, budget, terms)
    with torch.no_grad():
        table[token] = stage.average["and"]


def noisy(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents `x` (B, 4, h, w) with noise, and the times (B,) that say how much."""
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    t = sampling.logit_normal(len(x), generator, TIME_MEAN)
    return sampling.interpolate(x, noise, t), t


def velocity(model: JanusFlow, prompts: Prompts, z: Tensor, t: Tensor, attention: Attention) -> Tensor:
    """Velocities (B, 4, h, w) of noisy latents `z` (B, 4, h, w) at times `t` (B,)."""
    prefix = prompts.embedded(model)
    positions, mask = prefix.layout(flow_tokens(*z.shape[2:]))
    return model.flow(z, t, prefix.embeddings, positions, mask, None, attention)


def answers(model: JanusFlow, lesson: WordLesson, features: Tensor, attention: Attention) -> Tensor:
    """Logits (K, V) of all tokens that answer what is asked of pictures with these `features` (B, N, W)."""
    asked = lesson.questions
    embeddings = model.embed_conversation(asked.ids, asked.image_mask, features)
    mask = segment_mask(asked.segments)
    hidden = model.language_model.model(embeddings, asked.positions, mask, None, attention)
    return model.logits(hidden[asked.labels != IGNORE])
