"""The official model and the VAE that it needs, from the Hugging Face hub into ComfyUI's models. The standard library
only; nothing is asked of the network before `listed` is called."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .find import nearest_comfyui
from .transfer import RemoteFile, digest_of, fetch, fetch_json, partial_of, refusal_told, size_of

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Model:
    """What can be got, and what one should know before."""

    title: str
    repository: str
    size: str
    folder: str
    """Below ComfyUI's models."""
    files: str
    """A regular expression of their names."""
    licence: str


MODELS = {
    "model": Model(
        "JanusFlow-1.3B, by DeepSeek",
        "deepseek-ai/JanusFlow-1.3B",
        "4.1 GB",
        "janusflow/JanusFlow-1.3B",
        r"[\w-]+\.(json|safetensors|safetensors\.index\.json)|LICENSE[\w.-]*",
        "DeepSeek Model License (https://github.com/deepseek-ai/DeepSeek-LLM/blob/HEAD/LICENSE-MODEL): commercial use "
        "is allowed, use restrictions apply and must be passed on, also with fine-tuned weights; its code is under MIT",
    ),
    "vae": Model(
        "SDXL VAE, by Stability AI",
        "stabilityai/sdxl-vae",
        "335 MB",
        "vae",
        r"sdxl_vae\.safetensors",
        "MIT, as its page says (https://huggingface.co/stabilityai/sdxl-vae)",
    ),
}


@dataclass(frozen=True)
class Item:
    """A file of a model and where it goes."""

    file: RemoteFile
    target: Path

    @property
    def missing(self) -> int:
        """Bytes still to come."""
        return 0 if self.target.exists() else self.file.size - size_of(partial_of(self.file, self.target))


def models_folder() -> Path:
    """ComfyUI's models: of the ComfyUI that this pack is installed in, else of one that is found, else ./models."""
    return (nearest_comfyui() or Path.cwd()) / "models"


def listed(model: Model, models: Path) -> list[Item]:
    """The files of a model as the hub lists them now; raises OSError with one sentence."""
    revision = fetch_json(f"{endpoint()}/api/models/{model.repository}?blobs=true", token())
    try:
        commit, siblings = revision["sha"], revision["siblings"]
        files = {one["rfilename"]: one for one in siblings if re.fullmatch(model.files, one["rfilename"])}
        items = [_item(model, commit, name, one, models) for name, one in files.items()]
    except (KeyError, TypeError) as error:
        raise OSError(f"{endpoint()} does not list {model.repository} as the hub does: is it a mirror?") from error
    if not any(item.target.suffix == ".safetensors" for item in items):
        raise OSError(f"{endpoint()} lists no weights in {model.repository}: is it a mirror that is not complete?")
    # A folder counts as a model as soon as it has a config.json.
    return sorted(items, key=lambda item: item.target.name == "config.json")


def _item(model: Model, commit: str, name: str, entry: dict[str, Any], models: Path) -> Item:
    digest = (entry.get("lfs") or {}).get("sha256") or entry["blobId"]
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
        raise TypeError(f"got the digest {digest!r}")
    url = f"{endpoint()}/{model.repository}/resolve/{quote(str(commit), safe='')}/{name}"
    return Item(RemoteFile(url, int(entry["size"]), digest), models / model.folder / name)


def check(items: Iterable[Item]) -> None:
    """Raises FileExistsError if other files have these names, OSError if they do not fit the disk."""
    items = list(items)
    for item in items:
        if item.target.exists() and not _is_there(item):
            raise FileExistsError(
                f"{item.target} is there already and is not the official file: move it away, or choose another folder"
            )
    folder = next(path for path in items[0].target.parents if path.exists())
    wanted, free = sum(item.missing for item in items), shutil.disk_usage(folder).free
    if wanted > free:
        raise OSError(f"{folder} has {free / 1e9:.1f} GB free, {wanted / 1e9:.1f} GB are needed: free disk space")


def download(items: list[Item], show: Callable[[int, int], None]) -> None:
    """Get what is missing; `show` gets how many bytes of all are there. Raises OSError with one sentence."""
    total, before = sum(item.file.size for item in items), 0
    for item in items:
        if not item.target.exists():
            fetch(item.file, item.target, token(), lambda there, before=before: show(before + there, total))
        before += item.file.size
        show(before, total)


def _is_there(item: Item) -> bool:
    with refusal_told(item.target.parent):
        return size_of(item.target) == item.file.size and digest_of(item.target, item.file.digest) == item.file.digest


def endpoint() -> str:
    """The hub, or the mirror that HF_ENDPOINT names; raises ValueError where it is none or HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
        raise ValueError("HF_HUB_OFFLINE is set, which forbids downloads: unset it, or copy the files by hand")
    url = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    if not re.match(r"https?://[^/]", url):
        raise ValueError(f"HF_ENDPOINT is {url!r}, expected a URL like {HUB}")
    return url


def token() -> str | None:
    """What HF_TOKEN says, if anything."""
    return (os.environ.get("HF_TOKEN") or "").strip() or None
