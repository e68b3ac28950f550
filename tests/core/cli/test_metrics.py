"""janusflow evaluate fid, clip, sweep and table as a user types them."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from janusflow_core.cli import main, parse

PLACE = ["--device", "cpu", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red circle\na blue square\nthree green stars\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory, prompts) -> Path:
    """A sweep over two guidances and two numbers of steps, judged."""
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("swept") / "sweep"
    given = ["--guidances", "1", "3", "--step-counts", "4", "12", "--judge", "--each", "2", "--out", str(out)]
    assert main(["evaluate", "sweep", str(prompts), *given, *PLACE]) == 0
    return out


def test_a_sweep_measures_every_setting(swept: Path):
    rows = [*csv.DictReader(swept.with_suffix(".csv").open())]
    cells = [(row["guidance"], row["steps"]) for row in rows]
    assert cells == [("1.0", "4"), ("3.0", "4"), ("1.0", "12"), ("3.0", "12")]
    for row in rows:
        assert row["pictures"] == "6" and 0 <= float(row["right_low"]) <= float(row["right"]) <= float(
            row["right_high"]
        )
        folder = swept / f"guidance_{float(row['guidance']):g}_steps_{row['steps']}"
        assert len([*folder.glob("*.png")]) == 6
        assert json.loads(folder.with_name(f"{folder.name}.run.json").read_text())["steps"] == int(row["steps"])
    assert sum(float(row["right"]) for row in rows[2:]) > 0.5  # janusflow-tiny knows these
    with Image.open(swept.with_suffix(".png")) as plot:
        assert plot.width > 300 and len(plot.convert("RGB").getcolors(1 << 20) or []) > 10


def test_a_sweep_goes_on_where_it_was(swept: Path, prompts, capsys):
    victim = next((swept / "guidance_3_steps_12").glob("*.png"))
    before = victim.read_bytes()
    victim.unlink()
    given = ["--guidances", "1", "3", "--step-counts", "4", "12", "--judge", "--each", "2", "--out", str(swept)]
    assert main(["evaluate", "sweep", str(prompts), *given, *PLACE]) == 0
    assert capsys.readouterr().out.count("0 drawn, 3 were there") == 3 and victim.read_bytes() == before


def test_a_sweep_has_a_folder_of_its_own():
    """In that of a plain run FID would count all pictures below it."""
    drawn, swept = parse(["bulk", "draw", "p.txt"]).work, parse(["evaluate", "sweep", "p.txt"]).what
    assert drawn.out != swept.out


def test_results_of_others_stand_beside_the_papers(tmp_path: Path, capsys):
    (tmp_path / "dpg.txt").write_text(
        "L1 category scores:\n\tentity: 80.5\nL2 category scores:\nDPG-Bench score: 79.5\n"
    )
    (tmp_path / "fid.json").write_text(
        json.dumps({"what": "fid", "value": 10.25, "pictures": 30000, "reference": 30000})
    )
    (tmp_path / "few.json").write_text(json.dumps({"what": "fid", "value": 80.5, "pictures": 100, "reference": 30000}))
    files = [str(tmp_path / name) for name in ("dpg.txt", "fid.json", "few.json")]
    assert main(["evaluate", "table", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| DPG-Bench | overall | 80.09 | 72.03 | 79.5 |" in lines
    assert "| MJHQ-30K | FID | 9.51 | – | 10.25 |" in lines
    assert "| any pictures | FID | – | – | 80.5 |" in lines
    assert "| GenEval | overall | 63 | 49.99 | not measured here |" in lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "p.txt"], "nothing is to be measured: say --clip FOLDER"),
        (["sweep", "p.txt", "--judge", "--steps", "3"], "leave --guidance and --steps out"),
        (["sweep", "p.txt", "--inception", "x.pth"], "FID needs both --inception"),
        (["sweep", "p.txt", "--clip", "nowhere"], "there is nothing at nowhere to measure with: check the path"),
        (["table", "none.json"], "there is no none.json to read"),
        (["table", "p.txt"], "p.txt holds no result that is known"),
        (["fid", "nowhere", "nowhere", "none.pth"], "no weights at none.pth"),
        (["clip", "none.jsonl", "nowhere"], "there is no none.jsonl: name the .jsonl that bulk draw wrote"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path: Path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a cat\n")
    assert main(["evaluate", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
