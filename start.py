"""From a bare Python to JanusFlow: `python3 start.py demo`, or `python3 start.py test [pytest arguments]`.

Everything is installed into .venv (or JANUSFLOW_VENV) and found again the next time. JANUSFLOW_TORCH replaces
pip's arguments for torch ("" leaves torch as it is), COMFYUI_PATH names a ComfyUI that is already here.

`python3 start.py download` gets the official weights, `python3 start.py doctor` looks for what keeps JanusFlow from
working. Both install nothing: any Python runs them, and ComfyUI's tells most. A Python without torch leaves the
doctor's work to the environment that the demo made.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("JANUSFLOW_VENV") or ROOT / ".venv").expanduser().resolve()
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "janusflow-installed.json"
TORCH = os.environ.get("JANUSFLOW_TORCH", "torch==2.12.1 torchvision==0.27.1 torchaudio==2.11.0")
RUNS = {"demo": ["janusflow_core.cli", "demo"], "test": ["pytest"]}
SPACE = 8e9  # bytes of the environment: most is torch's build for CUDA, others take less
ALL = {"test": ["-n", "2", "--dist", "worksteal"]}  # arguments where none are given: all tests, in two processes


# What the output of pip or venv holds when it fails -> what to do; all is kept, and the same command goes on.
REMEDIES = {
    r"No space left on device|Disk quota exceeded|Errno 28": "the disk is full: free some space",
    r"ensurepip is not|No module named '?(ensurepip|venv)": "this Python cannot make environments: on Debian and "
    "Ubuntu install python3-venv, elsewhere a Python from python.org",
    r"No module named '?pip\b": "the environment has no pip: {python} -m ensurepip",
    r"ProxyError|407 Proxy": "the proxy refuses: look at HTTPS_PROXY",
    r"SSLError|CERTIFICATE_VERIFY_FAILED": "the index's certificate is not trusted: name your network's in PIP_CERT",
    r"ConnectionError|Connection(Refused|Reset|Aborted)|Timeout|timed out|name resolution|getaddrinfo|IncompleteRead|"
    r"Network is unreachable|RemoteDisconnected": "the package index cannot be reached, or went silent: look at the "
    "network, HTTPS_PROXY and PIP_INDEX_URL",
    r"No matching distribution found|Could not find a version|requires a different Python": "the package index has no "
    "such package for Python {version}: take one from 3.10 to 3.13, or look at PIP_INDEX_URL",
    r"Permission denied|Errno 13|Read-only file system": "nothing may be written to {venv}: set JANUSFLOW_VENV to a "
    "folder of yours",
}


def stage(name: str, command: list) -> str:
    """Runs one step and returns its output; a failure ends the script with what to do, or the end of what it wrote."""
    print(f"{name:<34}", end="", flush=True)
    again = f"\r{name:<34}" if sys.stdout.isatty() else ""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        run = subprocess.Popen([str(part) for part in command], cwd=str(ROOT), stdout=log, stderr=subprocess.STDOUT)
        try:
            while run.poll() is None:
                time.sleep(0.2)
                print(f"{again}{time.monotonic() - begun:6.0f} s" if again else "", end="", flush=True)
        finally:
            run.kill()  # which it survives where it has ended
            run.wait()
        log.seek(0)
        output = log.read()
    print(f"{again}{'failed after' if run.returncode else ''}{time.monotonic() - begun:6.0f} s")
    if run.returncode != 0:
        sys.exit(explained(output))
    return output


def explained(output: str) -> str:
    """What to do about a step's failure, if that is known, else the end of its output."""
    end = output.rstrip().splitlines()[-20:]
    for sign, remedy in REMEDIES.items():
        for line in end:
            if re.search(sign, line):
                known = remedy.format(python=PYTHON, version=sys.version.split()[0], venv=VENV)
                return f"start.py: {known}; then the same command goes on from here. It said:\n{line.strip()}"
    return "\n".join(end)


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
    record({**installed(), name: asked.hexdigest()})


