"""Makes workflows/*.jpg, the pictures of ComfyUI's template browser: python -m tools.make_thumbnails [NAME ...]

Every workflow runs on a real server as it is saved. Its thumbnail shows the picture it draws or reads, two side by side
where it draws one anew, four where it chooses, and the words.
"""

import json
import logging
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from janusflow_core.host.find import find_comfyui
from janusflow_core.host.server import Server
from janusflow_core.host.workflow import convert_workflow, shown

CHECKOUT = Path(__file__).resolve().parents[1]
WORKFLOWS = CHECKOUT / "workflows"
HANDOFF = {"JanusFlow to SDXL": ("JanusFlow", "SDXL"), "JanusFlow from SDXL": ("SDXL", "JanusFlow")}
SIDE, STRIP, LETTER = 512, 96, 28  # pixels: the square, the words under the picture, their height

logger = logging.getLogger(__name__)


def main(names: list[str]) -> None:
    """Make the thumbnails of the named workflows, or of all."""
    names = names or sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    for name in (name for name in names if name in HANDOFF):
        steps(*HANDOFF[name]).save(WORKFLOWS / f"{name}.jpg", quality=90)
    names = [name for name in names if name not in HANDOFF]
    with Server(find_comfyui(), pack=CHECKOUT, pack_name="ComfyUI-JanusFlow") as server:
        for name in names:
            picture, words = run(server, WORKFLOWS / f"{name}.json")
            thumbnail(picture, words).save(WORKFLOWS / f"{name}.jpg", quality=90)
            logger.info("%s.jpg %s", name, words)


def run(server: Server, path: Path) -> tuple[Image.Image, str]:
    """Run one workflow; returns what it shows: a picture, or two in one, and words, or "" where it has none."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    api = convert_workflow(workflow, server.object_info())
    result = server.run(api, workflow)
    if result.status != "success":
        raise RuntimeError(f"{path.name}: {result.error or result.status}")
    words = [
        text for text in shown(api, result, ["PreviewAny"], "text") if not text.isdigit() and not text.startswith("{")
    ]
    most = max((output.get("images", []) for output in result.outputs.values()), key=len)
    several = most if len(most) > 1 else result.images  # of one node that shows a batch, else of all
    pictures = [Image.open(server.output_path(image)).convert("RGB") for image in several]
    picture = in_pairs(pictures) if len(pictures) in (2, 4) else pictures[0]
    return picture, words[0].splitlines()[0] if words else ""


def steps(first: str, second: str) -> Image.Image:
    """A drawing of two steps, for workflows whose models are not here to draw with: a frame as large as each draws."""
    card = Image.new("RGB", (SIDE, SIDE), "white")
    draw, side = ImageDraw.Draw(card), {"JanusFlow": 150, "SDXL": 400}
    for model, color in sorted(((first, "#3b6fd4"), (second, "#d4553b")), key=lambda one: -side[one[0]]):
        at = (SIDE - side[model]) // 2
        draw.rectangle((at, at, SIDE - at, SIDE - at), outline=color, width=6)
        draw.text((SIDE // 2, at - 6), model, color, ImageFont.load_default(LETTER), anchor="mb")
    words, font = f"{first}\nto\n{second}", ImageFont.load_default(24)
    draw.text((SIDE // 2, SIDE // 2), words, "black", font, anchor="mm", align="center")
    return card


def in_pairs(pictures: list[Image.Image]) -> Image.Image:
    """An even number of pictures of one size, two in a row, with gaps."""
    (width, height), gap = pictures[0].size, pictures[0].width // 12
    every = Image.new("RGB", (2 * width + gap, len(pictures) // 2 * (height + gap) - gap), "black")
    for number, picture in enumerate(pictures):
        every.paste(picture, (number % 2 * (width + gap), number // 2 * (height + gap)))
    return every


def thumbnail(picture: Image.Image, words: str) -> Image.Image:
    """A square of the picture, with a strip of words under it where there are any."""
    side = SIDE - STRIP if words else SIDE
    card = Image.new("RGB", (SIDE, SIDE), "white")
    card.paste(ImageOps.pad(picture, (side, side), Image.Resampling.LANCZOS, "white"), ((SIDE - side) // 2, 0))
    lines = "\n".join(textwrap.wrap(words, 2 * (SIDE - LETTER) // LETTER, max_lines=2))
    ImageDraw.Draw(card).text(
        (SIDE // 2, SIDE - STRIP // 2), lines, "black", ImageFont.load_default(LETTER), anchor="mm", align="center"
    )
    return card


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
