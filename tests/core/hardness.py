"""What every refusal owes its reader, and what it may cost."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def assert_sentence(message: str, *words: str) -> None:
    """One sentence for people: no second one behind it, no line break, no trace of Python."""
    assert re.search(r"[.!?]['\"`]?\s+[A-Z]", message) is None and len(message) < 400, message
    assert re.search(r"[\x00-\x1f\x7f]|Traceback|\w(Error|Exception)\b|NoneType", message) is None, message
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in {message!r}"


@contextmanager
def bounded(seconds: float = 10, megabytes: float = 300) -> Iterator[None]:
    """Fails where the block takes more time of this process, or more memory at its highest, than is allowed."""
    begun, before = time.process_time(), _highest()
    yield
    took, grown = time.process_time() - begun, _highest(reset=False) - before
    assert took < seconds, f"it took {took:.1f} s"
    assert grown < megabytes, f"it took {grown:.0f} MB"


def _highest(reset: bool = True) -> float:
    """The most memory that this process has had since the last reset, in MB; only Linux tells."""
    if sys.platform != "linux":
        return 0.0
    if reset:
        CLEAR.write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())[1]) / 1000
