"""Samples a second of the embedded model's last stage on one thread: the plain way against what the trainer chooses.

    python tests/benchmarks/training.py            three minutes, most of it for compiling

Plain: float32, uncompiled, prompts and conversations padded to the longest of their batch. Chosen: `Machine.measured`.
"""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from janusflow_core.attention import eager  # noqa: E402
from janusflow_core.model import JanusFlow  # noqa: E402
from janusflow_core.train.machine import Machine  # noqa: E402
from janusflow_core.train.optimizer import Optimizer, is_hidden  # noqa: E402
from janusflow_core.train.terms import Terms, new_projector  # noqa: E402
from janusflow_core.world import recipe  # noqa: E402
from janusflow_core.world.lessons import Lessons  # noqa: E402
from janusflow_core.world.library import Library, draw_examples  # noqa: E402

DRAWN, ASKED, STEPS = 96, 24, 4


def library() -> Library:
    latents, features = torch.randn(400, 4, 12, 12), torch.randn(400, 36, 160)
    return Library(latents, features, draw_examples(0, 400))


def samples_a_second(machine: Machine) -> float:
    """Pictures drawn and asked about in a second of whole steps, optimizer included, after two to warm up."""
    torch.manual_seed(0)
    model, scenes, tokenizer = JanusFlow(recipe.config()), library(), recipe.build_tokenizer()
    model.init_weights()
    model.vision_und_enc_model.requires_grad_(False)
    projector, generator = new_projector(model.config), torch.Generator().manual_seed(0)
    written = Lessons("seed", tokenizer, scenes.examples, DRAWN, ASKED)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = Optimizer([*named, *projector.named_parameters("projector")], is_hidden)
    with Terms(model, model, projector, recipe.REPA_LAYER, eager, machine.compiled) as parts:
        for step in range(STEPS + 2):
            if step == 2:
                began = time.monotonic()
            lesson = written(step)
            x, seen, asked = scenes.latents[lesson.drawn], scenes.features[lesson.drawn], scenes.features[lesson.asked]
            with machine.autocast():
                terms = parts.generation(lesson.prompts.embedded(model), x, seen, generator)
                terms |= parts.understanding(lesson.questions, asked)
            torch.stack([term.mean() for term in terms.values()]).sum().backward()
            optimizer.step(1e-3)
    return STEPS * (DRAWN + ASKED) / (time.monotonic() - began)


def main() -> None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    chosen = Machine.measured(cpu, compiling_pays=True)
    plain_rate, chosen_rate = samples_a_second(Machine(cpu, bf16=False, compiles=False)), samples_a_second(chosen)
    name = f"{'bf16' if chosen.bf16 else 'fp32'}, {'compiled' if chosen.compiles else 'uncompiled'}"
    print(f"{'way':<20}{'samples/s':>10}{'ratio':>8}")
    print(f"{'fp32, uncompiled':<20}{plain_rate:>10.1f}{1.0:>8.2f}")
    print(f"{name:<20}{chosen_rate:>10.1f}{chosen_rate / plain_rate:>8.2f}")


if __name__ == "__main__":
    main()
