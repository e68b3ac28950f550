"""What an evaluation found, in a file: the checkpoint by its bytes, all settings, versions, and every trial."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from .. import __version__
from ..partial import appearing
from ..values import Part, read_json, short, shown, validated
from .scores import Score, holm, paired_chance, unpaired_chance

CHUNK = 1 << 22  # bytes
LIBRARIES = ("torch", "numpy", "pillow", "safetensors", "tokenizers")
CERTAIN = 0.05  # above it a difference may be chance
TRIALS = ("seed", "per_task", "scenes", "held_out")  # the settings that say which trials there are


class Weights(Part):
    """A file of weights, by its name and its bytes."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    strength: float | None = None


class Results(Part):
    """An evaluation: `scores` has, by group and task, a 1 for each trial that came out right and a 0 for each other."""

    what: str
    weights: tuple[Weights, ...]
    settings: dict[str, Any]
    versions: dict[str, str]
    device: str
    seconds: float
    scores: dict[str, dict[str, str]]

    @field_validator("scores")
    @classmethod
    def _trials(cls, scores: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        if any(set(trials) - {"0", "1"} for tasks in scores.values() for trials in tasks.values()):
            raise ValueError("zeros and ones")
        return scores

    def groups(self) -> dict[str, dict[str, Score]]:
        """The scores of each group by task."""
        return {
            group: {task: Score(tuple(trial == "1" for trial in trials)) for task, trials in tasks.items()}
            for group, tasks in self.scores.items()
        }


def versions() -> dict[str, str]:
    """Ours, Python's and the libraries'."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"janusflow": __version__, "python": platform.python_version(), **found}


def sha256(path: Path) -> str:
    """The digest of a file, or of the weights in a folder and below it, one after the other by name."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def as_text(groups: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, str]]:
    """Trials as the file keeps them."""
    return {
        group: {task: "".join("01"[right] for right in score.trials) for task, score in scores.items()}
        for group, scores in groups.items()
    }


def write_results(path: Path, results: Results) -> None:
    """Keep results in a JSON file that appears whole."""
    with appearing(path) as new:
        new.write_text(json.dumps(results.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_results(path: Path) -> Results:
    """Results out of their file; raises FileNotFoundError or ValueError with one sentence."""
    return validated(Results, read_json(path, "the results of janusflow evaluate --out", 1), shown(path))


def compare(one: Results, other: Results) -> list[tuple[str, Score, Score, float]]:
    """Of each task and group its name, both scores, and how likely the difference is chance, for all together.

    Trials that are the same ones, by seed and number, are compared pair by pair. Raises ValueError for evaluations of
    different things.
    """
    if one.what != other.what:
        raise ValueError(f"one result is of {one.what}, the other of {other.what}: compare what is alike")
    paired = all(one.settings.get(name) == other.settings.get(name) for name in TRIALS)
    rows = [(name, *both) for name, both in _pairs(one, other)]
    chances = [
        paired_chance(a.trials, b.trials) if paired and a.total == b.total else unpaired_chance(a, b)
        for _, a, b in rows
    ]
    return [(*row, chance) for row, chance in zip(rows, holm(chances), strict=True)]


def differing(one: Results, other: Results) -> dict[str, tuple[str, str]]:
    """The settings, weights and versions in which two evaluations differ, with both values."""
    told = [
        {**results.settings, **results.versions, "weights": [weights.sha256[:12] for weights in results.weights]}
        for results in (one, other)
    ]
    names = dict.fromkeys((*told[0], *told[1]))
    both = {name: (short(told[0].get(name)), short(told[1].get(name))) for name in names}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _pairs(one: Results, other: Results) -> Iterable[tuple[str, tuple[Score, Score]]]:
    """What both have, each group as a whole before its tasks."""
    groups, others = one.groups(), other.groups()
    for group in [name for name in groups if name in others]:
        tasks = [task for task in groups[group] if task in others[group]]
        yield group, (_joined(groups[group], tasks), _joined(others[group], tasks))
        for task in tasks:
            yield f"{group}: {task}", (groups[group][task], others[group][task])


def _joined(scores: Mapping[str, Score], tasks: Iterable[str]) -> Score:
    return Score(tuple(right for task in tasks for right in scores[task].trials))
