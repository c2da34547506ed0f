"""A real Chromium, and a site whose pages it opens. Where there is none, these tests fail: they are never skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, sync_playwright

from tests.status.served import Served, served
from tests.support import kill, processes_with

QUIET = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--disable-quic"),
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "no Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield found
        found.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A site with a job that ended well and one that did not."""
    folder = tmp_path_factory.mktemp("pages")
    with served(folder / "ws", workers=2, usage_every=0.5, grace=0.5) as up:
        rows = "import json,os; f=open(os.environ['FLIGHTLOG_RUN_DIR']+'/metrics.jsonl','w'); "
        rows += "[f.write(json.dumps({'round': n, 'loss': 1/(n+1)})+chr(10)) for n in range(5)]"
        up.run("well", folder, "python3", "-c", rows)
        up.run("bad", folder, "sh", "-c", "echo '<img src=x onerror=alert(1)>'; exit 3", wait="failed")
        up.fed()
        yield up
        log = (up.workspace / ".flightlog" / "api.log").read_text()
        assert "Traceback" not in log, log[-4000:]
    for pid in processes_with(str(folder)):
        kill(pid)


@pytest.fixture
def context(browser: Browser, site: Served) -> Iterator[BrowserContext]:
    """A browser that knows nothing yet."""
    made = browser.new_context(base_url=site.url, viewport={"width": 1180, "height": 900})
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that fails the test where a script of it fails, or asks something, on whichever page that was."""
    made, broken = context.new_page(), []

    def asks(dialog: Dialog) -> None:
        broken.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    made.on("pageerror", lambda error: broken.append(str(error)))
    made.on("dialog", asks)
    yield made
    assert broken == []


def sign_in(page: Page, token: str) -> None:
    """As somebody with a token."""
    page.goto("/login")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").wait_for()


def folder_of(site: Served) -> Path:
    """Where a test may put apps."""
    return site.workspace.parent
