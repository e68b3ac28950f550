"""A step of one of the paper's stages, on random weights: seconds of each part, and the most memory.

    python tests/benchmarks/stages.py                                    stage 1 at full size, one sample, in bfloat16
    python tests/benchmarks/stages.py stage3 --size tiny --samples 8 --precision fp32

The VAE is left out: it costs the same as in any other pack, and latents can be kept (`crops` in a recipe).
"""

import argparse
import random
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from janusflow_core.bench.sizes import DRAWN, language_config  # noqa: E402
from janusflow_core.checkpoint import open_checkpoint  # noqa: E402
from janusflow_core.config import FlowConfig, JanusFlowConfig, VisionConfig  # noqa: E402
from janusflow_core.image import ImageConfig  # noqa: E402
from janusflow_core.model import JanusFlow, flow_tokens  # noqa: E402
from janusflow_core.tokenizer import JanusTokenizer, ProcessorConfig  # noqa: E402
from janusflow_core.train.data import Sample  # noqa: E402
from janusflow_core.train.objective import Objective  # noqa: E402
from janusflow_core.train.optimizer import Optimizer  # noqa: E402
from janusflow_core.train.order import Task  # noqa: E402
from janusflow_core.train.packing import Batch, Writer, pack  # noqa: E402
from janusflow_core.train.recipe import parts_named, read_recipe  # noqa: E402
from janusflow_core.train.team import compute_again  # noqa: E402
from janusflow_core.train.terms import new_projector  # noqa: E402

TASKS: tuple[Task, ...] = ("generation", "understanding")
CAPTION = "a photo of a red circle left of a blue square, and two green stars above them, on a light background"


def new_config(size: str) -> JanusFlowConfig:
    channels, side = DRAWN[size]
    large = {"width": 1024, "layers": 24, "heads": 16} if size == "full" else {"width": 160, "layers": 4, "heads": 5}
    vision = VisionConfig(image_size=8 * side, patch_size=16, **large)
    return JanusFlowConfig(language=language_config(size), vision=vision, flow=FlowConfig(channels=channels))


@torch.no_grad()
def new_objective(config: JanusFlowConfig, stage: str, bf16: bool) -> Objective:
    """What learns in float32, what does not in the type that is computed in."""
    recipe, model = read_recipe(stage), JanusFlow(config, device="meta")
    learns = parts_named(*recipe.train)
    for name, weight in model.named_parameters():
        dtype = torch.bfloat16 if bf16 and not learns(name) else torch.float32
        parent, _, own = name.rpartition(".")
        new = torch.nn.Parameter(torch.empty_like(weight, device="cpu", dtype=dtype), requires_grad=learns(name))
        setattr(model.get_submodule(parent), own, new)
    model.init_weights(torch.Generator().manual_seed(0))
    if recipe.checkpointing:
        compute_again(model.language_model.model.layers)
    layer = max(1, config.language.num_hidden_layers // 4)
    return Objective(model, new_projector(config), layer, ImageConfig(image_size=config.vision.image_size))


def new_batch(config: JanusFlowConfig, task: Task, samples: int) -> Batch:
    """Random pictures of the model's size under one caption, in the words of the embedded model's tokenizer."""
    tiny, size = open_checkpoint("janusflow-tiny").tokenizer, config.vision.image_size
    assert tiny is not None
    processor = ProcessorConfig(num_image_tokens=config.vision.grid**2)
    tokenizer = JanusTokenizer(tiny.json, processor, tiny.special)
    side = size // 8
    writer = Writer(tokenizer, ImageConfig(image_size=size), (4, side, side), flow_tokens(side, side), 4096)
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    one = Sample("", task, CAPTION, (), lambda: Image.fromarray(pixels))
    return pack([writer(one, random.Random(number)) for number in range(samples)], writer)


def measured(objective: Objective, batch: Batch, bf16: bool, steps: int = 2) -> tuple[float, float, float]:
    """Seconds of the way forth, the way back and the optimizer, in the last of some steps."""
    learning = [(name, weight) for name, weight in objective.named_parameters() if weight.requires_grad]
    optimizer = Optimizer(learning, adam_lr=1e-4)
    for _ in range(steps):
        times = [time.monotonic()]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            terms = objective(batch, torch.randn_like(batch.noise))
        times.append(time.monotonic())
        torch.cat([*terms.values()]).sum().backward()
        times.append(time.monotonic())
        optimizer.step(1.0)
        times.append(time.monotonic())
    forth, back, update = np.diff(times)
    return forth, back, update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", default="stage1", choices=["stage1", "stage2", "stage3"])
    parser.add_argument("--size", default="full", choices=[*DRAWN])
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    told = parser.parse_args()
    config, bf16 = new_config(told.size), told.precision == "bf16"
    objective = new_objective(config, told.stage, bf16)
    learning = sum(weight.numel() for weight in objective.parameters() if weight.requires_grad)
    total = sum(weight.numel() for weight in objective.parameters())
    print(f"{told.stage}, {told.size}, {told.precision}, {torch.get_num_threads()} threads: ", end="")
    print(f"{learning / 1e6:.1f} of {total / 1e6:.1f} million weights learn\n")
    print("| samples | tokens | forth, s | back, s | update, s | most memory so far, GB |\n|---|---|---|---|---|---|")
    for task in TASKS:
        batch = new_batch(config, task, told.samples)
        seconds = " | ".join(f"{part:.2f}" for part in measured(objective, batch, bf16))
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {told.samples} of {task} | {batch.ids.numel()} | {seconds} | {most:.2f} |", flush=True)


if __name__ == "__main__":
    main()
