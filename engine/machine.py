"""The lifecycle as a ``transitions`` machine: the definition that people look at and tests compare with.

The hot paths use the compiled table of ``engine.fold`` (a hundred times as fast); a test holds the
two against each other for every (state x event).
"""

from __future__ import annotations

from typing import Any

from transitions import Machine, MachineError
from transitions.extensions import GraphMachine

from engine.lifecycle import EVENTS, State


class Job:
    """A model for the machine: an object with a ``state``."""

    state: str


def _rows() -> list[dict[str, Any]]:
    return [
        {"trigger": event, "source": source.value, "dest": (dest or source).value}
        for event, rows in EVENTS.items()
        for sources, dest in rows
        for source in sources
    ]


def build(model: object | None = None) -> Machine:
    """The machine, with every event as a trigger; an illegal one raises ``MachineError``."""
    return Machine(
        model=model or Job(),
        states=[state.value for state in State],
        transitions=_rows(),
        initial=State.NEW.value,
        auto_transitions=False,
    )


def diagram() -> str:
    """The lifecycle as Mermaid text, made by the machine."""
    machine = GraphMachine(
        model=Job(),
        states=[state.value for state in State],
        transitions=_rows(),
        initial=State.NEW.value,
        auto_transitions=False,
        graph_engine="mermaid",
        title="",
        show_auto_transitions=False,
    )
    text = str(machine.get_combined_graph().source)  # type: ignore[attr-defined]
    return text[text.index("stateDiagram-v2") :].replace("Class new s_active", "Class new s_default")


__all__ = ["Job", "MachineError", "build", "diagram"]
