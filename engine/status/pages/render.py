"""From facts to HTML: the template environment, and how times, sizes and states are shown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

from engine.lifecycle import BUSY, LIVE, State
from engine.readmodels.room import Room
from engine.record.findings import reach
from events.errors import FlightlogError

NONE = "\N{EN DASH}"
#: State -> what it means for who looks: the colour goes with it, the word says it all without.
TONE = {
    **{state.value: "live" for state in LIVE},
    **{state.value: "busy" for state in BUSY},
    State.FINISHED.value: "good",
    State.DEPLOYED.value: "ready",
    State.FAILED.value: "bad",
    State.LAUNCH_FAILED.value: "bad",
    State.DEPLOY_FAILED.value: "bad",
    State.DELETE_FAILED.value: "bad",
    State.ABORTED.value: "ended",
    State.DELETED.value: "gone",
    State.NEW.value: "gone",
    "lost": "bad",
}


def clock(value: str | None) -> str | Markup:
    """A time, to the second, with its date where it is not today's; the whole of it on hovering."""
    if not value:
        return NONE
    moment = datetime.fromisoformat(value)
    form = "%H:%M:%S" if moment.date() == datetime.now(UTC).date() else "%Y-%m-%d %H:%M:%S"
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(value, moment.strftime(form))


def stamp(value: str | None) -> str | Markup:
    """A time with its date, whenever that is: for what is printed and kept."""
    if not value:
        return NONE
    moment = datetime.fromisoformat(value)
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(value, moment.strftime("%Y-%m-%d %H:%M:%S"))


def ago(value: str | None) -> str | Markup:
    """How long ago a time was; the page's script keeps it right."""
    if not value:
        return NONE
    seconds = (datetime.now(UTC) - datetime.fromisoformat(value)).total_seconds()
    return Markup('<time datetime="{0}" title="{0}" data-ago>{1}</time>').format(value, span(seconds))


def span(seconds: float | None) -> str:
    """So many seconds, as people say it."""
    if seconds is None:
        return NONE
    whole = abs(seconds)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if whole >= size * 2:
            return f"{whole / size:.0f} {unit}"
    return f"{whole:.0f} s" if whole >= 10 else f"{whole:.2g} s"


def size(count: float | None) -> str:
    """So many bytes."""
    if count is None:
        return NONE
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def short(value: str | None, length: int = 12) -> str:
    """The beginning of a digest or an id."""
    return f"{value[:length]}…" if value and len(value) > length else value or NONE


def days_left(room: Room) -> str:
    """For how long there is room, at this pace."""
    if room.days is None:
        return "no growth seen yet"
    return "more than a year left" if room.days > 365 else f"{room.days:.0f} days left at this pace"


_environment = Environment(
    loader=PackageLoader("engine.status.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(clock=clock, stamp=stamp, ago=ago, span=span, size=size, short=short, days=days_left)
_environment.filters["reach"] = reach
_environment.globals["TONE"] = TONE


def page(template: str, status: int = 200, **facts: Any) -> Response:
    """A page."""
    html = _environment.get_template(template).render(**facts)
    return HTMLResponse(html, status, {"Cache-Control": "no-store"})


def error_page(scope: Scope, error: FlightlogError) -> Response:
    """A page that says what went wrong, in the words that everybody else is told too."""
    desk = scope["app"].state.desk if "app" in scope else None
    return page(
        "error.html",
        error.http,
        **{
            "error": error,
            "site": desk.site.name if desk else "",
            "caller": scope["caller"],
            "here": "",
            "stream": None,
        },
    )
