"""What the commands that draw share: how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Solver
from .loading import LoadOptions, dtype_name
from .origin import Origin

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..pipeline import JanusFlowPipeline

# What the pipeline takes by the same name, and what it is where the user says nothing.
DRAWING: dict[str, Any] = {
    "negative_prompt": None,
    "width": None,
    "height": None,
    "steps": None,
    "guidance": None,
    "guidance_start": 0.0,
    "guidance_end": 1.0,
    "guidance_rescale": 0.0,
    "cfg_zero_star": False,
    "solver": None,
    "shift": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class DrawOptions(LoadOptions):
    """How pictures are drawn."""

    negative_prompt: str | None = None
    """What to stay away from."""
    width: int | None = None
    """In pixels, a multiple of 16; the size the model was trained at by default."""
    height: int | None = None
    """In pixels, a multiple of 16; the size the model was trained at by default."""
    steps: int | None = None
    """Steps from noise to picture; what suits the model by default, 30 for the official one."""
    guidance: float | None = None
    """How much the prompt outweighs the negative prompt, 1 is none; what suits the model by default, 2 for the official
    one."""
    guidance_start: float | None = None
    """From when on there is guidance, between 0, noise and the default, and 1, the picture."""
    guidance_end: float | None = None
    """Until when; 1 by default. Steps without guidance take half the time."""
    guidance_rescale: float | None = None
    """How far the contrast that guidance adds is taken back, 0 to 1; 0 by default."""
    cfg_zero_star: bool = False
    """Scale the velocity without prompt to fit the one with it (CFG-Zero*)."""
    solver: Solver | None = None
    """heun takes twice the time of euler and needs fewer steps, ab2 and dpmpp_2m need fewer at no cost; what suits the
    model by default, euler for the official one."""
    shift: float | None = None
    """Above 1 more steps lie near the noise, below near the picture; 1 by default."""
    vae: Path | None = None
    """An SDXL VAE, a .safetensors file or a diffusers folder, where the model brings none."""
    compile: bool = False
    """Compile the steps first, up to a minute: pays for many pictures of one size."""

    def pipeline(self, **place: Any) -> JanusFlowPipeline:
        """The model, loaded; `place` has what was found out about it before."""
        from ..pipeline import JanusFlowPipeline

        with self.loading() as found:
            pipe = JanusFlowPipeline.from_pretrained(self.model, vae=self.vae, **{**found, **place})
        return pipe.compile() if self.compile else pipe

    def origin(self, prompt: str, seed: int, size: tuple[int, int], **told: Any) -> Origin:
        """How a picture (width, height) was made, by these settings and what else is told of it."""
        sides = dict(zip(("width", "height"), size, strict=True))
        own: dict[str, Any] = {name: getattr(self, name) for name in DRAWING} | sides
        loras, model = tuple(Path(text).name for text in self.lora), Path(self.model).name
        return Origin(**own | told, prompt=prompt, seed=seed, model=model, lora=loras, dtype=self.dtype)

    def settled(self, pipe: JanusFlowPipeline, settings: Mapping[str, Any] = DRAWING) -> Self:
        """The same with the checkpoint's own settings where it has some, and the usual ones, for what is open."""
        own = pipe.drawing.model_dump()
        values = {name: own.get(name, usual) for name, usual in settings.items() if getattr(self, name) is None}
        return replace(self, **values, dtype=dtype_name(pipe.dtype))
