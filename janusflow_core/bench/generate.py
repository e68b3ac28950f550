"""Seconds a step of drawing: ours beside the authors' way on the same random weights, in one process, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import sampling
from ..guidance import Guidance
from ..model import JanusFlow
from .peers import AuthorsWay
from .sizes import arithmetic, medians, peak, peak_bytes, seconds

BRIEF = 0.2  # seconds; what takes less is measured over several steps
TIME = 0.3  # of the flow, at which steps are measured; all take the same


@dataclass(frozen=True)
class Row:
    """One prompt length, batch size and guidance; seconds are those of a step of all pictures together."""

    prompt_tokens: int
    batch: int
    guidance: float
    dtype: str
    ours_s: float
    peer_s: float
    ratio: float
    same_layers_s: float
    prompt_s: float
    difference: float
    of_peak: float
    peak_bytes: int | None


@torch.no_grad()
def measure(
    model: JanusFlow,
    side: int,
    prompts: Sequence[int],
    batches: Sequence[int],
    guidances: Sequence[float],
    *,
    steps: int,
    rounds: int,
) -> Iterator[Row]:
    """A row for each length of prompt, batch and guidance, each number the median of some rounds.

    `ours_s` counts a step and its share of what comes once in `steps`: `prompt_s`, the prompt's pass and on a GPU the
    recording of a graph. `peer_s` is the authors' way, `same_layers_s` the same in our layers: what the method alone
    gives. `difference` is the relative distance of the two velocities, `of_peak` the share of this device's matrix
    products that our step's arithmetic is.
    """
    device, dtype = model.vision_gen_dec_aligner.weight.device, model.vision_gen_dec_aligner.weight.dtype
    peers, fastest = [AuthorsWay(model), AuthorsWay(model, ours=True)], peak(device, dtype)
    for length in prompts:
        for batch in batches:
            drawing = Drawing.random(model, length, batch, side)
            theirs = [partial(drawing.as_authors, peer) for peer in peers]
            weights = {weight: drawing.warm(weight) for weight in guidances}
            begin = [partial(drawing.warm, weight) for weight in guidances]
            ours = [partial(drawing.step, velocity) for velocity in weights.values()]
            taken = take_turns([*theirs, *begin, *ours], rounds, device)
            for number, (weight, velocity) in enumerate(weights.items()):
                step = taken[2 + len(weights) + number]
                first = taken[2 + number] - drawing.slow_steps * step
                yield Row(
                    prompt_tokens=length,
                    batch=batch,
                    guidance=weight,
                    dtype=str(dtype).removeprefix("torch."),
                    ours_s=step + first / steps,
                    peer_s=taken[0],
                    ratio=taken[0] / (step + first / steps),
                    same_layers_s=taken[1],
                    prompt_s=first,
                    difference=drawing.difference(peers[0], velocity, weight),
                    of_peak=arithmetic(partial(drawing.step, drawing.begin(weight))) / step / fastest,
                    peak_bytes=peak_bytes(partial(drawing.both, weight), device),
                )


@dataclass(frozen=True)
class Drawing:
    """Some pictures of one prompt each: what both ways are given."""

    model: JanusFlow
    rows: Tensor  # (B, L, D)
    z: Tensor  # (B, 4, h, w)

    @classmethod
    def random(cls, model: JanusFlow, length: int, batch: int, side: int) -> Drawing:
        """A prompt of this length for each picture, which all begin alike, with BOS."""
        random, weight = torch.Generator().manual_seed(length), model.vision_gen_dec_aligner.weight
        rows = torch.randn(batch, length, model.config.language.hidden_size, generator=random)
        rows[:, 0] = rows[0, 0].clone()
        noise = sampling.draw_noise((model.config.flow.latent_channels, side, side), range(batch))
        return cls(model, rows.to(weight), noise.to(weight.device))

    def begin(self, weight: float) -> sampling.Velocity:
        """Our velocity, the prompts read."""
        size, fixed = (self.z.shape[2], self.z.shape[3]), self.z.device.type == "cuda"
        return self.model.guided(list(self.rows), None, Guidance(weight), size, fixed=fixed)

    def warm(self, weight: float) -> sampling.Velocity:
        """The same after as many steps as take longer than later ones: three on a GPU, until a graph is recorded."""
        velocity = self.begin(weight)
        for _ in range(self.slow_steps):
            self.step(velocity)
        return velocity

    @property
    def slow_steps(self) -> int:
        return 3 if self.z.device.type == "cuda" else 0

    def step(self, velocity: sampling.Velocity) -> Tensor:
        return sampling.integrate(velocity, self.z, [TIME, TIME + 1 / 30])

    def both(self, weight: float) -> Tensor:
        return self.step(self.begin(weight))

    def as_authors(self, peer: AuthorsWay, weight: float = 2.0, dt: float = 1 / 30) -> Tensor:
        """The same step their way: both branches, whatever the guidance."""
        seen = torch.ones(2 * len(self.rows), self.rows.shape[1], dtype=torch.long, device=self.rows.device)
        seen[len(self.rows) :, 1:] = 0
        return peer.step(self.z.to(self.rows.dtype), TIME, dt, self.rows.repeat(2, 1, 1), seen, weight)

    def difference(self, peer: AuthorsWay, velocity: sampling.Velocity, weight: float) -> float:
        theirs = self.as_authors(peer, weight, 1.0).float() - self.z.to(self.rows.dtype).float()
        return ((velocity(self.z, TIME) - theirs).norm() / theirs.norm()).item()


def take_turns(ways: Sequence[Callable[[], Any]], rounds: int, device: torch.device) -> list[float]:
    """The median seconds of each way; one that is brief is done several times in its turn."""
    times = [_times(way, device) for way in ways]
    turns = [partial(_repeat, way, often) for way, often in zip(ways, times, strict=True)]
    return [taken / often for taken, often in zip(medians(turns, rounds, device), times, strict=True)]


def _repeat(way: Callable[[], Any], often: int) -> None:
    for _ in range(often):
        way()


def _times(way: Callable[[], Any], device: torch.device) -> int:
    """How often a way is done in its turn: what was brief the first time is tried again, now that it is warm."""
    first = seconds(way, device)
    return 1 if first > 5 * BRIEF else 1 + int(BRIEF / seconds(way, device))
