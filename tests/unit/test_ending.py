"""Ends on signals, and who has a site: whatever the main thread does, and whoever asks, at that moment."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from engine.files import FileLock
from engine.owner import own

IN_THE_MIDDLE = """
import os, signal
from engine.ending import told_to_end
stop = told_to_end()
with stop._cond:  # as in the middle of a wait
    os.kill(os.getpid(), signal.SIGTERM)
    sum(range(10**6))
print(stop.wait(10))
"""


def test_a_signal_in_the_middle_of_a_wait_ends_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_MIDDLE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_who_only_asks_who_has_a_site_keeps_nobody_from_having_it(tmp_path: Path) -> None:
    asks, wants = FileLock(tmp_path / "owner.lock"), FileLock(tmp_path / "owner.lock")
    assert asks.acquire(shared=True)
    threading.Timer(0.5, asks.release).start()
    assert own(wants)
    began = time.monotonic()
    assert not own(FileLock(tmp_path / "owner.lock"))
    assert time.monotonic() - began < 2, "who has it is not waited for"
    wants.release()
