"""janusflow evaluate fid, clip, sweep and table: numbers about folders of pictures, beside the paper's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..evaluation.scores import Z
from .bulk import Draw
from .options import at_least_one, progress, this_share

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from ..evaluation.fid import Features, Statistics

NAMES = {"fid": "FID", "clip": "CLIP score", "right": "pictures that show their prompt"}
Files = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...")]


@dataclass(frozen=True, kw_only=True)
class Fid:
    """The Fréchet Inception distance of two sets of pictures; the paper's is that of MJHQ-30K's 30,000."""

    pictures: Annotated[Path, tyro.conf.arg(metavar="PICTURES")]
    """A folder: all pictures in it and below it."""
    reference: Annotated[Path, tyro.conf.arg(metavar="REFERENCE")]
    """Another, or the .npz that --keep wrote."""
    weights: Annotated[Path, tyro.conf.arg(metavar="WEIGHTS")]
    """Those of FID's network: weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0."""
    keep: Path | None = None
    """A .npz to keep the statistics of REFERENCE in, for next time."""
    batch_size: int = 32
    """Pictures at once."""
    device: str | None = None
    """cuda, cuda:1, mps or cpu; the best there is by default."""
    out: Path | None = None
    """A .json to keep the number in, for `janusflow evaluate table`."""

    def run(self) -> int:
        """Measure and print; the status is 0."""
        from ..device import chosen_device
        from ..evaluation.fid import distance, inception, write_statistics

        at_least_one("--batch-size", self.batch_size)
        see = inception(self.weights, chosen_device(self.device))
        reference = statistics_shown(self.reference, see, self.batch_size)
        if self.keep is not None:
            write_statistics(self.keep, reference)
        own = statistics_shown(self.pictures, see, self.batch_size)
        value = distance(own, reference)
        print(f"{value:.4f}  of {own.count} pictures and {reference.count}")
        told = {"pictures": own.count, "reference": reference.count, "network": self.weights}
        return kept(self.out, "fid", value, told)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """How near pictures are to their prompts: the mean of 100 cosines, as a CLIP sees both."""

    drawn: Annotated[Path, tyro.conf.arg(metavar="TABLE")]
    """The .jsonl that `janusflow bulk draw` wrote beside its pictures."""
    model: Annotated[Path, tyro.conf.arg(metavar="MODEL")]
    """A folder with a CLIP as transformers keeps it; the paper's is openai/clip-vit-large-patch14."""
    batch_size: int = 32
    """Pictures at once."""
    device: str | None = None
    """cuda, cuda:1, mps or cpu; the best there is by default."""
    out: Path | None = None
    """A .json to keep the number in, for `janusflow evaluate table`."""

    def run(self) -> int:
        """Measure and print; the status is 0."""
        from ..device import chosen_device

        at_least_one("--batch-size", self.batch_size)
        found = clip_of(self.drawn, self.model, self.batch_size, chosen_device(self.device))
        print(f"{found['clip']:.4f} ± {found['clip_error']:.4f}  of {found['pictures']} pictures")
        return kept(self.out, "clip", found["clip"], {**found, "network": self.model})


@dataclass(frozen=True, kw_only=True)
class Table:
    """The paper's tables with what independent runs found and what was found here, in Markdown."""

    files: Files
    """Results: of GenEval (results.jsonl), GenEval 2, DPG-Bench (results.txt), WISE (three files), lmms-eval, or of
    `janusflow evaluate fid` and `clip`."""

    def run(self) -> int:
        """Read and print; the status is 0."""
        from ..evaluation.tables import read_scores, table, together

        print(table(together(map(read_scores, self.files))))
        return 0


