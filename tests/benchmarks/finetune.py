"""Does fine-tuning teach? A LoRA learns an unseen shape from twenty pictures; what it could before shall stay.

    python tests/benchmarks/finetune.py                    three seeds with and without REPA, drawing and captioning
    python tests/benchmarks/finetune.py --seeds 1 --steps 50 --per-task 2      a few minutes, to no use

New: single crescents that come out right of 80, by the judge, or crescents of fresh pictures that are named rightly.
Old: the mini-GenEval, or the answers, of `janusflow evaluate shapes`. The table is printed row by row.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from janusflow_core import JanusFlowPipeline  # noqa: E402
from janusflow_core.lora import save_lora  # noqa: E402
from janusflow_core.train.examples import Captioned  # noqa: E402
from janusflow_core.train.finetune import FineTune, look_at  # noqa: E402
from janusflow_core.train.options import FineTuneOptions  # noqa: E402
from janusflow_core.train.subject import Subject  # noqa: E402
from janusflow_core.world import judge, score  # noqa: E402
from janusflow_core.world.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, place, render  # noqa: E402

NEW = "crescent"


def phrase(color: str) -> str:
    return f"{'an' if color[0] in 'aeiou' else 'a'} {color} {NEW}"


def drawn_crescents(count: int, seed: int) -> Iterator[tuple[str, Image.Image]]:
    """Colors in turn, each with a picture of one crescent."""
    rng = random.Random(seed)
    for number in range(count):
        color = [*COLORS][number % len(COLORS)]
        scene = Scene(rng.choice(BACKGROUNDS), place([(color, NEW)], None, rng))
        yield color, Image.fromarray(render(scene))


def new_pictures(pipe: JanusFlowPipeline, count: int = 80) -> float:
    """The part of crescents asked for, ten of each color, that are drawn alone and in their color."""
    colors = [color for color in COLORS for _ in range(count // len(COLORS))]
    pictures = pipe.generate([phrase(color) for color in colors], seed=1000)
    found = [[(one.color, one.shape) for one in judge.detect(picture, (*SHAPES, NEW))] for picture in pictures]
    return sum(seen == [(color, NEW)] for color, seen in zip(colors, found, strict=True)) / len(colors)


def new_captions(pipe: JanusFlowPipeline, count: int = 80) -> float:
    """The part of crescents never shown that are described exactly."""
    colors, pictures = zip(*drawn_crescents(count, seed=77), strict=True)
    answers = pipe.describe(pictures, max_new_tokens=16)
    return sum(answer == phrase(color) for color, answer in zip(colors, answers, strict=True)) / count


def old_pictures(pipe: JanusFlowPipeline, per_task: int) -> float:
    drawn = score.draw_tasks(lambda prompts, seed: pipe.generate(prompts, seed=seed), per_task)
    return score.overall(score.score_pictures(drawn))


def old_answers(pipe: JanusFlowPipeline, per_task: int) -> float:
    def ask(pictures: Sequence[Image.Image], questions: Sequence[str]) -> Sequence[str]:
        turns = [pipe.tokenizer.question_messages(question, 1) for question in questions]
        return pipe.converse(turns, [[picture] for picture in pictures], max_new_tokens=24)

    return score.overall(score.score_answers(ask, 2 * per_task))


SCORES = {"generation": (new_pictures, old_pictures), "captioning": (new_captions, old_answers)}


def trained(pipe: JanusFlowPipeline, options: FineTuneOptions, folder: Path) -> tuple[Path, float]:
    """A LoRA file that learnt from twenty crescents, and the seconds that took, dreams included."""
    began, codec = time.monotonic(), pipe.codec
    assert codec is not None
    subject = Subject(pipe.model, pipe.model, pipe.tokenizer, pipe.image_config, codec.encode, codec.decode)
    pairs = drawn_crescents(20, seed=options.seed)
    captioned = [Captioned(color, phrase(color), lambda picture=picture: picture) for color, picture in pairs]
    examples, dreams = look_at(subject, captioned, options)
    tuning = FineTune(subject, examples, options, folder / "state.safetensors", dreams)
    tuning.run()
    path = folder / "lora.safetensors"
    save_lora(path, tuning.result(), {})
    return path, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="janusflow-tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=FineTuneOptions().steps)
    parser.add_argument("--per-task", type=int, default=25)
    parser.add_argument("--time-mean", type=float, default=FineTuneOptions().time_mean)
    given = parser.parse_args()
    pipe = JanusFlowPipeline.from_pretrained(given.model, device="cpu", dtype=torch.float32)
    print(f"{'taught':<12}{'REPA':>6}{'seed':>6}{'new':>16}{'old':>18}{'seconds':>9}")
    for teach, (new, old) in SCORES.items():
        before = new(pipe), old(pipe, given.per_task)
        for repa in (0.0, 0.5) if teach == "generation" else (0.0,):
            for seed in range(given.seeds):
                options = FineTuneOptions(
                    teach=teach, steps=given.steps, repa=repa, seed=seed, time_mean=given.time_mean
                )
                with tempfile.TemporaryDirectory() as folder:
                    path, seconds = trained(pipe, options, Path(folder))
                    pipe.load_lora(path)
                after = new(pipe), old(pipe, given.per_task)
                pipe.unload_loras()
                changes = "".join(f"{a:>9.3f} -> {b:.3f}" for a, b in zip(before, after, strict=True))
                print(f"{teach:<12}{repa:>6}{seed:>6}{changes}{seconds:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
