"""Latents of crops that stay the same, encoded once and kept in a file: a VAE costs as much as a small model's step."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..partial import refusal_told

HALF = np.dtype(np.float16)


def fingerprint(told: str, weights: Iterable[Tensor], files: Iterable[Path]) -> str:
    """A short name of all that latents are made of: settings, a VAE's weights, files by name, size and time."""
    found = zlib.crc32(told.encode())
    for weight in weights:
        found = zlib.crc32(weight.contiguous().flatten().view(torch.uint8).numpy().tobytes(), found)
    for path in files:
        stat = path.stat()
        found = zlib.crc32(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode(), found)
    return f"{found:08x}"


class Latents:
    """Latents of one shape (4, h, w), in half precision, by places that count from 0; there are so many `crops` of each
    picture.

    A place's record ends with the mark that it is there, so that a writer may be killed at any time; several processes
    may write, and others read.
    """

    def __init__(self, file: Path, shape: tuple[int, int, int], crops: int) -> None:
        self.file, self.shape, self.crops = file, shape, crops
        self.size = HALF.itemsize * (prod(shape) + 1)

    def read(self, place: int) -> Tensor | None:
        """The latent of a place, or None where there is none yet."""
        try:
            with self.file.open("rb") as file:
                file.seek(place * self.size)
                found = file.read(self.size)
        except FileNotFoundError:
            return None
        record = np.frombuffer(found, HALF) if len(found) == self.size else np.zeros(1, HALF)
        if record[-1] != 1:
            return None
        return torch.from_numpy(record[:-1].astype(np.float32)).view(self.shape)

    def write(self, places: Sequence[int], latents: Tensor) -> Tensor:
        """Keep latents (B, 4, h, w); returns what reading them will give.

        Raises OSError with one sentence when the disk is full.
        """
        halves = latents.half().cpu()
        with refusal_told(self.file.parent):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch()
            with self.file.open("r+b") as file:
                for place, latent in zip(places, halves, strict=True):
                    file.seek(place * self.size)
                    file.write(np.append(latent.numpy().ravel(), HALF.type(1)).tobytes())
        return halves.float()
