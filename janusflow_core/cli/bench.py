"""janusflow bench: how fast this machine is, beside another way of doing the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .loading import torch_dtype

if TYPE_CHECKING:
    import torch

    from ..bench import describe, generate

ANSWERS = (
    f"{'batch':>5} {'prompt':>6} {'first token':>12} {'ours tok/s':>11} {'transformers':>13} {'its static':>11} "
    f"{'ratio':>6} {'of bound':>9} {'peak':>8}"
)
STEPS = (
    f"{'prompt':>6} {'batch':>5} {'guidance':>8} {'ours s/step':>12} {'authors':>9} {'in our layers':>13} {'ratio':>6} "
    f"{'differs':>8} {'of peak':>8} {'peak':>9}"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all benchmarks share."""

    size: Literal["tiny", "middle", "full"] = "tiny"
    """The shapes of janusflow-tiny, of a model with 512 features and 8 layers, or of JanusFlow-1.3B."""
    rounds: int = 5
    """Each number is the median of so many."""
    device: str | None = None
    """cuda, cuda:1, mps or cpu; the best there is by default."""
    dtype: Literal["bf16", "fp32"] | None = None
    """What to compute in; the faster one by default."""
    json: bool = False
    """Print a line of JSON for each row instead of a table."""

    def place(self) -> tuple[torch.device, torch.dtype]:
        """Where to measure, and in which numbers."""
        from ..device import best_dtype, chosen_device

        device = chosen_device(self.device)
        return device, torch_dtype(self.dtype) or best_dtype(device)

    def show(self, rows: Iterable[Any], head: str, line: Callable[[Any], str]) -> int:
        """Print the rows as they come; the status is 0."""
        if not self.json:
            print(head)
        for row in rows:
            print(json.dumps({"size": self.size, **asdict(row)}) if self.json else line(row), flush=True)
        return 0


@dataclass(frozen=True, kw_only=True)
class Describe(Options):
    """Tokens a second beside transformers' generate on the same random weights, the ways taking turns."""

    batch: tuple[int, ...] = (1, 8, 32)
    """Answers at once."""
    prompt_tokens: int | None = None
    """Length of a conversation; a picture and a question by default."""
    new_tokens: int = 64
    """Length of an answer."""

    def run(self) -> int:
        """Measure and print; the status is 0."""
        if self.new_tokens < 2 or self.rounds < 1 or not self.batch or min(self.batch) < 1:
            raise ValueError("expected batches and rounds of at least 1 and --new-tokens of at least 2")
        from ..bench.describe import measure
        from ..bench.sizes import language_config, usual_prompt

        device, dtype = self.place()
        rows = measure(
            language_config(self.size),
            self.batch,
            prompt_tokens=self.prompt_tokens or usual_prompt(self.size),
            new_tokens=self.new_tokens,
            rounds=self.rounds,
            device=device,
            dtype=dtype,
        )
        return self.show(rows, ANSWERS, answers_line)


@dataclass(frozen=True, kw_only=True)
class Generate(Options):
    """Seconds a step beside the authors' way of drawing on the same random weights, the ways taking turns."""

    prompt_tokens: tuple[int, ...] = (20, 77, 300)
    """Lengths of the prompts."""
    batch: tuple[int, ...] = (1, 4, 16)
    """Pictures at once."""
    guidance: tuple[float, ...] = (2.0, 1.0)
    """Guidance weights; 1 is none. The authors' way takes the same for all."""
    steps: int = 30
    """Among how many steps of a picture what comes once is shared out: the prompt's own pass."""
    compile: bool = False
    """Compile our steps; the time that this takes once is not counted."""

    def run(self) -> int:
        """Measure and print; the status is 0."""
        if min(*self.prompt_tokens, *self.batch, self.steps, self.rounds) < 1 or not self.guidance:
            raise ValueError("expected prompts, batches, steps and rounds of at least 1, and a guidance")
        from ..bench.generate import measure
        from ..bench.sizes import latent_side, random_flow

        device, dtype = self.place()
        model, side = random_flow(self.size, dtype, device), latent_side(self.size)
        if self.compile:
            model.compile_flow()
        several = self.prompt_tokens, self.batch, self.guidance
        return self.show(measure(model, side, *several, steps=self.steps, rounds=self.rounds), STEPS, steps_line)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure this machine: how fast pictures are drawn (generate), how fast answers are written (describe)."""

    what: tyro.conf.OmitArgPrefixes[
        tyro.conf.OmitSubcommandPrefixes[
            Annotated[Generate, tyro.conf.subcommand("generate")]
            | Annotated[Describe, tyro.conf.subcommand("describe")]
        ]
    ]

    def run(self) -> int:
        """Measure; the status is the benchmark's."""
        return self.what.run()


def answers_line(row: describe.Row) -> str:
    """A row below ANSWERS."""
    return (
        f"{row.batch:>5} {row.prompt_tokens:>6} {row.prefill_s:>10.3f} s {row.ours_tok_s:>11.1f} "
        f"{row.peer_tok_s:>13.1f} {row.static_peer_tok_s:>11.1f} {row.ratio:>6.2f} {row.of_bound:>9.0%} "
        f"{_megabytes(row.peak_bytes):>8}"
    )


def steps_line(row: generate.Row) -> str:
    """A row below STEPS."""
    return (
        f"{row.prompt_tokens:>6} {row.batch:>5} {row.guidance:>8g} {row.ours_s:>12.4f} {row.peer_s:>9.4f} "
        f"{row.same_layers_s:>13.4f} {row.ratio:>6.2f} {row.difference:>8.0e} {row.of_peak:>8.0%} "
        f"{_megabytes(row.peak_bytes):>9}"
    )


def _megabytes(held: int | None) -> str:
    return "" if held is None else f"{held / 2**20:.0f} MB"
