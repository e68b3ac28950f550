"""PNG files that remember how they were made, written whole or not at all and never over another file."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def save_new(folder: Path, stem: str, picture: Image.Image, text: Mapping[str, str]) -> Path:
    """Write a picture and its text chunks as `stem`_<first free number>.png; returns the path."""
    info = PngInfo()
    for name, value in text.items():
        info.add_text(name, value)
    partial = _partial(folder, stem)
    try:
        picture.save(partial, format="PNG", pnginfo=info)
        return _place(partial, folder, stem)
    finally:
        partial.unlink(missing_ok=True)


def copy_new(folder: Path, stem: str, source: Path) -> Path:
    """Copy a file, byte for byte, as `stem`_<first free number>.png; returns the path."""
    partial = _partial(folder, stem)
    try:
        shutil.copyfile(source, partial)
        return _place(partial, folder, stem)
    finally:
        partial.unlink(missing_ok=True)


def _partial(folder: Path, stem: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f".{stem}.{os.getpid()}.partial"


def _place(partial: Path, folder: Path, stem: str) -> Path:
    for number in itertools.count():
        path = folder / f"{stem}_{number}.png"
        try:
            path.touch(exist_ok=False)  # takes the name, so that another process takes the next number
        except FileExistsError:
            continue
        os.replace(partial, path)
        return path
    raise AssertionError("unreachable")
