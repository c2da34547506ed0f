"""What an auditor asks first: how far the record is sealed, witnessed, verified, looked at; and by whom.

Verification is a process of its own, so that nobody who looks at a page waits for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

from engine.record.findings import verified
from engine.record.noting import note
from engine.record.sealed import sealed
from engine.site import Site
from engine.status.desk import Desk
from events.envelope import Actor
from events.errors import FlightlogError
from events.read import at as events_at
from events.read import count
from events.store import translated

SHOWN = 200  # events of the record that are looked at
STALE = 900.0  # seconds after which a page has the record verified again


class Auditor:
    """Has a site's record verified, one at a time, and keeps what came of it.

    Args:
        site: opened.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._asked = 0.0
        self.report: dict[str, Any] | None = None
        self.error: str | None = None

    @property
    def running(self) -> bool:
        """A verification is under way."""
        return self._process is not None

    def verify(self, actor: Actor, *, at_least_every: float = 0.0) -> bool:
        """Begin a verification, unless one is under way, or the last began a moment ago; whether it began.

        Args:
            actor: who asked for it: it is recorded.
            at_least_every: seconds.
        """
        with self._lock:
            if self._process is not None or (self._asked and time.monotonic() - self._asked < at_least_every):
                return False
            self._asked = time.monotonic()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.status.verifying"],
                env={
                    **os.environ,
                    **self._site.settings.environment(),
                    "FLIGHTLOG_WORKSPACE": str(self._site.workspace.root),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        threading.Thread(target=self._wait, args=(self._process, actor), name="verify", daemon=True).start()
        return True

    def _wait(self, process: subprocess.Popen[str], actor: Actor) -> None:
        out, err = process.communicate()
        try:
            found = json.loads(out)
            note(self._site, verified(found), actor)
            self.report, self.error = found, None
        except FlightlogError as error:
            self.error = str(error)
        except ValueError:
            self.error = err.strip()[-300:] or f"it ended with {process.returncode}"
        self._process = None

    def stop(self) -> None:
        """End what is under way."""
        process = self._process
        if process is not None:
            process.terminate()
            process.wait(10)


def audit(desk: Desk, auditor: Auditor) -> dict[str, Any]:
    """How the record stands."""
    names = desk.names
    with translated():
        pipe = desk.store.client.pipeline()
        pipe.lrange(names.record, -SHOWN, -1)
        pipe.lrange(names.losses, 0, -1)
        pipe.hmget(names.last_acts, ["Verified", "ReviewRecorded"])
        acts, losses, last = pipe.execute()
    told = events_at(desk.store, acts)
    last_verified, reviewed = (next(iter(events_at(desk.store, [one])), None) if one else None for one in last)
    return {
        "events": count(desk.store),
        **sealed(desk.site.workspace),
        "verified": last_verified.as_dict() if last_verified else None,
        "verifying": auditor.running,
        "report": auditor.report,
        "verify_error": auditor.error,
        "reviewed": reviewed.as_dict() if reviewed else None,
        "losses": [e.as_dict() for e in events_at(desk.store, losses)],
        "acts": [e.as_dict() for e in reversed(told)],
    }
