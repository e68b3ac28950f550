"""One real ComfyUI for all tests of this folder: starting it takes longer than most of them."""

from pathlib import Path

import pytest

from janusflow_core.host.find import find_comfyui
from janusflow_core.host.server import Server

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def server():
    """A running server with this checkout linked in as its pack."""
    # One thread: on a busy machine threads that wait for each other make a server many times slower.
    env = {"OMP_NUM_THREADS": "1"}
    with Server(find_comfyui(), pack=CHECKOUT, pack_name="ComfyUI-JanusFlow", env=env) as running:
        yield running
