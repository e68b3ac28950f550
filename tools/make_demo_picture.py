"""Makes docs/demo.png, the README's picture: python -m tools.make_demo_picture

Prompts, the pictures that the embedded model draws of them, and its own descriptions of those pictures, as they come.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from janusflow_core import JanusFlowPipeline

OUT = Path(__file__).resolve().parents[1] / "docs" / "demo.png"
PROMPTS = ("a purple heart", "a green star", "a yellow triangle", "two blue squares")
SEED = 1  # of the first
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
    ImageDraw.Draw(card).text(place, words, "black", ImageFont.load_default(20), anchor="mm")


if __name__ == "__main__":
    main()
