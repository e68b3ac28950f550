"""The doctor on this machine: what it finds in whole and in broken checkpoints, and what it keeps to itself."""

import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import golden
import pytest
import torch
from safetensors.torch import load_file, save_file

from janusflow_core.checkpoint import bundled_names
from janusflow_core.cli import main
from janusflow_core.host.doctor import examine, healthy, report
from janusflow_core.host.finding import Finding

FOLDERS = tempfile.TemporaryDirectory()  # for as long as the tests run
TINY = golden.write_folder(Path(FOLDERS.name) / "tiny", golden.pipeline())


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def about(findings: list[Finding], word: str) -> list[Finding]:
    return [finding for finding in findings if word in finding.what]


def test_versions_device_and_a_whole_model_are_told():
    findings = examine(str(TINY))
    told = report(findings)
    assert torch.__version__ in told and f"Python {sys.version.split()[0]}" in told and "bf16" in told
    (whole,) = about(findings, f"{TINY}: whole")
    assert whole.level == "ok" and "1.2 million weights" in whole.what and "384 pixels" in whole.what
    assert "janusflow convert" in about(findings, "brings no VAE")[-1].remedy
    assert all(finding.remedy for finding in findings if finding.level in ("warning", "error"))


def test_the_bundled_model_is_examined_or_missed():
    (finding, *_) = about(examine(), "janusflow-tiny")
    assert finding.level == ("ok" if "janusflow-tiny" in bundled_names() else "error")


def test_a_wrong_shape_is_an_error_that_names_the_key(copy):
    weights = load_file(copy / "model.safetensors")
    weights["vision_gen_dec_aligner.weight"] = weights["vision_gen_dec_aligner.weight"][1:].clone()
    save_file(weights, copy / "model.safetensors")
    (finding,) = about(examine(str(copy)), "vision_gen_dec_aligner.weight")
    assert finding.level == "error" and "expected" in finding.what and finding.remedy


