"""janusflow train RECIPE: the paper's stages, or whatever else a recipe says, on one process or on many."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import make_folder, one_line
from .steps import between_steps, side_by_side, steps_shown

if TYPE_CHECKING:
    from ..train.loop import OnStep
    from ..train.recipe import Recipe
    from ..train.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class ByRecipe:
    """Train by a recipe, a .yaml file or one of stage1, stage2, stage3; prints the last checkpoint's folder.

    `accelerate launch -m janusflow_core.cli train RECIPE` does the same with as many processes as it is told.
    """

    recipe: str
    """A .yaml file, or stage1, stage2, stage3: those of the paper."""
    out: Path = Path("runs/train")
    """Folder for checkpoints, log and samples; the same command goes on where a stopped one was."""
    start: str = ""
    """The checkpoint to begin with, instead of the recipe's: a bundled name, a folder or a file."""
    vae: str = ""
    """An SDXL VAE, where the checkpoint brings none."""
    data: tuple[Path, ...] = ()
    """What is learnt from, instead of the recipe's: folders of captioned pictures, .jsonl, .tar, folders of tars."""
    seed: int | None = None
    """Instead of the recipe's."""

    def run(self) -> int:
        """Train; the status is 0, or 130 after Ctrl-C, with a checkpoint of that step written."""
        from ..train.recipe import read_recipe

        recipe = self._changed(read_recipe(self.recipe))
        from ..train.machine import rank
        from ..train.optimizer import Diverged
        from ..train.trainer import Trainer, steps_in

        quiet = not sys.stderr.isatty()
        logging.basicConfig(level=logging.INFO if quiet else logging.WARNING, format="%(asctime)s %(message)s")
        trainer = Trainer(recipe, self.out)
        make_folder(self.out)
        first = rank() == 0
        try:
            with between_steps() as stopped, self._shown(trainer, first) as on_step:
                trainer.run(on_step, stopped)
        except Diverged as error:
            raise ValueError(f"{error} in {self.out}: lower learning_rate, or look at the data") from error
        finally:
            if trainer.problems.counts:
                print(f"janusflow: left out {one_line(str(trainer.problems))}", file=sys.stderr)
        if first:
            print(steps_in(self.out)[-1])
        return 0

    def _changed(self, recipe: Recipe) -> Recipe:
        from ..train.recipe import DataSet

        told: dict[str, Any] = {"start": self.start, "vae": self.vae}
        told["data"] = tuple(DataSet(path=str(path)) for path in self.data)
        said = {key: value for key, value in told.items() if value}
        return recipe.model_copy(update={**said, **({} if self.seed is None else {"seed": self.seed})})

    @contextmanager
    def _shown(self, trainer: Trainer, first: bool) -> Iterator[OnStep]:
        """What hears of every step: a bar, the log, and samples, all of the first process."""
        stage, recipe, log = trainer.stage, trainer.recipe, self.out / "log.jsonl"
        with steps_shown(stage, recipe.steps, recipe.batch, "samples", log, silent=not first) as (tell, write):

            def on_step(part: float, means: Mapping[str, float]) -> None:
                tell(means)
                if recipe.samples.every and stage.step % recipe.samples.every == 0:
                    self._sample(trainer, write, first)

            yield on_step

    def _sample(self, trainer: Trainer, write: Callable[[str], None], first: bool) -> None:
        from ..image import open_image
        from ..png import save_new

        pictures, answers = trainer.look(open_image)
        if not first:
            return
        told: dict[str, Any] = {"step": trainer.stage.step}
        if pictures:
            row, name = side_by_side(pictures), f"step_{trainer.stage.step:07d}"
            told |= {"prompts": trainer.recipe.samples.prompts, "picture": save_new(self.out, name, row, {}).name}
        if answers:
            told |= {"pictures": trainer.recipe.samples.pictures, "answers": answers}
        if len(told) > 1:
            write(json.dumps(told, ensure_ascii=False))
