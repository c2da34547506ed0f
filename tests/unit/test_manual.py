"""The command line's manual: each command is in its room, and opening one room leaves the others shut."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.cli import MANUAL, Commands, commands_of

ROOMS = sorted({room for room, _ in MANUAL})


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_has_the_commands_that_the_manual_says_and_no_other(room: str) -> None:
    assert set(commands_of(room)) == {name for known, names in MANUAL if known == room for name in names}


def test_no_command_is_in_two_rooms() -> None:
    names = [name for _, names in MANUAL for name in names]
    assert len(names) == len(set(names)) == len(Commands())
    with pytest.raises(KeyError):
        Commands()["lsit"]


def test_whoever_asks_how_a_job_is_loads_nothing_that_acts_signs_or_serves() -> None:
    loaded = (
        "import sys, engine.cli; engine.cli.Commands()['list']; "
        "print(*[n for n in sys.modules if n.startswith(('engine.', 'uvicorn', 'fastapi', 'starlette', 'rq.cli'))])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", loaded], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert "engine.cli.looking" in names
    for heavy in ("engine.client_engine", "engine.streaming", "engine.federation", "engine.record.verify", "uvicorn"):
        assert heavy not in names
