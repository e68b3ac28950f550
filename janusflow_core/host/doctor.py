"""What keeps JanusFlow from working on this machine, and what to do about it; `janusflow doctor` and the node Doctor
print it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .find import nearest_comfyui
from .finding import Finding, reason, size
from .hardware import hardware, lack_of_room
from .packages import builds, packages
from .transfer import PARTIAL

if TYPE_CHECKING:
    import torch

    from ..checkpoint import Checkpoint

BUNDLED_MODEL = "janusflow-tiny"
OLDEST_COMFYUI = (0, 16, 3)  # as pyproject.toml says


def examine(
    model: str | None = None,
    comfyui: Path | None = None,
    folders: Sequence[Path] | None = None,
    device: torch.device | None = None,
) -> list[Finding]:
    """Look at this installation, its hardware, the bundled model, `model`, and what lies in ComfyUI's folders of
    JanusFlow models; downloads and changes nothing.

    `comfyui` is the one that this runs in; by default one is looked for, and its models/janusflow are the `folders`.
    """
    findings = list(packages(in_comfyui=comfyui is not None))
    try:
        import torch  # noqa: F401
    except Exception as error:  # a broken build raises whatever its libraries raise
        remedy = "install it as https://pytorch.org/get-started says"
        return [*findings, Finding("error", f"torch cannot be imported: {reason(error)}", remedy), *_comfyui(comfyui)]
    from ..device import best_device

    device = device or best_device()
    findings += [*hardware(device), *builds(), *_comfyui(comfyui)]
    looked_in = _model_folders(comfyui) if folders is None else folders
    found = [str(path) for folder in looked_in for path in _models_in(folder)]
    for source in dict.fromkeys((BUNDLED_MODEL, *([model] if model else ()), *found)):
        findings += _model(source, device)
    return [*findings, *(finding for folder in looked_in for finding in _folder(folder))]


def report(findings: list[Finding]) -> str:
    """The findings as text for an issue: home folders shown as ~."""
    lines = []
    for finding in findings:
        lines.append(f"[{finding.level}] {finding.what}")
        if finding.remedy:
            lines.append(f"    -> {finding.remedy}")
    return _without_home("\n".join(lines))


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing is broken."""
    return all(finding.level != "error" for finding in findings)


def _without_home(text: str) -> str:
    for home in {str(Path.home()), str(Path.home().resolve())} - {"/"}:
        # Not inside a longer name: /home/ann is no part of /home/anna.
        text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text, flags=re.IGNORECASE)
    return text


# --- models -----------------------------------------------------------------------------------------------------


def _model(source: str, device: torch.device) -> Iterator[Finding]:
    try:
        from ..checkpoint import bundled_names, open_checkpoint, verified
    except ImportError as error:
        yield Finding("error", f"no model can be examined: {reason(error)}", "install what is missing")
        return
    if source == BUNDLED_MODEL and source not in bundled_names():
        yield Finding(
            "error",
            f"{source}, the bundled model, is not in this installation",
            "install JanusFlow again; until then give --model",
        )
        return
    try:
        checkpoint = open_checkpoint(source)
        shapes = verified(checkpoint)
        checkpoint.read_vae()
    except (ValueError, OSError, KeyError) as error:
        yield Finding(
            "error",
            f"model {source}: {' '.join(str(error).split())}",
            "check the path, or copy, download or convert the checkpoint again",
        )
        return
    yield from _usable_model(source, checkpoint, shapes.values(), device)


def _usable_model(
    source: str, checkpoint: Checkpoint, shapes: Iterable[tuple[int, ...]], device: torch.device
) -> Iterator[Finding]:
    from ..device import best_dtype

    parameters = sum(map(math.prod, shapes))
    need = parameters * best_dtype(device).itemsize
    yield Finding(
        "ok",
        f"model {source}: whole, {parameters / 1e6:,.1f} million weights, "
        f"{checkpoint.config.vision.image_size} pixels, {size(need)} in memory",
    )
    if checkpoint.tokenizer is None or not checkpoint.has_flow:
        yield Finding("warning", f"model {source} is half of a JanusFlow only", "load a whole checkpoint")
    if checkpoint.vae_weights is None:
        yield Finding(
            "note",
            f"model {source} brings no VAE, so it draws nothing by itself",
            "choose an SDXL VAE in Load JanusFlow or with --vae, or put one in: janusflow convert OLD NEW --vae FILE",
        )
    yield from lack_of_room(source, need, device)


# --- ComfyUI ----------------------------------------------------------------------------------------------------


def _comfyui(running: Path | None) -> Iterator[Finding]:
    try:
        folder = running or nearest_comfyui()
    except FileNotFoundError as error:
        yield Finding("warning", str(error), "set COMFYUI_PATH to ComfyUI's folder, or unset it")
        return
    if folder is None:
        yield Finding(
            "note",
            "no ComfyUI found; the library and the command line do not need it",
            "set COMFYUI_PATH, or let `janusflow demo` download one",
        )
        return
    number = _comfyui_version(folder)
    what = f"ComfyUI {'.'.join(map(str, number)) or 'of unknown version'} in {folder}"
    if number and number < OLDEST_COMFYUI:
        yield Finding("warning", what, f"update ComfyUI to {'.'.join(map(str, OLDEST_COMFYUI))} or newer")
    else:
        yield Finding("ok", what)
    yield from _copies(folder)


def _comfyui_version(folder: Path) -> tuple[Any, ...]:
    file = folder / "comfyui_version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r'__version__ = "(\d+)\.(\d+)\.(\d+)', text)
    return tuple(int(part) for part in found.groups()) if found else ()


def _copies(folder: Path) -> Iterator[Finding]:
    """Two copies of this pack: ComfyUI takes the nodes of one, the menu and the workflows of the other."""
    described = sorted((folder / "custom_nodes").glob("*/pyproject.toml"))
    ours = [file.parent for file in described if 'name = "janusflow"' in file.read_text("utf-8", errors="replace")]
    if len(ours) > 1:
        names = ", ".join(path.name for path in ours)
        yield Finding("warning", f"custom_nodes holds this pack {len(ours)} times: {names}", "remove all but one")


def _model_folders(comfyui: Path | None) -> list[Path]:
    try:
        root = comfyui or nearest_comfyui()
    except FileNotFoundError:
        return []
    return [root / "models" / "janusflow"] if root else []


def _models_in(folder: Path) -> list[Path]:
    """The checkpoints that Load JanusFlow finds in such a folder: folders with a config.json, and files."""
    inside = [config.parent for config in folder.glob("*/config.json")]
    return sorted([*inside, *(file for file in folder.glob("*.safetensors") if file.is_file())])


def _folder(folder: Path) -> Iterator[Finding]:
    if not _models_in(folder):
        yield Finding(
            "note",
            f"no model in {folder}",
            "JanusFlow-1.3B and its VAE come with `python start.py download` in the pack's folder",
        )
    for left in sorted(folder.rglob(f"{PARTIAL}*")):
        taken = sum(file.stat().st_size for file in (left, *left.rglob("*")) if file.is_file())
        yield Finding(
            "note",
            f"{left} is what a stopped program left, {size(taken)}",
            "run the same download again, which goes on from there, or delete it",
        )
    if folder.exists() and not os.access(folder, os.W_OK):
        yield Finding("note", f"nothing may be written to {folder}", "give your user the right, for downloads to it")
