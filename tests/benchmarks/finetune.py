"""Does fine-tuning teach? A LoRA learns an unseen shape from twenty pictures; what it could before shall stay.

    python tests/benchmarks/finetune.py                              every lesson with three seeds: hours
    python tests/benchmarks/finetune.py --taught drawing --seeds 0 --settings '{"steps": 500, "repa": 0.5}'

drawing: crescents that are drawn alone and in their color, of 240 asked for, thirty of each color.
repa: the same, with the alignment at its usual weight.
pair: purple stars, one of the pairs that training never shows, of 120.
captioning: crescents of 80 fresh pictures that are described exactly, after 300 steps.
The other number of a row is what the model could before: mini-GenEval, or the answers of `janusflow evaluate shapes`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from janusflow_core import JanusFlowPipeline  # noqa: E402
from janusflow_core.checkpoint import open_checkpoint  # noqa: E402
from janusflow_core.cli.train import subject_of  # noqa: E402
from janusflow_core.evaluation.scores import overall  # noqa: E402
from janusflow_core.lora import save_lora  # noqa: E402
from janusflow_core.train.examples import Captioned  # noqa: E402
from janusflow_core.train.finetune import Base, FineTune, look_at, lora_metadata  # noqa: E402
from janusflow_core.train.machine import trains_in_bf16  # noqa: E402
from janusflow_core.train.options import FineTuneOptions  # noqa: E402
from janusflow_core.world import score  # noqa: E402
from janusflow_core.world.talk import phrase  # noqa: E402
from tools.make_crescents import CRESCENTS, Thing, pictures_of, things_in  # noqa: E402

PAIR: Sequence[Thing] = [("purple", "star")]


def drawn(pipe: JanusFlowPipeline, things: Sequence[Thing], count: int) -> float:
    """The part of pictures that show what was asked for and nothing else."""
    asked = [thing for thing in things for _ in range(count // len(things))]
    pictures = pipe.generate([phrase(*thing) for thing in asked], seed=1000)
    return sum(things_in(picture) == [thing] for thing, picture in zip(asked, pictures, strict=True)) / len(asked)


def described(pipe: JanusFlowPipeline, things: Sequence[Thing], count: int) -> float:
    """The part of pictures never shown that are described exactly."""
    shown, pictures = zip(*pictures_of(things, count, seed=77), strict=True)
    answers = pipe.describe(pictures, max_new_tokens=16)
    return sum(answer == phrase(*thing) for thing, answer in zip(shown, answers, strict=True)) / count


def old_pictures(pipe: JanusFlowPipeline, per_task: int) -> float:
    tasks = score.draw_tasks(lambda prompts, seed: pipe.generate(prompts, seed=seed), per_task)
    return overall(score.score_pictures(tasks))


def old_answers(pipe: JanusFlowPipeline, per_task: int) -> float:
    return overall(score.score_answers(partial(pipe.describe, max_new_tokens=24), per_task))


@dataclass(frozen=True)
class Lesson:
    """What is taught, and what is scored after it: the new, and the old."""

    things: Sequence[Thing]
    settings: Mapping[str, Any]
    new: Callable[[JanusFlowPipeline, Sequence[Thing], int], float]
    count: int
    old: Callable[[JanusFlowPipeline, int], float]

    def scores(self, pipe: JanusFlowPipeline, per_task: int) -> tuple[float, float]:
        return self.new(pipe, self.things, self.count), self.old(pipe, per_task)


LESSONS = {
    "drawing": Lesson(CRESCENTS, {}, drawn, 240, old_pictures),
    "repa": Lesson(CRESCENTS, {"repa": 0.5}, drawn, 240, old_pictures),
    "pair": Lesson(PAIR, {}, drawn, 120, old_pictures),
    "captioning": Lesson(CRESCENTS, {"teach": "captioning", "steps": 300}, described, 80, old_answers),
}


def train(
    pipe: JanusFlowPipeline, base: Base, things: Sequence[Thing], options: FineTuneOptions, folder: Path
) -> tuple[Path, int]:
    """A LoRA file that learnt from twenty pictures, and the seconds that took, dreams included."""
    began, subject = time.monotonic(), subject_of(pipe)
    captioned = [
        Captioned(phrase(*thing), phrase(*thing), lambda picture=picture: picture)
        for thing, picture in pictures_of(things, 20, seed=options.seed)
    ]
    examples, dreams = look_at(subject, captioned, options)
    tuning = FineTune(subject, examples, options, base, folder / "state.safetensors", dreams)
    tuning.run()
    path = folder / "lora.safetensors"
    save_lora(path, tuning.result(), lora_metadata(tuning))
    return path, round(time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="janusflow-tiny")
    parser.add_argument("--taught", nargs="+", choices=LESSONS, default=[*LESSONS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", default="{}", help="more options of `janusflow train lora`, as JSON")
    parser.add_argument("--per-task", type=int, default=100, help="old pictures a task, and scenes to ask about")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"), help="keeps states and LoRAs; goes on there")
    given = parser.parse_args()
    dtype = torch.bfloat16 if trains_in_bf16(torch.device("cpu")) else torch.float32
    pipe = JanusFlowPipeline.from_pretrained(given.model, device="cpu", dtype=dtype)
    base = Base.of(open_checkpoint(given.model))
    print(f"{dtype}, {torch.get_num_threads()} threads, {given.settings}")
    print(f"{'taught':<12}{'seed':>6}{'new':>18}{'old':>18}{'seconds':>9}", flush=True)
    more = FineTuneOptions.model_validate_json(given.settings).model_dump(exclude_unset=True)
    for name in given.taught:
        lesson = LESSONS[name]
        before = lesson.scores(pipe, given.per_task)
        for seed in given.seeds:
            options = FineTuneOptions.model_validate({**more, **lesson.settings, "seed": seed})
            folder = given.out / f"{name}_{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            path, seconds = train(pipe, base, lesson.things, options, folder)
            pipe.load_lora(path)
            after = lesson.scores(pipe, given.per_task)
            pipe.unload_loras()
            changes = "".join(f"{a:>9.3f} -> {b:.3f}" for a, b in zip(before, after, strict=True))
            print(f"{name:<12}{seed:>6}{changes}{seconds:>9}", flush=True)


if __name__ == "__main__":
    main()
