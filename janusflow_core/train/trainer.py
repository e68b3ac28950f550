"""A recipe at work: data, model and processes put together, checkpoints written and taken up again.

OUT/step_0001000/ is a model in the official layout, of the averaged weights, with what training needs to go on from
there beside it: state.safetensors and recipe.json. Each appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..autoencoder import load_vae_files
from ..checkpoint import load_model, open_checkpoint
from ..image import preprocess
from ..layout import describe_files, fill_folder, write_json
from ..model import flow_tokens
from ..partial import PARTIAL, appearing
from ..tokenizer import JanusTokenizer
from ..vae import LatentCodec
from .ahead import ahead
from .data import Problems, Source, open_data
from .latents import Latents, fingerprint
from .loop import Budget, OnStep, Stage, fit
from .machine import Machine, gathered, quiet_norms, rank, training_attention, trains_in_bf16, wait_for_all, world
from .objective import Objective
from .optimizer import Optimizer, constant, cosine
from .order import Mixture, Phase
from .packing import Batch, Writer
from .recipe import Recipe, lasting, parts_named
from .stream import Batches, Problem, Stream
from .subject import Subject
from .team import Team, compute_again, whole_weights
from .terms import new_projector

log = logging.getLogger(__name__)
WORKERS = 4  # for each process on a GPU
STATE, RECIPE, STEP = "state.safetensors", "recipe.json", re.compile(r"step_(\d{7,})")


def steps_in(out: Path) -> list[Path]:
    """The checkpoints in a run's folder, the last one last."""
    found = [path for path in out.glob("step_*") if STEP.fullmatch(path.name) and (path / STATE).exists()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


class Trainer:
    """A recipe's run in the folder `out`, new or gone on with from its last checkpoint.

    Raises ValueError, OSError or ImportError with one sentence where the recipe cannot be followed here.
    """

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.team = Team(out)
        self.problems, self._unwritten = Problems(), list[str]()
        last = steps_in(out)[-1:]
        self.checkpoint = open_checkpoint(_wanted(recipe.start, "start", "a checkpoint"))
        self.tokenizer = self._tokenizer()
        self.codec = self._codec()
        self.batches = self._new_batches()  # before gigabytes are read for data that cannot be
        self.machine = Machine(self.team.device, self._computes_in_bf16(last[0] if last else None), compiles=False)
        self.objective = self._new_objective()
        layers = self.objective.model.language_model.model.layers
        self.module = self.team.joined(self.objective, layers, recipe.shard, self.machine.bf16)
        self.stage = self._new_stage(last[0] / STATE if last else out / STATE)
        self._saved = self.stage.step if last else -1

    # --- what is put together -----------------------------------------------------------------------------------

    def _tokenizer(self) -> JanusTokenizer:
        if self.checkpoint.tokenizer is None or not (self.checkpoint.has_flow and self.checkpoint.has_text):
            raise ValueError(f"{self.checkpoint.name} is only a half of a JanusFlow: start from a whole one")
        return self.checkpoint.tokenizer

    def _codec(self) -> LatentCodec:
        vae, channels = self.checkpoint.read_vae(), self.checkpoint.config.flow.latent_channels
        if self.recipe.vae:
            vae = load_vae_files(self.recipe.vae).for_model(channels)
        if vae is None:
            raise ValueError(f"{self.checkpoint.name} brings no VAE: name an SDXL VAE as vae in the recipe")
        dtype = torch.float32 if self.team.device.type == "cpu" else torch.bfloat16
        return LatentCodec(vae, dtype, self.team.device)

    def _computes_in_bf16(self, last: Path | None) -> bool:
        """By the recipe, or as the run began, or what is measured to be faster here."""
        if last is not None:
            return json.loads((last / RECIPE).read_text("utf-8"))["bf16"]
        if self.recipe.precision == "auto":
            return trains_in_bf16(self.team.device)
        return self.recipe.precision == "bf16"

    def _new_objective(self) -> Objective:
        recipe, config = self.recipe, self.checkpoint.config
        model, generator = load_model(self.checkpoint, torch.float32), torch.Generator().manual_seed(recipe.seed)
        model.init_weights(generator, parts_named(*recipe.renew) if recipe.renew else lambda name: False)
        learns = parts_named(*recipe.train)
        for name, weight in model.named_parameters():
            weight.requires_grad_(learns(name))
            if self.machine.bf16 and not learns(name):
                weight.data = weight.data.bfloat16()
        depth = config.language.num_hidden_layers
        layer = recipe.repa.layer or max(1, round(depth / 4))
        if layer > depth:
            raise ValueError(f"got layer {layer} to align (repa), but {self.checkpoint.name} has {depth}: name another")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            projector = new_projector(config, recipe.repa.projector) if recipe.repa.weight else None
        objective = Objective(model, projector, layer, self.checkpoint.image)
        if recipe.checkpointing:
            compute_again(model.language_model.model.layers)
        return objective

    def _new_batches(self) -> Batches:
        recipe, config = self.recipe, self.checkpoint.config
        if not recipe.data:
            raise ValueError("the recipe names no data: add some under data, or name it with --data")
        sources = [open_data(Path(one.path), one.task) for one in recipe.data]
        if rank() == 0:
            for source in sources:
                self._note([(kind, name) for kind, names in source.problems.found.items() for name in names])
        limit = config.language.max_position_embeddings
        if recipe.length > limit:
            raise ValueError(f"length {recipe.length} is more than the {limit} tokens that the model can see: lower it")
        side = self.checkpoint.image.image_size // 8
        writer = Writer(
            self.tokenizer,
            self.checkpoint.image,
            (config.flow.latent_channels, side, side),
            flow_tokens(side, side),
            recipe.length,
            recipe.format,
            recipe.question,
            recipe.drop,
            recipe.time_mean,
            self._kept(sources, side) if recipe.crops else None,
            recipe.repa.weight > 0,
        )
        mixture = Mixture([Phase(shares.from_step * recipe.batch, shares.named()) for shares in recipe.mixture])
        stream = Stream(sources, [one.times for one in recipe.data], mixture, writer, recipe.seed)
        return Batches(stream, recipe.batch, recipe.at_once, rank(), world())

    def _kept(self, sources: Sequence[Source], side: int) -> Latents:
        """Where latents are kept: under the name of all that they are made of."""
        shape = (self.checkpoint.config.flow.latent_channels, side, side)
        files = (file for source in sources for file in source.files)
        made_of = fingerprint(f"{shape} {self.codec.dtype}", self.codec.autoencoder.weights.values(), files)
        return Latents(self.out / "latents" / f"{made_of}_{self.recipe.crops}.bin", shape, self.recipe.crops)

    def _new_stage(self, state: Path) -> Stage:
        recipe = self.recipe
        trained = {name: weight for name, weight in self.objective.named_parameters() if weight.requires_grad}
        told = {"adam_lr": recipe.learning_rate, "betas": recipe.betas}
        optimizer = Optimizer(
            trained.items(), weight_decay=recipe.weight_decay, clip=recipe.clip, shares=world() > 1, **told
        )
        rate = {"constant": constant, "cosine": cosine}[recipe.schedule]
        return Stage(
            "training",
            state,
            trained,
            optimizer,
            {"flow": 1.0, "repa": recipe.repa.weight, "answer": 1.0, "text": 1.0},
            lambda progress, step: rate(progress, step, max(recipe.warmup, 1)),
            decay=recipe.average,
            accumulate=self.batches.accumulate,
            about=json.dumps(lasting(recipe)),
            samples=recipe.at_once,
            remembers=False,
        )

    # --- the run ------------------------------------------------------------------------------------------------

    def run(self, on_step: OnStep | None = None, stopped: Callable[[], bool] = lambda: False) -> None:
        """Train what is left of the steps, with a checkpoint every so many and at the end.

        `on_step` hears the part that is over and the mean terms. Raises KeyboardInterrupt, with a checkpoint written,
        once the first process is `stopped`, and Diverged when the loss is lost.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            for left in self.out.glob(f"{PARTIAL}*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        self._note([])
        self.module.train()
        self.team.begin_log(self.recipe)
        made = ahead(self.batches, count(self.stage.step * self.batches.accumulate), self._workers())

        def heard(progress: float, means: Mapping[str, float]) -> None:
            self.team.log(means, self.stage.step)
            if self.stage.step % self.recipe.save_every == 0:
                self.save()
            if on_step is not None:
                on_step(progress, means)

        quiet_norms()
        try:
            fit(
                self.stage,
                Budget(steps=self.recipe.steps),
                lambda number: self._terms(*next(made)),
                self.save,
                float("inf"),
                heard,
                lambda last: self.team.accumulating(self.module, last),
                stopped,
            )
        finally:
            self.team.end()

    def _workers(self) -> int:
        """Processes that prepare batches: a GPU would wait for them, a CPU has better things to do."""
        few = 0 if self.team.device.type == "cpu" else WORKERS
        return few if self.recipe.workers < 0 else self.recipe.workers

    def _terms(self, batch: Batch, problems: list[Problem]) -> dict[str, Tensor]:
        self._note(problems)
        batch = batch.to(self.team.device)
        latents = self._latents(batch)
        with self.machine.autocast():
            return self.module(batch, latents)

    def _latents(self, batch: Batch) -> Tensor:
        """The latents (G, 4, h, w) of what is drawn: those that are known, and those that are made of their crops."""
        if not batch.unknown:
            return batch.latents
        crops = batch.crops if len(batch.crops) == len(batch.unknown) else batch.crops[batch.unknown]
        made, kept = self.codec.encode(crops / 255), self.batches.stream.writer.kept
        if kept is not None:
            made = kept.write([batch.places[at] for at in batch.unknown], made).to(made)
        latents = batch.latents.clone()
        latents[batch.unknown] = made
        return latents

    def _note(self, problems: list[Problem]) -> None:
        """Count what was left out, and write its names down."""
        for kind, name in problems:
            self.problems.add(kind, name)
            if self.problems.found[kind][name] == 1:
                self._unwritten.append(json.dumps({"kind": kind, "what": name}, ensure_ascii=False))
        if self._unwritten and self.out.exists():
            with (self.out / f"left_out_{rank()}.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in self._unwritten)
            self._unwritten.clear()

    # --- checkpoints --------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of this step, unless that is done, and forget the oldest: all processes have to ask."""
        if self._saved == self.stage.step:
            return
        self._saved, path = self.stage.step, self.out / f"step_{self.stage.step:07d}"
        weights = self._averaged()
        with appearing(path) if rank() == 0 else nullcontext(path) as partial:
            if rank() == 0:
                partial.mkdir()
                told = self.checkpoint
                parts = describe_files(told.config, self.tokenizer, told.image, told.drawing)
                fill_folder(partial, weights, parts, self.tokenizer.json, self.codec.autoencoder)
                write_json(partial / RECIPE, {**self.recipe.model_dump(mode="json"), "bf16": self.machine.bf16})
            self.stage.save(partial / STATE)
        if rank() == 0:
            for old in steps_in(self.out)[: -self.recipe.keep]:
                forget(old)
        wait_for_all()

    def _averaged(self) -> dict[str, Tensor]:
        """All weights of the model in bfloat16, those that learn as they are on the average of the last steps."""
        names = {f"model.{name}": name for name in self.objective.model.state_dict()}
        held = {**self.objective.state_dict(), **self.stage.average}
        found = gathered((name, held[own]) for own, name in names.items())
        return {name: weight.bfloat16() for name, weight in found.items()}

    # --- to look at ---------------------------------------------------------------------------------------------

    def look(self, opened: Callable[[str], Image.Image]) -> tuple[list[Image.Image], list[str]]:
        """The recipe's prompts drawn and its pictures described, with the weights as they are.

        All processes do so together, for layers that they share are put together at each call.
        """
        recipe, model = self.recipe, self.objective.model
        subject = Subject(
            model,
            model,
            self.tokenizer,
            self.checkpoint.image,
            self.codec.encode,
            self.codec.decode,
            training_attention(self.team.device),
        )
        writer = self.batches.stream.writer
        drawn, said = [], []
        with whole_weights(self.module), self.machine.autocast():
            if recipe.samples.prompts:
                prompts = [writer.prompt_ids(text) for text in recipe.samples.prompts]
                drawn = subject.draw(prompts, self.checkpoint.drawing, recipe.seed)
            if recipe.samples.pictures:
                shown = [preprocess(opened(name), self.checkpoint.image) for name in recipe.samples.pictures]
                rows, seen = [writer.question_ids(recipe.question)] * len(shown), torch.stack(shown)
                said = subject.continued(subject.see(seen), rows)
        return drawn, said


def forget(checkpoint: Path) -> None:
    """Delete a checkpoint so that no half of it is ever taken for one."""
    gone = checkpoint.with_name(f"{PARTIAL}{checkpoint.name}")
    os.replace(checkpoint, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _wanted(source: str, key: str, what: str) -> str:
    if not source:
        raise ValueError(f"the recipe names no {key}, {what} to begin with: add it, or name it with --{key}")
    return source
