"""The official sizes from disk to velocity and words, in bfloat16 on the CPU; the same path in small by default."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import GOLDEN, micro_dict, pool_weights, read_json

from janusflow_core.config import JanusFlowConfig
from janusflow_core.image import ImageConfig
from janusflow_core.layout import describe_files, save_folder
from janusflow_core.model import JanusFlow
from janusflow_core.tokenizer import JanusTokenizer, ProcessorConfig

# In its own process, so that its peak memory is the loading's and not the test's.
CHILD = """
import json, re, sys, time
from pathlib import Path
import torch
from PIL import Image
from janusflow_core.guidance import Guidance
from janusflow_core.pipeline import JanusFlowPipeline

folder, picture = sys.argv[1:]
report, started = {}, time.monotonic()

def lap(name):
    global started
    report[name] = round(time.monotonic() - started, 2)
    started = time.monotonic()

pipe = JanusFlowPipeline.from_pretrained(folder, device="cpu", dtype=torch.bfloat16)
lap("load (s)")
side = pipe.image_config.image_size // 8
z = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
v = pipe.guided_velocity(["a red cat"], None, Guidance(2.0), z.shape)(z, 0.5)
lap("one guided velocity (s)")
tokens = []
turns = pipe.tokenizer.question_messages("What is in this image?")
pipe.converse([turns], [[Image.open(picture)]], max_new_tokens=10, on_token=lambda row, token: tokens.append(token))
lap("picture, prompt and ten tokens (s)")
# Linux only; getrusage would count the memory of the test that started this process.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
report["peak memory (bytes)"] = int(peak[1]) * 1024
report["parameters"] = sum(weight.numel() for weight in pipe.model.parameters())
report |= {"shape": list(v.shape), "deviation": v.std().item(), "dtype": str(v.dtype), "tokens": len(tokens)}
print(json.dumps(report))
"""


def write_random(path: Path, data: dict[str, Any]) -> JanusFlowConfig:
    """A folder in the official layout with random bfloat16 weights, those included that no one uses."""
    shapes = JanusFlowConfig.from_dict(data)
    model = JanusFlow(shapes, dtype=torch.bfloat16)
    model.init_weights(torch.Generator().manual_seed(0))
    weights = model.state_dict() | {key: torch.randn(s).bfloat16() for key, s in pool_weights(shapes).items()}
    processor = ProcessorConfig(num_image_tokens=shapes.vision.grid**2)
    tokenizer = JanusTokenizer((GOLDEN / "tiny" / "tokenizer.json").read_text("utf-8"), processor)
    parts = describe_files(shapes, tokenizer, ImageConfig(image_size=shapes.vision.image_size))
    save_folder(path, weights, {**parts, "config": data}, tokenizer.json)
    return shapes


@pytest.mark.parametrize(
    ("data", "size"),
    [
        pytest.param(micro_dict(), None, id="small"),
        pytest.param(read_json("official_config.json"), 4_092_735_008, id="official", marks=pytest.mark.slow),
    ],
)
def test_from_disk_to_velocity_and_words(tmp_path: Path, capsys: pytest.CaptureFixture, data: dict, size: int | None):
    shapes = write_random(tmp_path / "janusflow", data)
    written = (tmp_path / "janusflow" / "model.safetensors").stat().st_size
    arguments = [str(tmp_path / "janusflow"), str(GOLDEN / "images" / "square384.png")]
    command = [sys.executable, "-c", CHILD, *arguments]
    result = subprocess.run(command, cwd=GOLDEN.parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    side = shapes.vision.image_size // 8
    assert report["shape"] == [1, 4, side, side] and report["dtype"] == "torch.float32"
    assert 0.01 < report["deviation"] < 100
    assert report["tokens"] == 10
    assert report["peak memory (bytes)"] < 1.25 * written + 1.5e9  # one copy of the weights, and the libraries
    if size is not None:
        with capsys.disabled():
            sys.stdout.write(f"\n{json.dumps(report, indent=1)}\n")
        assert size < written < 1.001 * size
