"""janusflow convert: one layout of a checkpoint to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .loading import torch_dtype
from .options import progress, runtime_errors_in_words


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Rewrite a checkpoint as one .safetensors file or as a folder in the official layout, and compare the two."""

    source: Annotated[str, tyro.conf.arg(metavar="SOURCE")]
    """A bundled name, a folder in the official layout or a .safetensors file."""
    target: Annotated[Path, tyro.conf.arg(metavar="TARGET")]
    """A name that ends in .safetensors makes a file, any other a folder; must not exist yet."""
    vae: Path | None = None
    """Put this VAE in: an SDXL VAE as a .safetensors file or a diffusers folder."""
    dtype: Literal["bf16", "fp32", "fp16"] | None = None
    """Convert the weights; by default they stay as they are."""
    quantize: Literal["fp8", "int8"] | None = None
    """Write the matrices of the layers in eight bits, as ComfyUI does: half the memory, a little less exact."""

    def run(self) -> int:
        """Convert; the status is 0."""
        if self.target.exists():
            raise FileExistsError(f"{self.target} exists already: choose another name or move it away")
        if self.target.suffix in (".bin", ".pt", ".pth", ".ckpt"):
            raise ValueError(f"got {self.target.name}, expected a name that ends in .safetensors, or a folder's name")
        from .. import autoencoder, convert

        own_vae = None if self.vae is None else autoencoder.load_vae_files(self.vae)
        with runtime_errors_in_words(), progress("converting") as show:
            convert.convert(self.source, self.target, torch_dtype(self.dtype), own_vae, show, self.quantize)
        files = (self.target, *self.target.rglob("*"))
        size = sum(file.stat().st_size for file in files if file.is_file())
        what = "the same" if self.quantize is None else f"the same but for the layers, which are in {self.quantize} now"
        print(f"wrote {self.target}, {size / 1e6:,.1f} MB, and read it back: the weights are {what}")
        return 0
