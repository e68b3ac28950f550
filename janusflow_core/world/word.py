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
from ..model import JanusFlow
from ..tokenizer import JanusTokenizer
from ..train.ahead import ahead
from ..train.conversations import Packed, moved
from ..train.loop import Budget, Stage, fit, streams
from ..train.machine import Machine, training_attention, world
from ..train.optimizer import Optimizer
from ..train.terms import Terms
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
        return moved(self, device)


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
    return talk.are_two_related(scene) and relation(*scene.objects) in ("left of", "right of")


def both_prompts(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A prompt with `and` for a scene that is `side_by_side`, the left thing first, and the same with `left of`."""
    things = sorted(scene.objects, key=lambda item: item.x)
    colored, opening = rng.random() < 0.5, rng.choice(talk.PREFIXES)
    told, meant = (opening + talk.request(things, colored, related).text for related in (False, True))
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
        with machine.autocast():
            with torch.no_grad():
                wanted = model.velocity(z, t, lesson.meant.embedded(model), attention)
            with read_as(model, token, vector):
                found = model.velocity(z, t, lesson.told.embedded(model), attention)
                kept = parts.remembering(lesson.questions, seen, read_as(model, token, table[token]))
        return {"flow": (found - wanted).square().mean(dim=(1, 2, 3)), "answer": kept}

    with Terms(model, model, nn.Identity(), 1, attention) as parts:  # nothing is aligned, so no layer matters
        fit(stage, budget, terms)
    with torch.no_grad():
        table[token] = stage.average["and"]


def noisy(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents `x` (B, 4, h, w) with noise, and the times (B,) that say how much."""
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    t = sampling.logit_normal(len(x), generator, TIME_MEAN)
    return sampling.interpolate(x, noise, t), t
