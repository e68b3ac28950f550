"""janusflow evaluate: what a checkpoint knows, and whether another knows more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .drawing import DRAWING, DrawOptions
from .loading import path_and_strength
from .metrics import Clip, Fid, Sweep, Table
from .options import at_least_one, progress

if TYPE_CHECKING:
    from PIL import Image

    from ..evaluation.results import Results
    from ..evaluation.scores import Score
    from ..pipeline import JanusFlowPipeline


@dataclass(frozen=True, kw_only=True)
class Shapes(DrawOptions):
    """Measure what a checkpoint knows of the bundled model's world: its pictures by a judge, its answers by heart."""

    per_task: int = 25
    """Pictures of each task; their error bars shrink with the root of this."""
    scenes: int = 60
    """Renders to ask questions about."""
    seed: int = 0
    """Other seeds draw other prompts, noise and scenes."""
    held_out: bool = False
    """Draw only combinations of color and shape that training never showed."""
    out: Path | None = None
    """A .json for `janusflow evaluate compare`: every trial, all settings, and the checkpoint by its bytes."""

    def run(self) -> int:
        """Score and print a table; the status is 0."""
        at_least_one("--per-task", self.per_task)
        at_least_one("--scenes", self.scenes)
        from ..evaluation.results import write_results
        from ..evaluation.scores import overall

        pipe, began = self.pipeline(), time.perf_counter()
        groups = dict(self._scored(pipe))
        for title, scores in groups.items():
            print(f"{title:<20}{overall(scores):.3f}")
            for name, score in scores.items():
                print(f"  {name:<18}{score}")
        if self.out is not None:
            write_results(self.out, self._results(pipe, groups, time.perf_counter() - began))
            print(self.out)
        return 0

    def _scored(self, pipe: JanusFlowPipeline) -> Iterator[tuple[str, dict[str, Score]]]:
        """The scores of pictures, of prompts that come back and of answers."""
        from ..world.score import draw_tasks, score_answers, score_pictures, score_round_trips

        settings = {name: getattr(self.settled(pipe), name) for name in DRAWING}

        def draw(prompts: Sequence[str], seed: int) -> Sequence[Image.Image]:
            return pipe.generate(prompts, seed=seed, **settings)

        ask = partial(pipe.describe, max_new_tokens=24)
        with progress("pictures") as show:
            drawn = draw_tasks(draw, self.per_task, seed=self.seed, held_out=self.held_out, on_progress=show)
        yield "pictures", score_pictures(drawn)
        with progress("there and back") as show:
            yield "there and back", score_round_trips(drawn, ask, on_progress=show)
        with progress("answers") as show:
            yield "answers", score_answers(ask, self.scenes, seed=self.seed, on_progress=show)

    def _results(self, pipe: JanusFlowPipeline, groups: Mapping[str, Mapping[str, Score]], seconds: float) -> Results:
        from ..checkpoint import open_checkpoint
        from ..evaluation.results import Results, Weights, as_text, sha256, versions
        from ..lora import lora_path

        settled, path = self.settled(pipe), open_checkpoint(self.model).path
        loras = [path_and_strength(text) for text in self.lora]
        files = [(path, None), *((lora_path(own), strength) for own, strength in loras)]
        names = (*DRAWING, "dtype", "seed", "per_task", "scenes", "held_out")
        return Results(
            what="shapes",
            weights=tuple(Weights(name=file.name, sha256=sha256(file), strength=by) for file, by in files),
            settings={name: getattr(settled, name) for name in names} | {"vae": self.vae and self.vae.name},
            versions=versions(),
            device=str(pipe.device),
            seconds=round(seconds, 1),
            scores=as_text(groups),
        )


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Say which differences between two results are larger than chance, all of them taken together."""

    one: Annotated[Path, tyro.conf.arg(metavar="A")]
    """Results that `janusflow evaluate shapes --out` kept."""
    other: Annotated[Path, tyro.conf.arg(metavar="B")]
    """Others; of the same seed and numbers, trial is compared with trial, which shows smaller differences."""

    def run(self) -> int:
        """Print both and what is certain; the status is 0."""
        from ..evaluation.results import CERTAIN, compare, differing, read_results

        a, b = read_results(self.one), read_results(self.other)
        for name, (was, now) in differing(a, b).items():
            print(f"{name:<22}{was}  |  {now}")
        print(f"{'':<34}{self.one.stem[:12]:>12}{self.other.stem[:12]:>12}{'change':>9}{'chance':>9}")
        for name, first, second, chance in compare(a, b):
            verdict = "" if chance > CERTAIN else "  better" if second.rate > first.rate else "  worse"
            change = second.rate - first.rate
            print(f"{name:<34}{first.rate:>12.3f}{second.rate:>12.3f}{change:>+9.3f}{chance:>9.3f}{verdict}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a checkpoint on the bundled model's world (shapes), compare two such results (compare), measure folders
    of pictures (fid, clip, sweep), or put results beside the paper's tables (table)."""

    what: tyro.conf.OmitArgPrefixes[
        tyro.conf.OmitSubcommandPrefixes[
            Annotated[Shapes, tyro.conf.subcommand("shapes")]
            | Annotated[Compare, tyro.conf.subcommand("compare")]
            | Annotated[Fid, tyro.conf.subcommand("fid")]
            | Annotated[Clip, tyro.conf.subcommand("clip")]
            | Annotated[Sweep, tyro.conf.subcommand("sweep")]
            | Annotated[Table, tyro.conf.subcommand("table")]
        ]
    ]

    def run(self) -> int:
        """Evaluate; the status is the evaluation's."""
        return self.what.run()
