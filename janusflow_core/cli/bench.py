"""janusflow bench: how fast this machine is, beside another way of doing the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from .loading import torch_dtype

if TYPE_CHECKING:
    from ..bench.describe import Row

HEAD = (
    f"{'batch':>5} {'prompt':>6} {'first token':>12} {'ours tok/s':>11} {'transformers':>13} {'its static':>11} "
    f"{'ratio':>6} {'of bound':>9} {'peak':>8}"
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure tokens a second beside transformers' generate on the same random weights, the ways taking turns."""

    what: Literal["describe"]
    """describe: how fast answers are written."""
    size: Literal["tiny", "middle", "full"] = "tiny"
    """janusflow-tiny's language model, one of 512 features and 8 layers, or that of JanusFlow-1.3B."""
    batch: tuple[int, ...] = (1, 8, 32)
    """Answers at once."""
    prompt_tokens: int | None = None
    """Length of a conversation; a picture and a question by default."""
    new_tokens: int = 64
    """Length of an answer."""
    rounds: int = 5
    """Each number is the median of so many."""
    device: str | None = None
    """cuda, cuda:1, mps or cpu; the best there is by default."""
    dtype: Literal["bf16", "fp32"] | None = None
    """What to compute in; bf16 on GPUs that have it by default, else fp32."""
    json: bool = False
    """Print a line of JSON for each batch size instead of a table."""

    def run(self) -> int:
        """Measure and print; the status is 0."""
        if self.new_tokens < 2 or self.rounds < 1 or not self.batch or min(self.batch) < 1:
            raise ValueError("expected batches and rounds of at least 1 and --new-tokens of at least 2")
        from ..bench.describe import measure
        from ..bench.sizes import language_config, usual_prompt
        from ..device import best_device, best_dtype, usable_device

        device = usable_device(self.device) or best_device()
        rows = measure(
            language_config(self.size),
            self.batch,
            prompt_tokens=self.prompt_tokens or usual_prompt(self.size),
            new_tokens=self.new_tokens,
            rounds=self.rounds,
            device=device,
            dtype=torch_dtype(self.dtype) or best_dtype(device),
        )
        if not self.json:
            print(HEAD)
        for row in rows:
            print(json.dumps({"size": self.size, **asdict(row)}) if self.json else table_line(row), flush=True)
        return 0


def table_line(row: Row) -> str:
    """A row below HEAD."""
    peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f} MB"
    return (
        f"{row.batch:>5} {row.prompt_tokens:>6} {row.prefill_s:>10.3f} s {row.ours_tok_s:>11.1f} "
        f"{row.peer_tok_s:>13.1f} {row.static_peer_tok_s:>11.1f} {row.ratio:>6.2f} {row.of_bound:>9.0%} {peak:>8}"
    )
