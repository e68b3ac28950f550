"""What is said to bad input, as a table: `python tests/cases.py > cases.md` runs the tests that try it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
FILES = ("tests/core/test_bad_checkpoints.py", "tests/core/cli/test_bad_values.py", "tests/comfy/test_bad_graphs.py")


def rows(report: Path) -> Iterator[tuple[str, str, str]]:
    """Name, message and seconds of every case that passed."""
    for case in ElementTree.parse(report).iter("testcase"):
        said = [found.get("value", "") for found in case.iter("property") if found.get("name") == "message"]
        if said and case.find("failure") is None:
            words = " ".join(said[0].split()).replace("|", "\\|") or "nothing: there is nothing wrong with it"
            name = case.get("name", "").partition("[")[2].removesuffix("]")
            yield name, words, f"{float(case.get('time', 0)):.1f}"


def main() -> int:
    """Print the table; the status is pytest's."""
    with tempfile.TemporaryDirectory() as room:
        report = Path(room) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *FILES]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        sys.stderr.write(done.stdout)
        for row in (("case", "said", "seconds"), ("---", "---", "---"), *rows(report)):
            sys.stdout.write(f"| {' | '.join(row)} |\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
