"""What fewer bits cost: janusflow-tiny's weights, velocities, pictures and answers by the way that they are stored.

    python tests/benchmarks/quantized.py [--per-task 50] [--scenes 200]

Everything is computed in float32, so that only the storing differs. Some five minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from janusflow_core import JanusFlowPipeline  # noqa: E402
from janusflow_core.convert import convert  # noqa: E402
from janusflow_core.evaluation.scores import overall  # noqa: E402
from janusflow_core.model import JanusFlow, Prefix  # noqa: E402
from janusflow_core.world.score import draw_tasks, score_answers, score_pictures  # noqa: E402

TINY, SEED = "janusflow-tiny", 11


def cast(dtype: torch.dtype) -> Callable[[Path], JanusFlowPipeline]:
    """Every weight of the drawing and the speaking half in this dtype, as Load JanusFlow's `weight_dtype` stores it."""

    def load(folder: Path) -> JanusFlowPipeline:
        pipe = JanusFlowPipeline.from_pretrained(TINY, dtype=torch.float32)
        for weight in pipe.model.parameters():
            weight.copy_(weight.to(dtype))
        return pipe

    return load


def packed(kind: str) -> Callable[[Path], JanusFlowPipeline]:
    """What `janusflow convert --quantize` writes."""

    def load(folder: Path) -> JanusFlowPipeline:
        convert(TINY, folder / f"{kind}.safetensors", quantize=kind)  # type: ignore[arg-type]
        return JanusFlowPipeline.from_pretrained(folder / f"{kind}.safetensors", dtype=torch.float32)

    return load


WAYS = {
    "float32": cast(torch.float32),
    "weight_dtype fp8_e4m3fn": cast(torch.float8_e4m3fn),
    "quantised fp8": packed("fp8"),
    "quantised int8": packed("int8"),
}


def velocities(pipe: JanusFlowPipeline) -> Tensor:
    """Those of 64 random latents at times between 0 and 1, after one prompt."""
    random, times = torch.Generator().manual_seed(SEED), torch.linspace(0, 0.98, 64)
    ids = pipe.tokenizer.generation_ids("a red circle left of a blue square")
    prompt = pipe.model.language_model.model.embed_tokens(torch.tensor([ids])).expand(64, -1, -1)
    noise = torch.randn(64, pipe.model.config.flow.latent_channels, 12, 12, generator=random)
    return pipe.model.velocity(noise, times, Prefix(prompt, [len(ids)] * 64, [len(ids)] * 64))


def away(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def layers(model: JanusFlow) -> Tensor:
    return torch.cat([weight.flatten() for key, weight in model.named_parameters() if ".layers." in key])


def right(pipe: JanusFlowPipeline, per_task: int, scenes: int) -> tuple[float, float]:
    """The share of its pictures and of its answers that are."""

    def draw(prompts: Sequence[str], seed: int) -> Sequence[Image.Image]:
        return pipe.generate(prompts, seed=seed)

    pictures = score_pictures(draw_tasks(draw, per_task, seed=SEED))
    return overall(pictures), overall(score_answers(partial(pipe.describe, max_new_tokens=24), scenes, seed=SEED))


@torch.inference_mode()
def main(per_task: int, scenes: int) -> None:
    print("| stored as | the layers' weights | velocities | pictures right | answers right |\n|---|---|---|---|---|")
    exact = None
    for name, load in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            pipe = load(Path(folder))
        found = layers(pipe.model), velocities(pipe)
        exact = exact or found
        changes = " | ".join(f"{100 * away(*pair):.1f} %" for pair in zip(found, exact, strict=True))
        pictures, answers = right(pipe, per_task, scenes)
        print(f"| {name} | {changes} | {pictures:.3f} | {answers:.3f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--per-task", type=int, default=50)
    parser.add_argument("--scenes", type=int, default=200)
    given = parser.parse_args()
    main(given.per_task, given.scenes)
