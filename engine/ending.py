"""Ctrl-C and SIGTERM, as something that threads can wait for.

A handler runs in the middle of whatever the main thread does, with whatever lock it holds there: it may not take one,
and setting an event takes one. So it only writes to a pipe, and a thread does the rest.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def told_to_end(stop: threading.Event | None = None) -> threading.Event:
    """An event (or the one that is given) that is set on Ctrl-C or SIGTERM; to be called by the main thread."""
    event = threading.Event() if stop is None else stop
    on_end(event.set)
    return event


def on_end(what: Callable[[], object]) -> None:
    """Have something done in a thread on each Ctrl-C or SIGTERM; to be called by the main thread."""
    told, tell = os.pipe()

    def listen() -> None:
        while os.read(told, 1):
            what()

    threading.Thread(target=listen, name="told-to-end", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.write(tell, b"."))