@dataclass(frozen=True, kw_only=True)
class Sweep(Draw):
    """Draw a source at several guidances and numbers of steps and measure each: OUT.csv and OUT.png, a plot.

    What is drawn already is not drawn again. Several processes draw; the same command in one process then measures.
    """

    out: Path = Path("sweep")
    """Folder for the pictures, one below it for each setting."""
    guidances: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 7.5)
    """How much the prompt outweighs no prompt."""
    step_counts: tuple[int, ...] = (30,)
    """Steps from noise to picture."""
    clip: Path | None = None
    """Measure the CLIP score, with the CLIP in this folder."""
    inception: Path | None = None
    """Measure FID, with the network whose weights are in this file."""
    reference: Path | None = None
    """What FID compares with: a folder of pictures or a .npz."""
    judge: bool = False
    """Count the pictures that show their prompt, for prompts of the bundled model's world."""

    def run(self) -> int:
        """Draw, measure and print the table; the status is 1 if a prompt could not be drawn, else 0."""
        from ..bulk.tables import write_rows
        from ..partial import appearing

        self._check()
        cells, share = self._cells(), this_share()
        pipeline = cache(lambda dtype: replace(self, dtype=dtype).at(share).pipeline())
        status = max([cell.work(lambda own: pipeline(own.dtype)) for cell in cells])
        if share.world > 1:
            return status
        rows = list(self._measured(cells))
        for suffix, write in ((".csv", write_rows), (".png", plot)):
            with appearing(self.out.with_name(f"{self.out.name}{suffix}")) as new:
                write(new, rows, suffix)
        for row in rows:
            print("  ".join(f"{name} {value:.6g}" for name, value in row.items()))
        return status

    def _cells(self) -> list[Self]:
        """The same command with each of the settings."""
        return [
            replace(self, guidance=guidance, steps=steps, out=self.out / f"guidance_{guidance:g}_steps_{steps}")
            for steps, guidance in product(self.step_counts, self.guidances)
        ]

    def _check(self) -> None:
        """Tell what would stop it at the end before it begins."""
        if self.guidance is not None or self.steps is not None:
            raise ValueError("a sweep goes through --guidances and --step-counts: leave --guidance and --steps out")
        if not (self.clip or self.judge or self.inception):
            raise ValueError("nothing is to be measured: say --clip FOLDER, --inception with --reference, or --judge")
        if (self.inception is None) != (self.reference is None):
            raise ValueError("FID needs both --inception, its network, and --reference, what it compares with")
        if not self.guidances or not self.step_counts:
            raise ValueError("got no value to go through: say --guidances 1 2 4 and --step-counts 30")
        for path in (self.clip, self.inception, self.reference):
            if path is not None and not path.exists():
                raise FileNotFoundError(f"there is nothing at {path} to measure with: check the path")
        needed = {"matplotlib": True, "transformers": self.clip, "torch_fidelity": self.inception}
        if missing := [name for name, wanted in needed.items() if wanted and find_spec(name) is None]:
            raise ImportError(f'a sweep needs {" and ".join(missing)}: pip install -e ".[eval]"')

    def _measured(self, cells: Sequence[Self]) -> Iterator[dict[str, float]]:
        """What was measured of each cell."""
        from ..device import chosen_device

        device = chosen_device(self.device)
        if self.inception is not None and self.reference is not None:
            from ..evaluation.fid import distance, inception

            see = inception(self.inception, device)
            reference = statistics_shown(self.reference, see, self.batch_size)
        for cell in cells:
            row = {"guidance": cell.guidance, "steps": cell.steps}
            if self.clip is not None:
                row |= clip_of(table_of(cell.out), self.clip, self.batch_size, device)
            if self.inception is not None:
                row["fid"] = distance(statistics_shown(cell.out, see, self.batch_size), reference)
            if self.judge:
                row |= judged(table_of(cell.out))
            yield row


def table_of(out: Path) -> Path:
    """The table that a run wrote beside its folder."""
    return out.with_name(f"{out.name}.jsonl")


def statistics_shown(path: Path, see: Features, batch: int) -> Statistics:
    """The statistics of a folder or a .npz, with a bar."""
    from ..evaluation.fid import statistics_of

    with progress(path.name, "picture") as show:
        return statistics_of(path, see, batch, show)


def clip_of(table: Path, model: Path, batch: int, device: torch.device) -> dict[str, float]:
    """The CLIP score of a run's pictures, its standard error and how many there are, with a bar."""
    from ..bulk.drawing import pictures_told
    from ..evaluation.clip import clip_score

    with progress("CLIP", "picture") as show:
        found = clip_score(pictures_told(table), model, device=device, batch=batch, on_progress=show)
    return {"pictures": found.count, "clip": found.mean, "clip_error": found.error}


def judged(table: Path) -> dict[str, float]:
    """The part of a run's pictures that show their prompt, by the judge of the bundled model's world."""
    from ..bulk.drawing import pictures_told
    from ..evaluation.scores import Score
    from ..image import open_image
    from ..world.judge import judge

    score = Score(tuple(judge(open_image(path), prompt) for prompt, path in pictures_told(table)))
    low, high = score.interval
    return {"pictures": score.total, "right": score.rate, "right_low": low, "right_high": high}


def kept(out: Path | None, what: str, value: float, told: Mapping[str, Any]) -> int:
    """Keep a number with all that decided about it, files by their bytes; the status is 0."""
    from ..evaluation.results import sha256, versions
    from ..layout import write_json
    from ..partial import appearing

    if out is not None:
        paths = {name: path for name, path in told.items() if isinstance(path, Path)}
        files = {name: {"name": path.name, "sha256": sha256(path)} for name, path in paths.items()}
        with appearing(out) as new:
            write_json(new, {"what": what, "value": value, **told, **files, "versions": versions()})
    return 0


def interval(row: Mapping[str, float], measure: str) -> tuple[float, ...]:
    """Where 95 % of chance lets the measure lie; nothing of FID."""
    if measure == "clip":
        return row["clip"] - Z * row["clip_error"], row["clip"] + Z * row["clip_error"]
    return (row["right_low"], row["right_high"]) if measure == "right" else ()


def plot(path: Path, rows: Sequence[Mapping[str, float]], suffix: str) -> None:
    """Draw what was measured over guidance, a panel for each measure, a line with its 95 % for each number of steps."""
    from matplotlib.figure import Figure

    measures = [name for name in ("fid", "clip", "right") if name in rows[0]]
    figure = Figure(figsize=(4.5 * len(measures), 3.6), layout="constrained")
    for panel, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        for steps in dict.fromkeys(row["steps"] for row in rows):
            own = [row for row in rows if row["steps"] == steps]
            guidances = [row["guidance"] for row in own]
            (line,) = panel.plot(guidances, [row[measure] for row in own], "o-", label=f"{steps} steps")
            if all(bounds := [interval(row, measure) for row in own]):
                panel.fill_between(guidances, *zip(*bounds, strict=True), color=line.get_color(), alpha=0.15)
        panel.set(xlabel="guidance", ylabel=NAMES[measure])
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, format=suffix.removeprefix("."), dpi=120)
