"""The lifecycle as a picture, with the path that a job took: drawn from the table that decides.

States stand in groups by what is there: no app, an app at rest, a process. What all of a group can do is one arrow
from the group, so that a reader sees the few ways there are instead of every pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.fold import TABLE
from engine.lifecycle import BARE, BROKEN, EVENTS, LIVE, RESTING, State
from events.envelope import Event

#: Where each state stands, as column and row. A test holds that no state is without a place.
PLACES: dict[State, tuple[float, float]] = {
    State.NEW: (0, 0),
    State.DEPLOY_FAILED: (0, 1),
    State.DELETE_FAILED: (0, 3),
    State.DELETED: (0, 4),
    State.DEPLOYING: (1.4, 0.5),
    State.REDEPLOYING: (1.4, 2),
    State.DELETING: (1.4, 3.5),
    State.DEPLOYED: (2.8, 0),
    State.LAUNCH_FAILED: (2.8, 1),
    State.FINISHED: (2.8, 2),
    State.FAILED: (2.8, 3),
    State.ABORTED: (2.8, 4),
    State.STARTING: (4.3, 0.4),
    State.RUNNING: (5.6, 0.4),
    State.FINISHING: (4.3, 2.6),
    State.ABORTING: (5.6, 2.6),
}
#: What the states of a group have in common.
GROUPS: dict[str, tuple[State, ...]] = {
    "no app": BARE + BROKEN,
    "an app at rest": RESTING,
    "a process": LIVE,
}
WIDE, HIGH, BOX_W, BOX_H = 138, 62, 112, 34  # of a column, a row, a state
LEFT, TOP, AROUND, LABEL = 18.0, 36.0, 10.0, 18.0


@dataclass(frozen=True)
class Box:
    """A rectangle with a name in it: a state, or a group of them."""

    name: str
    x: float
    y: float
    width: float
    height: float
    kind: str

    @property
    def middle(self) -> tuple[float, float]:
        """Its centre."""
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Edge:
    """A way from one box to another."""

    path: str
    kind: str
    events: str


@dataclass(frozen=True)
class Diagram:
    """The picture."""

    width: float
    height: float
    groups: list[Box]
    nodes: list[Box]
    edges: list[Edge]


def taken(events: Iterable[Event]) -> tuple[list[tuple[str, str]], str]:
    """The ways that a job took between states, from its lifecycle events, and where it is."""
    state, ways = State.NEW.value, []
    for event in events:
        row = TABLE.get(event.type, {})
        there = row.get(state)
        if there is None and row and len(set(row.values())) == 1:
            state = next(iter(row.values()))  # what came before is not among these events
        elif there is not None:
            if there != state:
                ways.append((state, there))
            state = there
    return ways, state


def diagram(ways: Sequence[tuple[str, str]] = (), here: str | None = None) -> Diagram:
    """The lifecycle; what was taken is lit, and where the job is stands out."""
    seen = {state for way in ways for state in way}
    nodes = {}
    for state, (column, row) in PLACES.items():
        kind = "here" if state.value == here else "seen" if state.value in seen else "other"
        nodes[state.value] = Box(state.value, LEFT + column * WIDE, TOP + row * HIGH, BOX_W, BOX_H, kind)
    groups = {name: _around(name, [nodes[state.value] for state in states]) for name, states in GROUPS.items()}
    between = _between()
    edges = []
    for source, there, names in _drawn(between):
        told = f"{source} → {there}: {', '.join(names)}"
        path = _straight(groups[source], nodes[there]) if source in groups else _bent(nodes[source], nodes[there])
        edges.append(Edge(path, "dim", told))
    for source, there in dict.fromkeys(ways):
        told = f"{source} → {there}: {', '.join(between.get((source, there), []))}"
        edges.append(Edge(_bent(nodes[source], nodes[there]), "lit", told))
    boxes = groups.values()
    width, height = max(box.x + box.width for box in boxes) + 8, max(box.y + box.height for box in boxes) + 8
    return Diagram(width, height, list(boxes), list(nodes.values()), edges)


def _between() -> dict[tuple[str, str], list[str]]:
    """(from, to) -> the events that lead there."""
    found: dict[tuple[str, str], list[str]] = {}
    for event, rows in EVENTS.items():
        for sources, there in rows:
            for source in sources:
                if there is not None and there is not source:
                    found.setdefault((source.value, there.value), []).append(event)
    return found


def _drawn(between: dict[tuple[str, str], list[str]]) -> list[tuple[str, str, list[str]]]:
    """(state or group, state, events): where all of a group lead to a state outside it, that is one way."""
    found = []
    for there in dict.fromkeys(there for _, there in between):
        sources = {source for source, to in between if to == there}
        for name, states in GROUPS.items():
            group = {state.value for state in states}
            if group <= sources and there not in group:
                events = dict.fromkeys(event for state in states for event in between[state.value, there])
                found.append((name, there, list(events)))
                sources -= group
        found += [(source, there, between[source, there]) for source in sorted(sources)]
    return found


def _around(name: str, boxes: Sequence[Box]) -> Box:
    x, y = min(box.x for box in boxes) - AROUND, min(box.y for box in boxes) - AROUND - LABEL
    width = max(box.x + box.width for box in boxes) + AROUND - x
    return Box(name, x, y, width, max(box.y + box.height for box in boxes) + AROUND - y, "group")


def _straight(group: Box, node: Box) -> str:
    """From the side of a group that a state is on, level where that can be."""
    x, y = node.middle
    level = min(max(y, group.y + AROUND), group.y + group.height - AROUND)
    if x > group.x + group.width:
        return f"M{group.x + group.width:.1f} {level:.1f} L{node.x - 2:.1f} {y:.1f}"
    return f"M{group.x:.1f} {level:.1f} L{node.x + node.width + 2:.1f} {y:.1f}"


def _bent(a: Box, b: Box) -> str:
    """From the edge of one box to the edge of another; bent a little, so that there and back are two lines."""
    (ax, ay), (bx, by) = a.middle, b.middle
    sx, sy = _border(ax, ay, bx, by)
    ex, ey = _border(bx, by, ax, ay)
    length = math.hypot(ex - sx, ey - sy) or 1.0
    bend = min(26.0, length * 0.14)
    mx, my = (sx + ex) / 2 - (ey - sy) / length * bend, (sy + ey) / 2 + (ex - sx) / length * bend
    return f"M{sx:.1f} {sy:.1f} Q{mx:.1f} {my:.1f} {ex:.1f} {ey:.1f}"


def _border(x: float, y: float, tx: float, ty: float) -> tuple[float, float]:
    dx, dy = tx - x, ty - y
    scale = min(
        (BOX_W / 2 + 2) / abs(dx) if dx else math.inf,
        (BOX_H / 2 + 2) / abs(dy) if dy else math.inf,
    )
    return x + dx * scale, y + dy * scale
