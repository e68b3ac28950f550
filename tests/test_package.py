"""The library as it is installed elsewhere: a wheel holds every wing and the bundled model, and draws with them."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "janusflow_core"


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # From a copy: a build in the checkout would take along what an earlier one left there.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(CORE, source / CORE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", out, source)
    return next(out.glob("*.whl"))


def test_a_wheel_holds_every_file_of_the_library(wheel: Path):
    kinds = (".py", ".typed", ".safetensors", ".yaml")
    wanted = {path.relative_to(ROOT).as_posix() for path in CORE.rglob("*") if path.name.endswith(kinds)}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert held == wanted


def test_an_installed_wheel_draws(wheel: Path, tmp_path: Path):
    pip("install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel)
    # Before the environment's own paths, which hold the checkout.
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout

    where = run("-c", "import janusflow_core.cli; print(janusflow_core.cli.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path / "site")
    listed = run(
        "-c", "import janusflow_core, sys; print('JanusFlowPipeline' in dir(janusflow_core), 'torch' in sys.modules)"
    )
    assert listed.split() == ["True", "False"]
    drawn = run("-m", "janusflow_core.cli", "generate", "a heart", "--steps", "1", "--device", "cpu")
    with Image.open(tmp_path / drawn.strip()) as picture:
        assert picture.size == (96, 96)
