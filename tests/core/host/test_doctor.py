"""The doctor on this machine: what it finds in whole and in broken checkpoints, and what it keeps to itself."""

import shutil
import sys
import tempfile
from pathlib import Path

import golden
import pytest
import torch
from safetensors.torch import load_file, save_file

from janusflow_core.checkpoint import bundled_names
from janusflow_core.cli import main
from janusflow_core.host.doctor import Finding, examine, report

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
    finding = about(examine(), "ComfyUI")[-1]
    assert finding.level == level and "COMFYUI_PATH" in finding.remedy and not (tmp_path / "cache").exists()


def test_an_old_comfyui_is_a_warning(monkeypatch, tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.9.2"\n')
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    (finding,) = about(examine(), "ComfyUI 0.9.2")
    assert finding.level == "warning" and "0.30.0" in finding.remedy


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
