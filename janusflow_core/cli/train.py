"""janusflow train: a model from nothing."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model from nothing."""

    recipe: Literal["tiny"]
    """tiny: the bundled model, about two hours on two cores."""
    out: Path = Path("runs/tiny")
    """Folder for what each stage leaves; a stage that is done is not run again."""
    scale: float = 1.0
    """Part of the full training; 0.001 runs every stage in a minute, to no use."""

    def run(self) -> int:
        """Train; the status is 0."""
        from ..world.recipe import train

        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
        train(self.out, self.scale)
        return 0
