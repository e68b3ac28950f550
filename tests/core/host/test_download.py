"""janusflow download from a hub of our own that drops, refuses, lies, redirects and stalls."""

import builtins
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import golden
import pytest
from hub import COMMIT, Hub, serving

from janusflow_core.checkpoint import open_checkpoint
from janusflow_core.cli import main
from janusflow_core.host import transfer
from janusflow_core.host.download import MODELS, models_folder

OFFICIAL, VAE = MODELS["model"].repository, MODELS["vae"].repository
NOBODYS = {"README.md", "pytorch_model.bin", "images/x.png", "../out.json"}
LARGE = bytes(range(256)) * 800  # of which no two stretches of 256 bytes that begin differently are the same


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """A tiny model in the official layout, and beside it what nobody needs."""
    folder = golden.write_folder(tmp_path_factory.mktemp("hub") / "model", golden.pipeline())
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**whole, **dict.fromkeys(NOBODYS, b"nobody needs it")}


@pytest.fixture
def hub(files, monkeypatch):
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    slept: list[float] = []
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=slept.append))
    with serving(Hub({OFFICIAL: files, VAE: {"sdxl_vae.safetensors": LARGE, "model.ckpt": b"pickle"}})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
        hub.slept = slept
        yield hub


def download(models: Path, *given: str) -> int:
    return main(["download", "--models", str(models), "--accept-licenses", *given])


def vae(models: Path) -> Path:
    return models / "vae" / "sdxl_vae.safetensors"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_both_come_whole_into_the_folders_where_the_loader_looks(hub, tmp_path, files, capsys):
    assert download(tmp_path) == 0
    folder = tmp_path / "janusflow" / "JanusFlow-1.3B"
    assert vae(tmp_path).read_bytes() == LARGE and left(tmp_path / "vae") == ["sdxl_vae.safetensors"]
    assert left(folder) == sorted(files.keys() - NOBODYS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()}.items() <= files.items()
    assert open_checkpoint(folder).has_flow
    told = capsys.readouterr().out
    assert "DeepSeek Model License" in told and "MIT" in told and "verified" in told and str(folder) in told
    names = [path.rpartition("/")[2] for path in hub.paths() if f"resolve/{COMMIT}" in path]
    assert names.index("config.json") > names.index("model.safetensors")  # which makes the folder a model


def test_a_second_run_gets_nothing_again(hub, tmp_path):
    assert download(tmp_path) == 0
    hub.asked.clear()
    assert download(tmp_path) == 0
    assert all(path.startswith("/api/") for path in hub.paths())


@pytest.mark.parametrize("only", ["model", "vae"])
def test_one_of_the_two(hub, tmp_path, only):
    assert download(tmp_path, "--only", only) == 0
    assert left(tmp_path) == [{"model": "janusflow", "vae": "vae"}[only]]


@pytest.mark.parametrize("chunked", [False, True])
def test_dropped_connections_are_taken_up_where_they_ended(hub, tmp_path, chunked):
    hub.chunked, hub.drop_after = chunked, [10**6, 5000, 70_000, 0, 30_000]  # the list comes whole
    assert download(tmp_path, "--only", "vae") == 0
    assert vae(tmp_path).read_bytes() == LARGE
    begins = [asked.get("Range") for path, asked in hub.asked if "resolve" in path]
    assert begins[:3] == [None, "bytes=5000-", "bytes=75000-"] and begins[3] == begins[2] and len(begins) == 5


def test_a_list_that_is_cut_is_asked_for_again(hub, tmp_path):
    hub.drop_after = [20]
    assert download(tmp_path, "--only", "vae") == 0
    assert hub.paths()[0] == hub.paths()[1] and len(hub.asked) == 3


def test_a_silent_server_is_given_up_and_asked_again(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "SILENCE", 2.0)
    hub.stall_after = [10**6, 5000]
    assert download(tmp_path, "--only", "vae") == 0
    assert vae(tmp_path).read_bytes() == LARGE and hub.asked[-1][1]["Range"] == "bytes=5000-" and hub.slept == [0.5]
    hub.over.set()


def test_a_server_without_ranges_begins_anew(hub, tmp_path):
    hub.ranges, hub.drop_after = False, [10**6, 5000, 3000]
    assert download(tmp_path, "--only", "vae") == 0
    assert vae(tmp_path).read_bytes() == LARGE


def test_a_server_that_gives_another_range_is_not_believed(hub, tmp_path, capsys):
    hub.wrong_range, hub.drop_after = 100, [10**6, 5000]
    assert download(tmp_path, "--only", "vae") == 2
    assert "asked for the bytes from 5000, got those from 5100" in capsys.readouterr().err
    hub.wrong_range = 0
    assert download(tmp_path, "--only", "vae") == 0
    assert vae(tmp_path).read_bytes() == LARGE


def test_a_server_that_never_gets_further_is_given_up_with_growing_patience(hub, tmp_path, capsys):
    hub.ranges, hub.drop_after = False, [10**6] + 50 * [5000]
    assert download(tmp_path, "--only", "vae") == 2
    said = capsys.readouterr().err
    assert "5 tries" in said and "HF_ENDPOINT" in said and "kept" in said and said.count("\n") == 1
    assert hub.slept == [0.5, 1.0, 2.0, 4.0, 8.0]  # the first brought bytes
    hub.ranges, hub.drop_after = True, []
    assert download(tmp_path, "--only", "vae") == 0
    assert hub.asked[-1][1]["Range"] == "bytes=5000-"


def test_a_busy_server_is_waited_for_as_it_asks(hub, tmp_path):
    hub.states, hub.retry_after = [429, 503], "7"
    assert download(tmp_path, "--only", "vae") == 0
    assert hub.slept == [7.0, 7.0]


@pytest.mark.parametrize("state", [401, 403, 404, 418])
def test_what_will_not_pass_ends_at_once(hub, tmp_path, capsys, state):
    hub.states = [state]
    assert download(tmp_path) == 2
    said = capsys.readouterr().err
    assert f"answers {state}" in said and ("HF_TOKEN" in said) == (state in (401, 403)) and len(hub.asked) == 1


@pytest.mark.parametrize("lie", [-1000, 1000])
def test_another_size_than_announced_is_refused_before_it_comes(hub, tmp_path, capsys, lie):
    hub.lie = lie
    assert download(tmp_path, "--only", "vae") == 2
    said = capsys.readouterr().err
    assert f"{len(LARGE) + lie:,} bytes" in said and f"expected {len(LARGE):,}" in said and not vae(tmp_path).exists()


@pytest.mark.parametrize("only", ["model", "vae"])  # sha1 as git counts it for small files, else sha256
def test_changed_bytes_are_found_and_dropped(hub, tmp_path, capsys, only):
    hub.change = b"?"
    assert download(tmp_path, "--only", only) == 2
    assert "digest" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    hub.change = b""
    assert download(tmp_path, "--only", only) == 0


def test_the_token_goes_to_the_hub_and_not_where_it_sends_us(hub, tmp_path, monkeypatch):
    hub.token = "hf_secret"
    with serving(Hub(hub.repositories)) as store:
        hub.store = store.url
        assert download(tmp_path) == 2  # without
        monkeypatch.setenv("HF_TOKEN", " hf_secret\n")
        assert download(tmp_path) == 0
        assert store.asked and all("Authorization" not in headers for _, headers in store.asked)
    assert vae(tmp_path).read_bytes() == LARGE


def test_a_proxy_is_honoured(hub, tmp_path, monkeypatch):
    with serving(Hub({})) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
        monkeypatch.delenv("no_proxy", raising=False)
        proxy.states = [404]
        assert download(tmp_path) == 2
    assert proxy.paths() == [f"http://hub.invalid/api/models/{OFFICIAL}?blobs=true"]


@pytest.mark.parametrize(
    "listing", [b"<html>", b"[]", b'{"sha": "x"}', b'{"sha": "x", "siblings": []}', b"[" * 100_000]
)
def test_a_mirror_that_is_none_is_told(hub, tmp_path, capsys, listing):
    hub.listing = listing
    assert download(tmp_path) == 2
    assert "mirror" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_an_unreachable_hub_is_told(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert download(tmp_path) == 2
    said = capsys.readouterr().err
    assert "127.0.0.1:9 cannot be reached" in said and "proxy" in said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("HF_ENDPOINT", "ftp://x", "HF_ENDPOINT is 'ftp://x'"), ("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE is set")],
)
def test_an_environment_that_forbids_it_is_told(hub, tmp_path, monkeypatch, capsys, name, value, said):
    monkeypatch.setenv(name, value)
    assert download(tmp_path) == 2
    assert said in capsys.readouterr().err and not hub.asked


