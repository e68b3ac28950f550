"""What a PNG of `janusflow generate` remembers: how it was made, for whoever wants it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from .. import __version__
from ..values import Part, shown, validated

# In a PNG; ComfyUI takes what stands under `prompt`, `workflow` or `parameters` for its own.
ORIGIN_KEY, SWEEP_KEY = "janusflow", "janusflow_sweep"


class Origin(Part):
    """How one picture was made, by itself; files are named without their folders, because pictures get shared."""

    prompt: str
    negative_prompt: str | None = None
    seed: int = 0
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_start: float | None = None
    guidance_end: float | None = None
    guidance_rescale: float | None = None
    cfg_zero_star: bool | None = None
    solver: str | None = None
    shift: float | None = None
    variation_seed: int | None = None
    variation_strength: float | None = None
    init_image: str | None = None
    strength: float | None = None
    mask: str | None = None
    differential: bool | None = None
    model: str = "janusflow-tiny"
    lora: tuple[str, ...] = ()
    dtype: Literal["bf16", "fp32"] | None = None
    version: str = f"janusflow {__version__}"

    def chunks(self, key: str = ORIGIN_KEY, **beside: str) -> dict[str, str]:
        """The text chunks of a PNG that remembers this, and what is said beside it."""
        said = {name: value for name, value in self.model_dump().items() if value is not None and value != ()}
        return {key: json.dumps(said | beside, ensure_ascii=False)}

    @classmethod
    def of(cls, path: Path) -> Origin:
        """What the picture at `path` remembers.

        Raises ValueError for one that remembers nothing of this kind, and what opening it raises.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as picture:
                picture.load()  # text may stand behind the pixels
                (width, height), text = picture.size, dict(picture.info)
        except UnidentifiedImageError as error:
            raise ValueError(
                f"{shown(path)} is no picture that can be read: name a PNG of janusflow generate"
            ) from error
        if ORIGIN_KEY not in text:
            why = (
                "drop it on ComfyUI's canvas, where it was made"
                if "workflow" in text
                else "it was changed, or made elsewhere"
            )
            raise ValueError(f"{shown(path)} does not say how janusflow drew it: {why}")
        try:
            values = json.loads(text[ORIGIN_KEY])
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise ValueError(f"what {shown(path)} says of its making is damaged: name another picture")
        return validated(cls, {"width": width, "height": height, **values}, shown(path))
