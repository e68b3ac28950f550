"""The second stage of the embedded model: its understanding encoder, taught what lies where; later it stays frozen.

B batch, N = 36 patches of 16 pixels, row by row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import eager
from ..model import JanusFlow
from ..train.ahead import ahead
from ..train.loop import Budget, Stage, fit, streams
from ..train.machine import Machine, rank, world
from ..train.optimizer import Optimizer
from ..weights import write_tensors
from .library import draw_scenes, normalised, pixels, seed_of
from .scenes import COLORS, FRAME, SHAPES, Scene

SIDE = 6  # patches
KINDS = 1 + len(COLORS) * len(SHAPES)
# Taught what alone, the encoder forgets where each patch lies, and the language model then guesses places.
WEIGHTS = {"what": 1.0, "row": 0.2, "column": 0.2, "center": 0.5}


def patch_labels(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """What lies under the middle of each patch, and the middle of that thing.

    (B, N): 0 for nothing, else 1 + color * 6 + shape; and (B, N, 2): its x and y in patches, 0 for nothing.
    """
    what, center = torch.zeros(len(scenes), SIDE, SIDE, dtype=torch.long), torch.zeros(len(scenes), SIDE, SIDE, 2)
    size, colors = FRAME / SIDE, list(COLORS)
    middle = (torch.arange(SIDE) + 0.5) * size
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            near = (middle[:, None] - item.y) ** 2 + (middle[None, :] - item.x) ** 2 < (item.radius + 4) ** 2
            what[row][near] = 1 + colors.index(item.color) * len(SHAPES) + SHAPES.index(item.shape)
            center[row][near] = torch.tensor([item.x, item.y]) / size
    return what.flatten(1), center.flatten(1, 2)


def sight_losses(told: Tensor, what: Tensor, center: Tensor) -> dict[str, Tensor]:
    """Losses (B, N) of what a linear head reads off each patch, `told` (B, N, KINDS + 2 SIDE + 2)."""
    kind, row, column, place = told.float().split((KINDS, SIDE, SIDE, 2), dim=-1)
    at = torch.arange(SIDE**2, device=told.device).expand_as(what)
    classes = {"what": (kind, what), "row": (row, at // SIDE), "column": (column, at % SIDE)}
    losses = {
        name: F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(what)
        for name, (logits, labels) in classes.items()
    }
    return losses | {"center": (place - center).abs().mean(dim=-1) * (what > 0)}


@dataclass(frozen=True)
class Sights:
    """Makes what a step looks at: pictures in bytes, what lies under their patches, and where its middle is."""

    seed: str
    count: int

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rng, _ = streams(self.seed, step)
        scenes = draw_scenes(rng.getrandbits(40), self.count)
        return pixels(scenes), *patch_labels(scenes)


def train_eyes(out: Path, model: JanusFlow, machine: Machine, budget: Budget, batch: int = 128) -> None:
    """Teach the model's understanding encoder what lies where, by patch; writes its weights to `out`.

    `batch` pictures a step on a CPU, divided among the processes.
    """
    torch.manual_seed(3)
    encoder, own = model.vision_und_enc_model, max(batch // world(), 1) * machine.times
    seed = seed_of("vision", encoder)
    head = nn.Linear(model.config.vision.width, KINDS + 2 * SIDE + 2).to(machine.device)
    named = {**dict(encoder.named_parameters("encoder")), **dict(head.named_parameters("head"))}
    outer = ("head", "encoder.vision_tower.patch_embed", "encoder.vision_tower.pos_embed")
    optimizer = Optimizer(named.items(), lambda name: not name.startswith(outer))
    stage = Stage("eyes", out.with_name("eyes.state.safetensors"), named, optimizer, WEIGHTS)
    look = machine.compiled(lambda x: head(encoder(x, eager)))  # (B, N, labels)
    sights = ahead(Sights(seed, own), itertools.count(stage.step), machine.workers)

    def terms(step: int) -> dict[str, Tensor]:
        shown, what, center = (part.to(machine.device) for part in next(sights))
        with machine.autocast():
            told = look(normalised(shown))
        return sight_losses(told, what, center)

    fit(stage, budget, terms)
    if rank() == 0:
        write_tensors(out, {name: stage.average[f"encoder.{name}"].cpu() for name, _ in encoder.named_parameters()})
