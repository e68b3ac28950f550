"""What a step of the last stage draws and asks about, in tokens: pure functions of its number, for workers too.

B pictures, L tokens of the longest prompt.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import JanusFlow, Prefix
from ..tokenizer import JanusTokenizer
from ..train.conversations import Packed, conversation, moved, pack, padded, remembered
from ..train.loop import streams
from . import talk
from .library import Example

QUESTIONS = 8  # about one picture
TURNS = (1, 1, 2, 3)  # that a chat may have
PROMPT_TOKENS, CONVERSATION_TOKENS = 20, 224  # the longest, so that shapes are fixed and compiled once


@dataclass(frozen=True)
class Prompts:
    """Ids (B, L) of prompts, padded on the right, their tokens that are real, and how long they were with all words."""

    ids: Tensor
    lengths: list[int]
    whole: list[int]

    def embedded(self, model: JanusFlow) -> Prefix:
        """What the pictures' tokens look back at."""
        return Prefix(model.encode_prompt(self.ids), self.lengths, self.whole)


@dataclass(frozen=True)
class Lesson:
    """Numbers of the scenes to draw, with prompts for them, and of those to ask about, with questions and answers."""

    drawn: Tensor
    prompts: Prompts
    asked: Tensor
    questions: Packed

    def to(self, device: torch.device) -> Lesson:
        """The same on another device."""
        return moved(self, device)


@dataclass(frozen=True)
class Lessons:
    """The lesson of a step by its number: so many of the examples to draw, and so many to ask about."""

    seed: str
    tokenizer: JanusTokenizer
    examples: Sequence[Example]
    draw: int
    ask: int

    def __call__(self, step: int) -> Lesson:
        rng, _ = streams(self.seed, step)
        drawn, asked = (rng.sample(range(len(self.examples)), count) for count in (self.draw, self.ask))
        prompts = prompts_to_draw([self.examples[i] for i in drawn], self.tokenizer, rng)
        questions = questions_to_ask([self.examples[i] for i in asked], self.tokenizer, rng)
        return Lesson(torch.tensor(drawn), prompts, torch.tensor(asked), questions)


def prompt_for(example: Example, rng: random.Random) -> str:
    """The prompt that a scene was drawn for, or any other that it fits, after one of the usual openings."""
    prompt, scene = example
    return prompt if rng.random() < 0.5 else rng.choice(talk.PREFIXES) + talk.retell(scene, rng)


def prompts_to_draw(examples: Sequence[Example], tokenizer: JanusTokenizer, rng: random.Random) -> Prompts:
    """Prompts for some scenes at the fixed length, every tenth dropped to BOS as inference drops it."""
    texts = [prompt_for(example, rng) for example in examples]
    return as_prompts(texts, tokenizer, [rng.random() < 0.1 for _ in texts])


def as_prompts(texts: Sequence[str], tokenizer: JanusTokenizer, dropped: Sequence[bool] = ()) -> Prompts:
    """Some prompts at the fixed length; of the `dropped` ones BOS alone is left."""
    ids = [remembered(JanusTokenizer.generation_ids, tokenizer, text) for text in texts]
    kept = [row[:1] if gone else row for row, gone in zip(ids, dropped or [False] * len(ids), strict=True)]
    return Prompts(padded(kept, tokenizer.pad_id, PROMPT_TOKENS), [len(row) for row in kept], [len(row) for row in ids])


def questions_to_ask(examples: Sequence[Example], tokenizer: JanusTokenizer, rng: random.Random) -> Packed:
    """Up to QUESTIONS questions about each of some scenes, with their answers, at the fixed length.

    Each kind is asked several times over, so that a row asks the same of both things: what they have in common then
    teaches nothing, and which is which is learnt sooner. So is what judges of pictures ask, and, what is learnt last,
    whether a thing lies where it does and where it does not. Half of the chats have one turn, the rest two or three.
    """
    rows = []
    for _, scene in examples:
        drawn = itertools.chain.from_iterable(talk.questions(scene, rng) for _ in range(4))
        asked = {(question, answer) for _, question, answer in drawn}
        first = talk.placed(scene, rng)
        asked = sorted(asked.union(*(talk.judged(scene, rng) for _ in range(3))).difference(first))
        chosen = first + rng.sample(asked, min(QUESTIONS - len(first), len(asked)))
        rng.shuffle(chosen)
        rows.append(conversation(tokenizer, chosen, rng.choices(TURNS, k=len(chosen))))
    return pack(rows, tokenizer, CONVERSATION_TOKENS)
