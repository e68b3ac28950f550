"""Sampling speed against the authors' way of doing it, in the same process, as a ratio.

    python tests/benchmarks/sampling.py [--steps 5] [--model SOURCE]

The authors' demo recomputes the whole prompt at every step, and keeps the masked padding of the unconditional rows in
the sequence. Ours computes the prompt's keys and values once. Both run the same modules here, so that the ratio shows
the method and not the library; `pictures differ by` is the relative distance of the two results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from janusflow_core import JanusFlowPipeline, sampling  # noqa: E402
from janusflow_core.model import Prefix  # noqa: E402

PROMPTS = {
    "short": "a red cat",
    "medium": "a red circle left of a blue square, " * 5,
    "long": "a photo of a red star " * 40,
}


@torch.no_grad()
def authors_way(pipe: JanusFlowPipeline, prompt: str, noise: torch.Tensor, steps: int, weight: float) -> torch.Tensor:
    """Everything again at every step, as in the demo's loop."""
    row = pipe.model.encode_prompt(torch.tensor(pipe.tokenizer.generation_ids(prompt)))
    count, length = len(noise), len(row)
    rows = torch.cat((row.expand(count, -1, -1), row.expand(count, -1, -1)))
    prefix = Prefix(rows, [length] * count + [1] * count, [length] * 2 * count)
    z = noise
    for step in range(steps):
        v = pipe.model.velocity(z.repeat(2, 1, 1, 1), torch.full((2 * count,), step / steps), prefix)
        z = z + sampling.guide(*v.chunk(2), weight) / steps
    return z


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model", default="janusflow-tiny")
    options = parser.parse_args()
    pipe = JanusFlowPipeline.from_pretrained(options.model, device="cpu", dtype=torch.float32)
    side = pipe.image_config.image_size // 8
    print(f"{'prompt':<8} {'tokens':>6} {'authors s/step':>15} {'ours s/step':>12} {'ratio':>6}  pictures differ by")
    for name, prompt in PROMPTS.items():
        noise = sampling.draw_noise((4, side, side), [0])
        ours = {"prompt": prompt, "noise": noise, "steps": options.steps, "guidance": 2.0, "output": "latent"}
        names = {"authors_way": authors_way, "pipe": pipe, "ours": ours, "p": prompt, "n": noise, "s": options.steps}
        theirs_s = Timer("authors_way(pipe, p, n, s, 2.0)", globals=names).blocked_autorange(min_run_time=3).median
        ours_s = Timer("pipe.generate(**ours)", globals=names).blocked_autorange(min_run_time=3).median
        reference = authors_way(pipe, prompt, noise, options.steps, 2.0)
        distance = (pipe.generate(**ours) - reference).norm() / reference.norm()
        print(
            f"{name:<8} {len(pipe.tokenizer.generation_ids(prompt)):>6} {theirs_s / options.steps:>15.3f} "
            f"{ours_s / options.steps:>12.3f} {theirs_s / ours_s:>6.2f}  {distance:.1e}"
        )


if __name__ == "__main__":
    main()