def test_a_disk_without_room_for_the_weights_is_a_warning(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    (finding,) = about(examine(), "wants")
    assert finding.level == "warning" and "1 MB of disk space" in finding.what and "janusflow-tiny" in finding.what


def test_a_cut_file_is_an_error(copy):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (finding,) = about(examine(str(copy)), "cut short")
    assert finding.level == "error"


def test_no_home_path_is_in_the_report(copy, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    monkeypatch.setenv("USERPROFILE", str(copy.parent))
    (copy / "config.json").unlink()
    shutil.copytree(copy, copy.parent / "second model")
    for model in (copy, copy.parent / "second model", copy.parent / "missing"):
        told = report(examine(str(model)))
        assert str(copy.parent) not in told and f"~/{model.name}" in told.replace("\\", "/")


def test_a_neighbours_folder_is_not_taken_for_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("USERPROFILE", "/home/ann")
    told = report([Finding("ok", "/home/anna/x /home/ann/y (/home/ann)")])
    assert told == "[ok] /home/anna/x ~/y (~)"


@pytest.mark.parametrize(("path", "level"), [("", "note"), ("{tmp}", "warning")])
def test_comfyui_is_looked_for_and_never_fetched(monkeypatch, tmp_path, path, level):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("JANUSFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COMFYUI_PATH", path.format(tmp=tmp_path))
    (finding,) = (finding for finding in examine() if "COMFYUI_PATH" in finding.remedy)
    assert finding.level == level and not (tmp_path / "cache").exists()


def test_an_old_comfyui_is_a_warning(monkeypatch, tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.9.2"\n')
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    (finding,) = about(examine(), "ComfyUI 0.9.2")
    declared = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    oldest = declared.partition('requires-comfyui = ">=')[2].partition('"')[0]
    assert finding.level == "warning" and f"update ComfyUI to {oldest} or newer" in finding.remedy


def test_a_torchvision_that_does_not_import_is_a_warning(monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (finding,) = about(examine(), "does not belong to torch")
    assert finding.level == "warning" and "one command" in finding.remedy


def test_the_status_follows_the_findings(capsys, copy):
    (copy / "config.json").unlink()
    assert main(["doctor", "--model", str(copy)]) == 1
    assert "[error] model" in capsys.readouterr().out
    status = main(["doctor", "--model", str(TINY)])
    assert status == int("[error]" in capsys.readouterr().out)


# --- installations ----------------------------------------------------------------------------------------------


@pytest.fixture
def comfyui(tmp_path, monkeypatch) -> Path:
    """A folder that holds a ComfyUI, and the model that lies in its models/janusflow."""
    root = tmp_path / "ComfyUI"
    (root / "comfy").mkdir(parents=True)
    (root / "main.py").touch()
    (root / "comfyui_version.py").write_text('__version__ = "0.30.0"\n')
    shutil.copytree(TINY, root / "models" / "janusflow" / "Mine")
    monkeypatch.setenv("COMFYUI_PATH", str(root))
    return root


def test_what_lies_in_comfyuis_folder_is_examined(comfyui):
    (whole,) = about(examine(), "Mine: whole")
    assert whole.level == "ok" and healthy(examine())
    (comfyui / "models" / "janusflow" / "Mine" / "tokenizer.json").write_text("{}")
    broken = [finding for finding in examine() if finding.level == "error"]
    assert len(broken) == 1 and "Mine" in broken[0].what and "tokenizer" in broken[0].what


def test_a_folder_without_a_model_says_how_to_get_one(comfyui):
    shutil.rmtree(comfyui / "models")
    (none,) = about(examine(), "no model in")
    assert none.level == "note" and "start.py download" in none.remedy


def test_what_a_stopped_download_left_is_named(comfyui):
    (comfyui / "models" / "janusflow" / "Mine" / ".partial-model.safetensors-0123").write_bytes(bytes(3_000_000))
    (left,) = about(examine(), "stopped program")
    assert "3 MB" in left.what and "goes on" in left.remedy


def test_a_pack_that_is_there_twice_is_a_warning(comfyui):
    for name in ("janusflow", "comfyui-janusflow", "another"):
        (comfyui / "custom_nodes" / name).mkdir(parents=True)
        named = "another" if name == "another" else "janusflow"
        (comfyui / "custom_nodes" / name / "pyproject.toml").write_text(f'[project]\nname = "{named}"\n')
    (twice,) = about(examine(), "2 times")
    assert twice.level == "warning" and "comfyui-janusflow, janusflow" in twice.what


def test_libraries_that_do_not_fit_each_other_are_warnings(monkeypatch, tmp_path):
    """As pip leaves them that lifts one without the other."""
    for name, number, demands in [
        ("transformers", "4.57.6", ["huggingface-hub<1.0,>=0.34", "tokenizers<=0.1; extra == 'old'", "numpy>=1"]),
        ("huggingface_hub", "2.4.0", []),
    ]:
        described = tmp_path / f"{name}-{number}.dist-info" / "METADATA"
        described.parent.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
        described.write_text("\n".join([*lines, *(f"Requires-Dist: {demand}" for demand in demands)]) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (unmet,) = [finding for finding in examine() if finding.what.startswith("transformers 4.57.6 needs")]
    assert unmet.level == "warning" and "but 2.4.0 is installed" in unmet.what
    assert 'pip install "huggingface-hub<1.0,>=0.34"' in unmet.remedy


def test_a_bare_python_is_told_all_that_it_lacks(tmp_path):
    """As in an environment where nothing was installed: no command line, no torch."""
    start = Path(__file__).parents[3] / "start.py"
    command, env = [sys.executable, "-S", "-s", str(start), "doctor"], {"JANUSFLOW_VENV": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1 and done.stderr == ""
    for missing in (
        "tokenizers is missing",
        "pydantic is missing",
        "torch cannot be imported",
        "pip install safetensors",
    ):
        assert missing in done.stdout
    assert all(line.split("]")[-1].strip() for line in done.stdout.splitlines())


def test_an_environment_without_pydantic_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    for name in [name for name in sys.modules if name.startswith("janusflow_core.") and ".host" not in name]:
        monkeypatch.delitem(sys.modules, name)
    (finding,) = about(examine(), "no model can be examined")
    assert finding.level == "error" and "pydantic" in finding.what
