"""One loop for every stage: so many minutes or steps, stopped and taken up again wherever it was.

What a step sees must be a pure function of its number (see `streams`), so that the number is all there is to resume.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..values import shown
from ..weights import TensorFile, write_tensors
from .machine import gathered, meeting_place, rank, spread, together
from .optimizer import Diverged, Optimizer, schedule

log = logging.getLogger(__name__)
OnStep = Callable[[float, Mapping[str, float]], None]  # (part that is over, mean terms); may raise to stop
Accumulating = Callable[[bool], AbstractContextManager[Any]]  # (whether it is the last batch of its step)


@dataclass(frozen=True)
class Budget:
    """How long a stage lasts: `minutes` of training by the clock, or a number of `steps`."""

    minutes: float | None = None
    steps: int | None = None

    def progress(self, step: int, seconds: float) -> float:
        """The part in [0, 1] that is over after `step` steps and `seconds` of training."""
        over = step / self.steps if self.steps else seconds / (60.0 * self.minutes) if self.minutes else 1.0
        return min(over, 1.0)


def streams(seed: int | str, step: int, device: torch.device | str = "cpu") -> tuple[random.Random, torch.Generator]:
    """Randomness of one step of one process: words and choices from the first, noise and times from the second."""
    words = random.Random(f"{seed}/{rank()}/{step}")
    return words, torch.Generator(device).manual_seed(words.getrandbits(63))


@dataclass
class Stage:
    """What is trained, with its optimizer and its moving average, and the file that keeps all of it.

    `weights` are those of the terms in the loss; the learning rate is `rate` (of progress and step) of the optimizer's;
    `average` holds the mean weights of the last steps. A step sums the gradients of `accumulate` batches, each of as
    many `samples`, where not every term is of all of them. `about` says what a state was trained with, `memory` what
    else must outlive a stop. The last good weights are only kept if it `remembers` them.
    """

    name: str
    file: Path
    trained: Mapping[str, nn.Parameter]
    optimizer: Optimizer
    weights: Mapping[str, float]
    rate: Callable[[float, int], float] = schedule
    decay: float = 0.99
    accumulate: int = 1
    about: str = ""
    samples: int | None = None
    remembers: bool = True

    def __post_init__(self) -> None:
        self.step, self.seconds = 0, 0.0
        self.memory: dict[str, Any] = {}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        if self.file.exists():
            self._restore()
        self._limits: dict[str, list[float]] = {}
        self.keep()

    def save(self, file: Path | None = None) -> None:
        """Write the state whole or not at all, there or to its own file: the first process does, but all must ask."""
        parts = {"trained": self.trained, "average": self.average, "optimizer": self.optimizer.tensors()}
        tensors = gathered((f"{part}.{name}", value) for part, held in parts.items() for name, value in held.items())
        told = {"step": str(self.step), "seconds": str(self.seconds), "about": self.about}
        if rank() == 0:
            write_tensors(file or self.file, tensors, {**told, "memory": json.dumps(self.memory)})

    def keep(self) -> None:
        """Remember the weights as the last good ones."""
        if self.remembers:
            self._good = self.step, {name: weight.detach().clone() for name, weight in self.trained.items()}

    def check(self, means: Mapping[str, float]) -> None:
        """Raise Diverged where a term is no number, or ten times what it cost at first (and more than 10)."""
        for name, mean in means.items():
            first = self._limits.setdefault(name, [])
            if not math.isfinite(mean):
                raise Diverged(f"{name} is {mean}")
            if len(first) < 10:
                first.append(mean)
            elif mean > 10 * max(*first, 1.0):
                raise Diverged(f"{name} went up to {mean:.3g} from {max(first):.3g}")

    @torch.no_grad()
    def go_back(self) -> str:
        """Put the last good weights in place, if they are remembered; returns what is left, in words."""
        if not self.remembers:
            return f"what {shown(self.file, 2)} holds is kept" if self.file.exists() else "nothing was kept yet"
        step, good = self._good
        for name, weight in self.trained.items():
            weight.copy_(good[name])
            weight.grad = None
            self.average[name].copy_(good[name])
        return f"the weights of step {step} are kept"

    @torch.no_grad()
    def _restore(self) -> None:
        check_same(self.file, self.about)
        file = TensorFile(self.file)
        told = file.metadata
        self.step, self.seconds = int(told["step"]), float(told["seconds"])
        self.memory = json.loads(told.get("memory", "{}"))
        for part, held in (("trained", self.trained), ("average", self.average)):
            for name, value in held.items():
                value.copy_(spread(file.read(f"{part}.{name}"), value))
        mark = "optimizer."
        held = (key for key in file.shapes if key.startswith(mark))
        self.optimizer.restore((key.removeprefix(mark), file.read(key).clone()) for key in held)
        log.info("%s goes on at step %d, after %.0f s", self.name, self.step, self.seconds)


def told_by(file: Path) -> tuple[str, dict[str, Any]]:
    """What a state was trained with and what it remembers; nothing where there is none."""
    told = TensorFile(file).metadata if file.exists() else {}
    return told.get("about", ""), json.loads(told.get("memory", "{}"))


def check_same(file: Path, about: str, unknown: Sequence[str] = ()) -> None:
    """Raise ValueError where there is a state of a run of other settings, but for those that are yet unknown."""
    if not file.exists():
        return
    old, new = (json.loads(text or "{}") for text in (told_by(file)[0], about))
    other = [name for name in new | old if name not in unknown and old.get(name) != new.get(name)]
    if other:
        differences = ", ".join(f"{name} {old.get(name)}, now {new.get(name)}" for name in other)
        raise ValueError(
            f"{shown(file)} is a run of other settings ({differences}): use the same ones to go on, or another name to "
            "begin anew."
        )


def fit(
    stage: Stage,
    budget: Budget,
    terms: Callable[[int], dict[str, Tensor]],
    save: Callable[[], None] | None = None,
    every: float = 300.0,
    on_step: OnStep | None = None,
    accumulating: Accumulating = lambda last: nullcontext(),
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Train until the budget is spent; `terms` gives the losses (B,) of a batch by its number.

    The state is saved each `every` seconds and at the end, or what `save` does: all processes do, at the same step.
    `on_step` hears the part that is over and the mean terms after each step, and may raise to stop. `accumulating` is
    entered for each batch of a step. Raises Diverged, with the last good weights in place, when the loss is lost, and
    KeyboardInterrupt, with the state saved, once the first process is `stopped`.
    """
    told: dict[str, list[float]] = {}
    saved, save = time.monotonic(), save or stage.save
    while True:
        part, since = budget.progress(stage.step, stage.seconds), time.monotonic() - saved
        progress, since, stop = _agreed(part, since, float(stopped()))
        if stop or progress >= 1.0 or since > every:
            save()
            saved = time.monotonic()
        if stop:
            raise KeyboardInterrupt
        if progress >= 1.0:
            return
        began = time.monotonic()
        try:
            means = _learn(stage, terms, stage.rate(progress, stage.step), accumulating)
        except Diverged as error:
            lost, left = stage.step, stage.go_back()
            raise Diverged(f"training diverged at step {lost} ({error}); {left}") from None
        stage.step, stage.seconds = stage.step + 1, stage.seconds + time.monotonic() - began
        for name, mean in means.items():
            told.setdefault(name, []).append(mean)
        if stage.step % 50 == 0:
            _tell(stage, progress, {name: sum(means) / len(means) for name, means in told.items()})
            stage.keep()
            told = {}
        if on_step is not None:
            on_step(budget.progress(stage.step, stage.seconds), means)


