"""One loop for every stage: so many minutes or steps, stopped and taken up again wherever it was.

What a step sees must be a pure function of its number (see `streams`), so that the number is all there is to resume.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from ..weights import TensorFile, write_tensors
from .machine import rank
from .optimizer import Optimizer, schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How long a stage lasts: `minutes` of training by the clock, or a number of `steps`."""

    minutes: float | None = None
    steps: int | None = None

    def progress(self, step: int, seconds: float) -> float:
        """The part in [0, 1] that is over after `step` steps and `seconds` of training."""
        over = step / self.steps if self.steps else seconds / (60.0 * self.minutes) if self.minutes else 1.0
        return min(over, 1.0)


def streams(seed: int, step: int, device: torch.device | str = "cpu") -> tuple[random.Random, torch.Generator]:
    """Randomness of one step of one process: words and choices from the first, noise and times from the second."""
    words = random.Random(f"{seed}/{rank()}/{step}")
    return words, torch.Generator(device).manual_seed(words.getrandbits(63))


@dataclass
class Stage:
    """What is trained, with its optimizer and its moving average, and the file that keeps all of it.

    `weights` are those of the terms in the loss; the learning rate is held at `peak` of the optimizer's up to `hold` of
    the run; `average` holds the mean weights of the last steps.
    """

    name: str
    file: Path
    trained: Mapping[str, nn.Parameter]
    optimizer: Optimizer
    weights: Mapping[str, float]
    peak: float = 1.0
    hold: float = 0.5
    decay: float = 0.99

    def __post_init__(self) -> None:
        self.step, self.seconds = 0, 0.0
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        if self.file.exists():
            self._restore()

    def save(self) -> None:
        """Write the state whole or not at all."""
        parts = {"trained": self.trained, "average": self.average, "optimizer": self.optimizer.tensors()}
        tensors = {f"{part}.{name}": value.detach() for part, held in parts.items() for name, value in held.items()}
        write_tensors(self.file, tensors, {"step": str(self.step), "seconds": str(self.seconds)})

    @torch.no_grad()
    def _restore(self) -> None:
        told, tensors = TensorFile(self.file).metadata, load_file(self.file)
        self.step, self.seconds = int(told["step"]), float(told["seconds"])
        for part, held in (("trained", self.trained), ("average", self.average)):
            for name, value in held.items():
                value.copy_(tensors[f"{part}.{name}"])
        mark = "optimizer."
        self.optimizer.restore({key.removeprefix(mark): v for key, v in tensors.items() if key.startswith(mark)})
        log.info("%s goes on at step %d, after %.0f s", self.name, self.step, self.seconds)


def fit(
    stage: Stage,
    budget: Budget,
    terms: Callable[[int], dict[str, Tensor]],
    on_save: Callable[[], None] | None = None,
    every: float = 300.0,
) -> None:
    """Train until the budget is spent; `terms` gives the losses (B,) of a step by its number.

    The first process saves the state each `every` seconds and at the end, and then calls `on_save`.
    """
    shown: dict[str, float] = {}
    saved, since = time.monotonic(), stage.step
    while (progress := _agreed(budget.progress(stage.step, stage.seconds))) < 1.0:
        began = time.monotonic()
        means = {name: term.mean() for name, term in terms(stage.step).items()}
        torch.stack([stage.weights[name] * mean for name, mean in means.items()]).sum().backward()
        stage.optimizer.step(stage.peak * schedule(progress, stage.step, stage.hold))
        with torch.no_grad():
            for name, weight in stage.trained.items():
                stage.average[name].lerp_(weight, 1.0 - stage.decay)
        shown = {name: shown.get(name, 0.0) + mean.item() for name, mean in means.items()}  # waits for a GPU
        stage.step, stage.seconds = stage.step + 1, stage.seconds + time.monotonic() - began
        if stage.step % 50 == 0:
            _tell(stage, progress, {name: total / (stage.step - since) for name, total in shown.items()})
            shown, since = {}, stage.step
        if rank() == 0 and time.monotonic() - saved > every:
            _keep(stage, on_save)
            saved = time.monotonic()
    if rank() == 0:
        _keep(stage, on_save)


def _keep(stage: Stage, on_save: Callable[[], None] | None) -> None:
    stage.save()
    if on_save is not None:
        on_save()


def _agreed(progress: float) -> float:
    """The first process's clock counts, so that all end with the same step."""
    if not dist.is_initialized():
        return progress
    told = torch.tensor(progress, dtype=torch.float64)
    dist.broadcast(told, 0)
    return told.item()


def _tell(stage: Stage, progress: float, means: Mapping[str, float]) -> None:
    if rank() == 0:
        told = "  ".join(f"{name} {mean:.4f}" for name, mean in means.items())
        log.info("%s step %d  %s  %.0f %%  %.0f s", stage.name, stage.step, told, 100 * progress, stage.seconds)
