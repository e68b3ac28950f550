"""Pictures of the world as tensors to train on: drawn by seed, encoded once, asked about in batches."""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..attention import eager
from ..tokenizer import JanusTokenizer
from ..train.machine import Machine, rank, wait_for_all, world
from ..weights import write_tensors
from . import talk
from .scenes import Scene, render

log = logging.getLogger(__name__)

# Stages must not see one another's scenes.
SEEDS = {"vae": 0, "vision": 10**6, "library": 2 * 10**6, "joint": 3 * 10**6}


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """Pictures (N, 3, 96, 96) in [-1, 1] of some scenes."""
    pixels = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_scenes(seed: int, count: int) -> list[Scene]:
    """`count` scenes of the training world: a pure function of `seed`."""
    rng = random.Random(seed)
    return [talk.sample_training_example(rng)[2] for _ in range(count)]


@dataclass
class Library:
    """Pictures of the training world, encoded once: model-scale latents (N, 4, 12, 12) and features (N, 36, 160)."""

    latents: Tensor
    features: Tensor
    scenes: list[Scene]
    prompts: list[str]

    @classmethod
    def build(cls, folder: Path, vae: Any, encoder: nn.Module, count: int, machine: Machine) -> Library:
        """Draw `count` scenes and encode them, each process its share, or read what an earlier run left in `folder`."""
        shares = [list(range(part, count, world())) for part in range(world())]
        seen_by = _fingerprint(vae, encoder)
        files = [folder / f"{seen_by}_{count}_{part}_of_{world()}.safetensors" for part in range(world())]
        rng = random.Random(SEEDS["library"])
        examples = [talk.sample_training_example(rng) for _ in range(count)]
        if not files[rank()].exists():
            folder.mkdir(parents=True, exist_ok=True)
            own = [examples[i][2] for i in shares[rank()]]
            write_tensors(files[rank()], encode_scenes(own, vae, encoder, machine))
        wait_for_all()
        stored, order = [load_file(file) for file in files], [i for share in shares for i in share]
        latents, features = (torch.cat([part[name] for part in stored]) for name in ("latents", "features"))
        return cls(latents, features, [examples[i][2] for i in order], [examples[i][0] for i in order])

    def to(self, device: torch.device) -> Library:
        """The same with its tensors on another device."""
        return Library(self.latents.to(device), self.features.to(device), self.scenes, self.prompts)


def _fingerprint(*parts: nn.Module) -> str:
    """A short name of some weights, so that encodings are never taken for those of another VAE or encoder."""
    sums = [float(value.double().abs().sum()) for part in parts for value in part.state_dict().values()]
    return f"{zlib.crc32(repr(sums).encode()):08x}"


@torch.no_grad()
def encode_scenes(
    scenes: Sequence[Scene], vae: Any, encoder: nn.Module, machine: Machine, batch: int = 32
) -> dict[str, Tensor]:
    """Model-scale latents and understanding features of rendered scenes, in float16."""
    latents, features = [], []
    encode = machine.compiled(lambda x: vae.encode(x).latent_dist.mean)
    see = machine.compiled(lambda x: encoder(x, eager))
    for first in range(0, len(scenes), batch):
        some = list(scenes[first : first + batch])
        x = pictures(some + some[:1] * (batch - len(some))).to(machine.device)  # one shape, compiled once
        with machine.autocast():
            z, seen = encode(x), see(x)
        latents.append((z.float() * vae.config.scaling_factor)[: len(some)].half().cpu())
        features.append(seen[: len(some)].half().cpu())
        if first % (100 * batch) == 0:
            log.info("library %d/%d", first, len(scenes))
    return {"latents": torch.cat(latents), "features": torch.cat(features)}


def prompt_for(library: Library, index: int, rng: random.Random) -> str:
    """The prompt that a scene was drawn for, or any other that it fits, after one of the usual openings."""
    if rng.random() < 0.5:
        return library.prompts[index]
    return rng.choice(talk.PREFIXES) + talk.retell(library.scenes[index], rng)


def prompts_to_draw(
    library: Library, indices: Sequence[int], tokenizer: JanusTokenizer, rng: random.Random
) -> tuple[list[list[int]], list[int]]:
    """Ids of the prompts of some scenes, every tenth dropped to BOS as inference drops it, and their whole lengths."""
    ids = [tokenizer.generation_ids(prompt_for(library, i, rng)) for i in indices]
    kept = [row if rng.random() >= 0.1 else row[:1] for row in ids]
    return kept, [len(row) for row in ids]