def _learn(
    stage: Stage, terms: Callable[[int], dict[str, Tensor]], rate: float, accumulating: Accumulating
) -> dict[str, float]:
    """One step at a part of the learning rate; returns the mean of each term."""
    found: list[dict[str, Tensor]] = []
    for part in range(stage.accumulate):
        with accumulating(part == stage.accumulate - 1):
            costs = terms(stage.step * stage.accumulate + part)
            parts = [stage.weights[name] * cost.sum() / (stage.samples or cost.numel()) for name, cost in costs.items()]
            (torch.stack(parts).sum() / stage.accumulate).backward()
            found.append({name: cost.detach() for name, cost in costs.items()})
    costs = _means(stage.weights, found)
    stage.check(costs)
    stage.optimizer.step(rate)
    # The same names in the same order; all at once, because a GPU waits for every order.
    get_ema_multi_avg_fn(stage.decay)([*stage.average.values()], [*stage.trained.values()], None)
    return costs


def _means(names: Iterable[str], found: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """The mean of each term over all samples of all processes that have it, in one look, which waits for a GPU."""
    names = [*names]
    some = next(iter(found[0].values()))
    told = torch.zeros(2, len(names), device=some.device)
    for costs in found:
        for name, cost in costs.items():
            at = names.index(name)
            told[0, at] += cost.sum()
            told[1, at] += cost.numel()
    if together():
        dist.all_reduce(told)
    sums, counts = told.tolist()
    return {name: total / count for name, total, count in zip(names, sums, counts, strict=True) if count}


def _agreed(*seconds: float) -> list[float]:
    """The first process's clock counts, so that all do the same at the same step."""
    if not together():
        return [*seconds]
    told = torch.tensor(seconds, dtype=torch.float64, device=meeting_place())
    dist.broadcast(told, 0)
    return told.tolist()


def _tell(stage: Stage, progress: float, means: Mapping[str, float]) -> None:
    if rank() == 0:
        told = "  ".join(f"{name} {mean:.4f}" for name, mean in means.items())
        log.info("%s step %d  %s  %.0f %%  %.0f s", stage.name, stage.step, told, 100 * progress, stage.seconds)
