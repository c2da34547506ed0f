"""What each page shows, from the same answers that the API gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from engine import overview as glance
from engine.actors import system_actor
from engine.egress import BLIND
from engine.fold import JobState
from engine.hints import LAST_LINES, hint
from engine.lifecycle import BUSY, COMMANDS, LIVE, State, compiled_commands
from engine.readmodels.room import rooms
from engine.status import outputs, reads, rows
from engine.status.auditing import STALE, Auditor, audit
from engine.status.desk import Desk
from engine.status.events_list import slice_of
from engine.status.jobs_list import JobFilter, jobs_page
from engine.status.pages.diagram import diagram, taken
from engine.status.pages.drawing import columns, plot, plots_of, time_line
from events.envelope import iso
from events.errors import FlightlogError
from events.read import read_back

STUCK_SHOWN = 50
FAILED_SHOWN = 6
EVENTS_SHOWN = 50
#: Commands that a page has a button for: method of the engine -> (path of the API, what the button says).
BUTTONS = {
    "start_app": ("start", "Start"),
    "abort_app": ("abort", "Abort"),
    "delete_run": ("delete", "Delete run folder"),
}
WELL_KNOWN = {
    "deploy_app": "deploy",
    "start_app": "start",
    "abort_app": "abort",
    "delete_run": "delete",
}


def overview(desk: Desk) -> dict[str, Any]:
    """What needs somebody first, then how the site is."""
    site, now = desk.site, desk.store.now_ms()
    under_way = []
    for state in (*LIVE, *BUSY):
        for job, loaded in site.jobs.load_many(site.jobs.ids(state=state.value, limit=200)):
            under_way.append(_waiting(job, loaded.state, now))
    under_way.sort(key=lambda row: row["pressing"], reverse=True)
    others = [work for work in glance.open_work(site.jobs, now) if work["kind"] in ("settle",)]
    failed = jobs_page(desk, JobFilter(states=["failed", "launch_failed", "deploy_failed", "delete_failed"], limit=6))
    return {
        "standing": glance.standing(site),
        "under_way": under_way[:STUCK_SHOWN],
        "more": max(0, len(under_way) - STUCK_SHOWN),
        "others": others[:10],
        "states": [(state.value, count) for state, count in _counts(desk).items()],
        "held": glance.resources(site.jobs),
        "rooms": rooms(site),
        "failed": failed["items"][:FAILED_SHOWN],
        "events": [e.as_dict() for e in islice((e for e in _last(desk) if e.type != "ReadsObserved"), 8)],
        "lag": desk.as_of()["lag"],
    }


def _waiting(job: str, state: JobState, now: int) -> dict[str, Any]:
    """A job that something is waited for, and how much of its time is gone."""
    since, deadline = int(state.get("since") or now), state.get("deadline")
    part = None
    if deadline:
        part = (now - since) / max(1, int(deadline) - since)
    return {
        "job": job,
        "state": state.state.value,
        "by": state.told("asked_by") or None,
        "reason": state.told("reason") or None,
        "waiting_for": state.get("waiting_for") or None,
        "since": iso(since),
        "deadline": iso(deadline) if deadline else None,
        "part": part,
        "overdue": part is not None and part > 1,
        "pressing": (part or 0.0, now - since),
    }


def _counts(desk: Desk) -> dict[State, int]:
    known = glance.by_state(desk.site.jobs)
    return {state: known.get(state.value, 0) for state in State if known.get(state.value)}


def _last(desk: Desk) -> Any:
    return islice(read_back(desk.store, page=100), 400)


def jobs(desk: Desk, asked: JobFilter) -> dict[str, Any]:
    """A page of the list."""
    return {**jobs_page(desk, asked), "states": [state.value for state in State], "asked": asked}


def job(desk: Desk, job_id: str, at: str | None) -> dict[str, Any]:
    """A job now, or as it was."""
    now = desk.store.now_ms()
    if at is None:
        shown, event = reads.job_now(desk, job_id), None
        last = shown["version"]
    else:
        shown = reads.job_then(desk, job_id, at)
        event, last = shown["event"], desk.moments.length(job_id)
    upto = event["position"] if event else None
    life = reads.milestones(desk, job_id, upto)
    ways, here = taken(life)
    complete = bool(life) and life[0].version == 1
    then_ms = int(upto.partition("-")[0]) if upto else now
    return {
        "job": shown,
        "event": event,
        "at": shown["version"] if at is not None else None,
        "last": last,
        "sentence": sentence(shown),
        "diagram": diagram(ways, here if complete else shown["state"]),
        "line": time_line(life, then_ms),
        "windowed": not complete,
        "buttons": _buttons(shown) if at is None else [],
        "refused": _refused(shown),
        "events": _events(desk, job_id, shown["version"]),
        **_numbers(desk, job_id, shown, then_ms if at is not None else None),
        **_sent(desk, job_id, then_ms if at is not None else None),
        "failure": _failure(desk, job_id, shown),
    }


def sentence(job: Mapping[str, Any]) -> list[str]:
    """A job in one sentence, in parts: state; who and why; what it waits for; until when."""
    parts = []
    who = f"{job['asked_by']} asked for it" if job["asked_by"] else "nobody is named"
    parts.append(who + (f", because “{job['reason']}”" if job["reason"] else ", and gave no reason"))
    if job["waiting_for"]:
        parts.append(f"it waits for {job['waiting_for']}")
    elif job["ended"] and job["state"] in ("finished", "failed", "aborted"):
        code = (
            job["exit_code"]
            if job["exit_code"] is not None
            else f"signal {job['signal']}"
            if job["signal"]
            else "none"
        )
        parts.append(f"its app ended with exit code {code}" if job["exit_code"] is not None else f"exit code: {code}")
    return parts


def _buttons(job: Mapping[str, Any]) -> list[dict[str, str]]:
    buttons = [
        {"command": path, "label": label} for method, (path, label) in BUTTONS.items() if method in job["allowed"]
    ]
    if job["state"] == "running" and job["task"]:
        buttons.append({"command": "abort-task", "label": "Abort current task"})
    return buttons


def _refused(job: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"command": name, **job["refused"][method]} for method, name in WELL_KNOWN.items() if method in job["refused"]
    ]


def _events(desk: Desk, job_id: str, version: int) -> list[dict[str, Any]]:
    low = max(0, version - EVENTS_SHOWN)
    return [event.as_dict() for event in reversed(slice_of(desk, job_id, low, version))]


def _numbers(desk: Desk, job_id: str, shown: Mapping[str, Any], then_ms: int | None) -> dict[str, Any]:
    """What the app learned, and what it used, as plots."""
    try:
        learned = outputs.metrics(desk, job_id, 5000)["items"]
        used = outputs.usage(desk, job_id, shown["attempt"] or 1, 5000)["items"]
    except FlightlogError:
        learned, used = [], []
    if then_ms is not None:
        learned = [row for row in learned if _time(row) * 1000 <= then_ms]
        used = [row for row in used if _time(row) * 1000 <= then_ms]
    usage = []
    for name, label, scale in (
        ("cpu", "processors", 1.0),
        ("rss", "memory, MB", 1e6),
        ("gpu", "GPU memory, MB", 1e6),
    ):
        values = [(_time(row), float(row[name]) / scale) for row in used if isinstance(row.get(name), int | float)]
        drawn = plot(label, values, "time")
        if drawn is not None:
            usage.append(drawn)
    return {"plots": plots_of(learned), "usage": usage, "rounds": learned[-1:], "row_count": len(learned)}


def _time(row: Mapping[str, Any]) -> float:
    value = row.get("time")
    return float(value) if isinstance(value, int | float) else 0.0


def _sent(desk: Desk, job_id: str, then_ms: int | None) -> dict[str, Any]:
    page = rows.rows_page(
        desk,
        "egress",
        job=job_id,
        after=None,
        limit=12,
        fits=lambda row: then_ms is None or row["ms"] <= then_ms,
    )
    totals = rows.egress_totals(desk, job=job_id)["totals"]
    by_target: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in totals:
        by_target[row["target"]][0] += row["bytes"]
        by_target[row["target"]][1] += row["messages"]
    return {"sent": page["items"], "sent_totals": sorted(by_target.items()), "sent_more": page["next"] is not None}


def _failure(desk: Desk, job_id: str, shown: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to look at when it went wrong."""
    if shown["state"] not in ("failed", "launch_failed", "deploy_failed", "delete_failed"):
        return None
    lines: list[str] = []
    try:
        output = outputs.log_of(desk, job_id, shown["attempt"] or None)
        lines = outputs.last_lines(output, LAST_LINES).decode(errors="replace").splitlines()
    except FlightlogError:
        lines = []
    code = shown["exit_code"] if shown["exit_code"] is not None else 128 + shown["signal"] if shown["signal"] else 1
    return {"lines": lines, "hint": hint(code, shown["error"] or "", lines)}


