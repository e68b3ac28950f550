"""janusflow describe: pictures to words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .options import LoadOptions, one_line, stream_words

if TYPE_CHECKING:
    from ..pipeline import JanusFlowPipeline


@dataclass(frozen=True, kw_only=True)
class Describe(LoadOptions):
    """Say in words what pictures show; for several pictures, prints lines of path, tab and answer."""

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
        """Answer; the status is 0."""
        if not self.picture:
            raise ValueError("got no picture, expected one or more: janusflow describe picture.png")
        if missing := [path for path in self.picture if not path.is_file()]:
            raise FileNotFoundError(f"no picture at {missing[0]}: check the path")
        from ..pipeline import JanusFlowPipeline

        pipe = JanusFlowPipeline.from_pretrained(self.model, **self.place())
        if self.together or len(self.picture) == 1:
            self._answer(pipe, self.picture, on_token=stream_words())
            print()
        else:
            for path in self.picture:
                print(f"{path}\t{one_line(self._answer(pipe, [path]))}", flush=True)
        return 0

    def _answer(
        self, pipe: JanusFlowPipeline, paths: Sequence[Path], on_token: Callable[[str], None] | None = None
    ) -> str:
        from ..image import open_image

        return pipe.describe(
            [open_image(path) for path in paths],
            self.question,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            top_p=self.top_p,
            seed=self.seed,
            on_token=on_token,
        )
