"""What the doctor finds, one thing each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Literal

Level = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where nothing is to do."""

    level: Level
    what: str
    remedy: str = ""


def reason(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def size(bytes_: float) -> str:
    """Bytes as people say them."""
    return f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.0f} MB"


def version(distribution: str) -> str | None:
    """The version of an installed distribution, None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