def test_a_file_of_ones_own_is_never_written_over(hub, tmp_path, capsys):
    vae(tmp_path).parent.mkdir()
    vae(tmp_path).write_bytes(b"mine")
    assert download(tmp_path) == 2
    assert "move it away" in capsys.readouterr().err and vae(tmp_path).read_bytes() == b"mine"
    assert left(tmp_path) == ["vae"]


def test_a_disk_that_is_too_small_is_told_before_anything_comes(hub, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 100))
    assert download(tmp_path) == 2
    assert "GB are needed" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
def test_a_disk_that_fills_up_is_told(hub, tmp_path, capsys, monkeypatch):
    opened = builtins.open
    monkeypatch.setattr(
        transfer, "open", lambda path, mode: opened("/dev/full" if mode == "r+b" else path, mode), raising=False
    )
    monkeypatch.setattr(os, "ftruncate", lambda *given: None, raising=False)
    assert download(tmp_path, "--only", "vae") == 2
    assert "nothing can be written" in capsys.readouterr().err and len(hub.asked) == 2


def test_nothing_is_asked_of_the_network_before_the_answer_is_yes(hub, tmp_path, monkeypatch, capsys):
    assert main(["download", "--models", str(tmp_path)]) == 2  # where nobody can be asked
    assert "--accept-licenses" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    for answer in ("", "no", "maybe"):
        monkeypatch.setattr(builtins, "input", lambda question, answer=answer: answer)
        assert main(["download", "--models", str(tmp_path)]) == 1
    assert not hub.asked and not list(tmp_path.iterdir())
    monkeypatch.setattr(builtins, "input", lambda question: "y")
    assert main(["download", "--models", str(tmp_path), "--only", "vae"]) == 0


