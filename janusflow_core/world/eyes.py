"""The second stage of the embedded model: its understanding encoder, taught what lies where; later it stays frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import eager
from ..model import JanusFlow
from ..train.loop import Budget, Stage, fit, streams
from ..train.machine import rank, world
from ..train.optimizer import Optimizer
from ..weights import write_tensors
from .library import SEEDS, draw_scenes, pictures
from .scenes import COLORS, SHAPES, Scene


def patch_labels(scenes: Sequence[Scene]) -> Tensor:
    """What lies under the middle of each 16-pixel patch, (B, 36): 0 for nothing, else 1 + color * 6 + shape."""
    labels, colors = torch.zeros(len(scenes), 6, 6, dtype=torch.long), list(COLORS)
    middle = torch.arange(6) * 16 + 8
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            near = (middle[:, None] - item.y) ** 2 + (middle[None, :] - item.x) ** 2 < (item.radius + 4) ** 2
            labels[row][near] = 1 + colors.index(item.color) * len(SHAPES) + SHAPES.index(item.shape)
    return labels.flatten(1)


def train_eyes(out: Path, model: JanusFlow, budget: Budget, batch: int = 64) -> None:
    """Teach the model's understanding encoder shapes and colors by dense labels; writes its weights to `out`."""
    encoder, own = model.vision_und_enc_model, max(batch // world(), 1)
    head = nn.Linear(model.config.vision.width, 1 + len(COLORS) * len(SHAPES))
    named = {**dict(encoder.named_parameters("encoder")), **dict(head.named_parameters("head"))}
    outer = ("head", "encoder.vision_tower.patch_embed", "encoder.vision_tower.pos_embed")
    optimizer = Optimizer(named.items(), lambda name: not name.startswith(outer))
    stage = Stage("eyes", out.with_name("eyes.state.safetensors"), named, optimizer, {"patch": 1.0})

    def terms(step: int) -> dict[str, Tensor]:
        rng, _ = streams(SEEDS["vision"], step)
        scenes = draw_scenes(rng.getrandbits(40), own)
        logits = head(encoder(pictures(scenes), eager))  # (B, N, labels)
        return {"patch": F.cross_entropy(logits.flatten(0, 1), patch_labels(scenes).flatten(), reduction="none")}

    fit(stage, budget, terms)
    if rank() == 0:
        write_tensors(out, encoder.state_dict())
