"""janusflow generate: prompts to pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .. import __version__
from .loading import LoadOptions
from .options import progress

if TYPE_CHECKING:
    from PIL import Image

    from ..drawing import DrawingConfig
    from ..pipeline import JanusFlowPipeline

ORIGIN_KEY = "janusflow"  # in a PNG; ComfyUI takes what stands under `prompt`, `workflow` or `parameters` for its own


@dataclass(frozen=True, kw_only=True)
class Generate(LoadOptions):
    """Draw pictures of prompts; prints the path of each PNG, which remembers how it was made."""

    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PROMPT...", help_behavior_hint="(required)")]
    """What to draw; several prompts are drawn together."""
    negative_prompt: str | None = None
    """What to stay away from."""
    out: Path = Path(".")
    """Folder for the pictures, janusflow_<its own seed>_<number>.png; nothing in it is overwritten."""
    num_images: int = 1
    """Pictures of each prompt."""
    width: int | None = None
    """In pixels, a multiple of 16; the size the model was trained at by default."""
    height: int | None = None
    """In pixels, a multiple of 16; the size the model was trained at by default."""
    steps: int | None = None
    """Steps from noise to picture; what suits the model by default, 30 for the official one."""
    guidance: float | None = None
    """How much the prompt outweighs the negative prompt, 1 is none; what suits the model by default, 2 for the official
    one."""
    solver: Literal["euler", "heun"] = "euler"
    """heun takes twice the time of euler and needs fewer steps."""
    seed: int = 0
    """The k-th picture is the same as the only picture of seed + k."""
    init_image: Path | None = None
    """Start from this picture instead of from noise alone."""
    strength: float = 1.0
    """How far --init-image is dissolved, above 0 and up to 1."""
    mask: Path | None = None
    """White where --init-image is painted anew, black where it stays."""
    vae: Path | None = None
    """An SDXL VAE, a .safetensors file or a diffusers folder, where the model brings none."""
    compile: bool = False
    """Compile the steps first, up to a minute: pays for many pictures of one size."""

    def run(self) -> int:
        """Draw and save; the status is 0."""
        if not self.prompt or not all(prompt.strip() for prompt in self.prompt):
            raise ValueError('got no prompt or an empty one, say what to draw: janusflow generate "a red circle"')
        if self.strength != 1.0 and self.init_image is None:
            raise ValueError("got --strength without --init-image, which it dissolves: name that picture too")
        self.out.mkdir(parents=True, exist_ok=True)
        from ..image import open_image
        from ..pipeline import JanusFlowPipeline
        from ..png import save_new

        start, mask = (path and open_image(path) for path in (self.init_image, self.mask))
        with self.loading() as place:
            pipe = JanusFlowPipeline.from_pretrained(self.model, vae=self.vae, **place)
        pipe = pipe.compile() if self.compile else pipe
        settled = self._settled(pipe.drawing)
        for row, picture in enumerate(settled._draw(pipe, start, mask)):
            name, origin = f"janusflow_{self.seed + row}", json.dumps(settled._origin(row), ensure_ascii=False)
            print(save_new(self.out, name, picture, {ORIGIN_KEY: origin}), flush=True)
        return 0

    def _settled(self, drawing: DrawingConfig) -> Generate:
        """The same command with the checkpoint's own steps and guidance where none were given."""
        steps = drawing.steps if self.steps is None else self.steps
        return replace(self, steps=steps, guidance=drawing.guidance if self.guidance is None else self.guidance)

    def _draw(
        self, pipe: JanusFlowPipeline, start: Image.Image | None, mask: Image.Image | None
    ) -> Sequence[Image.Image]:
        with progress("drawing") as show:
            return pipe.generate(
                self.prompt,
                negative_prompt=self.negative_prompt,
                width=self.width,
                height=self.height,
                num_images=self.num_images,
                steps=self.steps,
                guidance=self.guidance,
                solver=self.solver,
                seed=self.seed,
                init_image=start,
                strength=self.strength,
                mask=mask,
                on_step=lambda done, total, _: show(done, total),
            )

    def _origin(self, row: int) -> dict[str, Any]:
        """How picture `row` was made, by itself; paths are cut to names, because pictures get shared."""
        values = {
            "prompt": self.prompt[row // self.num_images],
            "negative_prompt": self.negative_prompt,
            "seed": self.seed + row,
            "steps": self.steps,
            "guidance": self.guidance,
            "solver": self.solver,
            "model": Path(self.model).name,
            "version": f"janusflow {__version__}",
        }
        if self.lora:
            values["lora"] = [Path(text).name for text in self.lora]
        if self.init_image is not None:
            values |= {"init_image": self.init_image.name, "strength": self.strength}
        if self.mask is not None:
            values["mask"] = self.mask.name
        return {name: value for name, value in values.items() if value is not None}