def egress(desk: Desk) -> dict[str, Any]:
    """What left: by day, target and job; the largest items; which apps had the network."""
    sums = rows.egress_totals(desk)
    days: dict[str, int] = defaultdict(int)
    for row in sums["totals"]:
        days[row["day"]] += row["bytes"]
    items = rows.rows_page(desk, "egress", job=None, after=None, limit=rows.MOST_ROWS)["items"]
    largest = sorted((row for row in items if row["outcome"] != "waiting"), key=lambda row: -row["size"])[:15]
    return {
        "totals": sums["totals"][:100],
        "total": sum(days.values()),
        "networks": sums["networks"][:50],
        "columns": columns(days),
        "largest": largest,
        "note": BLIND,
        "as_of": desk.as_of(),
    }


def workers(desk: Desk) -> dict[str, Any]:
    """Who works, and what waits."""
    return {"who": reads.workers(desk), "what": reads.queues(desk)}


def audited(desk: Desk, auditor: Auditor) -> dict[str, Any]:
    """How far the record can be trusted; it is verified again in the background where that was long ago."""
    auditor.verify(system_actor("api"), at_least_every=STALE)
    return {**audit(desk, auditor), "now": datetime.now(UTC).isoformat(timespec="seconds")}


def lifecycle() -> dict[str, Any]:
    """The table itself."""
    return {
        "diagram": diagram(),
        "states": [state.value for state in State],
        "commands": compiled_commands(),
        "order": list(COMMANDS),
    }


def known_types(desk: Desk) -> list[str]:
    """Types of events that the record has."""
    return sorted(reads.counts_of(desk, desk.names.types))
