"""Fine-tuning: a LoRA learns to draw or to say what some captioned pictures show. One step, for node and command line.

B batch, P picture tokens, W features of the understanding encoder.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..model import JanusFlow, Prefix
from ..tokenizer import JanusTokenizer
from .data import conversation, pack
from .examples import Examples, batch_rows
from .loop import Budget, OnStep, Stage, fit, streams
from .lowrank import Adapters, chosen_layers
from .optimizer import Optimizer, constant, cosine
from .options import FineTuneOptions
from .terms import Terms, new_projector

SETTLED, EVERY = 100, 20  # batches until the projector means something, and between two looks at the gradients


class FineTune:
    """A LoRA in training. `flow` draws and `text` reads and speaks: the same module where it is whole.

    `state` is the file that keeps all of it; one that is there already is gone on from. The model is never changed.
    """

    def __init__(
        self,
        flow: JanusFlow,
        text: JanusFlow,
        tokenizer: JanusTokenizer,
        examples: Examples,
        options: FineTuneOptions,
        state: Path,
        dreams: Examples | None = None,
    ) -> None:
        if not examples.texts:
            raise ValueError("there is no picture to learn from: " + (examples.problems or ["give some"])[0])
        self.flow, self.text, self.tokenizer, self.examples, self.options = flow, text, tokenizer, examples, options
        self.device = next(flow.parameters()).device
        layers = chosen_layers({id(half): half for half in (flow, text)}.values(), options.parts)
        self.adapters = Adapters(layers, options.rank, options.alpha or None, options.kind, options.seed)
        self.layer = options.repa_layer or max(1, round(flow.config.language.num_hidden_layers / 4))
        self.projector = self._new_projector()
        trained = {**dict(self.adapters.named_parameters()), **dict(self.projector.named_parameters("projector"))}
        optimizer = Optimizer(
            trained.items(), adam_lr=options.learning_rate, betas=(0.9, 0.99), eight_bit=options.eight_bit
        )
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
            about=json.dumps(options.model_dump(mode="json", exclude={"steps"})),
        )
        self.dreams = dreams
        self._dreamt = [tokenizer.generation_ids(text) for text in dreams.texts] if dreams else []
        self._prompts = [tokenizer.generation_ids(text) for text in examples.texts]
        self._asked = [conversation(tokenizer, [(options.question, text)]) for text in examples.texts]

    def _new_projector(self) -> nn.Module:
        if not self.options.repa:
            return nn.Identity()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            return new_projector(self.flow.config, self.options.repa_projector).to(self.device)

    def run(
        self, on_step: OnStep | None = None, on_save: Callable[[], None] | None = None, every: float = 60.0
    ) -> None:
        """Train what is left of the steps; `on_step` may raise to stop. Raises Diverged as `fit` does."""
        budget = Budget(steps=self.options.steps)
        with self.adapters, Terms(self.flow, self.text, self.projector, self.layer) as terms:
            fit(self.stage, budget, lambda number: self._terms(terms, number), on_save, every, on_step)

    def result(self) -> dict[str, Adapter]:
        """The LoRA as it is now, by the names of the weights that it changes."""
        return self.adapters.adapters()

    def draws(self, number: int) -> bool:
        """Whether a batch is drawn, or else captioned: evenly spread, at the ratio asked for."""
        ratio = {"generation": 1.0, "captioning": 0.0, "both": self.options.ratio}[self.options.teach]
        return int((number + 1) * ratio) > int(number * ratio)

    def _terms(self, terms: Terms, number: int) -> dict[str, Tensor]:
        words, generator = streams(self.options.seed, number, self.device)
        rows = batch_rows(number, self.options.batch, len(self.examples.texts), self.options.seed)
        if not self.draws(number):
            asked = pack([self._asked[row] for row in rows], self.tokenizer).to(self.device)
            return terms.understanding(asked, self._stacked(self.examples.seen, rows))
        prompts = self._prefix([self._prompts[row] for row in rows], words)
        features = self._stacked(self.examples.aligned, rows) if self._aligns() else None
        found = terms.generation(prompts, self._stacked(self.examples.latents, rows), features, generator)
        if features is not None and self.options.repa_stop < 0 and number % EVERY == 0:
            self._compare(found, number)
        if self.dreams is not None:
            rows = batch_rows(number, self.options.batch, len(self.dreams.texts), self.options.seed)
            prompts = self._prefix([self._dreamt[row] for row in rows], words)
            latents = self._stacked(self.dreams.latents, rows)
            found["kept"] = terms.faithful(prompts, latents, generator, self.adapters.paused())
        return found

    def _prefix(self, ids: Sequence[list[int]], words: random.Random) -> Prefix:
        """Prompts, some of which are dropped to BOS alone, as inference has them."""
        kept = [row[:1] if words.random() < self.options.drop else row for row in ids]
        embeddings = [self.text.encode_prompt(torch.tensor(row, device=self.device)) for row in kept]
        return Prefix.join(embeddings, [len(row) for row in ids])

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
