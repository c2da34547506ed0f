"""The pool as a child of the engine: started, watched, started anew, ended with it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time

from engine.site import Site

log = logging.getLogger("flightlog.engine")


class PoolChild:
    """Supervises ``python -P -m workers pool``. The pool ends when the engine does, by its standard input.

    Args:
        site: opened; its settings go to the pool.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)

    def start(self) -> None:
        """Start the pool and its watch."""
        self.process = self._spawn()
        self._thread.start()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.site.workspace.flight / "pool.log").open("ab") as output:
            return subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "workers", "pool", "--until-eof"),
                    *("--workspace", str(self.site.workspace.root)),
                ],
                env={**os.environ, **self.site.settings.environment()},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C at the terminal is for us; we tell the pool
            )

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            process = self.process
            if process is not None and process.poll() is not None:
                log.warning("the pool ended with %s; it is started anew", process.returncode)
                time.sleep(0.5)
                if not self._stop.is_set():
                    self.process = self._spawn()

    def stop(self) -> None:
        """End the pool in order; apps keep running."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2)
        process = self.process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            log.warning("the pool does not end; it is killed, with its workers")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)
