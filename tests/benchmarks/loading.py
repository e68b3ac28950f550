"""Peak memory and time of loading a full-size checkpoint, against the size of its weights.

    python tests/benchmarks/loading.py [FOLDER]      without FOLDER: 4.1 GB of random weights in a temporary folder

Each dtype is loaded in a process of its own, twice over: by the core, and the plain way (all tensors first, then cast
and copied into a model with allocated weights).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from janusflow_core.checkpoint import load_model, open_checkpoint  # noqa: E402
from janusflow_core.config import JanusFlowConfig  # noqa: E402
from janusflow_core.model import JanusFlow  # noqa: E402
from janusflow_core.weights import write_tensors  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"


def make_checkpoint(folder: Path) -> None:
    """The official configuration with random bfloat16 weights, in the official layout."""
    config = json.loads((GOLDEN / "official_config.json").read_text())
    model = JanusFlow(JanusFlowConfig.from_dict(config), device="meta")
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: torch.empty(value.shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        for key, value in model.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "processor_config.json", "preprocessor_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((GOLDEN / "tiny" / name).read_bytes())
    write_tensors(folder / "model.safetensors", weights)


def load_ours(folder: Path, dtype: torch.dtype) -> JanusFlow:
    return load_model(open_checkpoint(folder), dtype)


def load_plainly(folder: Path, dtype: torch.dtype) -> JanusFlow:
    checkpoint = open_checkpoint(folder)
    model = JanusFlow(checkpoint.config)
    model.load_state_dict({key: checkpoint.weights.read(key) for key in model.state_dict()})
    return model.to(dtype)


def peak_memory() -> int:
    """The most memory, in bytes, that this process has held so far (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def child(way: str, folder: Path, dtype: torch.dtype) -> None:
    before, started = peak_memory(), time.monotonic()
    model = {"ours": load_ours, "plain": load_plainly}[way](folder, dtype)
    seconds = time.monotonic() - started
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    sys.stdout.write(json.dumps({"weights": weights, "peak": peak_memory() - before, "seconds": seconds}))


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "official"
        if len(sys.argv) == 1:
            make_checkpoint(folder)
        print(f"{'dtype':<10} {'way':<6} {'weights GB':>10} {'peak GB':>8} {'ratio':>6} {'seconds':>8}")
        for dtype in ("bfloat16", "float32"):
            for way in ("ours", "plain"):
                command = [sys.executable, __file__, "--child", way, str(folder), dtype]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(
                    f"{dtype:<10} {way:<6} {found['weights'] / 1e9:>10.2f} {found['peak'] / 1e9:>8.2f} "
                    f"{found['peak'] / found['weights']:>6.2f} {found['seconds']:>8.1f}"
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), getattr(torch, sys.argv[4]))
    else:
        main()
