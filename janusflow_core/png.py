"""PNG files that remember how they were made, written whole or not at all and never over another file."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .partial import appear, room


def save_new(folder: Path, stem: str, picture: Image.Image, text: Mapping[str, str]) -> Path:
    """Write a picture and its text chunks as `stem`_<first free number>.png; returns the path."""
    with room(folder) as inside:
        picture.save(inside / "new", format="PNG", pnginfo=info(text))
        return _place(inside / "new", folder, stem)


def info(text: Mapping[str, str]) -> PngInfo:
    """Text chunks as Pillow takes them."""
    chunks = PngInfo()
    for name, value in text.items():
        chunks.add_text(name, value)
    return chunks


def copy_new(folder: Path, stem: str, source: Path) -> Path:
    """Copy a file, byte for byte, as `stem`_<first free number>.png; returns the path."""
    with room(folder) as inside:
        shutil.copyfile(source, inside / "new")
        return _place(inside / "new", folder, stem)


def _place(whole: Path, folder: Path, stem: str) -> Path:
    for number in itertools.count():
        path = folder / f"{stem}_{number}.png"
        try:
            appear(whole, path)
        except FileExistsError:  # another process was faster: the next number
            continue
        return path
    raise AssertionError("unreachable")