def record(stages: dict) -> None:
    """Writes down what is installed, whole or not at all."""
    new = STAMP.with_suffix(".new")
    new.write_text(json.dumps(stages), encoding="utf-8")
    os.replace(str(new), str(STAMP))


def prepare(run: str) -> Path:
    """Makes the environment that `run` needs and returns ComfyUI's folder."""
    # An own .venv without a record may be half made; a venv of the user's is only ever added to.
    if not PYTHON.exists() or not (STAMP.exists() or os.environ.get("JANUSFLOW_VENV")):
        check_disk()
        stage("create the environment", [sys.executable, "-m", "venv", VENV])
        record({})
    # By path and isolated (-I): the package around the file needs what is not installed yet.
    found = stage("find ComfyUI", [PYTHON, "-I", ROOT / "janusflow_core" / "host" / "find.py"])
    comfyui = Path(found.strip().splitlines()[-1])
    if TORCH.strip():
        install("torch", TORCH.split())
    requirements = comfyui / "requirements.txt"
    install("ComfyUI's requirements", ["-r", str(requirements)], requirements)
    install(f"JanusFlow for {run}", ["-e", f".[{run}]"], ROOT / "pyproject.toml")
    return comfyui


def check_disk() -> None:
    """Ends the script where the environment cannot fit."""
    folder = next(path for path in VENV.parents if path.exists())
    free, wanted = shutil.disk_usage(str(folder)).free, SPACE if "JANUSFLOW_TORCH" not in os.environ else SPACE / 4
    if free < wanted:
        sys.exit(
            f"start.py: {folder} has {free / 1e9:.1f} GB free, about {wanted / 1e9:.0f} GB are needed: free some "
            "space, or set JANUSFLOW_VENV to a folder on another disk"
        )


def arguments(run: str, given: list) -> list:
    """What Python is to run: the given arguments, or those for all of it."""
    return ["-m", *RUNS[run], *(given or ALL.get(run, []))]


def command(name: str, given: list) -> int:
    """`janusflow download` or `janusflow doctor` in this Python, which may lack all that their command line needs."""
    from janusflow_core.cli.doctor import Doctor
    from janusflow_core.cli.download import Download

    kind = {"download": Download, "doctor": Doctor}[name]
    parser = argparse.ArgumentParser(f"start.py {name}", description=kind.__doc__)
    if kind is Doctor:
        parser.add_argument("--model", help="examine this checkpoint too")
    else:
        parser.add_argument("--only", choices=["model", "vae"], help="get one of the two; by default both")
        parser.add_argument("--models", type=Path, help="ComfyUI's folder of models")
        parser.add_argument("--accept-licenses", action="store_true", help="do not ask, for scripts")
    try:
        return kind(**vars(parser.parse_args(given))).run()
    except (OSError, ValueError) as error:
        sys.exit(f"start.py: {error}")


def main() -> None:
    """Prepares the environment, then becomes the demo or the tests."""
    if sys.version_info < (3, 10):  # noqa: UP036 - whatever python3 is, it gets a sentence
        sys.exit(f"start.py: got Python {sys.version.split()[0]}, expected 3.10 or newer: run it with another Python")
    elsewhere = installed() and Path(sys.prefix).resolve() != VENV
    if sys.argv[1:2] == ["doctor"] and elsewhere and importlib.util.find_spec("torch") is None:
        sys.exit(subprocess.call([str(PYTHON), *sys.argv]))
    if sys.argv[1:2] in (["download"], ["doctor"]):
        sys.exit(command(sys.argv[1], sys.argv[2:]))
    if len(sys.argv) < 2 or sys.argv[1] not in RUNS:
        sys.exit(__doc__)
    run, rest = sys.argv[1], sys.argv[2:]
    if not installed():
        print("The first time this downloads about 3 GB and takes some minutes.")
    env = {**os.environ, "COMFYUI_PATH": str(prepare(run))}
    words = [str(PYTHON), *arguments(run, rest)]
    os.chdir(ROOT)
    if os.name == "nt":  # where exec gives the prompt back before the program ends
        sys.exit(subprocess.call(words, env=env))
    os.execve(words[0], words, env)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nstart.py: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
