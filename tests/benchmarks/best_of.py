"""Best of N: how many of janusflow-tiny's pictures are right when it draws N and keeps the one that it likes best.

    python tests/benchmarks/best_of.py [--per-task 100] [--candidates 8]

The same candidates for every way of judging and every N; the world's judge says what is right. Some twenty minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from janusflow_core import JanusFlowPipeline  # noqa: E402
from janusflow_core.evaluation.scores import Score  # noqa: E402
from janusflow_core.scoring import Judging  # noqa: E402
from janusflow_core.world import talk  # noqa: E402
from janusflow_core.world.judge import judge  # noqa: E402

SEED, PROMPTS_AT_ONCE = 23, 8


class Candidates:
    """Some prompts' candidates (P, N): which are right, what each way of judging gives them, the times."""

    def __init__(self, pipe: JanusFlowPipeline, prompts: list[str], count: int) -> None:
        self.right = torch.zeros(len(prompts), count, dtype=torch.bool)
        self.scores = {by: torch.zeros(len(prompts), count) for by in get_args(Judging)}
        self.drawing, self.judging = 0.0, dict.fromkeys(self.scores, 0.0)
        for first in range(0, len(prompts), PROMPTS_AT_ONCE):
            self._add(pipe, first, prompts[first : first + PROMPTS_AT_ONCE], count)
            print(f"\r{first} of {len(prompts)} prompts", end="", file=sys.stderr, flush=True)

    def _add(self, pipe: JanusFlowPipeline, first: int, prompts: list[str], count: int) -> None:
        began = time.perf_counter()
        pictures = pipe.generate(prompts, num_images=count, seed=SEED + first * count)
        self.drawing += time.perf_counter() - began
        rows = [prompt for prompt in prompts for _ in range(count)]
        here = slice(first, first + len(prompts))
        marks = [judge(*pair) for pair in zip(pictures, rows, strict=True)]
        self.right[here] = torch.tensor(marks).view(-1, count)
        for by, scores in self.scores.items():
            began = time.perf_counter()
            scores[here] = torch.tensor(pipe.score(pictures, rows, by=by)).view(-1, count)
            self.judging[by] += time.perf_counter() - began

    def kept(self, by: str, count: int) -> Tensor:
        """Whether the best of the first `count` of each prompt is right (P,)."""
        best = self.scores[by][:, :count].argmax(dim=1)
        return self.right[torch.arange(len(best)), best]


def main(per_task: int, count: int) -> None:
    prompts = [prompt for task in talk.TASKS for prompt in talk.sample_prompts(task, per_task, SEED, False)]
    found = Candidates(JanusFlowPipeline.from_pretrained("janusflow-tiny"), prompts, count)
    single = found.right[:, 0]
    print("\n| judged by | of | right | won and lost against the first | drawing, s a prompt | judging |")
    print("|---|---|---|---|---|---|")
    for by in get_args(Judging):
        for of in (n for n in (1, 2, 4, 8, 16) if n <= count):
            kept = found.kept(by, of)
            changed = f"{int((kept & ~single).sum())} : {int((single & ~kept).sum())}"
            share = of / count / len(prompts)
            print(
                f"| {by} | {of} | {Score(tuple(kept.tolist()))} | {changed} | {found.drawing * share:.2f} | "
                f"{found.judging[by] * share if of > 1 else 0:.2f} |"
            )
    print(f"\nAt least one of {count} is right for {float(found.right.any(dim=1).float().mean()):.3f} of the prompts.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--per-task", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=8)
    given = parser.parse_args()
    main(given.per_task, given.candidates)
