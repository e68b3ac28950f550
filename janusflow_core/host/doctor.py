"""What keeps JanusFlow from working on this machine, and what to do about it; `janusflow doctor` prints it."""

from __future__ import annotations

import importlib
import math
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import __version__
from .find import installed_comfyui

if TYPE_CHECKING:
    import torch

    from ..checkpoint import Checkpoint

Level = Literal["ok", "note", "warning", "error"]
BUNDLED_MODEL = "janusflow-tiny"
NEEDED = ("tokenizers", "safetensors", "numpy", "pillow", "pydantic", "tqdm")
# Distribution -> what it is for.
OPTIONAL = {
    "diffusers": "pictures outside ComfyUI",
    "tyro": "the command line",
    "comfy-cli": "converting workflows",
    "websocket-client": "following a run in ComfyUI",
}
OLDEST_COMFYUI = (0, 30, 0)
# Activations, the VAE and torch itself beside the weights.
OVERHEAD = 1_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where nothing is to do."""

    level: Level
    what: str
    remedy: str = ""


def examine(model: str | None = None) -> list[Finding]:
    """Look at this installation, its hardware, the bundled model and `model`; downloads and changes nothing."""
    findings = [_python(), *_libraries()]
    try:
        import torch  # noqa: F401
    except Exception as error:  # a broken build raises whatever its libraries raise
        remedy = "install it as https://pytorch.org/get-started says"
        return [*findings, Finding("error", f"torch cannot be imported: {_reason(error)}", remedy), *_comfyui()]
    findings += [*_device(), *_torchvision(), *_diffusers()]
    for source in dict.fromkeys((BUNDLED_MODEL, model or BUNDLED_MODEL)):
        findings += _model(source)
    return [*findings, *_comfyui()]


def report(findings: list[Finding]) -> str:
    """The findings as text for an issue: home folders shown as ~."""
    lines = []
    for finding in findings:
        lines.append(f"[{finding.level}] {finding.what}")
        if finding.remedy:
            lines.append(f"    -> {finding.remedy}")
    return _without_home("\n".join(lines))


def _without_home(text: str) -> str:
    for home in {str(Path.home()), str(Path.home().resolve())} - {"/"}:
        # Not inside a longer name: /home/ann is no part of /home/anna.
        text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text, flags=re.IGNORECASE)
    return text


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _size(bytes_: float) -> str:
    return f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.0f} MB"


# --- what is installed ------------------------------------------------------------------------------------------


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


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _libraries() -> Iterator[Finding]:
    found = {name: _version(name) for name in (*NEEDED, *OPTIONAL, "transformers")}
    yield Finding("ok", ", ".join(f"{name} {version}" for name, version in found.items() if version))
    for name in NEEDED:
        if not found[name]:
            yield Finding("error", f"{name} is missing", f"pip install {name}")
    for name, use in OPTIONAL.items():
        if not found[name]:
            yield Finding("note", f"{name} is missing; it is for {use}", f"pip install {name}")


def _torchvision() -> Iterator[Finding]:
    import torch

    if not _version("torchvision"):
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # the mismatch shows as RuntimeError, OSError or AttributeError
        yield Finding(
            "warning",
            f"torchvision {_version('torchvision')} does not belong to torch {torch.__version__}, and "
            f"breaks transformers and diffusers: {_reason(error)}",
            "install both in one command, as https://pytorch.org/get-started says, or uninstall torchvision",
        )


def _diffusers() -> Iterator[Finding]:
    if not _version("diffusers"):
        return
    try:
        importlib.import_module("diffusers").AutoencoderKL  # noqa: B018 - diffusers imports it only here
    except Exception as error:  # it imports transformers, which fails in its own ways
        yield Finding(
            "warning",
            f"diffusers is installed but broken, so no pictures outside ComfyUI: {_reason(error)}",
            "pip install --upgrade diffusers transformers huggingface_hub",
        )


# --- what it runs on --------------------------------------------------------------------------------------------


def _device() -> Iterator[Finding]:
    import torch

    from ..device import best_device, best_dtype

    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    what = f"torch {torch.__version__} on {device.type} ({name}), computing in {_short(best_dtype(device))}"
    try:
        _multiply(device, best_dtype(device))
        yield Finding("ok", f"{what}; bf16 {_bf16_support(device)}")
    except RuntimeError as error:
        yield Finding(
            "error", f"{what} fails: {_reason(error)}", "install a torch build for this GPU, or use --device cpu"
        )
    if device.type == "cpu":
        yield _no_gpu()


def _no_gpu() -> Finding:
    if shutil.which("nvidia-smi"):
        return Finding(
            "warning",
            "there is an NVIDIA driver, but torch cannot use it",
            "install a CUDA build of torch, or update the driver: https://pytorch.org/get-started",
        )
    return Finding("note", "no GPU that torch can use; the bundled model is quick without, the official one is slow")


def _multiply(device: torch.device, dtype: torch.dtype) -> None:
    import torch

    ones = torch.ones(8, 8, device=device, dtype=dtype)
    assert float((ones @ ones).sum()) == 512.0


def _bf16_support(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return "works" if torch.cuda.is_bf16_supported(including_emulation=False) else "is emulated, so fp32 is as fast"
    try:
        _multiply(device, torch.bfloat16)
    except (RuntimeError, TypeError):
        return "does not work"
    return "works"


def _short(dtype: torch.dtype) -> str:
    return {"torch.bfloat16": "bf16", "torch.float32": "fp32", "torch.float16": "fp16"}[str(dtype)]


def _free_memory() -> int | None:
    """Bytes of RAM that a program can take now; None where nothing tells."""
    try:
        import psutil
    except ImportError:
        return None
    return psutil.virtual_memory().available


# --- models -----------------------------------------------------------------------------------------------------


def _model(source: str) -> Iterator[Finding]:
    from ..checkpoint import bundled_names, open_checkpoint, verified

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
            "check the path, or copy or convert the checkpoint again",
        )
        return
    yield from _usable_model(source, checkpoint, shapes.values())


def _usable_model(source: str, checkpoint: Checkpoint, shapes: Iterable[tuple[int, ...]]) -> Iterator[Finding]:
    from ..device import best_device, best_dtype

    parameters = sum(map(math.prod, shapes))
    device = best_device()
    need = parameters * best_dtype(device).itemsize
    yield Finding(
        "ok",
        f"model {source}: whole, {parameters / 1e6:,.1f} million weights, "
        f"{checkpoint.config.vision.image_size} pixels, {_size(need)} in memory",
    )
    if checkpoint.tokenizer is None or not checkpoint.has_flow:
        yield Finding("warning", f"model {source} is half of a JanusFlow only", "load a whole checkpoint")
    if checkpoint.vae_weights is None:
        yield Finding(
            "note",
            f"model {source} brings no VAE, so it draws nothing by itself",
            "give --vae, or put one in: janusflow convert SOURCE TARGET --vae PATH",
        )
    yield from _room(source, need, device)


def _room(source: str, need: int, device: torch.device) -> Iterator[Finding]:
    """Compare what the weights take with the memory and the disk that are free."""
    import torch

    free: dict[str, int | None] = {"memory": _free_memory(), "disk space in this folder": shutil.disk_usage(".").free}
    if device.type == "cuda":
        free["GPU memory"] = torch.cuda.mem_get_info(device)[0]
    for kind, there in free.items():
        wanted = need + OVERHEAD * ("memory" in kind)
        if there is not None and there < wanted:
            yield Finding(
                "warning",
                f"{_size(there)} of {kind} free, model {source} wants {_size(wanted)}",
                f"free some {kind}, or use a smaller model",
            )
    told = ", ".join(f"{kind} {_size(there)}" for kind, there in free.items() if there is not None)
    yield Finding("ok", f"free: {told}")


# --- ComfyUI ----------------------------------------------------------------------------------------------------


def _comfyui() -> Iterator[Finding]:
    try:
        folder = installed_comfyui()
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
    version = _comfyui_version(folder)
    what = f"ComfyUI {'.'.join(map(str, version)) or 'of unknown version'} in {folder}"
    if version and version < OLDEST_COMFYUI:
        yield Finding("warning", what, f"update ComfyUI to {'.'.join(map(str, OLDEST_COMFYUI))} or newer")
        return
    yield Finding("ok", what)


def _comfyui_version(folder: Path) -> tuple[Any, ...]:
    file = folder / "comfyui_version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r'__version__ = "(\d+)\.(\d+)\.(\d+)', text)
    return tuple(int(part) for part in found.groups()) if found else ()
