"""The same tests in other environments: `python tests/matrix.py comfyui|library [NAME ...] [-- PYTEST OPTIONS]`.

Each environment is made once, under runs/matrix, and found again the next time; JANUSFLOW_TORCH replaces pip's
arguments for torch, as it does for start.py. Everything is computed on the CPU. Needs nothing but Python and pip.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import start  # noqa: E402 - found by the line above
from janusflow_core.host import find  # noqa: E402

PACK, COMFY = ROOT / "pyproject.toml", "tests/comfy"
VERSIONS = tuple(find._SOURCES)  # of ComfyUI: all that can be fetched
NO_BROWSER = (
    f"--ignore={COMFY}/test_page.py",
    f"--ignore={COMFY}/test_menu.py",
    f"--deselect={COMFY}/test_blueprints.py::test_a_blueprint_is_found_by_its_name_and_runs",
)
CORE = ("tests/core", "--ignore=tests/core/world", "--ignore=tests/core/bench", "--ignore=tests/core/train")
ALONE = [f"tests/core/test_{part}.py" for part in "attention config model image tokenizer checkpoint guidance".split()]
NEWEST = "torch==2.12.1"
# Python, torch, transformers.
LIBRARY: dict[str, tuple[str, str, str | None]] = {
    "3.10": ("3.10", NEWEST, ">=4.50.3"),
    "3.12": ("3.12", NEWEST, ">=4.50.3"),
    "3.13": ("3.13", NEWEST, ">=4.50.3"),
    "oldest": ("3.11", "torch==2.6.0", "==4.50.3"),
    "alone": ("3.12", NEWEST, None),
}
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
LIBRARIES = ("torch", "transformers")
ASK = (
    "import importlib.metadata as m, platform, sys; own = {d.metadata['Name']: d.version for d in m.distributions()}; "
    "print(platform.python_version(), *(own.get(name, 'none') for name in sys.argv[1:]))"
)
HEAD = ("", "Python", *LIBRARIES, "passed", "failed", "skipped", "minutes")


@dataclass(frozen=True)
class Environment:
    """Where tests run, and which."""

    name: str
    python: str  # makes the virtual environment
    requirements: Sequence[Sequence[str]]  # the arguments of one `pip install` after the other
    described_in: Sequence[Path]  # files that these lead to: when one changes, all is installed again
    variables: dict[str, str]
    tests: Sequence[str]  # arguments of pytest


@dataclass
class Row:
    """What came of one environment."""

    name: str
    versions: Sequence[str] = ("?",) * (1 + len(LIBRARIES))  # of Python and LIBRARIES
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    minutes: float = 0.0
    problem: str = ""  # why there are no figures

    @property
    def green(self) -> bool:
        """Whether tests ran and none failed."""
        return self.passed > 0 and not self.failed and not self.problem


def comfyui(version: str, given: Sequence[str]) -> Environment:
    """ComfyUI of this version with its own requirements; raises ValueError or RuntimeError where it cannot be had."""
    tree = find.fetch_comfyui(version)
    wanted = tree / "requirements.txt"
    return Environment(
        f"comfyui-{version}",
        sys.executable,
        [start.TORCH.split(), ["-r", str(wanted)], ["-e", f"{ROOT}[test]"]],
        [wanted, PACK],
        {**ON_CPU, "COMFYUI_PATH": str(tree)},
        [*NO_BROWSER, *(given if names_tests(given) else (COMFY, *given))],
    )


def library(name: str, given: Sequence[str]) -> Environment:
    """The library's tests on a Python and versions of torch and transformers; raises ValueError for unknown names.

    Where transformers is absent so is all else that is no dependency of the library, and the tests that compare with
    it are left out.
    """
    if name not in LIBRARY:
        raise ValueError(f"got {name!r}, expected one of {', '.join(LIBRARY)}")
    version, torch, transformers = LIBRARY[name]
    bare = transformers is None
    wanted = [f"{ROOT}", "pytest>=9", "hypothesis"] if bare else [f"{ROOT}[test]", f"transformers{transformers}"]
    return Environment(
        f"library-{name}",
        python_of(version),
        [torch.split(), wanted],
        [PACK],
        ON_CPU,
        given if names_tests(given) else [*(ALONE if bare else CORE), *given],
    )


def python_of(version: str) -> str:
    """A Python of this version on the PATH; raises ValueError where there is none."""
    try:
        ask = [f"python{version}", "-c", "import sys; print(sys.executable)"]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"there is no python{version} on the PATH: install it") from error


def names_tests(given: Sequence[str]) -> bool:
    """Whether one of pytest's arguments is a file or folder of tests."""
    return any((ROOT / word.partition("::")[0]).exists() for word in given if not word.startswith("-"))


