"""janusflow caption: a caption for every picture of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .loading import LoadOptions
from .options import at_least_one, reported, this_share

if TYPE_CHECKING:
    from ..bulk.folder import CaptionRun
    from ..bulk.journal import Share
    from ..image import Picture
    from ..pipeline import JanusFlowPipeline


@dataclass(frozen=True, kw_only=True)
class Caption(LoadOptions):
    """Write a caption for every picture in a folder and below it; the same command goes on after a stop."""

    folder: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Where the pictures are; each gets a .txt beside it unless --out names a table."""
    ask: Literal["short", "detailed", "tags", "prompt"] | None = None
    """Ask a ready-made question, meant for JanusFlow-1.3B, instead of --question."""
    question: str = "Describe the image."
    """What to ask about each picture."""
    exists: Literal["skip", "overwrite", "append", "prepend"] = "skip"
    """What to do about a picture that has a caption: leave it, replace it, or put the new one behind or before it."""
    trigger: str = ""
    """A word or words to stand before every caption."""
    separator: str = ", "
    """What stands between trigger, old caption and new one."""
    include: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN...")] = ()
    """Only pictures like one of these, by name or path below FOLDER: "*.png" "portraits/*"."""
    exclude: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN...")] = ()
    """No picture like one of these."""
    out: Path | None = None
    """A .jsonl or .csv to write to instead, with the columns file_name and text; what else its rows hold stays."""
    batch: int | None = None
    """Pictures at once; by default what half of the free memory holds."""
    max_new_tokens: int = 256
    """Longest caption, in tokens."""
    temperature: float = 0.0
    """0 always takes the likeliest word; higher is freer."""
    top_p: float = 1.0
    """Draw only from the likeliest words that together have this probability."""
    seed: int = 0
    """For --temperature above 0; picture number k of the folder gets this and k."""

    def run(self) -> int:
        """Caption; the status is 1 if a picture got none, else 0."""
        if self.batch is not None:
            at_least_one("--batch", self.batch)
        from ..bulk.folder import CaptionRun
        from ..captions import CaptionOptions

        share, options = this_share(), CaptionOptions(
            exists=self.exists,
            trigger=self.trigger,
            separator=self.separator,
            include=self.include,
            exclude=self.exclude,
        )  # fmt: skip
        run = CaptionRun(self.folder, options, self._words(), self.out, share)
        if run.todo():
            self._caption(run, share)
        return reported(run, "captioned", "had a caption")

    @property
    def _question(self) -> str:
        from ..captions import PRESETS

        return self.question if self.ask is None else PRESETS[self.ask]

    def _words(self) -> dict[str, Any]:
        """All that decides about the words."""
        names = ("model", "lora", "dtype", "max_new_tokens", "temperature", "top_p", "seed")
        return {"question": self._question, **{name: getattr(self, name) for name in names}}

    def _caption(self, run: CaptionRun, share: Share) -> None:
        from tqdm import tqdm

        from ..bulk.folder import caption_pictures
        from ..image import open_as_seen

        pipe = self._load(share)

        def describe(pictures: Sequence[Picture], seeds: Sequence[int]) -> Sequence[str]:
            return pipe.describe(
                pictures,
                self._question,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=seeds,
            )

        at_once = self.batch or pipe.at_once(self._question, self.max_new_tokens)
        with tqdm(unit="picture", desc="captions", leave=False, disable=None if share.rank == 0 else True) as bar:

            def show(done: int, total: int, caption: str) -> None:
                bar.total = total
                bar.set_postfix_str(caption[:60], refresh=False)
                bar.update(done - bar.n)

            caption_pictures(run, partial(open_as_seen, config=pipe.image_config), describe, at_once, self.seed, show)

    def _load(self, share: Share) -> JanusFlowPipeline:
        from ..pipeline import JanusFlowPipeline

        with self.at(share).loading() as place:
            return JanusFlowPipeline.from_pretrained(self.model, **place)
