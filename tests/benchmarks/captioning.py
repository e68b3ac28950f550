"""Captions a second, and the memory that a folder takes, with `janusflow caption` in a process of its own.

    python tests/benchmarks/captioning.py [--counts 1000 10000] [--model SOURCE] [-- further options of the command]

Memory must not grow with the folder. Pictures are small renders of the bundled model's world.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from janusflow_core.world.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, place, render  # noqa: E402


def fill(folder: Path, count: int) -> None:
    """So many pictures of one thing each."""
    folder.mkdir()
    rng = random.Random(0)
    for number in range(count):
        things = place([(rng.choice([*COLORS]), rng.choice([*SHAPES]))], None, rng)
        Image.fromarray(render(Scene(rng.choice(BACKGROUNDS), things))).save(folder / f"{number:06}.png")


def caption(folder: Path, model: str, further: list[str]) -> tuple[float, int]:
    """Seconds, and the most resident bytes, of captioning a folder."""
    command = [sys.executable, "-m", "janusflow_core.cli", "caption", str(folder), "--model", model, *further]
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, cwd=ROOT) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"the command ended with status {process.returncode}")
    return time.monotonic() - started, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--model", default="janusflow-tiny")
    parser.add_argument("further", nargs="*")
    options = parser.parse_args()
    print(f"{'pictures':>8} {'seconds':>8} {'a second':>9} {'peak memory':>12}")
    for count in options.counts:
        with tempfile.TemporaryDirectory() as place_of_all:
            fill(Path(place_of_all) / "pictures", count)
            seconds, peak = caption(Path(place_of_all) / "pictures", options.model, options.further)
        print(f"{count:>8} {seconds:>8.1f} {count / seconds:>9.1f} {peak / 2**20:>9.0f} MB", flush=True)


if __name__ == "__main__":
    main()
