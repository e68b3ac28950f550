"""Pictures of the world as tensors to train on: drawn by number, encoded once.

N pictures, of 96 pixels.
"""

from __future__ import annotations

import itertools
import logging
import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..attention import eager
from ..train.ahead import ahead
from ..train.machine import Machine, rank, wait_for_all, world
from ..weights import write_tensors
from . import talk
from .scenes import Scene, render

log = logging.getLogger(__name__)

# Stages must not see one another's scenes.
SEEDS = {"vae": 0, "vision": 10**6, "library": 2 * 10**6, "joint": 3 * 10**6, "word": 4 * 10**6}
CHUNK = 32  # scenes that are drawn and encoded together
Example = tuple[str, Scene]  # a prompt, and a scene of just what it asks for


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Pictures (N, 3, 96, 96) of some scenes, as bytes."""
    return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2).contiguous()


def normalised(pixels: Tensor) -> Tensor:
    """The same in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """Pictures (N, 3, 96, 96) in [-1, 1] of some scenes."""
    return normalised(pixels(scenes))


def draw_examples(seed: int | str, count: int, weights: Sequence[float] = talk.TASK_WEIGHTS) -> list[Example]:
    """`count` examples of the training world, by the weights of its tasks: a pure function of `seed`."""
    rng = random.Random(seed)
    return [(prompt, scene) for prompt, _, scene in (talk.sample_training_example(rng, weights) for _ in range(count))]


def draw_scenes(seed: int, count: int) -> list[Scene]:
    """The scenes of `draw_examples`."""
    return [scene for _, scene in draw_examples(seed, count)]


def chunk(seed: str, size: int, number: int) -> list[Example]:
    """The `size` examples of the chunk of that number of a library."""
    return draw_examples(f"{seed}/{number}", size, talk.DRAWN_WEIGHTS)


def rendered(seed: str, size: int, number: int) -> Tensor:
    """The pictures of a chunk, as bytes."""
    return pixels([scene for _, scene in chunk(seed, size, number)])


@dataclass
class Library:
    """Pictures of the training world, encoded once: model-scale latents (N, 4, 12, 12) and features (N, 36, 160)."""

    latents: Tensor
    features: Tensor
    examples: list[Example]

    @classmethod
    def build(cls, folder: Path, vae: Any, encoder: nn.Module, seed: str, count: int, machine: Machine) -> Library:
        """Draw and encode at least `count` scenes, each process its share, or read what an earlier run left."""
        size = CHUNK * machine.times
        numbers = range(-(-count // size))
        shares = [numbers[part :: world()] for part in range(world())]
        scenes = zlib.crc32(repr(chunk(seed, size, 0)).encode())
        name = f"{fingerprint(vae, encoder)}_{scenes:08x}_{len(numbers)}x{size}"
        files = [folder / f"{name}_{part}_of_{world()}.safetensors" for part in range(world())]
        if not files[rank()].exists():
            folder.mkdir(parents=True, exist_ok=True)
            renders = ahead(partial(rendered, seed, size), shares[rank()], machine.workers)
            write_tensors(files[rank()], encode(renders, vae, encoder, machine))
        wait_for_all()
        stored = [load_file(file) for file in files]
        latents, features = (torch.cat([part[name] for part in stored]) for name in ("latents", "features"))
        examples = ahead(partial(chunk, seed, size), [*itertools.chain(*shares)], machine.workers)
        return cls(latents, features, [*itertools.chain(*examples)])

    def to(self, device: torch.device) -> Library:
        """The same with its tensors on another device."""
        return Library(self.latents.to(device), self.features.to(device), self.examples)


def fingerprint(*parts: nn.Module) -> str:
    """A short name of some weights, so that encodings are never taken for those of another VAE or encoder."""
    told = 0
    for value in itertools.chain.from_iterable(part.state_dict().values() for part in parts):
        told = zlib.crc32(value.cpu().contiguous().flatten().view(torch.uint8).numpy(), told)
    return f"{told:08x}"


def seed_of(stage: str, start: nn.Module) -> str:
    """The seed of a stage that begins with these weights: going on shall not see again what made them."""
    return f"{SEEDS[stage]}/{fingerprint(start)}"


@torch.no_grad()
def encode(shown: Iterable[Tensor], vae: Any, encoder: nn.Module, machine: Machine) -> dict[str, Tensor]:
    """Model-scale latents and understanding features of chunks of pictures (N, 3, 96, 96) in bytes, in float16."""
    latents, features = [], []
    look = machine.compiled(lambda x: vae.encode(x).latent_dist.mean)
    see = machine.compiled(lambda x: encoder(x, eager))
    for number, pictures in enumerate(shown):
        x = normalised(pictures.to(machine.device))
        with machine.autocast():
            z, seen = look(x), see(x)
        latents.append((z.float() * vae.config.scaling_factor).half().cpu())
        features.append(seen.half().cpu())
        if number % 100 == 0:
            log.info("library %d", number * len(x))
    return {"latents": torch.cat(latents), "features": torch.cat(features)}
