"""Makes docs/lora.png: python -m tools.make_lora_picture

The same prompts and the same noise without and with the LoRA that ships with the pack, and what is said of the second.
"""

from PIL import Image

from janusflow_core import JanusFlowPipeline
from janusflow_core.world.talk import phrase

from .make_crescents import CRESCENTS
from .make_demo_picture import GAP, OUT, SIDE, STRIP, write

LORA = "janusflow-tiny-crescent"
THINGS = CRESCENTS[::2]
SEED = 24  # of the first


def main() -> None:
    """Draw, describe and lay out one column for each prompt."""
    pipe, prompts = JanusFlowPipeline.from_pretrained("janusflow-tiny"), [phrase(*thing) for thing in THINGS]
    before = pipe.generate(prompts, seed=SEED)
    pipe.load_lora(LORA)
    after = pipe.generate(prompts, seed=SEED)
    height = 2 * SIDE + GAP + 2 * STRIP
    card = Image.new("RGB", (len(prompts) * (SIDE + GAP) + GAP, height), "white")
    for column, (prompt, *pair) in enumerate(zip(prompts, before, after, strict=True)):
        left = GAP + column * (SIDE + GAP)
        for row, picture in enumerate(pair):
            big = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            card.paste(big, (left, STRIP + row * (SIDE + GAP)))
        write(card, left, STRIP // 2, f"asked: {prompt}")
        write(card, left, height - STRIP // 2, f"seen: {pipe.describe(pair[1], max_new_tokens=24)}")
    card.save(OUT.with_name("lora.png"))


if __name__ == "__main__":
    main()
