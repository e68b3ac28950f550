"""Twelve plain prompts, three seeds each, as one sheet: python -m tools.make_contact_sheet MODEL OUT.png

What the judge finds exactly right has a green frame, the rest a red one; the count is logged. No seed is chosen.
"""

import logging
import sys

from PIL import Image, ImageDraw

from janusflow_core import JanusFlowPipeline
from janusflow_core.world.judge import judge

PROMPTS = (
    "a red circle",
    "a heart",
    "a yellow star",
    "two green stars",
    "three purple hearts",
    "four crosses",
    "a red circle and a blue square",
    "a circle and a triangle",
    "a green heart and a black cross",
    "a red circle left of a blue square",
    "a blue square above a yellow heart",
    "a star right of a circle",
)
SEEDS = (0, 100, 200)
SIDE, STRIP = 100, 16  # pixels: a picture with its frame, the prompt above it

logger = logging.getLogger(__name__)


def main(model: str, out: str) -> None:
    """Draw all prompts with the checkpoint's own settings and write the sheet."""
    pipe, right = JanusFlowPipeline.from_pretrained(model), 0
    sheet = Image.new("RGB", (SIDE * len(PROMPTS), (SIDE + STRIP) * len(SEEDS)), "white")
    canvas = ImageDraw.Draw(sheet)
    for row, seed in enumerate(SEEDS):
        for column, (prompt, picture) in enumerate(zip(PROMPTS, pipe.generate(PROMPTS, seed=seed), strict=True)):
            x, y, fits = SIDE * column, (SIDE + STRIP) * row, judge(picture, prompt)
            canvas.text((x + 2, y + 2), prompt[:17], "black")
            sheet.paste(picture.resize((SIDE - 4, SIDE - 4)), (x + 2, y + STRIP + 2))
            frame = (x, y + STRIP, x + SIDE - 1, y + STRIP + SIDE - 1)
            canvas.rectangle(frame, outline="green" if fits else "red", width=2)
            right += fits
    sheet.save(out)
    logger.info("%d of %d exactly right", right, len(PROMPTS) * len(SEEDS))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(*sys.argv[1:3])
