"""lmms-eval against our own count, on the same pictures and questions: `python tests/lmms.py`, 1 where they differ.

One task asks in free words, the other weighs given answers. lmms-eval gets an environment of its own, under runs/lmms,
made once and found again the next time; JANUSFLOW_TORCH replaces pip's arguments for torch, as it does for start.py.
Everything is computed on the CPU. Needs nothing but Python and pip.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from janusflow_core import JanusFlowPipeline

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import start  # noqa: E402 - found by the line above

# It reaches into a part of filelock that version 4 no longer has.
LMMS = ("lmms-eval==0.7.3", "filelock<4")
VERSIONS = ("lmms-eval", "torch", "transformers", "datasets", "accelerate", "filelock")
LONGEST = 24  # tokens of an answer
SHARED = """
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
doc_to_visual: image
doc_to_text: question
doc_to_target: answer
"""
TASKS = {
    "shapes_said": """
task: shapes_said
output_type: generate_until
generation_kwargs: {{max_new_tokens: {longest}, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""",
    "shapes_chosen": """
task: shapes_chosen
output_type: multiple_choice
doc_to_choice: choices
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""",
}
Question = tuple["Image.Image", str, str, list[str]]  # (picture, question, answer, what may be chosen)


def prepared(venv: Path) -> Path:
    """The Python of an environment with lmms-eval and this project, made and filled unless it was before."""
    python, stamp = venv / start.PYTHON.relative_to(start.VENV), venv / "installed.txt"
    asked = [start.TORCH.split(), [*LMMS, "-e", str(ROOT)]]
    told = repr(asked) + (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != told:
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        for arguments in filter(None, asked):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)
        stamp.write_text(told, encoding="utf-8")
    return python


def questions(number: int, seed: int = 0) -> list[Question]:
    """So many questions about fresh renders, captions left out: their answers are not to be listed."""
    from PIL import Image

    from janusflow_core.world import talk
    from janusflow_core.world.scenes import COLORS, SHAPES, render

    choices = {"color": [*COLORS], "shape": [*SHAPES], "count": [*talk.NUMBERS], "yes": ["yes", "no"]}
    rng, asked = random.Random(seed), list[Question]()
    while len(asked) < number:
        scene = talk.sample_training_example(rng)[2]
        picture = Image.fromarray(render(scene))
        for kind, question, answer in talk.questions(scene, rng):
            if listed := choices.get("yes" if answer in ("yes", "no") else kind):
                asked.append((picture, question, answer, listed))
    return asked[:number]


def write_tasks(asked: list[Question], folder: Path) -> None:
    """The questions as a dataset, and two tasks that read it."""
    from datasets import Dataset, DatasetDict

    columns = zip(*asked, strict=True)
    data = Dataset.from_dict(dict(zip(("image", "question", "answer", "choices"), map(list, columns), strict=True)))
    DatasetDict({"test": data}).save_to_disk(folder / "data")
    for name, own in TASKS.items():
        text = (own + SHARED).format(data=folder / "data", longest=LONGEST)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def evaluated(folder: Path, model: str, batch: int) -> dict[str, float]:
    """What lmms-eval itself says of the tasks."""
    told = f"model={model},dtype=fp32"
    command = [sys.executable, "-m", "lmms_eval", "--model", "janusflow", "--model_args", told, "--device", "cpu"]
    command += ["--tasks", ",".join(TASKS), "--include_path", folder, "--output_path", folder / "results"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, "--batch_size", str(batch)], check=True, cwd=folder, env={**os.environ, **offline})
    file = next((folder / "results").rglob("*_results.json"), None)
    if file is None:
        raise RuntimeError("lmms-eval wrote no results: what it told above says why")  # its status is 0 even then
    found = json.loads(file.read_text(encoding="utf-8"))["results"]
    return {name: next(v for k, v in found[name].items() if k in ("exact_match,none", "acc,none")) for name in TASKS}


def counted(pipe: JanusFlowPipeline, asked: list[Question]) -> dict[str, float]:
    """Our own count, one question after the other."""
    said = [pipe.describe(picture, question, max_new_tokens=LONGEST) == right for picture, question, right, _ in asked]
    chosen = [pipe.choose(picture, question, listed).answer == right for picture, question, right, listed in asked]
    return {name: sum(right) / len(asked) for name, right in zip(TASKS, (said, chosen), strict=True)}


def compared(options: argparse.Namespace) -> int:
    """Both, as a table; 0 where they agree. Runs in the environment that has lmms-eval."""
    import torch

    from janusflow_core import JanusFlowPipeline

    asked, began = questions(options.questions), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(asked, Path(folder))
        theirs, took = evaluated(Path(folder), options.model, options.batch), time.perf_counter() - began
    ours = counted(JanusFlowPipeline.from_pretrained(options.model, device="cpu", dtype=torch.float32), asked)
    alone = time.perf_counter() - began - took
    rows = [f"{name:<16}{theirs[name]:>10.4f}{ours[name]:>10.4f}" for name in TASKS]
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    times = f"{len(asked)} questions: lmms-eval {took:.0f} s, we {alone:.0f} s"
    sys.stdout.write("\n".join(["", versions, times, "", f"{'':<16}{'lmms-eval':>10}{'our own':>10}", *rows, ""]))
    return 0 if all(abs(theirs[name] - ours[name]) < 1e-9 for name in TASKS) else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / "runs" / "lmms", help="the environment of lmms-eval")
    parser.add_argument("--model", default="janusflow-tiny", help="a bundled name, a folder or a .safetensors file")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8, help="of lmms-eval; we ask one by one")
    return parser.parse_args()


def main() -> int:
    """Makes the environment and goes on in it."""
    options = parsed()
    venv = options.venv.expanduser().resolve()
    if Path(sys.prefix).resolve() == venv:
        return compared(options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([prepared(venv), __file__, *sys.argv[1:]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
