"""What other people's tools found, read from their files and put beside the paper's tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ..values import parse_json, read_text, shown

Found = dict[str, float]  # the name of a row -> what was measured
MISSING = "not measured here"


@dataclass(frozen=True)
class Row:
    """A number of the paper's, and of independent runs of the released weights."""

    benchmark: str
    part: str
    paper: float | None = None
    others: float | None = None

    @property
    def name(self) -> str:
        return f"{self.benchmark} {self.part}".strip()


def _rows(benchmark: str, told: Iterable[tuple[str, float | None, float | None]]) -> list[Row]:
    return [Row(benchmark, part, paper, others) for part, paper, others in told]


# Paper: tables 2 to 5 (arXiv 2411.07975v2). Others: a survey of unified models (guidance 2, 30 steps, 4 pictures a
# prompt) and WISE's own table (arXiv 2503.07265); GenEval and DPG-Bench by it lie far below the paper.
ROWS = [
    *_rows(
        "GenEval",
        [
            ("single object", 97, 94.25),
            ("two objects", 59, 46.06),
            ("counting", 45, 27.75),
            ("colors", 83, 74.68),
            ("position", 53, 32.20),
            ("color attribution", 42, 25.00),
            ("overall", 63, 49.99),
        ],
    ),
    *_rows("GenEval 2", [("Soft-TIFA AM", None, None), ("Soft-TIFA GM", None, None)]),
    *_rows(
        "DPG-Bench",
        [
            ("global", 87.03, None),
            ("entity", 87.31, None),
            ("attribute", 87.39, None),
            ("relation", 89.79, None),
            ("other", 88.10, None),
            ("overall", 80.09, 72.03),
        ],
    ),
    *_rows("MJHQ-30K", [("FID", 9.51, None)]),
    *_rows("any pictures", [("FID", None, None), ("CLIP score", None, None)]),
    *_rows(
        "WISE",
        [
            ("cultural", None, 13),
            ("time", None, 26),
            ("space", None, 28),
            ("biology", None, 20),
            ("physics", None, 19),
            ("chemistry", None, 11),
            ("overall", None, 18),
        ],
    ),
    *_rows(
        "understanding",
        [
            ("POPE", 88.0, None),
            ("MME-P", 1333.1, 1305.6),
            ("MMBench", 74.9, 64.86),
            ("SEED", 70.5, None),
            ("VQAv2", 79.8, None),
            ("GQA", 60.3, None),
            ("MMMU", 29.3, 29.0),
            ("MM-Vet", 30.9, 31.8),
            ("ChartQA", 64.6, None),
            ("TextVQA", 55.5, None),
        ],
    ),
]
NAMES = {row.name for row in ROWS}
GENEVAL = {
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colors",
    "position": "position",
    "color_attr": "color attribution",
}
# WISE's kinds of prompts, each with its part in the whole.
WISE = {"cultural": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
JUDGED = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}  # each from 0 to 2
UNJUDGED = 999
MJHQ = 30_000  # pictures
# A task of lmms-eval, the number to take, and what makes it the paper's.
LMMS = {
    "pope": ("POPE", "pope_accuracy", 100),
    "mme": ("MME-P", "mme_perception_score", 1),
    "mmbench_en_dev": ("MMBench", "gpt_eval_score", 1),
    "seedbench": ("SEED", "seed_image", 100),
    "vqav2_val": ("VQAv2", "exact_match", 100),
    "gqa": ("GQA", "exact_match", 100),
    "mmmu_val": ("MMMU", "mmmu_acc", 100),
    "mmvet": ("MM-Vet", "gpt_eval_score", 1),
    "chartqa": ("ChartQA", "relaxed_overall", 100),
    "textvqa_val": ("TextVQA", "exact_match", 100),
}


