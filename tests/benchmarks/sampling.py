"""Sampling speed against the authors' way of doing it, in the same process, as a ratio.

    python tests/benchmarks/sampling.py [--steps 5] [--model SOURCE] [--device cuda]
    python tests/benchmarks/sampling.py --full-size --device cuda         random weights of the official sizes

The authors' demo recomputes the whole prompt at every step, and keeps the masked padding of the unconditional rows in
the sequence. Ours computes the prompt's keys and values once. Both run the same modules here, so that the ratio shows
the method and not the library; `pictures differ by` is the relative distance of the two results.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from janusflow_core import JanusFlowPipeline, sampling  # noqa: E402
from janusflow_core.config import JanusFlowConfig  # noqa: E402
from janusflow_core.device import best_dtype  # noqa: E402
from janusflow_core.image import ImageConfig  # noqa: E402
from janusflow_core.model import JanusFlow, Prefix  # noqa: E402
from janusflow_core.world.recipe import build_tokenizer  # noqa: E402

PROMPTS = {
    "short": "a red cat",
    "medium": "a red circle left of a blue square, " * 5,
    "long": "a photo of a red star " * 40,
}


def full_size(device: torch.device) -> JanusFlowPipeline:
    """The official model with random weights and the embedded model's words."""
    data = json.loads((Path(__file__).parents[1] / "golden" / "official_config.json").read_text("utf-8"))
    shapes = JanusFlowConfig.from_dict(data)
    model = JanusFlow(shapes, dtype=best_dtype(device), device=device).requires_grad_(False).eval()
    model.init_weights()
    return JanusFlowPipeline(model, build_tokenizer(), ImageConfig(image_size=shapes.vision.image_size), None, device)


@torch.no_grad()
def authors_way(pipe: JanusFlowPipeline, prompt: str, noise: torch.Tensor, steps: int, weight: float) -> torch.Tensor:
    """Everything again at every step, as in the demo's loop."""
    row = pipe.model.encode_prompt(torch.tensor(pipe.tokenizer.generation_ids(prompt), device=noise.device))
    count, length = len(noise), len(row)
    rows = torch.cat((row.expand(count, -1, -1), row.expand(count, -1, -1)))
    prefix = Prefix(rows, [length] * count + [1] * count, [length] * 2 * count)
    z = noise
    for step in range(steps):
        v = pipe.model.velocity(z.repeat(2, 1, 1, 1), torch.full((2 * count,), step / steps, device=z.device), prefix)
        z = z + sampling.guide(*v.chunk(2), weight) / steps
    return z


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model", default="janusflow-tiny")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--full-size", action="store_true")
    options = parser.parse_args()
    if options.full_size:
        pipe = full_size(options.device)
    else:
        dtype = best_dtype(options.device)
        pipe = JanusFlowPipeline.from_pretrained(options.model, device=options.device, dtype=dtype)
    side = pipe.image_config.image_size // 8
    print(f"{'prompt':<8} {'tokens':>6} {'authors s/step':>15} {'ours s/step':>12} {'ratio':>6}  pictures differ by")
    for name, prompt in PROMPTS.items():
        noise = sampling.draw_noise((4, side, side), [0]).to(options.device)
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
