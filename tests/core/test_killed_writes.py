"""Whatever is being written when a process is killed is there whole or not at all."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from golden import micro, micro_pipeline, new_codec, write_folder
from PIL import Image

from janusflow_core.checkpoint import load_model, open_checkpoint
from janusflow_core.lora import read_lora
from janusflow_core.partial import PARTIAL

ROOT = Path(__file__).parents[2]
BEGIN = """
import itertools, sys
from pathlib import Path
import torch
from PIL import Image
from janusflow_core.adapters import Adapter

from janusflow_core.checkpoint import load_model, open_checkpoint
from janusflow_core.convert import convert
from janusflow_core.lora import save_lora, save_peft
from janusflow_core.png import save_new
model, out = map(Path, sys.argv[1:])
name = "language_model.model.layers.0.mlp.up_proj.weight"
weights = dict(load_model(open_checkpoint(model)).named_parameters())
rows, columns = weights[name].shape
lora = {name: Adapter(torch.ones(500, columns), torch.ones(rows, 500), 1.0)}
picture = Image.effect_noise((400, 300), 90)
print(flush=True)
for number in itertools.count():
"""


def whole_checkpoint(path: Path) -> None:
    load_model(checkpoint := open_checkpoint(path))
    checkpoint.read_vae()


def whole_lora(path: Path) -> None:
    assert len(read_lora(path, dict(micro().model.named_parameters()))) == 1


def whole_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()
        assert picture.text == {"janusflow": "{}"}


# What is written over and over -> what a whole one is.
WRITES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "file": ('convert(model, out / f"file{number}.safetensors")', whole_checkpoint),
    "folder": ('convert(model, out / f"folder{number}")', whole_checkpoint),
    "lora": ('save_lora(out / "lora.safetensors", lora, {})', whole_lora),
    "peft": ('save_peft(out / f"peft{number}", lora, weights)', whole_lora),
    "picture": ('save_new(out, "picture", picture, {"janusflow": "{}"})', whole_picture),
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_process_leaves_whole_files_only(tmp_path: Path):
    """Killed at moments that nobody chose, wherever in the round of writes they fall."""
    model, out = write_folder(tmp_path / "model", micro_pipeline(new_codec()), codec=True), tmp_path / "out"
    code = BEGIN + "".join(f"    {write}\n" for write, _ in WRITES.values())
    for pause in (0.05, 0.17, 0.31, 0.59, 2.0):
        out.mkdir()
        process = subprocess.Popen([sys.executable, "-c", code, str(model), str(out)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in (path for path in out.iterdir() if not path.name.startswith(PARTIAL)):
            next(check for name, (_, check) in WRITES.items() if path.name.startswith(name))(path)
        out.rename(tmp_path / f"checked{pause}")
    names = {path.name for folder in tmp_path.glob("checked*") for path in folder.iterdir()}
    assert all(any(name.startswith(kind) for name in names) for kind in WRITES)  # each was there to be checked


def test_a_check_sees_what_is_cut(tmp_path: Path):
    """Else the tests above would show nothing."""
    write_folder(tmp_path / "model", micro())
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut short"):
        whole_checkpoint(tmp_path / "model")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(OSError):
        whole_picture(tmp_path / "a.png")
