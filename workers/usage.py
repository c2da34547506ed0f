"""What apps use: processors, memory and GPU memory of their process trees, into the attempt's ``usage.jsonl``."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from engine.files import read_json
from engine.orders import same_boot, start_ticks
from engine.site import Site
from events.errors import LogUnavailable

log = logging.getLogger("flightlog.usage")

NAME = "usage.jsonl"
LOOK_EVERY = 1.0  # seconds between looks whether a sample is due
#: An app that has run for long is sampled more rarely: a few thousand samples tell its story.
THINNED = 1000


@dataclass
class _Watched:
    """An attempt that runs."""

    folder: Path
    began: float = field(default_factory=time.monotonic)
    due: float = 0.0
    last: float = 0.0
    #: process -> seconds of processors that it had used
    cpu: dict[int, float] = field(default_factory=dict)


class Sampler:
    """Samples the apps of one workspace.

    Args:
        site: an opened site.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self._watched: dict[tuple[str, int], _Watched] = {}
        self._smi = shutil.which("nvidia-smi")

    def run(self, stop: threading.Event) -> None:
        """Sample until ``stop``."""
        while not stop.wait(LOOK_EVERY):
            try:
                self.look()
            except LogUnavailable:
                continue  # the apps run on, and are looked at again when the record is back
            except Exception:  # a duty ends with the pool, not with an error
                log.exception("a look at what apps use failed; it is tried again")
                stop.wait(5)

    def look(self) -> None:
        """Sample every app that is due."""
        running = {
            (work["job"], int(work["number"])) for _, work in self.site.jobs.open_work() if work["kind"] == "app"
        }
        for gone in self._watched.keys() - running:
            del self._watched[gone]
        now = time.monotonic()
        due = []
        for job, number in running:
            watched = self._watched.get((job, number))
            if watched is None:
                watched = self._watched[job, number] = _Watched(self.site.workspace.attempt(job, number))
            if now >= watched.due:
                due.append(watched)
        if not due:
            return
        gpu = self._gpu()
        for watched in due:
            watched.due = now + max(self.site.settings.usage_every, (now - watched.began) / THINNED)
            self._sample(watched, gpu)

    def _sample(self, watched: _Watched, gpu: dict[int, int] | None) -> None:
        tree = _tree(read_json(watched.folder / "identity.json"))
        if not tree:
            return
        now, rss, cpu = time.monotonic(), 0, {}
        for process in tree:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    rss += process.memory_info().rss
                cpu[process.pid] = times.user + times.system
            except psutil.Error:
                continue  # it ended while we looked
        spent = sum(max(0.0, used - watched.cpu.get(pid, 0.0)) for pid, used in cpu.items())
        first = not watched.last
        row: dict[str, Any] = {
            "time": round(time.time(), 3),
            "cpu": None if first else round(spent / (now - watched.last), 3),
            "rss": rss,
            "processes": len(cpu),
            "gpu": None if gpu is None else sum(gpu.get(pid, 0) for pid in cpu),
        }
        watched.cpu, watched.last = cpu, now
        # An app may have put a link there.
        fd = os.open(
            watched.folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(fd, json.dumps(row).encode() + b"\n")
        finally:
            os.close(fd)

    def _gpu(self) -> dict[int, int] | None:
        """Process -> bytes of GPU memory; None where there is no GPU to ask."""
        if self._smi is None:
            return None
        asked = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run([self._smi, *asked], capture_output=True, text=True, timeout=5, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            log.debug("nvidia-smi does not answer: %s", error)
            return None
        used: dict[int, int] = {}
        for line in done.stdout.splitlines():
            pid, _, mebibytes = line.partition(",")
            if pid.strip().isdigit() and mebibytes.strip().isdigit():
                used[int(pid)] = used.get(int(pid), 0) + int(mebibytes) * 2**20
        return used


def _tree(identity: dict[str, Any] | None) -> list[psutil.Process]:
    """The processes of an attempt: all that descend from its keeper, which adopts what is orphaned."""
    if identity is None or not same_boot(identity):
        return []
    for name in ("inner", "outer"):
        pid, ticks = identity.get(name) or (0, 0)
        if pid and start_ticks(int(pid)) == ticks:
            keepers = {int(one[0]) for one in (identity.get("inner"), identity.get("outer")) if one}
            try:
                return [one for one in psutil.Process(int(pid)).children(recursive=True) if one.pid not in keepers]
            except psutil.Error:
                return []
    return []
