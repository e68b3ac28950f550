"""janusflow describe: pictures to words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .loading import LoadOptions
from .options import one_line, stream_words

if TYPE_CHECKING:
    from ..image import ImageConfig, Picture
    from ..pipeline import JanusFlowPipeline


@dataclass(frozen=True, kw_only=True)
class Describe(LoadOptions):
    """Say in words what pictures show; for several, prints lines of path, tab and answer, and skips what is none."""

    picture: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PICTURE...", help_behavior_hint="(required)")]
    """Files to describe."""
    question: str = "Describe the image."
    """What to ask about each picture."""
    together: bool = False
    """Ask once about all pictures instead of once about each."""
    max_new_tokens: int = 512
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 always takes the likeliest word; higher is freer."""
    top_p: float = 1.0
    """Draw only from the likeliest words that together have this probability."""
    seed: int = 0
    """For --temperature above 0."""

    def run(self) -> int:
        """Answer; the status is 1 if one of several pictures cannot be read, else 0."""
        self._check()
        from ..pipeline import JanusFlowPipeline

        with self.loading() as place:
            pipe = JanusFlowPipeline.from_pretrained(self.model, **place)
        if not self.together and len(self.picture) > 1:
            return self._table(pipe)
        pipe.describe(
            self.picture, self.question, together=True, seed=self.seed, on_token=stream_words(), **self._how()
        )
        print()
        return 0

    def _how(self) -> dict[str, Any]:
        names = ("max_new_tokens", "temperature", "top_p")
        return {name: getattr(self, name) for name in names}

    def _check(self) -> None:
        if not self.picture:
            raise ValueError("got no picture, expected one or more: janusflow describe picture.png")
        if not self.question.strip():
            raise ValueError("the question is empty: ask something, or leave --question away")
        for path in self.picture:
            if path.is_dir():
                raise ValueError(f"{path} is a folder: name its pictures, for example {path / '*.png'}")
            if "*" in path.name and not path.exists():
                raise FileNotFoundError(f"no picture is called {path}: check the folder, and leave the quotes away")
        if not any(path.exists() for path in self.picture):
            raise FileNotFoundError(f"no picture at {self.picture[0]}: check the path")

    def _table(self, pipe: JanusFlowPipeline) -> int:
        """Print a line for each picture; what cannot be read is named on stderr and makes the status 1."""
        from tqdm import tqdm

        from ..config import printable

        readable, at_once = self._readable(pipe.image_config), pipe.at_once(self.question, self.max_new_tokens)
        answered = 0
        with tqdm(total=len(self.picture), unit="picture", leave=False, disable=None) as bar:
            while some := [*islice(readable, at_once)]:
                pictures = [picture for _, picture in some]
                answers = pipe.describe(pictures, self.question, seed=[self.seed] * len(some), **self._how())
                for (path, _), answer in zip(some, answers, strict=True):
                    tqdm.write(f"{printable(path)}\t{one_line(answer)}")
                sys.stdout.flush()
                answered += len(some)
                bar.update(len(some))
        return int(answered < len(self.picture))

    def _readable(self, size: ImageConfig) -> Iterator[tuple[Path, Picture]]:
        """The pictures that can be read; the others are named on stderr."""
        from tqdm import tqdm

        from ..image import open_as_seen

        for path in self.picture:
            try:
                yield path, open_as_seen(path, size)
            except (OSError, ValueError) as error:
                tqdm.write(f"janusflow: {one_line(str(error))}", file=sys.stderr)
