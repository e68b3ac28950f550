"""Captioned pictures as tensors to learn from, each looked at once.

N pictures, S pixels a side, P picture tokens, W features of the understanding encoder.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..captions import read_beside
from ..image import ImageConfig, open_image, pictures_below, pixels, preprocess, resize_and_pad
from ..values import printable


@dataclass(frozen=True)
class Captioned:
    """A picture with what is said of it."""

    name: str
    text: str
    open: Callable[[], Image.Image]


def read_folder(folder: Path, caption: str = "") -> list[Captioned]:
    """The pictures in a folder and below it, each with the .txt of its name, or with `caption` where it has none.

    Raises ValueError with one sentence where there is no picture, or one without a caption.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {printable(folder)}: check the path.")
    pictures = pictures_below(folder)
    found = [
        Captioned(printable(path.relative_to(folder)), read_beside(path) or caption, _opener(path)) for path in pictures
    ]
    if not found:
        raise ValueError(f"{printable(folder)} holds no picture: put some into it, with a .txt of the same name each.")
    bare = [one.name for one in found if not one.text]
    if bare:
        told = bare[0] if len(bare) == 1 else f"{bare[0]} and {len(bare) - 1} more"
        raise ValueError(f"{told} of {len(found)} pictures have no caption: write one into a .txt of the same name.")
    return found


def _opener(path: Path) -> Callable[[], Image.Image]:
    return lambda: open_image(path)


class Sight(Protocol):
    """What turns pictures into tensors (see `subject.Subject`)."""

    @property
    def image(self) -> ImageConfig: ...

    @property
    def encode(self) -> Callable[[Tensor], Tensor]: ...

    def see(self, pixels: Tensor) -> Tensor: ...

    def pictures(self, latents: Tensor) -> list[Image.Image]: ...


@dataclass
class Examples:
    """What is learnt from: latents (N, 4, h, w) and features (N, P, W) of square crops, whole pictures (N, V, 3, S, S).

    The last are normalised and in half precision, and come with questions and answers. V is 1 for the model's own
    pictures; others come as they are and as the VAE gives them back, so that what was drawn looks no different.
    `problems` names the pictures that were left out, and why.
    """

    texts: list[str] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    aligned: list[Tensor] = field(default_factory=list)
    whole: list[Tensor] = field(default_factory=list)
    asked: list[list[tuple[str, str]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @torch.no_grad()
    def add(self, captioned: Captioned, sight: Sight, draws: bool, aligns: bool, question: str) -> None:
        """Look at one picture, or note why that cannot be; its text answers the question, if there is one."""
        try:
            picture = captioned.open()
            check_size(picture, sight.image.image_size)
        except (OSError, ValueError) as error:
            self.problems.append(f"{captioned.name}: {error}")
            return
        self.texts.append(captioned.text)
        if draws:
            square = square_crop(picture, sight.image.image_size)
            self.latents.append(sight.encode(pixels(square)[None])[0].float().cpu())
            if aligns:
                self.aligned.append(sight.see(preprocess(square, sight.image)[None])[0].cpu())
        if question:
            self.asked.append([(question, captioned.text)])
            square = resize_and_pad(picture, sight.image)
            both = [square, *sight.pictures(sight.encode(pixels(square)[None]))]
            self.whole.append(torch.stack([preprocess(one, sight.image).half() for one in both]))


def check_size(picture: Image.Image, size: int) -> None:
    """Raise ValueError for a picture that would have to be enlarged more than four times."""
    if min(picture.size) * 4 < size:
        raise ValueError(f"{picture.width} x {picture.height} pixels are too few, the model draws {size} x {size}")


def square_crop(picture: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture, brought to size x size; never mirrored, because texts say left and right."""
    picture = picture.convert("RGB")
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    middle = picture.crop((left, top, left + side, top + side))
    return middle.resize((size, size), Image.Resampling.LANCZOS)


def shaken(pictures: Tensor, words: random.Random) -> Tensor:
    """Pictures (B, 3, S, S), each moved and scaled by up to 15 percent: what is said of them stays true.

    Twenty pictures would else be known by heart, and what they show not be known in others.
    """
    grow, x, y = torch.tensor([[words.uniform(-0.15, 0.15) for _ in pictures] for _ in range(3)])
    zero = torch.zeros_like(grow)
    rows = torch.stack((1 + grow, zero, x, zero, 1 + grow, y), dim=1).unflatten(1, (2, 3))  # (B, 2, 3)
    grid = F.affine_grid(rows.to(pictures), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def batch_rows(number: int, size: int, count: int, seed: int) -> list[int]:
    """Which of `count` examples batch `number` holds: all once an epoch, in an order that is a function of the seed."""
    places = range(number * size, (number + 1) * size)
    orders = {epoch: _order(count, seed, epoch) for epoch in {place // count for place in places}}
    return [orders[place // count][place % count] for place in places]


def _order(count: int, seed: int, epoch: int) -> Sequence[int]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
