"""janusflow evaluate: what a checkpoint knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .loading import LoadOptions
from .options import progress

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Evaluate(LoadOptions):
    """Measure what a checkpoint knows of the bundled model's world: its pictures by a judge, its answers by heart."""

    world: Literal["shapes"]
    """shapes: the world that janusflow-tiny was trained on."""
    per_task: int = 25
    """Pictures of each task; their error bars shrink with the root of this."""
    scenes: int = 60
    """Renders to ask questions about."""
    steps: int | None = None
    """Steps from noise to picture; what suits the model by default."""
    guidance: float | None = None
    """How much the prompt outweighs no prompt; what suits the model by default."""
    seed: int = 0
    """Other seeds draw other prompts, noise and scenes."""
    held_out: bool = False
    """Draw only combinations of color and shape that training never showed."""

    def run(self) -> int:
        """Score and print a table; the status is 0."""
        for option, number in (("--per-task", self.per_task), ("--scenes", self.scenes)):
            if number < 1:
                raise ValueError(f"got {option} {number}, expected at least 1")
        from ..pipeline import JanusFlowPipeline
        from ..world.score import draw_tasks, overall, score_answers, score_pictures, score_round_trips

        with self.loading() as place:
            pipe = JanusFlowPipeline.from_pretrained(self.model, **place)

        def draw(prompts: Sequence[str], seed: int) -> Sequence[Image.Image]:
            return pipe.generate(prompts, steps=self.steps, guidance=self.guidance, seed=seed)

        def ask(pictures: Sequence[Image.Image], questions: Sequence[str]) -> Sequence[str]:
            turns = [pipe.tokenizer.question_messages(question, 1) for question in questions]
            return pipe.converse(turns, [[picture] for picture in pictures], max_new_tokens=24)

        with progress("pictures") as show:
            drawn = draw_tasks(draw, self.per_task, seed=self.seed, held_out=self.held_out, on_progress=show)
        with progress("there and back") as show:
            back = score_round_trips(drawn, ask, on_progress=show)
        with progress("answers") as show:
            told = score_answers(ask, self.scenes, seed=self.seed, on_progress=show)
        for title, scores in (("pictures", score_pictures(drawn)), ("there and back", back), ("answers", told)):
            print(f"{title:<20}{overall(scores):.3f}")
            for name, score in scores.items():
                print(f"  {name:<18}{score}")
        return 0
