"""Draws the icon and the banner of the registry with janusflow-tiny: python -m tools.make_icon"""

from pathlib import Path

from PIL import Image

from janusflow_core.pipeline import JanusFlowPipeline

DOCS = Path(__file__).resolve().parents[1] / "docs"
ICON = {"a red heart": 34, "a blue star": 13, "a yellow circle": 8, "a green triangle": 22}  # and seeds of large ones
BANNER = """
    a red heart; two blue stars; a green triangle; a cyan circle; three red squares; a purple cross; a star;
    a black cross; a yellow circle above a blue square; two hearts; an orange star; a green square;
    a red circle left of a blue square; a purple heart;
    three orange circles; a blue triangle; a yellow star; two green crosses; a purple circle and a red star;
    a cyan square; a yellow heart
"""
SEED = 5  # of the banner's first picture


def main() -> None:
    """Write docs/icon.png, 400 pixels square, and docs/banner.jpg, 21 to 9."""
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny")
    drawn = [pipe.generate(prompt, seed=seed)[0] for prompt, seed in ICON.items()]
    mosaic(drawn, 2, 200).save(DOCS / "icon.png", optimize=True)
    prompts = [" ".join(prompt.split()) for prompt in BANNER.split(";")]
    mosaic(pipe.generate(prompts, seed=SEED), 7, 180).save(DOCS / "banner.jpg", quality=85)


def mosaic(pictures: list[Image.Image], columns: int, side: int) -> Image.Image:
    """Pictures in rows of so many, each of a side in pixels."""
    whole = Image.new("RGB", (side * columns, side * (len(pictures) // columns)))
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        whole.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (side * column, side * row))
    return whole


if __name__ == "__main__":
    main()
