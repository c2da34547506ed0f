"""The pages in a real browser: they move by themselves, look back, command, and survive what happens to them."""

from __future__ import annotations

import re
import signal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from engine.record.sealing import seal_now
from events.bodies.site import ServerAdopted
from events.read import read, read_job
from tests.browser.conftest import folder_of, sign_in
from tests.histories import body
from tests.status.served import SLEEPER, Served, start_api
from tests.support import in_state, kill, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]
PAGES = (
    *("/", "/jobs", "/jobs/well", "/jobs/bad", "/jobs/well?at=3", "/events", "/egress", "/workers", "/lifecycle"),
    *("/audit", "/login", "/errors/JOB_LIVE", "/jobs/nobody"),
)


def test_a_page_moves_by_itself_when_something_happens(site: Served, page: Page) -> None:
    page.goto("/")
    expect(page.locator("#live")).to_be_visible()
    expect(page.locator("#live")).to_have_text("live")
    site.run("moves", folder_of(site), *SLEEPER, wait="running")
    row = page.locator("[data-part=waits]").get_by_role("row", name="moves")
    expect(row).to_contain_text("running")
    page.goto("/jobs/moves")
    expect(page.locator("[data-part=sentence]")).to_contain_text("running")
    site.engine.abort_app("moves")
    expect(page.locator("[data-part=sentence]")).to_contain_text("aborted")
    expect(page.locator(".node.here")).to_have_text("aborted")


def test_the_site_is_always_named_and_what_went_wrong_is_told_with_a_hint(site: Served, page: Page) -> None:
    for path in PAGES:
        answer = page.goto(path)
        assert answer is not None
        assert answer.status == (404 if path == "/jobs/nobody" else 200), path
        expect(page.locator("header .site")).to_have_text(site.engine.site.name)
    page.goto("/jobs/bad")
    card = page.locator("[data-part=failure]")
    expect(card).to_contain_text("Exit code")
    expect(card).to_contain_text("3 (")
    expect(card.locator("pre")).to_have_text("<img src=x onerror=alert(1)>")
    expect(card).to_contain_text("Hint")


def test_the_slider_rewinds_the_whole_page_and_leads_back_to_now(site: Served, page: Page) -> None:
    page.goto("/jobs/well")
    expect(page.locator("[data-part=plots] .plot").first).to_be_visible()
    events = list(read_job(site.engine.site.jobs.store, "well"))
    slider = page.get_by_label("Look back")
    slider.focus()
    asked = next(event.version for event in events if event.type == "StartRequested")
    for _ in range(len(events) - asked):
        slider.press("ArrowLeft")
    expect(page.locator("[data-part=sentence]")).to_contain_text(f"As it was at version {asked}")
    expect(page.locator("[data-part=sentence]")).to_contain_text("StartRequested")
    expect(page.locator("[data-part=sentence] .state").first).to_have_text("starting")
    expect(page.locator(".node.here")).to_have_text("starting")
    expect(page.locator("[data-part=commands]")).to_have_count(0)
    expect(page.locator("[data-part=events] tbody tr")).to_have_count(asked)
    assert f"at={asked}" in page.url
    slider.press("End")
    expect(page.locator("[data-part=sentence]")).not_to_contain_text("As it was")
    expect(page.locator(".node.here")).to_have_text("finished")
    expect(page.locator("#live")).to_be_visible()
    expect(page.locator("#live")).to_have_text("live")


def test_an_operator_commands_with_a_reason_and_the_record_says_who(site: Served, page: Page) -> None:
    site.run("push", folder_of(site), *SLEEPER, wait="running")
    sign_in(page, site.operator)
    page.goto("/jobs/push")
    commands = page.locator("[data-part=commands]")
    expect(commands.get_by_role("button")).to_have_text(["Abort"])
    commands.get_by_text("What may not, and why").click()
    expect(commands.locator("details")).to_contain_text("ALREADY_STARTED")
    commands.get_by_role("button", name="Abort").click()
    assert page.evaluate("document.querySelector('[name=reason]').validity.valueMissing")
    page.get_by_label("Why").fill("<script>alert('why')</script>")
    commands.get_by_role("button", name="Abort").click()
    expect(page.locator(".said")).to_contain_text("abort of push")
    expect(page.locator("[data-part=sentence]")).to_contain_text("because “<script>alert('why')</script>”")
    in_state(site.engine.site.jobs, "push", "aborted")
    asked = [e for e in read_job(site.engine.site.jobs.store, "push") if e.type == "AbortRequested"][-1].as_dict()
    assert asked["actor"] == {"id": "olga", "kind": "person", "auth": "token", "via": "api"}
    assert asked["body"]["reason"] == "<script>alert('why')</script>"
    expect(commands.get_by_role("button")).to_have_text(["Start", "Delete run folder"])


def test_a_command_on_what_has_changed_meanwhile_is_refused_and_says_so(site: Served, page: Page) -> None:
    site.run("stale", folder_of(site), "true")
    sign_in(page, site.operator)
    page.goto("/jobs/stale")
    page.get_by_label("Why").fill("again")
    page.evaluate("document.querySelector('[name=revision]').value = '1'")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("REVISION_CONFLICT")
    expect(page.locator("main")).to_contain_text("Recorded as event")
    assert site.engine.site.jobs.load("stale").state.attempt == 1


