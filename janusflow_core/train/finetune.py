"""Fine-tuning: a LoRA learns to draw or to say what some captioned pictures show. One step, for node and command line.

B batch, P picture tokens, W features of the understanding encoder.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import __version__
from ..adapters import Adapter
from ..checkpoint import Checkpoint, OnProgress
from ..lora import base_hash
from ..model import JanusFlow, Prefix
from .conversations import Packed, conversation, pack
from .examples import Captioned, Examples, batch_rows, shaken
from .loop import Budget, OnStep, Stage, check_same, fit, streams
from .lowrank import Adapters, chosen_layers
from .optimizer import Optimizer, constant, cosine
from .options import FineTuneOptions, PartName
from .subject import Subject
from .terms import Terms, new_projector

DREAM_SEED = 10**6  # so that no picture of a user's own seeds is a dream
Prompt = tuple[list[int], int]  # ids, and the place of the time token behind them
CAPTIONS = "captions"  # what is not known of a run before its pictures were looked at, because some may be broken
SETTLED, EVERY = 100, 20  # batches until the projector means something, and between two looks at the gradients


def thinned(text: str, words: random.Random) -> str:
    """A text with about seven in ten of its words, at least one."""
    told = text.split()
    return " ".join(word for word in told if words.random() < 0.7) or words.choice(told or [""])


def look_at(
    subject: Subject, captioned: Sequence[Captioned], options: FineTuneOptions, on_picture: OnProgress | None = None
) -> tuple[Examples, Examples]:
    """What is learnt from, and the dreams that hold the model to what it was; a broken picture is left out and named.

    `on_picture` hears how many pictures are done, of how many, and may raise to cancel.
    """
    examples, total = Examples(), len(captioned) + options.dreams
    draws, question = options.teach != "captioning", options.question if options.teach != "generation" else ""
    for done, one in enumerate(captioned, 1):
        examples.add(one, subject, draws, draws and options.repa > 0, question)
        if on_picture is not None:
            on_picture(done, total)
    if len(examples.texts) < 2 or not options.dreams or not options.keep:  # fewer than two are refused
        return examples, Examples()
    lengths = [len(subject.tokenizer.generation_ids(text)) for text in examples.texts]
    starts = [lengths[row % len(lengths)] for row in range(options.dreams)]
    count = len(captioned)
    dreamt = None if on_picture is None else lambda done: on_picture(count + done, total)
    return examples, subject.dream(starts, options.seed + DREAM_SEED, bool(question), on_picture=dreamt)


@dataclass(frozen=True)
class Base:
    """The checkpoint that a LoRA is made for: its name, and the hash of its weights."""

    name: str
    sha256: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Base:
        """Reads all weights once."""
        weights = JanusFlow(checkpoint.config, device="meta").state_dict()
        held = [name for name in weights if name in checkpoint.weights]
        return cls(checkpoint.name, base_hash(checkpoint.weights, held))


def about(options: FineTuneOptions, texts: Sequence[str], base: Base) -> str:
    """All that a run cannot change when it goes on, as JSON."""
    fingerprint = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    told = {"model": f"{base.name} ({base.sha256[:8]})", CAPTIONS: f"{len(texts)} ({fingerprint[:8]})"}
    return json.dumps({**options.model_dump(mode="json", exclude={"steps"}), **told})


def check_settings(state: Path, options: FineTuneOptions, base: Base) -> None:
    """Raise ValueError where a state is of another model or other settings, before any picture is looked at."""
    check_same(state, about(options, [], base), [CAPTIONS])


def lora_metadata(tuning: FineTune) -> dict[str, str]:
    """What a LoRA file tells about itself: its base, its shape, and the recipe that makes it again."""
    options, base = tuning.options, tuning.base
    recipe = {**options.model_dump(mode="json"), "steps": tuning.stage.step, "pictures": len(tuning.learnt.texts)}
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "janusflow/lora",
        "base": base.name,
        "base_sha256": base.sha256,
        "rank": str(options.rank),
        "alpha": str(options.alpha or options.rank),
        "recipe": json.dumps(recipe),
        "version": f"janusflow {__version__}",
    }


class FineTune:
    """A LoRA in training for a `base`. `state` is the file that keeps all of it; one that is there is gone on from.

    `dreams` are the model's own pictures that hold it to what it was; without them nothing does. The model is never
    changed.
    """

    def __init__(
        self,
        subject: Subject,
        examples: Examples,
        options: FineTuneOptions,
        base: Base,
        state: Path,
        dreams: Examples | None = None,
    ) -> None:
        if len(examples.texts) < 2:
            left = f": left out {examples.problems[0]}" if examples.problems else ""
            count = "one picture" if examples.texts else "no picture"
            raise ValueError(f"there is {count} to learn from, at least two are needed{left}")
        self.subject, self.base = subject, base
        self.device, self.tokenizer = subject.device, subject.tokenizer
        self.options, self.learnt = options, examples
        self.dreamt = dreams if dreams and dreams.texts else None
        self.prompts = [self.tokenizer.generation_ids(text) for text in examples.texts]
        idle = {"generation": "head", "captioning": "generation", "both": None}[options.teach]
        parts: list[PartName] = [part for part in options.parts if part != idle]
        layers = chosen_layers(dict.fromkeys((subject.flow, subject.text)), parts)
        self.adapters = Adapters(layers, options.rank, options.alpha or None, options.kind, options.seed)
        depth = subject.flow.config.language.num_hidden_layers
        self.layer = options.repa_layer or max(1, round(depth / 4))
        if self.layer > depth:
            raise ValueError(f"got layer {self.layer} to align (REPA), expected 1 to {depth}")
        self.projector = self._new_projector()
        trained = {**dict(self.adapters.named_parameters()), **dict(self.projector.named_parameters("projector"))}
        height = options.learning_rate or 0.6 / subject.flow.config.language.hidden_size
        optimizer = Optimizer(trained.items(), adam_lr=height, betas=(0.9, 0.99), eight_bit=options.eight_bit)
        rate = {"cosine": cosine, "constant": constant}[options.schedule]
        self.stage = Stage(
            "fine-tuning",
            state,
            trained,
            optimizer,
            {"flow": 1.0, "repa": options.repa, "answer": 1.0, "kept": options.keep},
            lambda progress, step: rate(progress, step, max(options.warmup, 1)),
            decay=0.0,
            accumulate=options.accumulate,
            about=about(options, examples.texts, base),
        )

    def _new_projector(self) -> nn.Module:
        if not self.options.repa:
            return nn.Identity()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            return new_projector(self.subject.flow.config, self.options.repa_projector).to(self.device)

    def run(
        self, on_step: OnStep | None = None, every: float = 60.0, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """Train what is left of the steps; `on_step` may raise to stop. Raises as `fit` does."""
        budget = Budget(steps=self.options.steps)
        subject = self.subject
        parts = Terms(
            subject.flow,
            subject.text,
            self.projector,
            self.layer,
            subject.attention,
            time_mean=self.options.time_mean,
            dtype=subject.dtype,
        )
        with self.adapters, parts as terms:
            fit(
                self.stage,
                budget,
                lambda number: self._terms(terms, number),
                every=every,
                on_step=on_step,
                stopped=stopped,
            )

    def result(self) -> dict[str, Adapter]:
        """The LoRA as it is now, by the names of the weights that it changes."""
        return self.adapters.adapters()

    def draws(self, number: int) -> bool:
        """Whether a batch is drawn, or else captioned: evenly spread, at the ratio asked for."""
        ratio = {"generation": 1.0, "captioning": 0.0, "both": self.options.ratio}[self.options.teach]
        return int((number + 1) * ratio) > int(number * ratio)

    def _terms(self, terms: Terms, number: int) -> dict[str, Tensor]:
        part = self._drawing if self.draws(number) else self._captioning
        return part(terms, number)

    def _captioning(self, terms: Terms, number: int) -> dict[str, Tensor]:
        words, _ = streams(self.options.seed, number)
        asked, pictures = self._asked(self.learnt, number, words)
        found = terms.understanding(asked, self.subject.see(pictures))
        if self.dreamt is not None:
            asked, pictures = self._asked(self.dreamt, number, words)
            found["kept"] = terms.remembering(asked, self.subject.see(pictures), self.adapters.paused())
        return found

    def _asked(self, examples: Examples, number: int, words: random.Random) -> tuple[Packed, Tensor]:
        """The first and one more question about some pictures, with their answers, and the pictures (B, 3, S, S)."""
        rows = self._rows(examples, number)
        asked = (examples.asked[row] for row in rows)
        some = ([turns[0], *words.sample(turns[1:], min(1, len(turns) - 1))] for turns in asked)
        packed = pack([conversation(self.tokenizer, turns) for turns in some], self.tokenizer)
        whole = torch.stack([words.choice(examples.whole[row]) for row in rows]).to(self.device)
        return packed.to(self.device), shaken(whole.float(), words)

    def _drawing(self, terms: Terms, number: int) -> dict[str, Tensor]:
        words, generator = streams(self.options.seed, number, self.device)
        rows = self._rows(self.learnt, number)
        prompts = [(ids, len(ids)) for ids in (self.prompts[row] for row in rows)]
        latents = self._stacked(self.learnt.latents, rows)
        features = self._stacked(self.learnt.aligned, rows) if self._aligns() else None
        if self.dreamt is None:
            prefix = self._prefix(self._dropped(prompts, words))
            found = terms.generation(prefix, latents, features, generator)
        else:
            # Without a prompt the model shall draw what it did: only the prompts of dreams are dropped.
            old = self._rows(self.dreamt, number)
            prefix = self._prefix(prompts + self._dropped(self._held_prompts(old, words), words))
            latents = torch.cat((latents, self._stacked(self.dreamt.latents, old)))
            found = terms.generation(prefix, latents, features, generator, len(old), self.adapters.paused())
        if features is not None and self.options.repa_stop < 0 and number % EVERY == 0:
            self._compare(found, number)
        return found

    def _held_prompts(self, rows: Sequence[int], words: random.Random) -> list[Prompt]:
        """The words of dreams, half of the time not all of them: one asks for less than a caption tells."""
        assert self.dreamt is not None
        texts = (self.dreamt.texts[row] for row in rows)
        told = (thinned(text, words) if words.random() < 0.5 else text for text in texts)
        return [(ids, len(ids)) for ids in map(self.tokenizer.generation_ids, told)]

    def _dropped(self, prompts: Sequence[Prompt], words: random.Random) -> list[Prompt]:
        """A part of the prompts becomes BOS alone, which keeps the place of the time token, as inference has it."""
        return [(ids[:1] if words.random() < self.options.drop else ids, length) for ids, length in prompts]

    def _rows(self, examples: Examples, number: int) -> list[int]:
        return batch_rows(number, self.options.batch, len(examples.texts), self.options.seed)

    def _prefix(self, prompts: Sequence[Prompt]) -> Prefix:
        return Prefix.join([self.subject.prompt(ids) for ids, _ in prompts], [length for _, length in prompts])

    def _stacked(self, tensors: list[Tensor], rows: list[int]) -> Tensor:
        return torch.stack([tensors[row] for row in rows]).to(self.device)

    def _aligns(self) -> bool:
        stop, stopped = self.options.repa_stop, "repa stopped" in self.stage.memory
        return self.options.repa > 0 and not stopped and not 0 < stop <= self.stage.step

    def _compare(self, found: dict[str, Tensor], number: int) -> None:
        """Follow the cosine between the gradients of drawing and of alignment; below zero the alignment ends."""
        weights = [weight for _, weight in self.adapters.named_parameters()]
        gradients = []
        for name in ("flow", "repa"):
            parts = torch.autograd.grad(found[name].mean(), weights, retain_graph=True, allow_unused=True)
            gradients.append([torch.zeros_like(w) if g is None else g for g, w in zip(parts, weights, strict=True)])
        flow, repa = (torch.cat([part.flatten() for part in gradient]) for gradient in gradients)
        cosine = torch.nn.functional.cosine_similarity(flow, repa, dim=0).item()
        memory = self.stage.memory
        memory["agreement"] = 0.7 * memory.get("agreement", cosine) + 0.3 * cosine
        if number >= SETTLED and memory["agreement"] < 0.0:
            memory["repa stopped"] = self.stage.step
