"""One real ComfyUI for all tests of this folder: starting it takes longer than most of them; and its page."""

import json
import shutil
from pathlib import Path

import graphs
import pytest
from inprocess import load_pack

from janusflow_core.host.find import find_comfyui
from janusflow_core.host.server import Server

CHECKOUT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# As root Chromium needs --no-sandbox; the rest keeps it from calling home.
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


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
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(request, browser, server):
    """The editor with its default graph, in English or the language of the test's parameter."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page, errors = context.new_page(), []
    page.set_default_timeout(90_000)  # machines may be busy
    page.on("pageerror", lambda error: errors.append(str(error)))
    # The first run would open the template browser; nodes are drawn on the canvas unless a test wants Vue's.
    settings = {"TutorialCompleted": True, "VueNodes.Enabled": False, "Locale": getattr(request, "param", "en")}
    for name, value in settings.items():
        page.request.post(f"{server.url}/api/settings/Comfy.{name}", data=json.dumps(value))
    page.goto(server.url)
    page.wait_for_function(
        "window.app?.graph?._nodes.length && window.app.extensionManager?.spinner === false", timeout=90_000
    )
    yield page
    context.close()
    assert errors == []