def test_ctrl_c_keeps_what_came(hub, tmp_path, monkeypatch):
    opened = urllib.request.OpenerDirector.open

    def stop_at_the_second(self, request, *given, **named):
        if len(hub.asked) == 2:
            raise KeyboardInterrupt
        return opened(self, request, *given, **named)

    hub.drop_after = [10**6, 5000]
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", stop_at_the_second)
    assert download(tmp_path, "--only", "vae") == 130
    assert [path.stat().st_size for path in (tmp_path / "vae").iterdir()] == [5000] and not vae(tmp_path).exists()


def test_the_models_of_the_comfyui_that_is_found(monkeypatch, tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert models_folder() == tmp_path.resolve() / "models"
    pack = tmp_path / "custom_nodes" / "janusflow"
    monkeypatch.setattr("janusflow_core.host.find._PACK", pack)
    monkeypatch.delenv("COMFYUI_PATH")
    assert models_folder() == tmp_path / "models"


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_killed_download_leaves_a_part_that_the_next_run_takes_up(hub, tmp_path):
    hub.stall_after = [10**6, 50_000]
    command = [sys.executable, "-m", "janusflow_core.cli", "download", "--models", str(tmp_path), "--accept-licenses"]
    run = subprocess.Popen([*command, "--only", "vae"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (parts := list(tmp_path.glob("vae/*"))) or parts[0].stat().st_size < 50_000:
        assert run.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    run.kill()
    run.wait()
    hub.over.set()
    assert not vae(tmp_path).exists()
    assert download(tmp_path, "--only", "vae") == 0
    assert vae(tmp_path).read_bytes() == LARGE and hub.asked[-1][1]["Range"] == "bytes=50000-"
    assert left(tmp_path / "vae") == ["sdxl_vae.safetensors"]
