"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

PARTIAL = ".partial-"  # how the name of a room begins; one that a killed process leaves is nobody's model
# What a disk says that is full or may not be written to.
REFUSED = {errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name to write a file or a folder to, which becomes `path` at the end; after an error nothing is left of it."""
    with room(path.parent) as inside:
        yield inside / "new"
        os.replace(inside / "new", path)


def appear(whole: Path, path: Path) -> None:
    """Give a file a name that nobody has, in one step; raises FileExistsError where somebody has it."""
    try:
        os.link(whole, path)
    except FileExistsError:
        raise
    except OSError:  # a disk without links: for a moment the name is there and the content is not
        path.touch(exist_ok=False)
        os.replace(whole, path)


@contextmanager
def room(folder: Path) -> Iterator[Path]:
    """A new folder of a name that nobody uses, inside `folder`, gone at the end with all that is still in it.

    Raises OSError with one sentence when the disk is full or refuses.
    """
    inside = None
    try:
        with refusal_told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            inside = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
            yield inside
    finally:
        if inside is not None:
            shutil.rmtree(inside, ignore_errors=True)


@contextmanager
def refusal_told(folder: Path) -> Iterator[None]:
    """Turns what a full disk, or one that refuses, raises inside into an OSError with one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) or error.errno in REFUSED:
            reason = f"nothing can be written to {folder} ({error}): free disk space or choose another folder"
            raise OSError(reason) from error
        raise
