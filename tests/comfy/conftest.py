"""One real ComfyUI for all tests of this folder: starting it takes longer than most of them; and its page."""

from pathlib import Path

import graphs
import pytest
from inprocess import load_pack

from janusflow_core.host.find import find_comfyui
from janusflow_core.host.server import Server
from tools import editor

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def server():
    """A running server with this checkout linked in as its pack."""
    # One thread: on a busy machine threads that wait for each other make a server many times slower.
    env = {"OMP_NUM_THREADS": "1"}
    with Server(find_comfyui(), pack=CHECKOUT, pack_name="ComfyUI-JanusFlow", env=env) as running:
        yield running


@pytest.fixture(scope="module")
def uploaded(server, tmp_path_factory):
    """Names of the two scenes among the server's inputs."""
    return graphs.upload(server, tmp_path_factory.mktemp("pictures"), graphs.LEFT_RIGHT, graphs.STARS)


@pytest.fixture(scope="session")
def pack():
    """ComfyUI and the pack in this process."""
    return load_pack()


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if editor.CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with editor.chromium() as running:
        yield running


@pytest.fixture
def page(request, browser, server):
    """The editor with its default graph, drawn on the canvas, in English or the language of the test's parameter."""
    page, errors = editor.open_editor(browser, server, getattr(request, "param", "en"))
    yield page
    page.context.close()
    assert errors == []
