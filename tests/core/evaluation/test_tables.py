"""Results of others' tools, in the form in which those write them, beside the paper's tables."""

import json
import math
from pathlib import Path

import pytest

from janusflow_core.evaluation.tables import GENEVAL, LMMS, MISSING, ROWS, read_scores, table, together


def kept(tmp_path: Path, name: str, content: object) -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_geneval_is_the_mean_of_its_kinds_not_of_its_pictures(tmp_path: Path):
    rows = [{"filename": "x", "tag": tag, "prompt": "p", "correct": n < k, "reason": "", "metadata": "{}"}
            for k, tag in enumerate(GENEVAL) for n in range(5 + k)]  # fmt: skip
    found = read_scores(kept(tmp_path, "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    rates = [100 * k / (5 + k) for k in range(6)]
    assert [found[f"GenEval {name}"] for name in GENEVAL.values()] == pytest.approx(rates)
    assert found["GenEval overall"] == pytest.approx(sum(rates) / 6)
    assert "GenEval overall" not in read_scores(kept(tmp_path, "part.jsonl", json.dumps(rows[0])))


def test_dpg_bench_ends_with_its_summary(tmp_path: Path):
    text = (
        "pictures/a.png, 0.5, 1.0, 0.75\nModel: pictures\nL1 category scores:\n\tentity: 87.31\n\trelation: 89.5\n"
        "L2 category scores:\n\tentity - whole: 80.25\n\trelation - spatial: 12.5\nImage path: pictures\n"
        "Save results to: x.txt\nDPG-Bench score: 80.09375\n"
    )
    found = read_scores(kept(tmp_path, "dpg.txt", text))
    assert found == {"DPG-Bench entity": 87.31, "DPG-Bench relation": 89.5, "DPG-Bench overall": 80.09375}


def test_geneval_2_has_arithmetic_and_geometric_means_of_a_prompts_atoms(tmp_path: Path):
    found = read_scores(kept(tmp_path, "scores.json", [[0.5, 0.5], [1.0, 0.25, 0.5]]))
    assert found["GenEval 2 Soft-TIFA AM"] == pytest.approx(100 * (0.5 + 1.75 / 3) / 2)
    assert found["GenEval 2 Soft-TIFA GM"] == pytest.approx(100 * (0.5 + math.pow(0.125, 1 / 3)) / 2)
    assert read_scores(kept(tmp_path, "by_prompt.json", {"a": [0.5, 0.5], "b": [1.0, 0.25, 0.5]})) == found


def test_wise_comes_in_three_files_and_is_weighted_by_kinds(tmp_path: Path):
    def row(number: int, kind: str, *scores: float) -> str:
        told = dict(zip(("consistency", "realism", "aesthetic_quality"), scores, strict=True))
        return json.dumps({"prompt_id": number, "Subcategory": kind, **told}) + "\n"

    files = [
        kept(tmp_path, "culture.jsonl", row(1, "Festival", 2, 2, 2) + row(400, "Religion", 0, 0, 0)),
        kept(tmp_path, "science.jsonl", row(800, "x", 2, 0, 0) + row(801, "x", 0, 2, 0) + row(1000, "x", 0, 0, 2)),
        kept(tmp_path, "world.jsonl", row(600, "Horizontal time", 1, 1, 1) + row(450, "Geography", 999, 999, 999)),
    ]
    found = together(map(read_scores, files))
    assert found == pytest.approx(
        {"WISE cultural": 50, "WISE biology": 70, "WISE physics": 20, "WISE chemistry": 10, "WISE time": 50}
    )
    kept(tmp_path, "world.jsonl", row(401, "Longitudinal time", 1, 1, 1) + row(700, "Geography", 2, 1, 0))
    found = together(map(read_scores, files))
    assert found["WISE space"] == pytest.approx(80)
    whole = 0.4 * 50 + 0.167 * 50 + 0.133 * 80 + 0.1 * (70 + 20 + 10)
    assert found["WISE overall"] == pytest.approx(whole)


def test_lmms_evals_results_are_taken_by_task_and_metric(tmp_path: Path):
    told = {task: {f"{metric},none": 0.5, f"{metric}_stderr,none": 9.0} for task, (_, metric, _) in LMMS.items()}
    found = read_scores(kept(tmp_path, "results.json", {"results": told}))
    assert found == {f"understanding {name}": 0.5 * times for name, _, times in LMMS.values()}


def test_every_row_that_can_be_found_is_in_the_table_and_what_is_not_says_so(tmp_path: Path):
    names = {row.name for row in ROWS}
    assert {f"GenEval {name}" for name in GENEVAL.values()} | {
        f"understanding {name}" for name, *_ in LMMS.values()
    } < names
    lines = table({"GenEval overall": 61.25, "MJHQ-30K FID": 9.0, "understanding MME-P": 1300.04}).splitlines()
    assert len(lines) == len(ROWS) + 2
    assert "| GenEval | overall | 63 | 49.99 | 61.25 |" in lines and "| MJHQ-30K | FID | 9.51 | – | 9 |" in lines
    assert "| understanding | MME-P | 1333.1 | 1305.6 | 1300.0 |" in lines
    assert sum(MISSING in line for line in lines) == len(ROWS) - 3


@pytest.mark.parametrize(
    "content", ["", "hello", "{}", "[]", "[[]]", '[["a"]]', '{"results": {"other": {}}}', '{"a": 1}\n']
)
def test_a_file_of_another_kind_is_told(tmp_path: Path, content: str):
    with pytest.raises(ValueError, match="some.json holds no result that is known: see docs/evaluation.md"):
        read_scores(kept(tmp_path, "some.json", content))
    with pytest.raises(FileNotFoundError, match="there is no .*none.json to read"):
        read_scores(tmp_path / "none.json")
