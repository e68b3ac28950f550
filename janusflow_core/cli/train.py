"""janusflow train: a model from nothing."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model from nothing, or further."""

    recipe: Literal["tiny"]
    """tiny: the bundled model, on all CPU cores or a GPU."""
    out: Path = Path("runs/tiny")
    """Folder for what each stage leaves; the same command goes on where a stopped one was."""
    minutes: float = 100.0
    """How long to train, all stages together; 1 tries every stage, to no use."""
    start: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Go on from this checkpoint of the bundled model's shape, its VAE kept, instead of from nothing."""

    def run(self) -> int:
        """Train and print the path of the checkpoint; the status is 0."""
        if self.minutes <= 0:
            raise ValueError(f"got --minutes {self.minutes:g}, expected a positive number")
        from ..world.recipe import train

        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
        print(train(self.out, self.minutes, self.start))
        return 0
