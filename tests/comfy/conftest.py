"""One real ComfyUI for all tests of this folder: starting it takes longer than most of them."""

from pathlib import Path

import pytest

from janusflow_core.comfyui import find_comfyui
from janusflow_core.server import Server

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def server():
    """A running server with this checkout linked in as its pack."""
    with Server(find_comfyui(), pack=CHECKOUT, pack_name="ComfyUI-JanusFlow") as running:
        yield running