def read_scores(path: Path) -> Found:
    """What a result file says, by the names of our rows: of GenEval, GenEval 2, DPG-Bench, WISE, lmms-eval, or ours.

    Raises FileNotFoundError or ValueError with one sentence for a file that is of none of them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {shown(path)} to read: check the path")
    text = read_text(path)
    for reader in (_dpg, _lines, _whole):
        if found := reader(text, shown(path)):
            return found
    raise ValueError(f"{shown(path)} holds no result that is known: see docs/evaluation.md for those that are")


def together(parts: Iterable[Found]) -> Found:
    """What several files say; WISE, which comes in three, gets its whole."""
    found = {name: value for part in parts for name, value in part.items()}
    kinds = {f"WISE {kind}": weight for kind, weight in WISE.items()}
    if kinds.keys() <= found.keys():
        found["WISE overall"] = sum(found[kind] * weight for kind, weight in kinds.items())
    return found


def table(found: Mapping[str, float]) -> str:
    """All rows, in Markdown, with the paper's numbers, others' and those that were found here."""
    lines = ["| benchmark | | paper | independent runs | here |", "|---|---|---|---|---|"]
    for row in ROWS:
        own = found.get(row.name)
        cells = (row.benchmark, row.part, _number(row.paper), _number(row.others))
        lines.append(f"| {' | '.join(cells)} | {MISSING if own is None else _number(own)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value >= 1000 else f"{value:.2f}".rstrip("0").rstrip(".")


def _dpg(text: str, where: str) -> Found:
    """The summary at the end of DPG-Bench's text."""
    overall = re.search(r"^DPG-Bench score: ([\d.]+)$", text, re.MULTILINE)
    if overall is None:
        return {}
    first = text.partition("L1 category scores:")[2].partition("L2 category scores:")[0]
    parts = {
        f"DPG-Bench {name}": float(score) for name, score in re.findall(r"^\t(\w+): ([\d.]+)$", first, re.MULTILINE)
    }
    return {**{name: score for name, score in parts.items() if name in NAMES}, "DPG-Bench overall": float(overall[1])}


def _lines(text: str, where: str) -> Found:
    """GenEval's and WISE's tables of pictures."""
    try:
        rows = [parse_json(line, where) for line in text.splitlines() if line.strip()]
    except ValueError:
        return {}
    if rows and all({"tag", "correct"} <= row.keys() for row in rows):
        return _geneval(rows)
    return _wise(rows) if rows and all({"prompt_id", "consistency"} <= row.keys() for row in rows) else {}


def _geneval(rows: Sequence[Mapping[str, Any]]) -> Found:
    """The mean of each kind's pictures, and of the kinds."""
    kinds = {tag: [bool(row["correct"]) for row in rows if row["tag"] == tag] for tag in GENEVAL}
    parts = {f"GenEval {GENEVAL[tag]}": 100 * mean(right) for tag, right in kinds.items() if right}
    return {**parts, "GenEval overall": mean(parts.values())} if len(parts) == len(GENEVAL) else parts


def _wise(rows: Sequence[Mapping[str, Any]]) -> Found:
    """WiScore of each kind; pictures that were not judged are left out."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        if not any(row.get(name, UNJUDGED) == UNJUDGED for name in JUDGED):
            score = 100 * sum(float(row[name]) * weight for name, weight in JUDGED.items()) / 2
            scores.setdefault(f"WISE {_wise_kind(row)}", []).append(score)
    return {kind: mean(own) for kind, own in scores.items()}


def _wise_kind(row: Mapping[str, Any]) -> str:
    number = int(row["prompt_id"])
    if 400 < number <= 700:
        return "time" if "time" in str(row.get("Subcategory", "")).lower() else "space"
    lasts = {"cultural": 400, "biology": 800, "physics": 900, "chemistry": math.inf}
    return next(kind for kind, last in lasts.items() if number <= last)


def _whole(text: str, where: str) -> Found:
    """One JSON value: GenEval 2's scores of atoms, lmms-eval's results, or what janusflow evaluate kept."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    readers: tuple[Callable[[Any], Found], ...] = (_geneval2, _lmms, _ours)
    return next((found for reader in readers if (found := reader(told))), {})


def _geneval2(told: Any) -> Found:
    """Lists with the score of each atom, one for each prompt."""
    prompts = list(told.values()) if isinstance(told, dict) else told
    if not prompts or not all(isinstance(one, list) and one and all(map(_is_number, one)) for one in prompts):
        return {}
    geometric = [math.exp(mean(math.log(max(score, 1e-12)) for score in one)) for one in prompts]
    return {"GenEval 2 Soft-TIFA AM": 100 * mean(map(mean, prompts)), "GenEval 2 Soft-TIFA GM": 100 * mean(geometric)}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _lmms(told: Any) -> Found:
    results = told.get("results") if isinstance(told, dict) else None
    if not isinstance(results, dict):
        return {}
    found = {}
    for task, (name, metric, times) in LMMS.items():
        value = next((v for key, v in results.get(task, {}).items() if key.partition(",")[0] == metric), None)
        if isinstance(value, (int, float)):
            found[f"understanding {name}"] = value * times
    return found


def _ours(told: Any) -> Found:
    """A number that `janusflow evaluate fid` or `clip` kept; it is MJHQ-30K's where there are as many pictures."""
    if not isinstance(told, dict) or not _is_number(told.get("value")):
        return {}
    whole = told.get("pictures") == told.get("reference") == MJHQ
    names = {"fid": "MJHQ-30K FID" if whole else "any pictures FID", "clip": "any pictures CLIP score"}
    kind = names.get(told.get("what", ""))
    return {kind: float(told["value"])} if kind else {}
