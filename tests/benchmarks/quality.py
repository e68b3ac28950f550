"""Quality against time: what solvers, steps, guidance and shift make of janusflow-tiny's pictures, by the judge.

    python tests/benchmarks/quality.py [FILE.jsonl] [--per-task 50] [--solver NAME]

Every way draws the same prompts from the same noise. Each is appended to the file as it is done, and what is there
already is not drawn again; at the end all are printed as a table. Some fifty minutes on one core, ten for one solver.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from janusflow_core import JanusFlowPipeline  # noqa: E402
from janusflow_core.evaluation.scores import overall  # noqa: E402
from janusflow_core.world.score import draw_tasks, score_pictures  # noqa: E402

SEED = 11
EVALUATIONS = (5, 8, 10, 15, 20, 30)
WEIGHT = 2.5  # of guidance, where it is not what changes


def ways() -> list[dict[str, Any]]:
    """Arguments of `generate`: solvers at equal cost, then one thing changed at a time."""
    found: list[dict[str, Any]] = [
        {"solver": solver, "steps": steps} for solver in ("euler", "ab2", "dpmpp_2m") for steps in EVALUATIONS
    ]
    found += [{"solver": "heun", "steps": max(2, steps // 2)} for steps in EVALUATIONS]
    found += [{"solver": "euler", "steps": steps} for steps in (50, 100)]
    found += [{"solver": "renoise", "steps": steps, "guidance": 3.0} for steps in (10, 15, 20, 50)]
    found += [{"solver": "renoise", "steps": 30, "guidance": weight} for weight in (2.0, 2.5, 3.0, 4.0)]
    plain = {"solver": "euler", "steps": 30}
    found += [{**plain, "guidance": weight} for weight in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]
    found += [{**plain, "shift": shift, "steps": steps} for shift in (0.5, 2.0, 3.0) for steps in (10, 30)]
    intervals = [(0.0, 0.5), (0.0, 0.75), (0.25, 1.0), (0.1, 0.9), (0.5, 1.0), (0.1, 0.6)]
    found += [{**plain, "guidance_start": start, "guidance_end": end} for start, end in intervals]
    strong = {**plain, "guidance": 4.0}
    found += [{**strong, "guidance_start": start, "guidance_end": end} for start, end in intervals[:3]]
    found += [{**plain, "cfg_zero_star": True}, {**strong, "cfg_zero_star": True}, {**strong, "guidance_rescale": 0.7}]
    return [{"guidance": WEIGHT, **way} for way in found]


def measured(pipe: JanusFlowPipeline, way: dict[str, Any], per_task: int) -> dict[str, Any]:
    began = time.perf_counter()
    drawn = draw_tasks(lambda prompts, seed: pipe.generate(prompts, seed=seed, **way), per_task, seed=SEED)
    seconds, scores = time.perf_counter() - began, score_pictures(drawn)
    own = {"score": overall(scores), "seconds": round(seconds, 1), "pictures": len(drawn)}
    return {
        "name": json.dumps(way, sort_keys=True),
        **own,
        "tasks": {task: str(score) for task, score in scores.items()},
    }


def main(file: Path, per_task: int, solver: str | None) -> None:
    file.touch()
    rows = {row["name"]: row for row in map(json.loads, file.read_text().splitlines())}
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny")
    for way in (way for way in ways() if solver in (None, way["solver"])):
        if (name := json.dumps(way, sort_keys=True)) not in rows:
            rows[name] = measured(pipe, way, per_task)
            with file.open("a") as log:
                log.write(json.dumps(rows[name]) + "\n")
    print("| way | right | seconds for all |\n|---|---|---|")
    for name, row in rows.items():
        told = ", ".join(f"{key} {value}" for key, value in json.loads(name).items())
        print(f"| {told} | {row['score']:.3f} | {row['seconds']} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, nargs="?", default=Path("runs/quality.jsonl"))
    parser.add_argument("--per-task", type=int, default=50)
    parser.add_argument("--solver", help="only the ways of this one")
    given = parser.parse_args()
    given.file.parent.mkdir(parents=True, exist_ok=True)
    main(given.file, given.per_task, given.solver)
