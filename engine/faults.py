"""Named places where a test may stop or kill the process that passes them.

Nothing happens unless ``FLIGHTLOG_FAULTS`` names a folder; a file there named like the place says
what happens to the next process that comes by: ``kill`` or ``stop``. It works once: the file is
taken away first. So a crash between an effect and its record can be had on purpose, every time.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def passing(place: str) -> None:
    """Say that this process passes a place."""
    folder = os.environ.get("FLIGHTLOG_FAULTS")
    if not folder:
        return
    order = Path(folder) / place
    try:
        action = order.read_text().strip()
        order.unlink()
    except FileNotFoundError:
        return
    (Path(folder) / f"{place}.pid").write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
