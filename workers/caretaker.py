"""The caretaker: one per workspace, the only judge of processes.

It looks at open work and at the disk, and makes the record say what the disk proves: exits, losses,
spawns that nobody recorded. It carries out aborts and deletes, and drains the spool. Whatever it does
it may do twice: every append is guarded by the job's revision or by a call id that is the same again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.files import FileLock, JobLocked, open_plain, read_json
from engine.fold import Illegal, JobState
from engine.lifecycle import State
from engine.orders import covers, read_order, signal_exact, signal_keepers, start_ticks, this_boot, write_order
from engine.outcome import end_bodies
from engine.site import Site
from engine.workspace import host_name
from events.append import WorkRefused
from events.bodies.app import (
    AbortSignalled,
    AppAdopted,
    AppLost,
    Exit,
    LaunchExpired,
    LaunchFailed,
    OutputClosed,
)
from events.bodies.base import Body
from events.bodies.job import AbortRequested, DeployFailed
from events.envelope import Call
from events.errors import LogUnavailable
from events.follow import follow
from events.read import at, last_position
from workers.claim import end_lapsed
from workers.delete import Deleter
from workers.deploy import standing
from workers.launch import proven
from workers.leftovers import end_leftovers
from workers.spool import drain

log = logging.getLogger("flightlog.caretaker")

LOCK_PATIENCE = 0.2  # seconds; a worker that was stopped with a job's lock must not stop the caretaker
TROUBLE_PAUSE = 5.0  # seconds before a job that made trouble is attended to again
STUCK = 5.0  # seconds past its deadline after which an abort is carried out over the keeper's head
#: Seconds to let more events come where none was for us: messages are many.
FOLLOW_PAUSE = 0.02
LOOK_EVERY = 1.0  # seconds; events and dying keepers wake it earlier
WAKES = frozenset(("AbortRequested", "AppSpawned", "DeleteRequested", "AppStopping", "LaunchExpired"))

Work = dict[str, str]
#: Kinds of work that are looked at here.
OURS = ("app", "abort", "delete", "launch", "deploy")


class Caretaker:
    """Watches the apps of one workspace.

    Args:
        site: an opened site.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.workspace = site.workspace
        self.lock = FileLock(site.workspace.flight / "caretaker.lock")
        self.deleter = Deleter(site)
        self.since_ms = 0
        self._watched: dict[tuple[str, int], list[int]] = {}  # attempt -> pidfds of its keepers
        self._not_before: dict[str, float] = {}
        self._told: set[str] = set()  # abort intents that the keepers have been told of
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def run(self, stop: threading.Event) -> None:
        """Take the role as soon as it is free, and fill it until ``stop``."""
        while not stop.is_set():
            if self.lock.acquire(timeout=0.5):
                break
        follower = threading.Thread(target=self._follow, args=(stop,), name="caretaker-follow", daemon=True)
        follower.start()
        while not stop.is_set():
            try:
                if not self.since_ms:
                    self.since_ms = self.site.jobs.store.now_ms()
                self.tick()
            except LogUnavailable as error:
                log.warning("the record is away: %s", error)
                stop.wait(0.1)
            except Exception:  # a duty ends with the pool, not with an error
                log.exception("a look at the open work failed; it is tried again")
                stop.wait(1)
            self._doze()
        self.lock.release()

    def wake(self) -> None:
        """Look now."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"w")

    def _follow(self, stop: threading.Event) -> None:
        store = self.site.follower_store()
        position = None
        while position is None and not stop.is_set():
            try:
                position = last_position(store)
            except LogUnavailable:
                stop.wait(0.1)
        for batch in follow(store, position or "0-0", stop):
            if any(event.type in WAKES for event in batch):
                self.wake()
            elif batch:
                stop.wait(FOLLOW_PAUSE)

    def _doze(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        for fds in self._watched.values():
            for fd in fds:
                poll.register(fd, select.POLLIN)
        if any(fd == self._wake_read for fd, _ in poll.poll(LOOK_EVERY * 1000)):
            os.read(self._wake_read, 4096)

    # -- one look --------------------------------------------------------------------------

    def tick(self) -> None:
        """Look at all open work once."""
        drain(self.site)
        works = self.site.jobs.open_work()
        self._sweep_staging()
        open_attempts = set()
        for name, work in works:
            if work["kind"] == "app":
                open_attempts.add((work["job"], int(work["number"])))
            if time.monotonic() < self._not_before.get(name, 0):
                continue
            try:
                self._attend(name, work)
            except JobLocked:
                continue  # somebody has his hands on this job; the others need not wait for him
            except LogUnavailable:
                raise
            except Exception:  # one job's trouble is not the others'
                log.exception("%s cannot be attended to now; it is tried again", name)
                self._not_before[name] = time.monotonic() + TROUBLE_PAUSE
        for job, number in set(self._watched) - open_attempts:
            self._after(job, number)
        # Without a sync: it only tells people that somebody is looking.
        (self.workspace.flight / "caretaker.json").write_text(
            json.dumps({"process": self.site.process, "looked": time.time_ns() // 10**6})
        )

    def _attend(self, name: str, work: Work) -> None:
        kind, job = work["kind"], work["job"]
        if kind not in OURS:
            return
        number = int(work["number"])
        if kind == "app":
            self._look(job, number, work)
        elif kind == "abort":
            self._abort(name, job, number, work)
        elif kind == "delete":
            self.deleter.carry_out(name, work)
        elif kind in ("launch", "deploy") and work.get("token"):
            self._judge(name, kind, job, number, work)

    def _sweep_staging(self) -> None:
        """What a worker that is gone, or whose claim is another's, had begun to unpack."""
        for folder in self.workspace.staging.iterdir():
            name, _, token = folder.name.removesuffix("-old").rpartition("-")
            # Asked after the folder was seen: a worker claims before it unpacks.
            if self.site.jobs.work(name).get("token") != token:
                shutil.rmtree(folder, ignore_errors=True)

    def _call(self, call_id: str, step: str, work: Work) -> Call:
        return self.site.system_call(
            step,
            call_id=call_id,
            cause=work["position"],
            correlation=work["correlation"],
            role="caretaker",
        )

    # -- apps ------------------------------------------------------------------------------

    def _look(self, job: str, number: int, work: Work) -> None:
        folder = self.workspace.attempt(job, number)
        if (folder / "exit.json").exists():
            self._end(job, number, work)
            return
        identity = read_json(folder / "identity.json")
        alive = identity is not None and any(start_ticks(pid) == ticks for pid, ticks in _keepers(identity))
        if not alive and not self._held(job, folder):
            if (folder / "exit.json").exists():
                self._end(job, number, work)
            else:
                self._lose(job, number, folder, work)
            return
        if (job, number) not in self._watched and identity is not None:
            self._watch(job, number, identity, work)
        self._deadline(job, number, work)

    def _watch(self, job: str, number: int, identity: dict[str, list[int]], work: Work) -> None:
        fds = []
        for pid, ticks in _keepers(identity):
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                if start_ticks(pid) == ticks:
                    fds.append(fd)
                else:
                    os.close(fd)
        self._watched[job, number] = fds
        if int(work["opened"]) < self.since_ms:
            adopted = AppAdopted(attempt=number, caretaker=self.site.process, host=host_name())
            self.site.jobs.note(self._call(f"adopt:{job}:{number}", f"by:{self.site.process}", work), [adopted], job)

    def _unwatch(self, job: str, number: int) -> None:
        for fd in self._watched.pop((job, number), []):
            os.close(fd)

    def _held(self, job: str, folder: Path) -> bool:
        """Whether a keeper of the attempt lives: its lock is held. Asked under the job's lock."""
        with self.workspace.lock(job, LOCK_PATIENCE):
            probe = FileLock(folder / "lock")
            free = not folder.exists() or probe.acquire(timeout=0)
            probe.release()
            return not free

    def _end(self, job: str, number: int, work: Work) -> None:
        """Record an exit, and with it the spawn that nobody may have recorded."""
        folder = self.workspace.attempt(job, number)
        exit_ = read_json(folder / "exit.json")
        if exit_ is None:  # there, and nobody can read it: the end was seen, and how is lost
            (folder / "exit.json").rename(folder / f"exit.unreadable-{time.time_ns()}")
            return
        identity, spec = read_json(folder / "identity.json"), read_json(folder / "spec.json")

        output = _output(number, folder / "log.txt")

        def decide(state: JobState) -> Sequence[Body]:
            bodies = end_bodies(state, number, exit_, identity, spec)
            return [*bodies, *output] if any(isinstance(body, Exit) for body in bodies) else bodies

        self.site.jobs.transact(self._call(f"exit:{job}:{number}", "exit", work), job, decide)
        (folder / "recorded").touch()
        self._unwatch(job, number)

    def _after(self, job: str, number: int) -> None:
        """An attempt whose work is closed but whose keeper was watched: its end, if it comes, is late."""
        folder = self.workspace.attempt(job, number)
        gone = all(_readable(fd) for fd in self._watched[job, number])
        if (folder / "exit.json").exists() and not (folder / "recorded").exists():
            work = {"position": self.site.jobs.load(job).last, "correlation": f"exit:{job}:{number}"}
            self._end(job, number, work)
        elif gone or not folder.exists():
            self._unwatch(job, number)

    def _lose(self, job: str, number: int, folder: Path, work: Work) -> None:
        """Both halves of the keeper are gone and left no end: end what is left, then say lost."""
        spec = read_json(folder / "spec.json")
        if spec is not None and spec["host"] != host_name():
            return  # another host's: it waits, visibly, for a caretaker there
        identity = read_json(folder / "identity.json") or self._on_record(job)
        ended = end_leftovers(identity, spec)
        reason = f"its keeper died without a word; {ended} of its processes were found and ended"
        lost = AppLost(attempt=number, reason=reason)

        def decide(state: JobState) -> Sequence[Body]:
            return [lost] if state.live and state.attempt == number else []

        self.site.jobs.transact(self._call(f"exit:{job}:{number}", "lost", work), job, decide)
        self._unwatch(job, number)

    def _on_record(self, job: str) -> dict[str, Any] | None:
        """Who the app is by the record, where somebody has removed what its keeper wrote."""
        state = self.site.jobs.load(job).state
        if not state.get("pid") or state.get("host") != host_name():
            return None
        return {**this_boot(), "pid": int(state["pid"]), "start_ticks": int(state["start_ticks"])}

    def _deadline(self, job: str, number: int, work: Work) -> None:
        """An app that never said it started, or never ended after it said so, is aborted."""
        state = self.site.jobs.load(job).state
        if state.state not in (State.STARTING, State.FINISHING) or not state.get("deadline"):
            return
        if self.site.jobs.store.now_ms() <= int(state["deadline"]):
            return
        why = "it never said that it had started" if state.state is State.STARTING else "its process did not end"
        abort = AbortRequested(attempt=number, origin="deadline", grace=self.site.settings.grace, reason=why)

        def decide(now: JobState) -> Sequence[Body]:
            same = now.attempt == number and now.state is state.state and now.get("deadline") == state["deadline"]
            return [abort] if same else []

        self.site.jobs.transact(self._call(f"deadline:{job}:{number}", f"{state.state}", work), job, decide)

    # -- aborts ----------------------------------------------------------------------------

    def _abort(self, name: str, job: str, number: int, work: Work) -> None:
        state = self.site.jobs.load(job).state
        if state.attempt != number or not state.live:
            return
        intent = f"{name}:{work['position']}"
        folder = self.workspace.attempt(job, number)
        if intent not in self._told:
            request = at(self.site.jobs.store, [work["position"]])[0].body
            with self.workspace.lock(job, LOCK_PATIENCE):
                write_order(
                    self.workspace,
                    job,
                    through=state["start_position"],
                    before_ms=0,
                    grace=request["grace"],
                )
            pids = signal_keepers(folder)
            if state.spawned:
                told = AbortSignalled(attempt=number, signal="SIGTERM", pids=pids)
                self.site.jobs.note(self._call(intent, "signalled", work), [told], job)
            self._told.add(intent)
        if not state.spawned:
            self._withdraw_launch(job, number, work)
        elif self.site.jobs.store.now_ms() > int(state["deadline"]) + STUCK * 1000:
            # Its keepers do not do it. Without them it is ours, and what it left is ended as after their death.
            for pid, ticks in _keepers(read_json(folder / "identity.json") or {}):
                signal_exact(pid, ticks, signal.SIGKILL)
            self.wake()

    def _withdraw_launch(self, job: str, number: int, work: Work) -> None:
        """A launch that nobody has claimed never will be; one that was claimed sees the order itself."""

        def decide(state: JobState) -> Sequence[Body]:
            waits = state.attempt == number and state.live and not state.spawned
            return [LaunchExpired(attempt=number, why="aborted")] if waits else []

        with contextlib.suppress(WorkRefused):
            self.site.jobs.transact(
                self._call(f"withdraw:{job}:{number}", work["position"], work),
                job,
                decide,
                conditions={"launch": ("unclaimed", "")},
            )

    # -- launches and deploys whose worker is gone -------------------------------------------

    def _judge(self, name: str, kind: str, job: str, number: int, work: Work) -> None:
        if int(work["until"]) >= self.site.jobs.store.now_ms():
            return
        end_lapsed(self.site, name, work)
        used_up = int(work.get("attempts", "0")) >= int(work["max"])

        def decide(state: JobState) -> Sequence[Body]:
            if kind == "deploy":
                return self._judge_deploy(state, job, number, work, used_up)
            return self._judge_launch(state, job, number, used_up)

        with self.workspace.lock(job, LOCK_PATIENCE), contextlib.suppress(WorkRefused, Illegal):
            self.site.jobs.transact(
                self._call(f"judge:{name}:{work['token']}", "outcome", work),
                job,
                decide,
                conditions={kind: ("lapsed", "")},
            )

    def _judge_deploy(self, state: JobState, job: str, number: int, work: Work, used_up: bool) -> Sequence[Body]:
        if state.state not in (State.DEPLOYING, State.REDEPLOYING) or state.get("deploys") != str(number):
            return []
        done = standing(self.site, job, work["position"])
        if done is not None:
            return [done]
        if used_up:
            return [DeployFailed(code="ATTEMPTS", error=f"{work['attempts']} workers took it and none finished")]
        return []

    def _judge_launch(self, state: JobState, job: str, number: int, used_up: bool) -> Sequence[Body]:
        if state.attempt != number or not state.live or state.spawned:
            return []
        folder = self.workspace.attempt(job, number)
        exit_ = read_json(folder / "exit.json")
        if exit_ is not None:
            return end_bodies(
                state, number, exit_, read_json(folder / "identity.json"), read_json(folder / "spec.json")
            )
        seen = proven(state, number, folder)
        if seen:
            return seen
        order = read_order(self.workspace, job)
        if covers(order, state["start_position"]):
            return [LaunchExpired(attempt=number, why="aborted")]
        if used_up:
            return [LaunchFailed(attempt=number, code="ATTEMPTS", error="no worker brought it to run")]
        return []


def _keepers(identity: dict[str, list[int]]) -> list[tuple[int, int]]:
    from engine.orders import same_boot

    if not identity or not same_boot(identity):
        return []
    return [(identity[name][0], identity[name][1]) for name in ("inner", "outer")]


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _output(attempt: int, path: Path) -> list[Body]:
    """What is to be said of an attempt's output; nothing where the app has put something else in its place."""
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            return [OutputClosed(attempt=attempt, bytes=size, sha256=hashlib.file_digest(file, "sha256").hexdigest())]
    except OSError as error:
        log.warning("the output %s cannot be read: %s", path, error)
        return []
