"""Where files lie: checkpoints, the bundled model first; folders of pictures; saved chats."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from ...janusflow_core.checkpoint import BUNDLED, bundled_names
from ...janusflow_core.image import SUFFIXES, files_below
from ...janusflow_core.lora import BUNDLED as BUNDLED_LORAS
from ...janusflow_core.partial import PARTIAL
from ...janusflow_core.values import read_text
from ...janusflow_core.weights import PICKLE_SUFFIXES, SAFE_SUFFIXES
from .compat import folder_paths

FOLDER = "janusflow"
SHARED_FOLDERS = ("checkpoints", "diffusion_models")
NO_CHAT = "none"


def register_folders() -> None:
    """Make models/janusflow known, beside whatever extra_model_paths.yaml adds under the same name, and the LoRA that
    ships with the pack."""
    default = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.add_model_folder_path(FOLDER, default, is_default=True)
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {*SAFE_SUFFIXES, *PICKLE_SUFFIXES})
    folder_paths.add_model_folder_path("loras", str(BUNDLED_LORAS))


def janusflow_folders() -> list[Path]:
    """models/janusflow, and whatever extra_model_paths.yaml adds to it."""
    return [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]


def checkpoint_names() -> list[str]:
    """What Load JanusFlow offers: bundled names first, then official folders, then single files."""
    files = [name for folder in (FOLDER, *SHARED_FOLDERS) for name in _files(folder)]
    return list(dict.fromkeys([*bundled_names(), *_official_folders(), *files]))


def checkpoint_path(name: str) -> Path:
    """The file or folder behind a name; raises FileNotFoundError with the places that were searched."""
    if name in bundled_names():
        return BUNDLED / f"{name}.safetensors"
    if name in (folders := _official_folders()):
        return folders[name]
    for folder in (FOLDER, *SHARED_FOLDERS):
        if name in _files(folder) and (path := folder_paths.get_full_path(folder, name)):
            return Path(path)
    official = (
        " JanusFlow-1.3B (4.1 GB, DeepSeek Model License) comes with `python start.py download` in this pack's folder, "
        "or by hand: all files of https://huggingface.co/deepseek-ai/JanusFlow-1.3B into "
        "models/janusflow/JanusFlow-1.3B."
    )
    raise FileNotFoundError(
        f"There is no checkpoint {name!r}: put it into models/janusflow, models/checkpoints or "
        f"models/diffusion_models and press R to refresh the list.{official if '1.3b' in name.lower() else ''}"
    )


def data_folders() -> list[str]:
    """Folders below ComfyUI's input folder, then below its output folder; those that hold pictures come first."""
    inputs, outputs = (
        _subfolders(root()) for root in (folder_paths.get_input_directory, folder_paths.get_output_directory)
    )
    named = {**inputs, **{f"{name} [output]": holds for name, holds in outputs.items()}}
    return sorted(named, key=lambda name: not named[name])


def _subfolders(root: str) -> dict[str, bool]:
    """Name of every folder below it -> whether a picture lies there or deeper, by name."""
    below = {Path(os.path.relpath(folder, root)): files for folder, _, files in os.walk(root)}
    holding = (folder for folder, files in below.items() if any(file.lower().endswith(SUFFIXES) for file in files))
    full = {place for folder in holding for place in (folder, *folder.parents)}
    shown = (folder for folder in below if folder.parts and not any(part.startswith(".") for part in folder.parts))
    return {folder.as_posix(): folder in full for folder in sorted(shown)}


def chat_files() -> list[str]:
    """JSON files in ComfyUI's input folder and below it, then in its output folder."""
    roots = {folder_paths.get_input_directory(): "", folder_paths.get_output_directory(): " [output]"}
    return [
        f"{path.relative_to(root).as_posix()}{mark}"
        for root, mark in roots.items()
        for path in files_below(Path(root), [".json"])
    ]


def read_chat(name: str) -> str:
    """What a file of `chat_files` holds; raises ValueError or OSError with one sentence."""
    if name == NO_CHAT:
        raise ValueError("Load Chat has nothing to load: choose a file, or connect JSON.")
    return read_text(data_path(name))


def chat_state(name: str) -> object:
    """What changes with such a file."""
    try:
        stat = data_path(name).stat()
    except (OSError, ValueError):
        return None  # must not raise; execute says what is missing
    return stat.st_mtime_ns, stat.st_size


def data_path(name: str) -> Path:
    """The file or folder that such a name means; raises ValueError where it leads out of input and output."""
    try:
        return Path(folder_paths.get_annotated_filepath(name))
    except ValueError as error:
        raise ValueError(f"{name!r} lies outside ComfyUI's input and output folders: move it into one.") from error


def folder_state(name: str) -> int:
    """A number that changes with the files in a folder; nothing is told about their names."""
    try:
        return files_state(data_path(name).rglob("*"))
    except (OSError, ValueError):
        return 0  # must not raise; execute says what is missing


def files_state(paths: Iterable[Path]) -> int:
    """A number that changes with these files, their names included; raises OSError for one that has just gone."""
    files = sorted((str(path), path.stat()) for path in paths if path.is_file())
    seen = "".join(f"{path}\0{stat.st_mtime_ns}\0{stat.st_size}\0" for path, stat in files)
    return zlib.crc32(seen.encode("utf-8", "surrogateescape"))


def _files(folder: str) -> list[str]:
    if folder not in folder_paths.folder_names_and_paths:
        return []
    names = folder_paths.get_filename_list(folder)
    # A weight file inside an official folder is offered as its folder.
    inside = tuple(f"{name}{os.sep}" for name in _official_folders()) if folder == FOLDER else ()
    names = [name for name in names if name.endswith(SAFE_SUFFIXES) and PARTIAL not in name]
    return [name for name in names if not (inside and name.startswith(inside))]


def _official_folders() -> dict[str, Path]:
    """Folders with a config.json in models/janusflow, by their path below it."""
    if FOLDER not in folder_paths.folder_names_and_paths:
        return {}
    configs = [(root, config) for root in janusflow_folders() for config in sorted(root.glob("*/config.json"))]
    return {str(config.parent.relative_to(root)): config.parent for root, config in reversed(configs)}
