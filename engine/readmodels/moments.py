"""A job as it was: at a version, a position or a time, by folding its events up to there.

For long jobs the feeder keeps a state now and then, from which the fold goes on.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json, to_json

from engine.errors import ArgumentInvalid, JobUnknown
from engine.fold import JobState, apply, fact_of
from engine.jobs import Loaded
from engine.lifecycle import EVENTS
from engine.readmodels.names import Names
from events.envelope import Event, iso
from events.read import job_slice, last_position, version_at
from events.store import Store
from events.subjects import job_subject

KEEP_FROM = 500  # versions that are folded at once; a state is kept after each so many


class Moments:
    """Looks back at jobs.

    Args:
        store: the site's record.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._names = Names(store)

    def length(self, job: str) -> int:
        """The job's last version; 0 where the record does not know it."""
        head = self._store.command("HGET", self._store.keys.heads, job_subject(job))
        return int(str(head).partition(" ")[0]) if head else 0

    def version_at(self, job: str, position: str) -> int:
        """The job's last version at a position of the log, or at a time (``<ms>-`` and nothing); 0: not there yet."""
        return version_at(self._store, job, _order(position))

    def before(self, key: str, position: str) -> int:
        """How many positions of a list are at or before one."""
        return bisect_right(_Positions(self._store, key), _order(position), key=_order)

    def resolve(self, job: str, at: str) -> int:
        """The job's version at a moment that somebody names.

        Raises:
            ArgumentInvalid: it names none, or one that is still to come. JobUnknown: the job was not there yet.
        """
        last = self.length(job)
        kind, where = moment(at)
        if kind == "version":
            if int(where) > last:
                raise ArgumentInvalid(f"at is {where}, and {job} is at version {last}", f"1 to {last}", field="at")
            return int(where)
        if kind == "time" and int(where[:-1]) > self._store.now_ms():
            raise ArgumentInvalid(f"at is {at[:80]!r}, which is still to come", "a time up to now", field="at")
        end = _order(last_position(self._store))
        if kind == "position" and (_order(where)[0] > end[0] or _order(where)[1] > end[1]):
            raise ArgumentInvalid(f"at is {where}, where the log has not come to yet", "a position of it", field="at")
        version = self.version_at(job, where)
        if version == 0:
            first = iso(self.event(job, 1).ms)
            raise JobUnknown(f"{job} was not on the record at {at}", f"it came at {first}", field="at")
        return version

    def event(self, job: str, version: int) -> Event:
        """The job's event of that version."""
        found = job_slice(self._store, job, version - 1, version)
        if not found:
            raise JobUnknown(f"{job} has no event {version}", "flightlog events --job JOB")
        return found[0]

    def at_version(self, job: str, version: int) -> Loaded:
        """The job's state after its event of that version; see ``with_event``."""
        return self.with_event(job, version)[0]

    def with_event(self, job: str, version: int) -> tuple[Loaded, Event]:
        """The job's state after its event of that version, and that event.

        Raises:
            JobUnknown: the job has no such version.
        """
        state, done, revision, last = self._nearest(job, version)
        event: Event | None = None
        while done < version:
            upto = min(version, (done // KEEP_FROM + 1) * KEEP_FROM)
            found = job_slice(self._store, job, done, upto)
            if len(found) != upto - done:
                raise JobUnknown(f"{job} has no event {version}", f"its last is {self.length(job)}", field="at")
            for event in found:
                state = apply(state, fact_of(event))
                revision += event.type in EVENTS
            last, done = found[-1].position, upto
            if done % KEEP_FROM == 0:
                self._keep(job, done, state, revision, last)
        return Loaded(state, version, revision, last), event or self.event(job, version)

    def _nearest(self, job: str, version: int) -> tuple[JobState, int, int, str]:
        """The last state that was kept at or before a version; its version, its revision and its position."""
        at = version // KEEP_FROM * KEEP_FROM
        key = self._names.moments(job)
        while at > 0:
            kept = self._store.command("HGET", key, str(at))
            if kept is not None:
                value: dict[str, Any] = from_json(kept)
                return (
                    JobState(value["state"]).seen_with(self._store.vault),
                    at,
                    int(value["revision"]),
                    str(value["last"]),
                )
            at -= KEEP_FROM
        return JobState().seen_with(self._store.vault), 0, 0, ""

    def _keep(self, job: str, version: int, state: JobState, revision: int, last: str) -> None:
        value = to_json({"state": state, "revision": revision, "last": last}).decode()
        self._store.command("HSET", self._names.moments(job), str(version), value)


class _Positions:
    """The list of a job's positions, looked into without being fetched."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._length = int(store.command("LLEN", key))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> str:
        return str(self._store.command("LINDEX", self._key, index))


def _order(position: str) -> tuple[int, int]:
    """Of a position, or of all that happened up to a time (``<ms>-``)."""
    ms, _, seq = position.partition("-")
    return int(ms), int(seq) if seq else 2**63


def time_of(given: str, field: str) -> int:
    """A time as milliseconds; raises ``ArgumentInvalid`` for what is none."""
    kind, when = moment(given, field)
    if kind != "time":
        raise ArgumentInvalid(f"{field} is {given[:80]!r}", "a time, 2026-11-24T03:00:00Z", field=field)
    return int(when.partition("-")[0])


def moment(given: str, field: str = "at") -> tuple[str, str]:
    """What ``at`` says: ``("version", n)``, ``("position", p)`` or ``("time", "<ms>-")``.

    Args:
        given: what was said.
        field: where; an error names it.

    Raises:
        ArgumentInvalid: it is none of them.
    """
    text = given.strip()
    if text.isascii() and text.isdigit() and 0 < len(text) <= 15 and int(text) > 0:
        return "version", text
    ms, dash, seq = text.partition("-")
    if dash and ms.isascii() and seq.isascii() and ms.isdigit() and seq.isdigit() and len(text) < 40:
        return "position", f"{int(ms)}-{int(seq)}"
    try:
        when = datetime.fromisoformat(text)
        at = max(0, int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000))
    except (ValueError, OverflowError):
        raise ArgumentInvalid(
            f"{field} is {text[:80]!r}",
            "a version (17), a position (1795531521766-6) or a time (2026-11-24T03:00:00Z)",
            field=field,
        ) from None
    return "time", f"{at}-"
