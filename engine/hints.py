"""What an app's end may mean, for people: a hint, from its code, its error and its last lines."""

from __future__ import annotations

from collections.abc import Sequence

LAST_LINES = 15

HINTS: dict[str | int, str] = {
    "COMMAND_NOT_FOUND": "the app's command is not on this host",
    137: "it was killed (signal 9): out of memory, perhaps; see dmesg",
    139: "it crashed (signal 11)",
    127: "a command was not found in the app's own script",
    126: "a file of the app may not be executed",
    2: "a wrong argument, or a file that is not there",
}


def hint(code: int, error: str, lines: Sequence[str]) -> str:
    """What to look at first.

    Args:
        code: exit code, or 128 and a signal.
        error: why the record says that it ended, if it does.
        lines: the last of its output.
    """
    missing = next((line for line in reversed(lines) if "ModuleNotFoundError" in line), None)
    if missing:
        return f"{missing}: install it where the site runs, or ship it in the app's custom/"
    return HINTS.get(error.partition(":")[0]) or HINTS.get(code) or "its output has the reason"
