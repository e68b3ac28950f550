"""What several commands share: how words reach the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..bulk.journal import Share
    from ..captions import Report


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def make_folder(path: Path) -> None:
    """The folder and those above it, where they are not there yet; raises OSError with one sentence."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"there can be no folder {path} ({error.strerror}): name another with --out") from error


def stream_words() -> Callable[[str], None]:
    """A receiver of an answer's pieces that prints them as they come, less the white space before the first."""
    begun = False

    def write(piece: str) -> None:
        nonlocal begun
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        print(piece, end="", flush=True)

    return write


def at_least_one(option: str, number: int) -> None:
    """Raise ValueError for a number that can be none of things."""
    if number < 1:
        raise ValueError(f"got {option} {number}, expected at least 1")


def this_share() -> Share:
    """Which part of bulk work is this process's."""
    from ..bulk.journal import Share

    return Share.from_environment()


class Ends(Protocol):
    """One process's part in a run, of which the last one to end gets the report of all."""

    def finish(self) -> Report | None: ...


def reported(run: Ends, made: str, there: str) -> int:
    """End a process's part of bulk work; the last one prints what became of all. The status is 1 for a failure."""
    report = run.finish()
    if report is None:  # others are still at work
        return 0
    for name, reason in report.failed.items():
        print(f"janusflow: {name}: {one_line(reason)}", file=sys.stderr)
    print(report.told(made, there))
    return int(bool(report.failed))


@contextmanager
def runtime_errors_in_words() -> Iterator[None]:
    """Lets RuntimeErrors that are sentences end like other errors, with the log that follows them shown before."""
    try:
        yield
    except RuntimeError as error:
        sentence, _, log = str(error).partition("\n")
        print(log, end="\n" if log else "", file=sys.stderr)
        raise OSError(sentence) from error


@contextmanager
def status(text: str = "") -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what is going on; what is inside may change it."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda text: None
        return

    with tqdm(bar_format="{desc}", desc=text, leave=False, disable=None) as line:
        yield line.set_description_str


@contextmanager
def progress(title: str, unit: str = "it") -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal while something is counted: what is inside tells it how many are done, and of how many."""
    try:
        from tqdm import tqdm
    except ImportError:  # in the bare Python that start.py may run in
        yield partial(_percent, title)
        return

    with tqdm(desc=title, leave=False, disable=None, unit=unit, unit_scale=unit == "B") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _percent(title: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done >= total else ""
        print(f"\r{title} {100 * done // max(total, 1)} %", end=end, file=sys.stderr, flush=True)
