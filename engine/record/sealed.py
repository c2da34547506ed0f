"""How a site's log is sealed: by what name, and how far."""

from __future__ import annotations

import time
from typing import Any

from engine.files import read_json, write_json
from engine.workspace import Workspace
from events.envelope import iso
from events.seal import latest

#: A sealer that has not said anything for so long is not there, seconds.
SILENT = 30.0


def log_name(workspace: Workspace) -> str:
    """What checkpoints call this site's log; the epoch comes after it."""
    return f"flightlog/{workspace.site}/{workspace.id}"


def say(workspace: Workspace, **facts: Any) -> None:
    """What the sealer tells of itself, for whoever asks."""
    write_json(workspace.seal / "state.json", {"at": time.time(), **facts})


def sealed(workspace: Workspace) -> dict[str, Any]:
    """How far the log is sealed and witnessed, and whether somebody goes on sealing."""
    state = read_json(workspace.seal / "state.json") if workspace.seal.exists() else None
    note = latest(workspace.seal) if workspace.seal.exists() else None
    checkpoint = note.checkpoint if note else None
    at = (state or {}).get("at")
    there = isinstance(at, float) and time.time() - at < SILENT
    return {
        "sealed": checkpoint.size if checkpoint else 0,
        "sealed_until": iso(checkpoint.position.partition("-")[0]) if checkpoint else None,
        "origin": checkpoint.origin if checkpoint else None,
        "sealing": there,
        "broken": state.get("broken") if state else None,
        "signer": state.get("signer") if state else None,
        "witnessed": state.get("witnessed", 0) if state else 0,
        "witnessed_at": state.get("witnessed_at") if state else None,
        "witness_refused": state.get("witness_refused") if state else None,
    }
