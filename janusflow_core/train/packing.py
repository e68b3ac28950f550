"""Samples as rows of tokens: each written out by itself, and several packed into a row where none sees another.

R rows, T tokens of the longest, M pictures to read, G pictures to draw, S pixels and h, w latent values a side.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import sampling
from ..image import ImageConfig, resize_and_pad
from ..tokenizer import JanusTokenizer
from .conversations import exchange, moved, padded
from .data import LeftOut, Sample, Task
from .examples import check_size
from .latents import Latents
from .losses import IGNORE
from .recipe import CAPTION

TEXT, SEEN, DRAWN = 0, 1, 2  # what stands at a place: a token's own embedding, a picture to read, one to draw
Format = Literal["plain", "chat"]


@dataclass(frozen=True)
class Written:
    """A sample as tokens, with the picture (3, S, S) in bytes that it reads or draws, the noise (4, h, w) and the time.

    A place that stands for a picture has any id. Of a crop that is kept `place` says where, and `latent` (4, h, w) what
    is known of it.
    """

    task: Task
    ids: list[int]
    labels: list[int]
    positions: list[int]
    kinds: list[int]
    picture: Tensor | None = None
    noise: Tensor | None = None
    t: float = 0.0
    place: int = -1
    latent: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Packed samples: ids, labels, positions, kinds and numbers of the samples, all (R, T), -1 where there is none.

    `lengths` of each row's samples, the padding as the last of them, `tasks` in the order of the numbers, `pictures`
    (M, 3, S, S) to read and `crops` to draw in bytes, with `noise` (G, 4, h, w) and times `t` (G,). `latents`
    (G, 4, h, w) are those that are known, the `unknown` ones are to be made of their crops and kept at their `places`;
    there are crops (G, 3, S, S) of all, or of these alone where no one else looks at them.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    kinds: Tensor
    owners: Tensor
    lengths: list[list[int]]
    tasks: list[Task]
    pictures: Tensor
    crops: Tensor
    noise: Tensor
    t: Tensor
    latents: Tensor
    unknown: list[int]
    places: list[int]

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return moved(self, device)


@dataclass(frozen=True)
class Writer:
    """Writes samples out for a model of this tokenizer, these pictures, and latents of this shape (4, h, w), which take
    so many `tokens`, their time's among them.

    plain: `<image><question> <answer>` and `<prompt><image>`, as in pre-training; chat: exactly as inference asks.
    A prompt is dropped at the rate `drop`, for guidance; `time_mean` is that of the times' logit. No sample may have
    more tokens than `length`. With `kept` latents a picture has only so many crops; one whose latent is known is not
    opened unless it `aligns` what is drawn with what is seen.
    """

    tokenizer: JanusTokenizer
    image: ImageConfig
    latent: tuple[int, int, int]
    tokens: int
    length: int
    format: Format = "chat"
    question: str = CAPTION
    drop: float = 0.1
    time_mean: float = 0.0
    kept: Latents | None = None
    aligns: bool = True

    def __call__(self, sample: Sample, words: random.Random) -> Written:
        """A sample as tokens; the crop, the noise, the time and what is dropped are drawn from `words`.

        Raises LeftOut, ValueError or OSError where the sample cannot be learnt from.
        """
        write = {"understanding": self._read, "generation": self._draw, "text": self._text}[sample.task]
        written = write(sample, words)
        if len(written.ids) > self.length:
            raise LeftOut("too long", f"it needs {len(written.ids)} tokens, a row has {self.length}")
        return written

    def _read(self, sample: Sample, words: random.Random) -> Written:
        assert sample.open is not None
        ids, labels = self._turns(sample.turns or ((self.question, sample.text),), pictures=1)
        tags = (self.tokenizer.image_start_id, self.tokenizer.image_id)
        kinds = [SEEN if token in tags else TEXT for token in ids]
        if kinds.count(SEEN) != len(self.tokenizer.picture_ids) - 1:
            raise LeftOut("tags in texts", "its text holds the model's own tags of pictures")
        picture = in_bytes(resize_and_pad(sample.open(), self.image))
        return Written(sample.task, ids, labels, [*range(len(ids))], kinds, picture)

    def _text(self, sample: Sample, words: random.Random) -> Written:
        if sample.turns:
            ids, labels = self._turns(sample.turns, pictures=0)
        else:
            said = self.tokenizer.encode(sample.text, bos=False)[: self.length - 2]
            ids, labels = joined([([self.tokenizer.bos_id], [*said, self.tokenizer.eos_id])])
        return Written(sample.task, ids, labels, [*range(len(ids))], [TEXT] * len(ids))

    def _draw(self, sample: Sample, words: random.Random) -> Written:
        assert sample.open is not None
        prompt = self.prompt_ids(sample.text)
        # Without a prompt the time token keeps its place, as inference has it.
        kept = prompt[:1] if words.random() < self.drop else prompt
        new = self.tokens
        place, known, luck = self._kept(sample, words)
        opened = self.aligns or known is None
        picture = in_bytes(random_crop(sample.open(), self.image.image_size, luck)) if opened else None
        generator = torch.Generator().manual_seed(words.getrandbits(63))
        noise = torch.randn(self.latent, generator=generator)
        return Written(
            sample.task,
            [*kept, *[self.tokenizer.pad_id] * new],
            [IGNORE] * (len(kept) + new),
            [*range(len(kept)), *range(len(prompt), len(prompt) + new)],
            [TEXT] * len(kept) + [DRAWN] * new,
            picture,
            noise,
            sampling.logit_normal(1, generator, self.time_mean).item(),
            place,
            known,
        )

    def _kept(self, sample: Sample, words: random.Random) -> tuple[int, Tensor | None, random.Random]:
        """Where the latent of a picture's crop is kept, the latent if it is known, and what the crop is drawn from."""
        if self.kept is None:
            return -1, None, words
        place = sample.number * self.kept.crops + words.randrange(self.kept.crops)
        return place, self.kept.read(place), random.Random(f"crop/{place}")

    def prompt_ids(self, text: str) -> list[int]:
        """What a picture is drawn from, up to the place of its time."""
        return self.tokenizer.generation_ids(text) if self.format == "chat" else self.tokenizer.encode(text)

    def question_ids(self, question: str) -> list[int]:
        """A picture and what is asked of it, up to the answer."""
        return self._parts(((question, "-"),), pictures=1)[0][0]

    def _turns(self, turns: Sequence[tuple[str, str]], pictures: int) -> tuple[list[int], list[int]]:
        return joined(self._parts(turns, pictures))

    def _parts(self, turns: Sequence[tuple[str, str]], pictures: int) -> list[tuple[list[int], list[int]]]:
        """The ids of each turn up to its answer, and of the answer."""
        parts = []
        for number, (question, answer) in enumerate(turns):
            if self.format == "chat":
                start, rest, reply = exchange(self.tokenizer, question, answer, number == 0, pictures)
                parts.append((start + rest, reply))
            else:
                start = [self.tokenizer.bos_id, *self.tokenizer.picture_ids * pictures] if number == 0 else []
                asked, said = (self.tokenizer.encode(text, bos=False) for text in (question, f" {answer.strip()}"))
                parts.append((start + asked, [*said, self.tokenizer.eos_id]))
        return parts


