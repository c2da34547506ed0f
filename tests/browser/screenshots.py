"""``python -P -m tests.browser.screenshots FOLDER``: each page, in light and dark, of a site that has a past."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser.conftest import QUIET
from tests.support import make_app, until

PAGES = {
    "overview": "/",
    "job": "/jobs/breast-cancer",
    "failed": "/jobs/scan-2",
    "looking-back": "/jobs/breast-cancer?at=9",
    "events": "/events?job=breast-cancer",
    "egress": "/egress",
    "workers": "/workers",
    "audit": "/audit",
    "lifecycle": "/lifecycle",
}
FLIGHTLOG = str(Path(sys.executable).with_name("flightlog"))


def main(folder: Path) -> None:
    """Make a past, look at it, and end what was started."""
    place = Path(tempfile.mkdtemp(prefix="flightlog-pictures-"))
    site = place / "demo" / "site-1"

    def flightlog(*words: str, **env: str) -> str:
        done = subprocess.run(
            [FLIGHTLOG, *words], env={**os.environ, **env}, cwd=place, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    here = ("--workspace", str(site))
    try:
        flightlog("demo", "--workspace", str(place / "demo"), "--sites", "2", "--rounds", "6")
        flightlog("up", *here, "--workers", "3", "--detach", "--api-port", "0")
        failing = make_app(place / "scan", "sh", "-c", "echo reading 412 slices; sleep 1; python3 -c 'import torch'")
        flightlog("run", str(failing), "--job", "scan-2", "--follow", "--reason", "the new scanner", *here)
        long = make_app(place / "long", "sh", "-c", "sleep 600")
        flightlog("run", str(long), "--job", "night-run", "--reason", "all of October", "--network", "none", *here)
        token = flightlog("token", "add", "mia", "--role", "operator", *here)
        url = json.loads((site / ".flightlog" / "api.json").read_text())["url"]
        samples = site / ".flightlog" / "jobs" / "night-run" / "1" / "usage.jsonl"
        until(lambda: samples.exists() and samples.read_text().count("\n") >= 3, 30, "nothing is sampled")
        shoot(url.rstrip("/"), token, folder)
        flightlog("abort", "night-run", *here)
    finally:
        flightlog("down", *here)
        shutil.rmtree(place, ignore_errors=True)


def shoot(url: str, token: str, folder: Path) -> None:
    """The pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(QUIET))
        for scheme in ("light", "dark"):
            context = browser.new_context(
                base_url=url,
                color_scheme=scheme,  # type: ignore[arg-type]
                viewport={"width": 1120, "height": 840},
                extra_http_headers={"Authorization": f"Bearer {token}"},
            )
            page = context.new_page()
            for name, path in PAGES.items():
                page.goto(path)
                page.locator("[data-soon]").wait_for(state="detached")  # nothing is being verified
                page.wait_for_timeout(600)
                page.screenshot(
                    path=folder / f"{name}-{scheme}.png", clip={"x": 0, "y": 0, "width": 1120, "height": 840}
                )
            context.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
