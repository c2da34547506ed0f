"""The pages in a real Chromium: how soon an event is on one, and how soon a job with 100,000 events is open."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from benchmarks.harness import Result, Row, machine, percentile, scratch
from engine.archive import pack
from engine.calls.deploy import deploy
from engine.client_engine import ClientEngine
from events.bodies.job import CallRepeated

EVENTS = int(os.environ.get("FLIGHTLOG_BENCH_PAGE_EVENTS", "100000"))
LOOKS = 100  # events whose way to the page is measured
OPENINGS = 15
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-quic")
#: When the page shows what a test of an event asks for, on the page's own clock.
SHOWN = """([text]) => new Promise(done => {
  const there = () => document.querySelector('[data-part=events]').textContent.includes(text);
  if (there()) return done(Date.now());
  const watch = new MutationObserver(() => { if (there()) { watch.disconnect(); done(Date.now()); } });
  watch.observe(document.getElementById('main'), {childList: true, subtree: true, characterData: true});
})"""


def run(notes: Console) -> Result:
    """Measure; the browser and the site are on this machine, and share its processors."""
    with scratch() as folder, _site(folder) as (engine, url), _page(url) as page:
        result = Result("pages", machine(engine.site.jobs.store))
        many = [CallRepeated(method="abort_app", state="deployed")] * 1000
        for number in range(EVENTS // 1000):
            engine.site.jobs.note(engine.site.system_call(f"many:{number}"), many, "long")
        notes.print(f"pages: {EVENTS} events of one job appended")
        opened = result.keep("open a job, ms", [_opened(page, "/jobs/long") for _ in range(OPENINGS)])
        half = EVENTS // 2
        back = result.keep("look back, ms", [_opened(page, f"/jobs/long?at={half + n}") for n in range(OPENINGS)])
        page.goto("/jobs/short")
        seen = result.keep("append to page, ms", [_seen(engine, page, number) for number in range(LOOKS)])
    for what, values, goal in (
        (f"a job with {EVENTS} events is open", opened, "p95 < 1000 ms"),
        (f"the same, as it was at event {half}", back, ""),
    ):
        p95 = percentile(values, 0.95)
        told = f"p50 {percentile(values, 0.5):.0f} ms, p95 {p95:.0f} ms"
        result.add(Row(what=what, ours=told, goal=goal, met=p95 < 1000 if goal else None))
    p95 = percentile(seen, 0.95)
    told = f"p50 {percentile(seen, 0.5):.0f} ms, p95 {p95:.0f} ms, at most {max(seen):.0f} ms"
    result.add(
        Row(
            what="from an event's append until a job's page shows it",
            ours=told,
            goal="p95 <= 250 ms",
            met=p95 <= 250,
        )
    )
    return result


def _opened(page: Page, path: str) -> float:
    """Milliseconds from the address until all of the page is there."""
    began = time.perf_counter()
    page.goto(path, wait_until="load")
    return (time.perf_counter() - began) * 1000


def _seen(engine: ClientEngine, page: Page, number: int) -> float:
    """Milliseconds from an event's time on the record until the page has its version."""
    time.sleep(0.05 + number % 7 / 50)
    version = engine.site.jobs.load("short").version + 1
    call = engine.site.system_call(f"seen:{number}")
    waiting = f"window.shown = ({SHOWN})([String({version})])"
    page.evaluate(f"() => {{ {waiting}; return null; }}")
    appended = engine.site.jobs.note(call, [CallRepeated(method="abort_app", state="deployed")], "short")
    shown = float(page.evaluate("() => window.shown"))
    return shown - int(appended.positions[0].partition("-")[0])


@contextmanager
def _site(folder: Path) -> Iterator[tuple[ClientEngine, str]]:
    app = folder / "app"
    (app / "config").mkdir(parents=True)
    (app / "config" / "config_fed_client.json").write_text('{"format_version": 2, "command": ["true"]}')
    workspace = folder / "ws"
    with ClientEngine.open(site="bench", workspace=workspace, workers=2) as engine:
        for job in ("long", "short"):
            deploy(engine.core, "app", job, {}, "bench", pack(app), timeout=30)
        api = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine.status", "--exactly", "--workspace", str(workspace)],
            env={**os.environ, "FLIGHTLOG_API_PORT": "0"},
        )
        try:
            known = workspace / ".flightlog" / "api.json"
            while not known.exists():
                time.sleep(0.05)
            time.sleep(1)
            yield engine, json.loads(known.read_text())["url"].rstrip("/")
        finally:
            api.terminate()
            api.wait(20)


@contextmanager
def _page(url: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(QUIET))
        context = browser.new_context(base_url=url)
        yield context.new_page()
        context.close()
        browser.close()
