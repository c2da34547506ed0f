"""Processes that belong to whoever has the site up: started, watched, started anew, ended with it."""

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


class Child:
    """Supervises one of our own commands. It ends when we do, by its standard input.

    Args:
        site: opened; its settings go to the child.
        name: what people call it; its output goes to ``<name>.log``.
        command: of ``python -P -m``, without the workspace.
        gives_up: exit code that says that another try would be as vain.
    """

    def __init__(self, site: Site, name: str, command: list[str], gives_up: int | None = None) -> None:
        self.site = site
        self.name = name
        self.command = command
        self.gives_up = gives_up
        self.process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start it, and its watch."""
        self.process = self._spawn()
        self._thread.start()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.site.workspace.flight / f"{self.name}.log").open("ab") as output:
            return subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", *self.command, "--until-eof"),
                    *("--workspace", str(self.site.workspace.root)),
                ],
                env={**os.environ, **self.site.settings.environment()},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C at the terminal is for us; we tell it
            )

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            process = self.process
            if process is None or process.poll() is None:
                continue
            if process.returncode == self.gives_up:
                return
            log.warning("the %s ended with %s; it is started anew", self.name, process.returncode)
            time.sleep(0.5)
            if not self._stop.is_set():
                self.process = self._spawn()

    def stop(self) -> None:
        """End it in order; apps keep running."""
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
            log.warning("the %s does not end; it is killed, with what it started", self.name)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


def pool_child(site: Site) -> Child:
    """The site's worker pool."""
    return Child(site, "pool", ["workers", "pool"])


def sealer_child(site: Site) -> Child:
    """What seals the site's log, and keeps its memory bounded."""
    return Child(site, "sealer", ["workers", "sealer"])


def api_child(site: Site) -> Child:
    """The site's status API; where its port is taken, it is not started again and again."""
    asked = "api_port" in site.settings.model_fields_set
    return Child(site, "api", ["engine.status", *(["--exactly"] if asked else [])], gives_up=6)
