"""The process and the folder of a ComfyUI server: a free port, the pack in its place, an end without survivors."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)
_NOT_IN_A_PACK = (".*", "__pycache__", "*.egg-info", "node_modules", "tests", "build", "dist")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def install_pack(pack: Path, target: Path, link: bool) -> None:
    if target.is_symlink():
        target.unlink()
    if link and not target.exists():
        try:
            return target.symlink_to(pack, target_is_directory=True)
        except OSError as error:  # Windows grants symlinks to few users
            logger.info("copying the pack, because a symlink failed: %s", error)
    shutil.copytree(pack, target, ignore=shutil.ignore_patterns(*_NOT_IN_A_PACK), dirs_exist_ok=True)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
        process.wait()
        return
    # The second round is for those who outlive their parent or ignore the first.
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