def joined(parts: Sequence[tuple[list[int], list[int]]]) -> tuple[list[int], list[int]]:
    """Ids of what is told and what is answered in turn, and the label of each place: the answer's token after it."""
    ids = [token for told, reply in parts for token in (*told, *reply)]
    labels = [label for told, reply in parts for label in (*[IGNORE] * (len(told) - 1), *reply, IGNORE)]
    return ids, labels


def random_crop(picture: Image.Image, size: int, words: random.Random) -> Image.Image:
    """A square of a picture as large as its shorter side, from anywhere along the longer, as size x size pixels.

    Raises ValueError for a picture that is far too small. Never mirrored, because texts say left and right.
    """
    check_size(picture, size)
    picture = picture.convert("RGB")
    side = min(picture.size)
    left, top = (words.randint(0, length - side) for length in picture.size)
    return picture.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def in_bytes(picture: Image.Image) -> Tensor:
    """A picture (3, S, S) of RGB bytes."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def pack(samples: Sequence[Written], writer: Writer) -> Batch:
    """Samples in rows of the writer's length, each in the first that has room; numbered as the rows read."""
    rows: list[list[Written]] = []
    for sample in samples:
        fitting = (row for row in rows if sum(len(other.ids) for other in row) + len(sample.ids) <= writer.length)
        room = next(fitting, None)
        rows.append([sample]) if room is None else room.append(sample)
    order = [*chain(*rows)]
    seen, drawn = ([s for s in order if s.task == task] for task in ("understanding", "generation"))
    lengths = [[len(sample.ids) for sample in row] for row in rows]
    longest = max(map(sum, lengths))
    columns = {
        part: padded([[*chain(*(getattr(sample, part) for sample in row))] for row in rows], fill, longest)
        for part, fill in (("ids", writer.tokenizer.pad_id), ("labels", IGNORE), ("positions", 0), ("kinds", TEXT))
    }
    numbers, square = iter(range(len(order))), (3, writer.image.image_size, writer.image.image_size)
    return Batch(
        **columns,
        owners=padded([[*chain(*([next(numbers)] * count for count in row))] for row in lengths], -1, longest),
        lengths=[[*row, *([longest - sum(row)] if sum(row) < longest else [])] for row in lengths],
        tasks=[sample.task for sample in order],
        pictures=_stacked([sample.picture for sample in seen], torch.empty(0, *square, dtype=torch.uint8)),
        crops=_stacked([sample.picture for sample in drawn], torch.empty(0, *square, dtype=torch.uint8)),
        noise=_stacked([sample.noise for sample in drawn], torch.empty(0, *writer.latent)),
        t=torch.tensor([sample.t for sample in drawn]),
        latents=_stacked([known(sample, writer) for sample in drawn], torch.empty(0, *writer.latent)),
        unknown=[place for place, sample in enumerate(drawn) if sample.latent is None],
        places=[sample.place for sample in drawn],
    )


def known(sample: Written, writer: Writer) -> Tensor:
    """What is known of a latent; zeros are to be filled."""
    return torch.zeros(writer.latent) if sample.latent is None else sample.latent


def _stacked(parts: Sequence[Tensor | None], none: Tensor) -> Tensor:
    held = [part for part in parts if part is not None]
    return torch.stack(held) if held else none
