"""Makes docs/demo.png, the README's picture: python -m tools.make_demo_picture

Prompts, the pictures that the embedded model draws of them, and its own descriptions of those pictures, as they come.
"""

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from janusflow_core import JanusFlowPipeline

OUT = Path(__file__).resolve().parents[1] / "docs" / "demo.png"
PROMPTS = ("a purple heart", "two green stars", "a red circle and a blue square", "a heart above a cross")
SEED = 0  # of the first
SIDE, STRIP, GAP = 240, 44, 16  # pixels: a picture, a line of words, the space between


def main() -> None:
    """Draw, describe and lay out one column for each prompt."""
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny")
    pictures = pipe.generate(PROMPTS, seed=SEED)
    height = SIDE + 2 * STRIP
    card = Image.new("RGB", (len(PROMPTS) * (SIDE + GAP) + GAP, height), "white")
    for column, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        left = GAP + column * (SIDE + GAP)
        card.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, STRIP))
        write(card, left, STRIP // 2, f"asked: {prompt}")
        write(card, left, height - STRIP // 2, f"seen: {pipe.describe(picture, max_new_tokens=24)}")
    OUT.parent.mkdir(exist_ok=True)
    card.save(OUT)


def write(card: Image.Image, left: int, middle: int, words: str) -> None:
    place = left + SIDE // 2, middle
    lines = textwrap.fill(words, 32)
    ImageDraw.Draw(card).multiline_text(place, lines, "black", ImageFont.load_default(16), anchor="mm", align="center")


if __name__ == "__main__":
    main()
