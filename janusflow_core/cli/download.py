"""janusflow download: the official weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .options import progress, status


@dataclass(frozen=True, kw_only=True)
class Download:
    """Get JanusFlow-1.3B and the VAE that it needs from the Hugging Face hub; the same command goes on after a stop."""

    only: Literal["model", "vae"] | None = None
    """Get one of the two; by default both."""
    models: Path | None = None
    """ComfyUI's folder of models; by default that of the ComfyUI that is found, else ./models."""
    accept_licenses: bool = False
    """Accept the licences without being asked, for scripts."""

    def run(self) -> int:
        """Show the licences, ask, download, verify; the status is 0, or 1 where the answer is no."""
        from ..host.download import MODELS, check, download, listed, models_folder

        models = (self.models or models_folder()).expanduser().resolve()
        wanted = [MODELS[name] for name in MODELS if self.only in (None, name)]
        for model in wanted:
            print(f"{model.title}, {model.size}, to {models / model.folder}\n  {model.licence}")
        if not (self.accept_licenses or accepted()):
            return 1
        with status("asking the hub"):
            items = [item for model in wanted for item in listed(model, models)]
            check(items)
        with progress("downloading", unit="B") as show:
            download(items, show)
        print("everything is there and verified; " + next_step(models, self.only))
        return 0


def accepted() -> bool:
    """Ask for a yes; raises ValueError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise ValueError("nobody can be asked here: add --accept-licenses if you accept the licences above")
    return input("Download, and accept these licences? [y/N] ").strip().lower() in ("y", "yes")


def next_step(models: Path, only: str | None) -> str:
    """What to do with what came."""
    model, vae = models / "janusflow" / "JanusFlow-1.3B", models / "vae" / "sdxl_vae.safetensors"
    in_comfyui = "in ComfyUI press R and choose JanusFlow-1.3B, and sdxl_vae.safetensors as its vae, in Load JanusFlow"
    if only:
        return in_comfyui
    return f"{in_comfyui}; as one file: janusflow convert {model} {model}.safetensors --vae {vae}"