def test_who_may_only_look_has_no_buttons_and_a_wrong_token_does_not_sign_in(site: Served, page: Page) -> None:
    page.goto("/jobs/well")
    expect(page.locator("[data-part=commands]")).to_contain_text("Sign in as an operator")
    page.goto("/login")
    page.get_by_label("Token").fill("fl_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("NOT_AUTHORISED")
    sign_in(page, site.viewer)
    page.goto("/jobs/well")
    expect(page.locator("[data-part=commands]")).to_contain_text("vera may look only")
    expect(page.locator("[data-part=commands]").get_by_role("button")).to_have_count(0)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()


def test_a_job_with_100_000_events_opens_with_a_window_of_them(site: Served, page: Page) -> None:
    site.run("long", folder_of(site), "true")
    jobs = site.engine.site.jobs
    for number in range(100):
        bodies = [body("CallRepeated") for _ in range(1000)]
        jobs.note(site.engine.site.system_call(f"many:{number}"), bodies, "long")
    version = jobs.load("long").version
    assert version > 100_000
    page.goto("/jobs/long")
    expect(page.locator("[data-part=events] tbody tr")).to_have_count(50)
    expect(page.locator("[data-part=events]")).to_contain_text(str(version))
    expect(page.locator("[data-part=line] .bar").first).to_be_attached()
    page.goto("about:blank")
    site.fed(120)
    page.goto("/jobs/long?at=55555")
    expect(page.locator("[data-part=sentence]")).to_contain_text("As it was at version 55555")
    expect(page.locator("[data-part=events] tbody tr").first).to_contain_text("55555")


def test_a_job_that_was_refused_much_keeps_its_path_and_its_time_line(site: Served, page: Page) -> None:
    site.run("refused", folder_of(site), "true")
    jobs = site.engine.site.jobs
    for number in range(3):
        jobs.note(site.engine.site.system_call(f"no:{number}"), [body("CallRefused")] * 1000, "refused")
    site.fed()
    for path in ("/jobs/refused", "/jobs/refused?at=10"):
        page.goto(path)
        expect(page.locator(".edge.lit")).to_have_count(5)
        assert page.locator("[data-part=line] .bar").count() >= 4


def test_events_are_searched_and_followed_and_held_back_while_somebody_reads(site: Served, page: Page) -> None:
    page.goto("/events?job=bad&type=AppFailed")
    expect(page.locator("#feed tbody tr")).to_have_count(1)
    expect(page.locator("#feed tbody tr")).to_contain_text("exit_code=3")
    page.goto("/events?q=pid%22%3A40&actor=flightlog:site")
    expect(page.locator("#count")).to_have_text("0 events")
    jobs = site.engine.site.jobs
    for pid in (39, 40):
        jobs.note(
            site.engine.site.system_call(f"found:{pid}"), [ServerAdopted(server="record", pid=pid, started=False)]
        )
    expect(page.locator("#feed tbody tr")).to_have_count(1)
    expect(page.locator("#feed tbody tr")).to_contain_text("pid=40")
    page.goto("/events?type=ServerAdopted")
    expect(page.locator("#count")).to_contain_text("events")
    note = ServerAdopted(server="record", pid=41, started=False)
    jobs.note(site.engine.site.system_call("followed"), [note])
    expect(page.locator("#feed tbody tr").first).to_contain_text("pid=41")
    page.get_by_label("Follow").uncheck()
    jobs.note(site.engine.site.system_call("held"), [ServerAdopted(server="record", pid=42, started=False)])
    expect(page.locator("#count")).to_have_text("1 more have come")
    expect(page.locator("#feed tbody tr").first).to_contain_text("pid=41")
    page.get_by_label("Follow").check()
    expect(page.locator("#feed tbody tr").first).to_contain_text("pid=42")


def test_a_lost_connection_is_told_and_gone_on_from_without_a_gap_or_a_double(site: Served, page: Page) -> None:
    page.goto("/events")
    expect(page.locator("#count")).to_contain_text("events")
    first = page.locator("#feed tbody tr").last.get_attribute("data-position")
    jobs = site.engine.site.jobs
    jobs.note(site.engine.site.system_call("one"), [ServerAdopted(server="record", pid=1, started=False)])
    expect(page.locator("#feed tbody tr").first).to_contain_text("pid=1")
    kill(site.api.pid)
    site.api.wait()
    expect(page.locator("#away")).to_contain_text("The connection is lost")
    for number in range(150):  # more than a page would show at first
        note = ServerAdopted(server="record", pid=1000 + number, started=False)
        jobs.note(site.engine.site.system_call(f"lost:{number}"), [note])
    site.api = start_api(site.workspace, port=int(site.url.rpartition(":")[2]))
    expect(page.locator("#away")).to_be_hidden(timeout=30_000)
    expect(page.locator("#feed tbody tr", has_text="pid=1149")).to_have_count(1, timeout=30_000)
    shown = page.evaluate("[...document.querySelectorAll('#feed tr[data-position]')].map(r => r.dataset.position)")
    upto = shown[0]
    whole = [
        event.position
        for event in read(jobs.store, upto=upto)
        if event.type != "ReadsObserved" and event.seq >= int(str(first).partition("-")[2])
    ]
    assert shown == whole[::-1]


def test_with_the_record_away_the_page_says_so_and_recovers(site: Served, page: Page) -> None:
    page.goto("/jobs/well")
    expect(page.locator("#live")).to_be_visible()
    expect(page.locator("#live")).to_have_text("live")
    record = next(server for server in site.engine.site.servers.embedded if server.role == "record")
    pid = record.pid()
    assert pid is not None
    page.evaluate(
        """() => { window.told = []; const away = document.getElementById('away');
        new MutationObserver(() => window.told.push(away.textContent)).observe(away, {childList: true}); }"""
    )
    pool = site.engine._pool.process.pid
    kill(pool, signal.SIGSTOP)  # who starts it again does not, for a moment
    try:
        kill(pid)
        until(lambda: page.evaluate("window.told.some(text => text.includes('The record is away'))"), 30)
    finally:
        kill(pool, signal.SIGCONT)
    expect(page.locator("#away")).to_be_hidden(timeout=30_000)
    expect(page.locator("[data-part=sentence]")).to_contain_text("finished")
    site.run("after", folder_of(site), "true")
    page.goto("/jobs/after")
    expect(page.locator("[data-part=sentence]")).to_contain_text("finished")


def test_everything_can_be_done_with_the_keyboard_alone(site: Served, page: Page) -> None:
    site.run("keys", folder_of(site), *SLEEPER, wait="running")
    sign_in(page, site.operator)
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("To the content")
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    _tab_to(page, "keys")
    # What happens meanwhile takes nobody from where they are.
    for number in range(3):
        note = ServerAdopted(server="record", pid=number, started=False)
        site.engine.site.jobs.note(site.engine.site.system_call(f"meanwhile:{number}"), [note])
        expect(page.locator("[data-part]", has_text="Last events").get_by_text("ServerAdopted")).to_have_count(
            number + 1
        )
        expect(page.locator(":focus")).to_have_text("keys")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("keys")
    _tab_to(page, "", "at")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("[data-part=sentence]")).to_contain_text("As it was")
    page.keyboard.press("End")
    expect(page.locator("[data-part=commands]")).to_be_visible()
    _tab_to(page, "", "reason")
    page.keyboard.type("by keyboard")
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Abort")
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_be_visible()
    in_state(site.engine.site.jobs, "keys", "aborted")