def row_of(name: str, make: Callable[[], Environment], folder: Path) -> Row:
    """Makes the environment, runs its tests and counts; what goes wrong is said in the row."""
    row, begun = Row(name), time.monotonic()
    try:
        environment = make()
        python = prepared(environment, folder / name)
        row.versions = subprocess.check_output([python, "-c", ASK, *LIBRARIES], text=True).split()
        count(row, tested(environment, python, folder / f"{name}.xml"))
    except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError, ElementTree.ParseError) as error:
        row.problem = str(error)
    row.minutes = (time.monotonic() - begun) / 60
    return row


def prepared(environment: Environment, venv: Path) -> Path:
    """The Python of the environment's venv, made and filled unless the same was installed there before."""
    python = venv / start.PYTHON.relative_to(start.VENV)
    stamp, asked = venv / "installed.txt", fingerprint(environment)
    if not stamp.exists() or stamp.read_text() != asked:
        subprocess.run([environment.python, "-m", "venv", "--clear", venv], check=True)
        for arguments in filter(None, environment.requirements):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], cwd=ROOT, check=True)
        stamp.write_text(asked)
    return python


def fingerprint(environment: Environment) -> str:
    """A hash of all that decides about what is installed."""
    asked = hashlib.sha256(repr((environment.python, environment.requirements)).encode())
    for file in environment.described_in:
        asked.update(file.read_bytes())
    return asked.hexdigest()


def tested(environment: Environment, python: Path, report: Path) -> Path:
    """Runs the tests and returns the report; raises RuntimeError where pytest itself came to grief."""
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", f"--junitxml={report}", *environment.tests]
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment.variables}).returncode
    if status not in (0, 1) or not report.exists():
        raise RuntimeError(f"pytest ended with status {status}: what it wrote above tells why")
    return report


def count(row: Row, report: Path) -> None:
    """Reads pytest's report into the row."""
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            row.failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif skipped is not None:
            row.skipped[skipped.get("message", "")] += 1
        else:
            row.passed += 1


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, and behind it what failed."""
    lines = [HEAD, ("---",) * len(HEAD), *map(cells, rows)]
    failed = [f"- {row.name}: {name}" for row in rows for name in row.failed]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *(["", *failed] if failed else [])]) + "\n"


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table: a problem stands where reasons would."""
    reasons = "; ".join(f"{number} {reason}" for reason, number in row.skipped.most_common())
    skipped = f"{row.skipped.total()} ({reasons})" if reasons else "0"
    told = " ".join((row.problem or skipped).replace("|", "\\|").split())
    return row.name, *row.versions, str(row.passed), str(len(row.failed)), told, f"{row.minutes:.1f}"


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The command line; `given` is what stands behind `--`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "matrix", help="for environments and reports")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kind = kinds.add_parser("comfyui", help="tests/comfy, without a browser, on versions of ComfyUI")
    kind.add_argument("names", nargs="*", metavar="VERSION", help=f"by default all of {', '.join(VERSIONS)}")
    kind.set_defaults(make=comfyui, all=VERSIONS)
    kind = kinds.add_parser("library", help="tests/core on versions of Python, torch and transformers")
    kind.add_argument("names", nargs="*", metavar="NAME", help=f"by default all of {', '.join(LIBRARY)}")
    kind.set_defaults(make=library, all=tuple(LIBRARY))
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    options.given = words[end + 1 :]
    return options


def main() -> int:
    """Runs what the command line asks for; 0 where all of it was green."""
    options = parsed(sys.argv[1:])
    folder = options.folder.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.names or options.all:
        sys.stdout.write(f"--- {options.kind} {name}\n")
        sys.stdout.flush()
        rows.append(row_of(f"{options.kind}-{name}", partial(options.make, name, options.given), folder))
    sys.stdout.write(f"\n{table(rows)}")
    return 0 if all(row.green for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
