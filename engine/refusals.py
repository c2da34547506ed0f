"""From a decision's code to an error that says what stands in the way, who put it there, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from engine.decide import Refused
from engine.errors import from_code
from engine.fold import JobState
from events.errors import FlightlogError

# code -> (what follows after "JOB is STATE since T (asked by A)", what to try)
_TEXT: dict[str, tuple[str, str]] = {
    "JOB_UNKNOWN": ("", "flightlog list shows the jobs of this site"),
    "JOB_LIVE": ("This needs a job without a live app.", "flightlog abort {job} --wait"),
    "JOB_BUSY": ("This needs a job that nobody is working on.", "flightlog wait {job}"),
    "DEPLOY_IN_PROGRESS": ("A deploy is under way.", "flightlog wait {job}"),
    "NOT_DEPLOYED": ("There is no app to start.", "flightlog deploy {job} APP"),
    "NOT_STARTED": ("There is nothing to abort.", "flightlog start {job}"),
    "NOT_LIVE": ("Only a live app can report a status.", "flightlog show {job}"),
    "ALREADY_STARTED": ("There is nothing to start.", "flightlog logs {job} --follow"),
    "ALREADY_STOPPED": ("There is nothing to abort.", "flightlog show {job}"),
    "STILL_REGISTERED": ("", "flightlog wait {job}"),
    "BACKWARDS": ("A stopped app does not become a started one.", "flightlog why {job}"),
}


def reasons(codes: Mapping[str, str], job_id: str, state: JobState) -> dict[str, dict[str, str]]:
    """Of commands that may not come now, with the code of each: code and reason, in the words of ``refusal``."""
    stands = standing(state)
    return {command: {"code": code, "reason": _what(code, job_id, state, stands)} for command, code in codes.items()}


def refusal(decision: Refused, job_id: str, state: JobState) -> FlightlogError:
    """The error for a refused command."""
    facts = {"job": job_id, "state": decision.state.value}
    if decision.code == "META_DIFFERS":
        return from_code(
            "META_DIFFERS",
            f"START_JOB metadata differs from deployed job metadata for '{decision.key}'",
            f"deploy {job_id} again with the new metadata, or start it with the deployed one",
            field=f"job_meta[{decision.key!r}]",
            **facts,
        )
    what = _what(decision.code, job_id, state, standing(state))
    return from_code(decision.code, what, _TEXT[decision.code][1].format(job=job_id), **facts)


def _what(code: str, job_id: str, state: JobState, stands: str) -> str:
    """What stands in the way, in one sentence."""
    if code == "JOB_UNKNOWN":
        was = "has been deleted" if state else "is not on this site's record"
        return f"job {job_id} {was}"
    if code == "STILL_REGISTERED":
        return f"client app for job '{job_id}' is still registered ({stands})"
    return f"{job_id} {stands}. {_TEXT[code][0]}".strip()


def standing(state: JobState) -> str:
    """Where a job stands, since when, and who asked for that."""
    text = f"is {state.state.value}"
    if state.get("since"):
        text += f" since {clock(state['since'])}"
    if asked_by := state.told("asked_by"):
        text += f" (asked by {asked_by})"
    return text


def clock(ms: str) -> str:
    """A time for people: today's as hours, others with their date; always UTC."""
    when = datetime.fromtimestamp(int(ms) / 1000, UTC)
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")
