"""What the commands that train share: what is seen of their steps, and how these are stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from ..train.loop import Stage


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a row."""
    from PIL import Image

    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        row.paste(picture, (number * width, 0))
    return row


@contextmanager
def steps_shown(
    stage: Stage, steps: int, each: int, unit: str, log: Path, silent: bool = False
) -> Iterator[tuple[Callable[[Mapping[str, float]], None], Callable[[str], None]]]:
    """A bar with loss, speed and time left, and a line of `log` a step, unless it is `silent`.

    Yields what to tell the mean terms of each step, of `each` many units, and what writes a further line.
    """
    from tqdm import tqdm

    titles = {"desc": "training", "unit": "step", "total": steps, "initial": stage.step}
    written = Path(os.devnull) if silent else log
    with tqdm(**titles, disable=silent or None) as bar, written.open("a", encoding="utf-8") as file:

        def tell(means: Mapping[str, float]) -> None:
            told = {name: round(mean, 5) for name, mean in means.items()}
            print(json.dumps({"step": stage.step, "seconds": round(stage.seconds, 2), **told}), file=file)
            losses = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
            rate = (bar.format_dict["rate"] or 0.0) * each
            bar.set_postfix_str(f"{losses}, {rate:.1f} {unit}/s", refresh=False)
            bar.update()

        yield tell, partial(print, file=file, flush=True)


@contextmanager
def between_steps() -> Iterator[Callable[[], bool]]:
    """Holds Ctrl-C back: what it yields says whether it was pressed, so that no step is cut in two.

    A second one acts at once.
    """
    pressed: list[int] = []

    def press(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        pressed.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
