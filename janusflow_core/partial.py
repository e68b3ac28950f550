"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

PARTIAL = ".partial-"  # how the name of a room begins; one that a killed process leaves is nobody's model


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name to write a file or a folder to, which becomes `path` at the end; after an error nothing is left of it.

    Raises OSError with one sentence when the disk is full or refuses.
    """
    with room(path.parent) as inside:
        try:
            yield inside / "new"
            os.replace(inside / "new", path)
        except (OSError, SafetensorError) as error:
            raise OSError(f"{path} cannot be written ({error}): free disk space or choose another folder") from error


@contextmanager
def room(folder: Path) -> Iterator[Path]:
    """A new folder of a name that nobody uses, inside `folder`, gone at the end with all that is still in it."""
    folder.mkdir(parents=True, exist_ok=True)
    inside = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        yield inside
    finally:
        shutil.rmtree(inside, ignore_errors=True)
