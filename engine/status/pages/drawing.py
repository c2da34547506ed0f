"""Pictures as SVG, drawn from facts: a time line to scale, plots of numbers, bytes a day."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from events.envelope import Event, iso

# -- the time line -----------------------------------------------------------------------------

#: Row of the time line -> (events that begin a bar, events that end it).
BARS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "deploy": (("DeployRequested",), ("DeploySucceeded", "DeployFailed", "DeployExpired")),
    "launch": (("StartRequested",), ("AppSpawned", "LaunchFailed", "LaunchExpired")),
    "app": (("AppSpawned",), ("AppFinished", "AppFailed", "AppAborted", "AppLost")),
    "task": (("TaskStarted",), ("TaskDone",)),
    "stream": (("TransferOpened",), ("TransferClosed",)),
    "abort": (
        ("AbortRequested",),
        ("AppFinished", "AppFailed", "AppAborted", "AppLost", "LaunchFailed", "LaunchExpired"),
    ),
    "settle": (
        ("AppFinished", "AppFailed", "AppAborted", "AppLost", "LaunchFailed", "LaunchExpired"),
        ("JobSettled",),
    ),
    "delete": (("DeleteRequested",), ("DeleteSucceeded", "DeleteAbandoned")),
}
BAD = ("DeployFailed", "DeployExpired", "LaunchFailed", "LaunchExpired", "AppFailed", "AppLost", "DeleteAbandoned")
LINE_W, LABEL_W, ROW_H = 960.0, 64.0, 26.0
LEAST_W = 3.0


@dataclass(frozen=True)
class Bar:
    """From an intent to its outcome, or to now."""

    row: str
    x: float
    y: float
    width: float
    kind: str
    began: str
    ended: str | None
    seconds: float
    by: str
    outcome: str
    label: str
    text: str


@dataclass(frozen=True)
class TimeLine:
    """Bars to scale."""

    width: float
    height: float
    rows: list[tuple[str, float]]
    bars: list[Bar]
    ticks: list[tuple[float, str, str]]
    began: str
    ended: str


def time_line(events: Sequence[Event], now_ms: int) -> TimeLine | None:
    """Bars from intents to outcomes, to scale; None where there are none."""
    spans = list(_spans(events, now_ms))
    if not spans:
        return None
    first = min(began for _, began, *_ in spans)
    last = max(first + 1, *(ended for _, _, ended, *_ in spans))
    names = [row for row in BARS if any(span[0] == row for span in spans)]
    rows = {row: number * ROW_H + 6 for number, row in enumerate(names)}
    scale = (LINE_W - LABEL_W - 8) / (last - first)
    bars = []
    for row, began, ended, by, outcome, open_ in spans:
        x, width = LABEL_W + (began - first) * scale, max(LEAST_W, (ended - began) * scale)
        x = min(x, LINE_W - 8 - width)
        kind = "open" if open_ else "bad" if outcome in BAD else "good"
        seconds = (ended - began) / 1000
        label = f"{row} {seconds:g} s, asked by {by}" + ("" if open_ else f": {outcome}")
        # Who asked, where there is room for it: within the bar, else only in the title and the table.
        text = by if width > 7.0 * len(by) + 10 else ""
        end = None if open_ else iso(ended)
        bars.append(Bar(row, x, rows[row], width, kind, iso(began), end, seconds, by, outcome, label, text))
    height = len(rows) * ROW_H + 28
    ticks = [
        (
            LABEL_W + (LINE_W - LABEL_W - 8) * part / 4,
            _offset((last - first) * part / 4 / 1000),
            "start" if part == 0 else "end" if part == 4 else "middle",
        )
        for part in range(5)
    ]
    return TimeLine(LINE_W, height, list(rows.items()), bars, ticks, iso(first), iso(last))


def _spans(events: Sequence[Event], now_ms: int) -> Iterator[tuple[str, int, int, str, str, bool]]:
    """(row, began, ended, by, outcome, open)."""
    for row, (begins, ends) in BARS.items():
        opened: dict[str, tuple[Event, str]] = {}
        asker = ""  # who is behind what a worker or the caretaker did
        for event in events:
            if event.type == "StartRequested":
                asker = event.rest()["actor"]["id"]
            if event.type not in begins and event.type not in ends:
                continue
            key = str(event.body["id"]) if row == "stream" else ""
            if event.type in ends and (known := opened.pop(key, None)) is not None:
                yield row, int(known[0].ms), int(event.ms), known[1], event.type, False
            if event.type in begins:
                by = asker if row in ("app", "settle") and asker else event.rest()["actor"]["id"]
                opened.setdefault(key, (event, by))
        for begun, by in opened.values():
            yield row, int(begun.ms), max(now_ms, int(begun.ms)), by, "", True


def _offset(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size * 2:
            return f"+{seconds / size:.1f} {unit}"
    return f"+{seconds:.2f} s" if seconds else "0"


# -- plots -------------------------------------------------------------------------------------

PLOT_W, PLOT_H, PAD = 300.0, 96.0, 6.0
POINTS = 300  # of a line, at most


@dataclass(frozen=True)
class Plot:
    """One line of numbers."""

    name: str
    points: str
    low: str
    high: str
    last: str
    over: str


def plot(name: str, values: Sequence[tuple[float, float]], over: str, form: str = "{:.4g}") -> Plot | None:
    """A line through (x, y); None for less than two points."""
    if len(values) < 2:
        return None
    step = max(1, len(values) // POINTS)
    chosen = [*values[:-1:step], values[-1]]
    xs, ys = [x for x, _ in chosen], [y for _, y in chosen]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    across, up = (PLOT_W - 2 * PAD) / ((x1 - x0) or 1), (PLOT_H - 2 * PAD) / ((y1 - y0) or 1)
    points = " ".join(f"{PAD + (x - x0) * across:.1f},{PLOT_H - PAD - (y - y0) * up:.1f}" for x, y in chosen)
    return Plot(name, points, form.format(y0), form.format(y1), form.format(ys[-1]), over)


def plots_of(rows: Sequence[Mapping[str, Any]], most: int = 8) -> list[Plot]:
    """A plot for each number that an app left, over its rounds."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ("time", "round")]
    found = []
    for name in names:
        values = [
            (float(row["round"]) if _is_number(row.get("round")) else float(index), float(row[name]))
            for index, row in enumerate(rows)
            if _is_number(row.get(name))
        ]
        drawn = plot(name[:60], values, "round" if any("round" in row for row in rows) else "row")
        if drawn is not None:
            found.append(drawn)
    return found[:most]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# -- bytes per day -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A day's bytes."""

    day: str
    x: float
    y: float
    width: float
    height: float
    bytes: int


def columns(days: Mapping[str, int], width: float = 720.0, height: float = 120.0, most: int = 60) -> list[Column]:
    """Bars of bytes, one a day, the last days at the right."""
    chosen = sorted(days)[-most:]
    if not chosen:
        return []
    top = max(days[day] for day in chosen) or 1
    each = width / max(len(chosen), 12)
    return [
        Column(
            day,
            index * each + 2,
            height - max(1.0, days[day] / top * (height - 8)),
            max(2.0, each - 4),
            max(1.0, days[day] / top * (height - 8)),
            days[day],
        )
        for index, day in enumerate(chosen)
    ]
