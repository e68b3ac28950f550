"""janusflow bulk: any number of prompts to pictures, of pictures to words, by any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .drawing import DRAWING, DrawOptions
from .loading import LoadOptions, dtype_name
from .options import at_least_one, make_folder, reported, this_share

if TYPE_CHECKING:
    from ..bulk.drawing import Drawn
    from ..bulk.journal import Share
    from ..bulk.run import OnItem
    from ..image import Picture
    from ..pipeline import JanusFlowPipeline

COLUMNS = ("id", "prompt", "question", "image", "seed")
Columns = Annotated[tuple[str, ...], tyro.conf.arg(metavar="OURS=THEIRS...")]


@dataclass(frozen=True, kw_only=True)
class Draw(DrawOptions):
    """Draw every prompt of a source; the same command goes on after a stop, with any number of processes."""

    source: Annotated[Path, tyro.conf.arg(metavar="SOURCE")]
    """The prompts: a .txt with one a line, a .jsonl, .json, .csv or .parquet with a column prompt or text, a folder of
    .txt files, a .tar, or a folder or pattern of tars or parquet files."""
    out: Path = Path("pictures")
    """Folder for the pictures. OUT.jsonl beside it says at the end which is whose, OUT.run.json how all are made."""
    layout: Literal["plain", "geneval", "geneval2", "dpg", "mjhq"] = "plain"
    """How the pictures lie: plain, ID.png, or as the tools of GenEval, GenEval 2, DPG-Bench and MJHQ-30K want them."""
    each: int | None = None
    """Pictures of each prompt; 1 by default, 4 for GenEval and DPG-Bench."""
    name: str | None = None
    """What a picture is called, made of {id}, {n}, its number among those of its prompt, and columns of its row, as in
    "{category}/{id}.jpg"; a .png remembers how it was made, .jpg and .webp do not."""
    columns: Columns = ()
    """Which column is id, prompt or seed, where it has another name: prompt=description."""
    seed: int = 0
    """A prompt's own seed follows from this and its id, unless its row gives one; further pictures count on."""
    batch_size: int = 16
    """About so many pictures at once: memory grows with it."""

    def run(self) -> int:
        """Draw; the status is 1 if a prompt could not be drawn, else 0."""
        return self.work(lambda own: own.pipeline())

    def work(self, load: Callable[[Draw], JanusFlowPipeline]) -> int:
        """Draw with the model that `load` gives, if anything is left to draw; the status is that of `run`."""
        from ..bulk.drawing import Pictures, draw_items
        from ..bulk.items import open_items
        from ..bulk.layouts import new_layout
        from ..bulk.run import Run

        at_least_one("--batch-size", self.batch_size)
        layout, share = new_layout(self.layout, self.each, self.name), this_share()
        place = Pictures(self.out, open_items(self.source, parsed(self.columns)), layout, self.seed)
        told = {name: getattr(self, name) for name in (*DRAWING, "vae", "seed")}
        kept = agreement(self, share, {**told, "name": layout.name, "each": layout.each, "grid": layout.grid})
        run = Run(place, kept, share)
        if any(run.batches(max(1, self.batch_size // layout.each))):
            own = replace(self, dtype=kept["dtype"]).at(share)
            pipe = load(own)
            with counted(share, "prompt") as on_item:
                draw_items(run, place, drawer(own.settled(pipe), pipe), self.batch_size, on_item)
        return reported(run, "drawn", "were there")


@dataclass(frozen=True, kw_only=True)
class Describe(LoadOptions):
    """Answer a question about every picture of a source; the same command goes on after a stop, with any number of
    processes. For captions beside the pictures of a folder there is `janusflow caption`."""

    source: Annotated[Path, tyro.conf.arg(metavar="SOURCE")]
    """The pictures: a folder, a .jsonl, .json, .csv or .parquet with a column image, a .tar, or a folder or pattern of
    tars or parquet files; a column question has what is asked of each."""
    out: Path = Path("answers.jsonl")
    """A .jsonl, .csv or .parquet: the columns of the source, the question and the response. OUT.run.json beside it says
    how the answers are made."""
    question: str = "Describe the image."
    """What to ask about pictures that bring no question."""
    columns: Columns = ()
    """Which column is id, image, question or seed, where it has another name: question=text."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 always takes the likeliest word; higher is freer."""
    top_p: float = 1.0
    """Draw only from the likeliest words that together have this probability."""
    seed: int = 0
    """For --temperature above 0: a picture's own seed follows from this and its id, unless its row gives one."""
    batch_size: int = 16
    """Pictures at once: memory grows with it."""

    def run(self) -> int:
        """Answer; the status is 1 if a picture could not be answered about, else 0."""
        from ..bulk.answers import Answers, answer_items
        from ..bulk.items import open_items
        from ..bulk.run import Run
        from ..image import resize_and_pad
        from ..pipeline import JanusFlowPipeline

        at_least_one("--batch-size", self.batch_size)
        share = this_share()
        place = Answers(self.out, open_items(self.source, parsed(self.columns)), self.question)
        names = ("question", "max_new_tokens", "temperature", "top_p", "seed")
        kept = agreement(self, share, {name: getattr(self, name) for name in names})
        run = Run(place, kept, share)
        if any(run.batches(self.batch_size)):
            with replace(self, dtype=kept["dtype"]).at(share).loading() as where:
                pipe = JanusFlowPipeline.from_pretrained(self.model, **where)

            def seen(picture: Picture) -> Picture:
                return resize_and_pad(picture, pipe.image_config)

            with counted(share, "picture") as on_item:
                answer_items(run, place, seen, self._answerer(pipe), self.batch_size, self.seed, on_item)
        return reported(run, "answered", "were there")

    def _answerer(self, pipe: JanusFlowPipeline) -> Any:
        from ..decoding import SamplingOptions

        options = SamplingOptions(temperature=self.temperature, top_p=self.top_p)

        def answer(pictures: Sequence[Picture], questions: Sequence[str], seeds: Sequence[int]) -> list[str]:
            turns = [pipe.tokenizer.question_messages(question, 1) for question in questions]
            shown = [[picture] for picture in pictures]
            return pipe.converse(turns, shown, max_new_tokens=self.max_new_tokens, options=options, seeds=seeds)

        return answer


@dataclass(frozen=True, kw_only=True)
class Bulk:
    """Draw any number of prompts (draw) or answer questions about any number of pictures (describe), in one process or,
    by torchrun or accelerate launch, in many."""

    work: tyro.conf.OmitArgPrefixes[
        tyro.conf.OmitSubcommandPrefixes[
            Annotated[Draw, tyro.conf.subcommand("draw")] | Annotated[Describe, tyro.conf.subcommand("describe")]
        ]
    ]

    def run(self) -> int:
        """Work; the status is the work's."""
        return self.work.run()


def drawer(settled: Draw, pipe: JanusFlowPipeline) -> Any:
    """What draws prompts, each by its own seed, and tells of each picture how it was made."""
    settings = {name: getattr(settled, name) for name in DRAWING}

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawn]:
        pictures = pipe.generate(prompts, seed=seeds, **settings)
        rows = zip(pictures, prompts, seeds, strict=True)
        return [(one, settled.origin(prompt, seed, one.size).chunks()) for one, prompt, seed in rows]

    return draw


def parsed(columns: Sequence[str]) -> dict[str, str]:
    """OURS=THEIRS as a table; raises ValueError for anything else."""
    pairs = {own: other for own, _, other in (text.partition("=") for text in columns)}
    for own, other in pairs.items():
        if own not in COLUMNS or not other:
            raise ValueError(f"got --columns {own}={other}, expected {' or '.join(COLUMNS)}, as in prompt=description")
    return pairs


def agreement(given: Draw | Describe, share: Share, told: dict[str, Any]) -> dict[str, Any]:
    """All that decides about what a run makes, kept beside it: the number type as the first process measured it."""
    from ..bulk.run import agreed
    from ..device import best_dtype, chosen_device

    device = chosen_device(given.at(share).device)
    make_folder(given.out.parent)
    told |= {"model": given.model, "lora": given.lora}
    if given.dtype is not None:
        return agreed(given.out, {**told, "dtype": given.dtype})
    return agreed(given.out, told, {"dtype": lambda: dtype_name(best_dtype(device))})


@contextmanager
def counted(share: Share, unit: str) -> Iterator[OnItem]:
    """A bar with items a second and the time left, shown by the first process for its own part."""
    from tqdm import tqdm

    with tqdm(unit=unit, leave=False, disable=None if share.rank == 0 else True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
