"""The example for Ray in docs/bulk.md, run as it stands, draws what `janusflow bulk draw` draws."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from janusflow_core.bulk.tables import read_rows
from janusflow_core.cli import main

pytest.importorskip("ray.data", reason="the example needs Ray")
ROOT = Path(__file__).parents[3]


def test_the_example_draws_what_the_command_draws(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"p{k}", "prompt": f"a {color} circle"} for k, color in enumerate(("red", "blue", "green"))]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (code,) = re.findall(r"```python\n(import io\n.*?)```", (ROOT / "docs/bulk.md").read_text("utf-8"), re.DOTALL)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    drawn = {row["id"]: row for file in Path("drawn").glob("*.parquet") for row, _ in read_rows(file)}
    assert main(["bulk", "draw", "prompts.jsonl", "--out", "pictures", "--steps", "30", "--seed", "7"]) == 0
    told = {row["id"]: row for row in map(json.loads, Path("pictures.jsonl").read_text().splitlines())}
    assert {name: row["seed"] for name, row in drawn.items()} == {name: row["seed"] for name, row in told.items()}
    for name, row in drawn.items():
        one, other = Image.open(io.BytesIO(row["png"])), Image.open(f"pictures/{name}.png")
        assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 2  # other batches, last bits
