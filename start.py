"""From a bare Python to JanusFlow: `python3 start.py demo`, or `python3 start.py test [pytest arguments]`.

Everything is installed into .venv (or JANUSFLOW_VENV) and found again the next time. JANUSFLOW_TORCH replaces
pip's arguments for torch ("" leaves torch as it is), COMFYUI_PATH names a ComfyUI that is already here.

`python3 start.py download` gets the official weights and installs nothing: any Python does it, ComfyUI's too.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("JANUSFLOW_VENV") or ROOT / ".venv").expanduser().resolve()
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "janusflow-installed.json"
TORCH = os.environ.get("JANUSFLOW_TORCH", "torch==2.12.1 torchvision==0.27.1 torchaudio==2.11.0")
RUNS = {"demo": ["janusflow_core.cli", "demo"], "test": ["pytest"]}
ALL = {"test": ["-n", "2", "--dist", "worksteal"]}  # arguments where none are given: all tests, in two processes


def stage(name: str, command: list) -> str:
    """Runs one step and returns its output; a failure shows the end of what it wrote and ends the script."""
    print(f"{name:<34}", end="", flush=True)
    begun = time.monotonic()
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - begun
    if done.returncode != 0:
        print(f"failed after {seconds:.0f} s")
        sys.exit("\n".join((done.stdout + done.stderr).rstrip().splitlines()[-20:]))
    print(f"{seconds:6.0f} s")
    return done.stdout


def installed() -> dict:
    """What earlier runs installed: stage name -> hash of what was asked for; empty if there is no record."""
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def install(name: str, arguments: list, *described_in: Path) -> None:
    """pip install, unless the same arguments and the same files that they lead to were installed before."""
    asked = hashlib.sha256("\0".join(arguments).encode())
    for file in described_in:
        asked.update(file.read_bytes())
    if installed().get(name) == asked.hexdigest():
        return
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    stage(f"install {name}", [*pip, *arguments])
    STAMP.write_text(json.dumps({**installed(), name: asked.hexdigest()}), encoding="utf-8")


def prepare(run: str) -> Path:
    """Makes the environment that `run` needs and returns ComfyUI's folder."""
    # An own .venv without a record may be half made; a venv of the user's is only ever added to.
    if not PYTHON.exists() or not (STAMP.exists() or os.environ.get("JANUSFLOW_VENV")):
        stage("create the environment", [sys.executable, "-m", "venv", VENV])
        STAMP.write_text("{}", encoding="utf-8")
    # By path and isolated (-I): the package around the file needs what is not installed yet.
    found = stage("find ComfyUI", [PYTHON, "-I", ROOT / "janusflow_core" / "host" / "find.py"])
    comfyui = Path(found.strip().splitlines()[-1])
    if TORCH.strip():
        install("torch", TORCH.split())
    requirements = comfyui / "requirements.txt"
    install("ComfyUI's requirements", ["-r", str(requirements)], requirements)
    install(f"JanusFlow for {run}", ["-e", f".[{run}]"], ROOT / "pyproject.toml")
    return comfyui


def arguments(run: str, given: list) -> list:
    """What Python is to run: the given arguments, or those for all of it."""
    return ["-m", *RUNS[run], *(given or ALL.get(run, []))]


def download(given: list) -> int:
    """What `janusflow download` does, which needs the standard library only; its command line needs more."""
    from janusflow_core.cli.download import Download

    parser = argparse.ArgumentParser("start.py download", description=Download.__doc__)
    parser.add_argument("--only", choices=["model", "vae"], help="get one of the two; by default both")
    parser.add_argument("--models", type=Path, help="ComfyUI's folder of models")
    parser.add_argument("--accept-licenses", action="store_true", help="do not ask, for scripts")
    try:
        return Download(**vars(parser.parse_args(given))).run()
    except (OSError, ValueError) as error:
        sys.exit(f"start.py: {error}")
    except KeyboardInterrupt:
        sys.exit("start.py: stopped; the same command goes on")


def main() -> None:
    """Prepares the environment, then becomes the demo or the tests."""
    if sys.version_info < (3, 10):  # noqa: UP036 - whatever python3 is, it gets a sentence
        sys.exit(f"got Python {sys.version.split()[0]}, expected 3.10 or newer")
    if sys.argv[1:2] == ["download"]:
        sys.exit(download(sys.argv[2:]))
    if len(sys.argv) < 2 or sys.argv[1] not in RUNS:
        sys.exit(__doc__)
    run, rest = sys.argv[1], sys.argv[2:]
    if not installed():
        print("The first time this downloads about 3 GB and takes some minutes.")
    env = {**os.environ, "COMFYUI_PATH": str(prepare(run))}
    command = [str(PYTHON), *arguments(run, rest)]
    os.chdir(ROOT)
    if os.name == "nt":  # where exec gives the prompt back before the program ends
        sys.exit(subprocess.call(command, env=env))
    os.execve(command[0], command, env)


if __name__ == "__main__":
    main()
