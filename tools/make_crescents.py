"""Writes captioned pictures of a shape that janusflow-tiny has never seen: python -m tools.make_crescents FOLDER

Twenty crescents, each alone at some place in one of the eight colors, with a .txt beside each: what the README's
`janusflow train lora` learns from.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from janusflow_core.world.judge import detect
from janusflow_core.world.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, place, render
from janusflow_core.world.talk import phrase

Thing = tuple[str, str]  # color, shape
CRESCENTS: Sequence[Thing] = [(color, "crescent") for color in COLORS]


def pictures_of(things: Sequence[Thing], count: int, seed: int) -> Iterator[tuple[Thing, Image.Image]]:
    """Things in turn, each with a picture of it alone."""
    rng = random.Random(seed)
    for number in range(count):
        thing = things[number % len(things)]
        scene = Scene(rng.choice(BACKGROUNDS), place([thing], None, rng))
        yield thing, Image.fromarray(render(scene))


def things_in(picture: Image.Image) -> list[Thing]:
    """What the judge finds, crescents too."""
    return [(one.color, one.shape) for one in detect(picture, (*SHAPES, "crescent"))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for number, (thing, picture) in enumerate(pictures_of(CRESCENTS, given.count, given.seed)):
        path = given.folder / f"crescent_{number:02}.png"
        picture.save(path)
        path.with_suffix(".txt").write_text(phrase(*thing), encoding="utf-8")


if __name__ == "__main__":
    main()
