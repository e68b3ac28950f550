"""The archive that the registry gives to users: what is in it, and that it works unpacked in a ComfyUI of its own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from graphs import Graph

from janusflow_core.host.find import find_comfyui
from janusflow_core.host.server import Server
from janusflow_core.world.talk import tells

CHECKOUT = Path(__file__).resolve().parents[2]
# Folder -> the kinds of files in it, those of folders below included.
WANTED = {
    "": {".py", ".md", ".toml", ""},
    "docs": {".md", ".png", ".jpg"},
    "janusflow_core": {".py", ".safetensors", ".typed", ".yaml"},
    "locales": {".json"},
    "nodes": {".py"},
    "subgraphs": {".json"},
    "web": {".md", ".jpg", ".js"},
    "workflows": {".json", ".jpg"},
}
LARGEST = 20_000_000  # bytes


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """What `comfy node pack` makes of what is committed or would be."""
    pytest.importorskip("comfy_cli", reason="comfy-cli packs the archive")
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    home, tree = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("tree") / "pack"
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, listed):
        if (CHECKOUT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, tree / name)
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    env = {**os.environ, **nowhere, "HOME": str(home), "USERPROFILE": str(home), "DO_NOT_TRACK": "1"}
    for command in (["git", "init", "-q"], ["git", "add", "-A"]):
        subprocess.run(command, cwd=tree, env=env, check=True)
    pack = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", "pack"]
    subprocess.run(pack, cwd=tree, env=env, check=True, capture_output=True, timeout=120)
    (made,) = tree.glob("*.zip")
    return made


def test_the_archive_holds_what_a_user_needs_and_nothing_else(archive):
    names = [Path(name) for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")]
    kinds: dict[str, set[str]] = {}
    for name in names:
        kinds.setdefault(name.parts[0] if len(name.parts) > 1 else "", set()).add(name.suffix)
    assert kinds == WANTED
    top = {str(name) for name in names if len(name.parts) == 1}
    assert top == {
        "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "README.zh.md", "SECURITY.md", "__init__.py",
        "pyproject.toml", "start.py",
    }  # fmt: skip
    assert archive.stat().st_size < LARGEST


def test_the_archive_works_unpacked_into_a_fresh_comfyui(archive, tmp_path):
    zipfile.ZipFile(archive).extractall(tmp_path / "unpacked")
    with Server(find_comfyui(), pack=tmp_path / "unpacked", pack_name="janusflow", link=False) as server:
        assert {name for name in server.object_info() if name.startswith("JanusFlow")} >= {"JanusFlowLoader"}
        graph = Graph()
        loaded = graph.load(vae="from checkpoint")
        drawn = graph.flow(loaded, graph.encode(loaded, "a purple heart"), steps=0, cfg=-1.0, sampler="auto")
        picture = graph.add("JanusFlowVAEDecode", samples=drawn, vae=loaded[2], longest_side=0)
        (said,) = graph.texts(server, graph.describe(loaded[1], picture))
    assert tells(said[0], "a purple heart")
