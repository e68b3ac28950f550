"""start.py as people run it, with Pythons and networks that lack something."""

import subprocess
import sys
from pathlib import Path

import pytest
from hub import Hub, serving

ROOT = Path(__file__).parents[1]
VAE = {"stabilityai/sdxl-vae": {"sdxl_vae.safetensors": bytes(2000)}}


def start(*given: str, python: tuple = (sys.executable,), **env: str) -> subprocess.CompletedProcess:
    """start.py in an environment that has PATH and what is given."""
    return subprocess.run(
        [*python, str(ROOT / "start.py"), *given],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("python", [(sys.executable,), (sys.executable, "-S", "-s")], ids=["with tqdm", "bare"])
def test_the_weights_come_with_any_python_and_nothing_is_installed(tmp_path, python):
    with serving(Hub(VAE)) as hub:
        env = {"HF_ENDPOINT": hub.url, "JANUSFLOW_VENV": str(tmp_path / "venv")}
        given = ["download", "--only", "vae", "--models", str(tmp_path / "models")]
        asked = start(*given, python=python, **env)
        assert asked.returncode == 1 and asked.stderr == (
            "start.py: nobody can be asked here: add --accept-licenses if you accept the licences above\n"
        )
        done = start(*given, "--accept-licenses", python=python, **env)
    assert (done.returncode, "verified" in done.stdout) == (0, True), done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["models", "vae", "sdxl_vae.safetensors"]
