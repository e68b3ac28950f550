"""What is installed here, and whether it fits together."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from .. import __version__
from .finding import Finding, reason, version

NEEDED = ("tokenizers", "safetensors", "numpy", "pillow", "pydantic", "tqdm")
# Distribution -> what it is for.
OPTIONAL = {
    "diffusers": "pictures outside ComfyUI",
    "tyro": "the command line",
    "comfy-cli": "converting workflows",
    "websocket-client": "following a run in ComfyUI",
    "llguidance": "answers as JSON",
}
# Whose demands on each other other packs are known to break.
TOGETHER = ("torch", "torchvision", "torchaudio", "transformers", "tokenizers", "huggingface-hub", "diffusers", "numpy")


def packages(in_comfyui: bool) -> Iterator[Finding]:
    """Python and the libraries; outside ComfyUI also what library and command line can use besides."""
    yield _python()
    yield from _libraries({"llguidance": OPTIONAL["llguidance"]} if in_comfyui else OPTIONAL)
    yield from _demands()


def _python() -> Finding:
    what = f"janusflow {__version__}, Python {platform.python_version()}, {_system()} {platform.machine()}"
    if sys.version_info < (3, 10):  # noqa: UP036 - ComfyUI may bring any
        return Finding("error", what, "JanusFlow needs Python 3.10 or newer")
    return Finding("ok", what)


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # macOS, Windows, and Linux without that file
        return f"{platform.system()} {platform.release()}"


def _libraries(optional: dict[str, str]) -> Iterator[Finding]:
    found = {name: version(name) for name in (*NEEDED, *optional, "transformers")}
    if there := [f"{name} {number}" for name, number in found.items() if number]:
        yield Finding("ok", ", ".join(there))
    for name in NEEDED:
        if not found[name]:
            yield Finding("error", f"{name} is missing", f"pip install {name}")
    for name, use in optional.items():
        if not found[name]:
            yield Finding("note", f"{name} is missing; it is for {use}", f"pip install {name}")


def _demands() -> Iterator[Finding]:
    """What installing another pack breaks most often: one library in a version that another cannot use."""
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError:
        return
    for name in filter(version, TOGETHER):
        for demand in map(Requirement, metadata.requires(name) or ()):
            there = version(demand.name) if canonicalize_name(demand.name) in TOGETHER else None
            meant = demand.marker is None or demand.marker.evaluate({"extra": ""})
            if there and meant and not demand.specifier.contains(there, prereleases=True):
                yield Finding(
                    "warning",
                    f"{name} {version(name)} needs {demand.name}{demand.specifier}, but {there} is installed",
                    f'pip install "{demand.name}{demand.specifier}", or a newer {name}',
                )


def builds() -> Iterator[Finding]:
    """Libraries that are there and cannot be imported; torch can."""
    yield from _torchvision()
    yield from _diffusers()


def _torchvision() -> Iterator[Finding]:
    import torch

    if not version("torchvision"):
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # the mismatch shows as RuntimeError, OSError or AttributeError
        yield Finding(
            "warning",
            f"torchvision {version('torchvision')} does not belong to torch {torch.__version__}, and "
            f"breaks transformers and diffusers: {reason(error)}",
            "install both in one command, as https://pytorch.org/get-started says, or uninstall torchvision",
        )


def _diffusers() -> Iterator[Finding]:
    if not version("diffusers"):
        return
    try:
        importlib.import_module("diffusers").AutoencoderKL  # noqa: B018 - diffusers imports it only here
    except Exception as error:  # it imports transformers, which fails in its own ways
        yield Finding(
            "warning",
            f"diffusers is installed but broken, so no pictures outside ComfyUI: {reason(error)}",
            "pip install --upgrade diffusers transformers huggingface_hub",
        )
