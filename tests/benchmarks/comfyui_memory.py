"""Memory of a real ComfyUI with a JanusFlow of full size on a CPU: at rest, drawing, describing, by how it is stored.

    python tests/benchmarks/comfyui_memory.py [FOLDER]      without FOLDER: 4.1 GB of random weights in a temporary one

Each way of storing is a server of its own. A picture of 384 x 384 takes one step here, which holds what thirty hold.
Linux only: the peak is the kernel's, set back before each prompt.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

from loading import make_checkpoint

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfy")]

from graphs import Graph  # noqa: E402

from janusflow_core.convert import convert  # noqa: E402
from janusflow_core.host.find import find_comfyui  # noqa: E402
from janusflow_core.host.server import Server  # noqa: E402

NAME, GB = "full", 1e9


def memory(server: Server, kind: str) -> float:
    """GB that the server's process holds (VmRSS) or has held at most (VmHWM)."""
    process = server._process
    assert process is not None
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(rf"{kind}:\s+(\d+)", status)[0]) * 1024 / GB


def measured(server: Server, graph: Graph) -> tuple[float, float]:
    """The peak in GB and the seconds of a prompt."""
    process = server._process
    assert process is not None
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    began = time.perf_counter()
    graph.run(server)
    return memory(server, "VmHWM"), time.perf_counter() - began


def draw(name: str, stored: str, steps: int, cfg: float, batch: int) -> Graph:
    graph = Graph()
    loaded = graph.load(name, weight_dtype=stored)
    how = {"steps": steps, "cfg": cfg, "batch_size": batch, "seed": batch}
    graph.save(graph.flow(loaded, graph.encode(loaded), **how))
    return graph


def describe(name: str, stored: str) -> Graph:
    graph = Graph()
    loaded = graph.load(name, weight_dtype=stored)
    picture = graph.add("EmptyImage", width=384, height=384, batch_size=1, color=0)
    graph.show(graph.describe(loaded[1], picture, tokens=4))
    return graph


def main(folder: Path) -> None:
    print("| stored as | at rest | drawing, no guidance | with guidance | a batch of 4 | describing |")
    print("|---|---|---|---|---|---|")
    for name, stored in ((NAME, "fp32"), (NAME, "bf16"), (NAME, "fp8_e4m3fn"), ("int8.safetensors", "default")):
        with tempfile.TemporaryDirectory() as base:
            models = Path(base) / "models" / "janusflow"
            models.mkdir(parents=True)
            if name == NAME:
                (models / name).symlink_to(folder.resolve(), target_is_directory=True)
            else:
                convert(folder, models / name, quantize="int8")
            with Server(find_comfyui(), pack=ROOT, pack_name="JanusFlow", base=Path(base), timeout=900) as server:
                graphs = [draw(name, stored, 1, *how) for how in ((1.0, 1), (2.0, 1), (2.0, 4))]
                rest = memory(server, "VmRSS")
                told = [measured(server, graph) for graph in (*graphs, describe(name, stored))]
            cells = " | ".join(f"{peak:.1f} GB, {taken:.0f} s" for peak, taken in told)
            print(f"| {stored if name == NAME else name} | {rest:.1f} GB | {cells} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            make_checkpoint(Path(temporary) / NAME)
            main(Path(temporary) / NAME)