def _tab_to(page: Page, text: str, name: str = "") -> None:
    """Press Tab until something is reached; what is focused can be seen."""
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """() => { const e = document.activeElement; const s = getComputedStyle(e);
            return {text: e.textContent.trim(), name: e.name || '', seen: s.outlineStyle !== 'none'}; }"""
        )
        assert at["seen"], f"the focus is not to be seen on {at}"
        if (text and at["text"] == text) or (name and at["name"] == name):
            return
    raise AssertionError(f"Tab does not lead to {text or name}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(site: Served, browser: Browser, scheme: str) -> None:
    context = browser.new_context(base_url=site.url, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    sign_in(page, site.operator)
    for path in PAGES:
        page.goto(path)
        page.wait_for_timeout(150)
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
        told = [(v["id"], [n["html"][:160] for n in v["nodes"]][:3]) for v in found.response["violations"]]
        assert not told, f"{path} in {scheme}: {told}"
    context.close()


def test_pages_can_be_read_at_360_pixels(site: Served, browser: Browser) -> None:
    context = browser.new_context(base_url=site.url, viewport={"width": 360, "height": 700})
    page = context.new_page()
    for path in PAGES:
        page.goto(path)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, f"{path} is {wide} pixels wide"
    context.close()


def test_the_theme_can_be_chosen_and_stays(site: Served, page: Page) -> None:
    page.goto("/")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Light or dark").click()
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert before != after
    page.goto("/jobs")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == after


def test_the_audit_prints_dark_on_light_with_dates_and_without_what_can_only_be_clicked(
    site: Served, browser: Browser
) -> None:
    seal_now(site.engine.site)
    context = browser.new_context(color_scheme="dark", base_url=site.url)
    try:
        page = context.new_page()
        page.goto("/audit")
        expect(page.locator("[data-part=verified]")).to_contain_text("Vouched for", timeout=30_000)
        page.emulate_media(media="print", color_scheme="dark")
        back, front = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        assert (back, front) == ("rgb(251, 251, 250)", "rgb(29, 28, 26)")
        expect(page.get_by_role("navigation")).to_be_hidden()
        standing = page.locator("[data-part=standing]").inner_text()
        times = page.locator("main time").all_inner_texts()
        assert site.engine.site.workspace.id in standing, "which log it is about"
        assert len(times) >= 3
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", one) for one in times), times
        assert page.pdf()[:5] == b"%PDF-"
    finally:
        context.close()
