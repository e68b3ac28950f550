"""ComfyUI's page in a real browser, for tests and for screenshots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from janusflow_core.host.find import Json
from janusflow_core.host.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# As root Chromium needs --no-sandbox; the rest keeps it from calling home.
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
BUSY = 90_000  # milliseconds: machines may be busy
LISTEN = """() => {
    window.ended = [];
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        window.app.api.addEventListener(kind, event => window.ended.push([kind, event.detail.node_id]));
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium of this machine; CHROMIUM is None where there is none."""
    from playwright.sync_api import sync_playwright  # here, so that tests without it are skipped

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def open_editor(
    browser: Browser, server: Server, language: str = "en", vue: bool = False, size: tuple[int, int] = (1400, 900)
) -> tuple[Page, list[str]]:
    """The editor with its default graph, and a list that gets the errors of the page."""
    page, errors = browser.new_context(viewport={"width": size[0], "height": size[1]}).new_page(), []
    page.set_default_timeout(BUSY)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda told: errors.append(told.text) if is_ours(told) else None)
    # The first run would open the template browser.
    settings = {"TutorialCompleted": True, "VueNodes.Enabled": vue, "Locale": language}
    for name, value in settings.items():
        page.request.post(f"{server.url}/api/settings/Comfy.{name}", data=json.dumps(value))
    page.goto(server.url)
    page.wait_for_function("window.app?.graph?._nodes.length && window.app.extensionManager?.spinner === false")
    return page, errors


def is_ours(told: ConsoleMessage) -> bool:
    """Whether the console tells of an error in or about this pack; help is looked for where it need not be."""
    told_of = f"{told.text} {told.location['url']}".lower()
    return told.type == "error" and "janusflow" in told_of and not told_of.endswith(".md")


def load(page: Page, workflow: Json) -> None:
    """Open a workflow in a tab of its own."""
    page.evaluate("workflow => window.app.loadGraphData(workflow, true, true, null)", workflow)


def run_graph(page: Page, timeout: int = 300_000) -> str:
    """Press Run and wait until the prompt has ended; returns how: execution_success, _error or _interrupted."""
    page.evaluate(LISTEN)
    button = page.get_by_test_id("queue-button").first
    if not button.is_visible():  # in App mode
        button = page.locator("button:visible", has_text="Run").first
    button.click()
    page.wait_for_function("window.ended.length", timeout=timeout)
    return page.evaluate("window.ended[0][0]")


def draw_with(page: Page, vue: bool) -> None:
    """Let the editor draw nodes in one of its two ways: by Vue, or all of them on the canvas."""
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue)
    page.wait_for_function("on => on == document.querySelectorAll('[data-node-id]').length > 0", arg=vue)
