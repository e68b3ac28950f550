"""start.py as people run it, with Pythons, disks and networks that lack something."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from hub import Hub, serving

ROOT = Path(__file__).parents[1]
VAE = {"stabilityai/sdxl-vae": {"sdxl_vae.safetensors": bytes(2000)}}
OLD = sorted(Path.home().glob(".pyenv/versions/3.[6-9].*/bin/python3"))


def start(*given: str, python: tuple = (sys.executable,), **env: str) -> subprocess.CompletedProcess:
    """start.py in an environment that has nothing but what is given."""
    command = [*map(str, python), str(ROOT / "start.py"), *given]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False
    )


@pytest.fixture
def env(tmp_path) -> dict[str, str]:
    """What keeps a run away from this machine's environment and network: a ComfyUI, and an index that nobody is at."""
    comfyui = tmp_path / "ComfyUI"
    (comfyui / "comfy").mkdir(parents=True)
    (comfyui / "main.py").touch()
    (comfyui / "requirements.txt").touch()
    return {
        "COMFYUI_PATH": str(comfyui),
        "HOME": str(tmp_path),
        "JANUSFLOW_TORCH": "",
        "JANUSFLOW_VENV": str(tmp_path / "a venv"),
        "PATH": os.defpath,
        "PIP_INDEX_URL": "http://127.0.0.1:9",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "1",
    }


@pytest.fixture
def module():
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    return start


@pytest.mark.skipif(not (Path(sys.prefix) / "janusflow-installed.json").exists(), reason="start.py did not make this")
def test_the_doctor_examines_what_the_demo_made_where_this_python_has_no_torch():
    done = start("doctor", python=(sys.executable, "-S", "-s"), JANUSFLOW_VENV=sys.prefix)
    assert "torch cannot be imported" not in done.stdout and "[ok] torch 2" in done.stdout


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


def test_without_a_network_one_sentence_and_the_next_run_goes_on(env):
    failed = start("demo", **env)
    assert failed.returncode == 1 and "JanusFlow for demo" in failed.stdout and "failed after" in failed.stdout
    assert "the package index cannot be reached" in failed.stderr and "HTTPS_PROXY" in failed.stderr
    assert "Traceback" not in failed.stderr and len(failed.stderr.splitlines()) == 2
    again = start("demo", **env)
    assert "create the environment" not in again.stdout and "ComfyUI's requirements" not in again.stdout
    assert again.stderr.splitlines()[0] == failed.stderr.splitlines()[0]


def test_a_package_that_is_not_there_for_this_python(env):
    with serving(Hub({})) as index:
        failed = start("demo", **env | {"PIP_INDEX_URL": index.url})
    assert "no such package for Python" in failed.stderr and "PIP_INDEX_URL" in failed.stderr


def test_without_venv_the_remedy_is_told(env, tmp_path):
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking" / "venv.py").write_text("raise ModuleNotFoundError(\"No module named 'venv'\")")
    failed = start("demo", **env | {"PYTHONPATH": str(tmp_path / "lacking")})
    assert failed.returncode == 1 and "python3-venv" in failed.stderr and "Traceback" not in failed.stderr
    assert "create the environment" in start("demo", **env).stdout  # once it is there


@pytest.mark.parametrize("python", OLD or [None], ids=lambda path: path and path.parts[-3])
def test_an_old_python_is_told(python, module, monkeypatch):
    if python is None:  # none on this machine
        monkeypatch.setattr(sys, "version_info", (3, 9, 18))
        with pytest.raises(SystemExit, match="expected 3.10 or newer"):
            module.main()
        return
    failed = start("demo", python=(python,))
    assert failed.returncode == 1 and failed.stderr.startswith("start.py: got Python 3.")
    assert failed.stderr.endswith("expected 3.10 or newer: run it with another Python\n")


def test_a_disk_that_is_too_small_is_told_first(module, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(8e9, 7e9, 1e9))
    monkeypatch.setattr(module, "VENV", tmp_path / "venv")
    monkeypatch.setattr(module, "PYTHON", tmp_path / "venv" / "bin" / "python")
    monkeypatch.delenv("JANUSFLOW_TORCH", raising=False)
    with pytest.raises(SystemExit, match="1.0 GB free, about 8 GB are needed"):
        module.prepare("demo")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_ctrl_c_says_one_sentence_and_the_next_run_goes_on(env):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        env["PIP_INDEX_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, str(ROOT / "start.py"), "demo"]
        run = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        silent.settimeout(60)
        connection, _ = silent.accept()
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        told = run.communicate(timeout=30)[1]
        connection.close()
    assert run.returncode == 130 and told == "\nstart.py: stopped; the same command goes on from here\n"
    env["PIP_INDEX_URL"] = "http://127.0.0.1:9"
    assert "create the environment" not in start("demo", **env).stdout


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("/x/bin/python: No module named pip", "-m ensurepip"),
        ("The virtual environment was not created because ensurepip is not available", "python3-venv"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate", "PIP_CERT"),
        ("ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407 Proxy", "HTTPS_PROXY"),
        ("ERROR: Could not find a version that satisfies the requirement torch==2.12.1 (from versions: none)", "3.13"),
        ("ReadTimeoutError(\"HTTPSConnectionPool(host='x', port=443): Read timed out.\")", "went silent"),
        ("Error: [Errno 13] Permission denied: '/x/.venv'", "JANUSFLOW_VENV"),
    ],
)
def test_what_pip_and_venv_say_has_a_remedy(module, said, remedy):
    told = module.explained(f"Collecting torch\n{said}\n")
    assert remedy in told and said in told and told.count("\n") == 1


def test_what_is_not_known_is_shown_as_it_ends(module):
    assert module.explained("".join(f"line {n}\n" for n in range(100))) == "\n".join(
        f"line {n}" for n in range(80, 100)
    )


def test_what_is_installed_is_asked_for_again_only_when_it_changes(module, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "STAMP", tmp_path / "stamp.json")
    asked = []
    monkeypatch.setattr(module, "stage", lambda name, command: asked.append(name))
    needs = tmp_path / "requirements.txt"
    needs.write_text("torch")
    for _ in range(2):
        module.install("torch", ["torch"], needs)
    needs.write_text("torch>=2")
    module.install("torch", ["torch"], needs)
    (tmp_path / "stamp.json").write_text('{"torch": "cut')  # as a full disk leaves it
    module.install("torch", ["torch"], needs)
    assert asked == 3 * ["install torch"]
