"""Jobs on the record: load one, transact on it, note something about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from engine.fold import Illegal, JobState
from engine.projection import Conditions, facts_to_be, note_ops, project
from engine.rebuild import rebuild_site
from events.append import Appended, Log, NewEvent, Ops, Request
from events.bodies.base import Body
from events.envelope import Actor, Call
from events.errors import RevisionConflict
from events.heads import parse
from events.standin import StandIn
from events.store import Store, translated
from events.subjects import SITE, job_subject
from events.together import Together

#: How the ids of messages' work begin.
MESSAGE = "aux_"
#: Times that a decision is made anew when the job changes between looking and recording.
REDECIDE = 5


@dataclass(frozen=True, slots=True)
class Loaded:
    """A job as the record has it now."""

    state: JobState
    version: int
    revision: int
    last: str

    @property
    def known(self) -> bool:
        """The record has events of this job."""
        return self.version > 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was recorded, and the state after it."""

    appended: Appended
    bodies: tuple[Body, ...]
    before: JobState
    state: JobState
    revision: int

    @property
    def version(self) -> int:
        """The job's version after them."""
        return next(iter(self.appended.heads.values()), (0, 0))[0]

    @property
    def position(self) -> str:
        """Position of the first event."""
        return self.appended.positions[0]


class Note(NamedTuple):
    """A note, the job that it is about ("": the site), and what it follows from."""

    body: Body
    job: str = ""
    cause: str = ""
    correlation: str = ""


class Jobs:
    """A site's jobs, seen and changed through its log.

    Args:
        store: the site's record.
        actor: who acts where a call does not say.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.log = Log(store, self._rebuild)
        self._together = Together(self.log.append_each)

    def _rebuild(self, why: str) -> None:
        from events.bodies.site import ProjectionRebuilt

        count = rebuild_site(self.store)
        if count is not None:
            jobs = cast("int", self.store.command("ZCARD", self.store.keys.by_time))
            actor = Actor(id="flightlog", kind="system")
            call = Call(call_id=f"rebuild-{self.store.now_ms()}", actor=actor, step="rebuilt")
            Log(self.store).append(call, [NewEvent(SITE, ProjectionRebuilt(why=why, events=count, jobs=jobs))])

    def rebuild(self, why: str) -> None:
        """Write everything that derives from the log anew, and record that."""
        self._rebuild(why)

    def load(self, job_id: str) -> Loaded:
        """A job's state now; one that the record does not know is new, at version 0."""
        keys = self.store.keys
        for _ in range(3):
            with translated():
                pipe = self.store.client.pipeline(transaction=False)
                pipe.hget(keys.heads, job_subject(job_id))
                pipe.hgetall(keys.job(job_id))
                pipe.llen(keys.index(job_id))
                pipe.hexists(keys.heads, "@seq")
                head, fields, indexed, any_heads = pipe.execute()
            loaded = settled(head, fields, indexed)
            if loaded is not None:
                loaded.state.seen_with(self.store.vault)
                return loaded
            if not head and not fields and (any_heads or not self._has_log()):
                return Loaded(JobState(), 0, 0, "")
            self._rebuild(f"what is kept of {job_id} does not match its head")
        raise RevisionConflict(f"the record of {job_id} does not settle")

    def _has_log(self) -> bool:
        return bool(self.store.command("EXISTS", self.store.keys.log))

    def transact(
        self,
        call: Call,
        job_id: str,
        decide: Callable[[JobState], Sequence[Body]],
        *,
        conditions: Conditions | None = None,
        revision: int | None = None,
    ) -> Recorded | None:
        """Load, decide, record; decided anew when the job has changed meanwhile.

        Args:
            call: which call and step.
            job_id: of which job.
            decide: from the state to the events; none: nothing is to be recorded.
            conditions: by kind of work, under which condition it may be closed.
            revision: that the job must have; None: any.

        Returns:
            What was recorded; None where ``decide`` had nothing to record.

        Raises:
            RevisionConflict: it changed five times in a row, or has not the revision that is asked for.
            events.append.WorkRefused: a condition does not hold.
            engine.fold.Illegal: an event cannot come in this state.
        """
        subject = job_subject(job_id)
        for left in range(REDECIDE, 0, -1):
            loaded = self.load(job_id)
            if revision is not None and loaded.revision != revision:
                raise RevisionConflict(
                    f"{job_id} is at revision {loaded.revision}, and {revision} was expected",
                    f"look at it again: flightlog show {job_id}",
                    job=job_id,
                    state=loaded.state.state.value,
                    revision=loaded.revision,
                )
            bodies = tuple(decide(loaded.state))
            if not bodies:
                return None
            try:
                shown, hidden = self._hidden_call(call, job_id), self._hidden(job_id, bodies)
                after, ops = project(job_id, loaded.state, facts_to_be(shown, hidden), conditions)
            except Illegal:
                known = self.log.known(call)
                if known is None:
                    raise
                return Recorded(known, bodies, loaded.state, loaded.state, loaded.revision)
            try:
                appended = self.log.append(
                    shown,
                    [NewEvent(subject, body) for body in hidden],
                    ops,
                    expected=(subject, loaded.revision),
                )
            except RevisionConflict:
                if left == 1:
                    raise
                continue
            revision = appended.heads.get(subject, (0, 0))[1]
            return Recorded(appended, bodies, loaded.state, _filled(after, appended), revision)
        raise AssertionError("unreachable")

    def note(self, call: Call, bodies: Sequence[Body], job_id: str | None = None, ops: Ops | None = None) -> Appended:
        """Record notes about a job, or about the site; they never transition."""
        return self._together(self.note_request(call, bodies, job_id, ops))

    def note_request(
        self, call: Call, bodies: Sequence[Body], job_id: str | None = None, ops: Ops | None = None
    ) -> Request:
        """What ``note`` appends, for whoever appends several at once."""
        subject = job_subject(job_id) if job_id else SITE
        ops = note_ops(call, job_id, bodies, ops)
        about = job_id or self._concerned(bodies[0])
        hidden = self._hidden(about, bodies)
        return self._hidden_call(call, about), [NewEvent(subject, body) for body in hidden], ops

    def note_all(self, call: Call, notes: Sequence[Note]) -> Appended:
        """Record notes about several jobs, or the site, in one append: all of them, or none."""
        ops = Ops()
        for index, note in enumerate(notes):
            note_ops(call, note.job, [note.body], ops, index)
        events = [
            NewEvent(
                job_subject(n.job) if n.job else SITE,
                self._hidden(about, [n.body])[0],
                n.cause or None,
                n.correlation or None,
                self._hidden_call(call, about).actor,
            )
            for n in notes
            for about in (n.job or self._concerned(n.body),)
        ]
        return self.log.append(call, events, ops)

    def _concerned(self, body: Body) -> str | None:
        """The job that an event of the site is about: what it says of persons is forgotten with that job."""
        job, vault = getattr(body, "job", None), self.store.vault
        return job if vault is not None and isinstance(job, str) and vault.knows(job) else None

    def _hidden(self, job_id: str | None, bodies: Sequence[Body]) -> Sequence[Body]:
        """A job's bodies as they are recorded: personal fields as tokens."""
        vault = self.store.vault
        return bodies if vault is None or not job_id else [vault.hide_body(job_id, body) for body in bodies]

    def _hidden_call(self, call: Call, job_id: str | None) -> Call:
        """A call about a job as it is recorded."""
        vault = self.store.vault
        if vault is None or not job_id:
            return call
        changes = vault.hide_actor(job_id, call.actor.model_dump())
        return replace(call, actor=call.actor.model_copy(update=changes)) if changes else call

    # -- queries ---------------------------------------------------------------------------

    def ids(self, *, state: str | None = None, limit: int = 100, offset: int = 0) -> list[str]:
        """Job ids, the last changed first; of one state, or all."""
        key = self.store.keys.state(state) if state else self.store.keys.by_time
        return cast("list[str]", self.store.command("ZREVRANGE", key, offset, offset + limit - 1))

    def load_many(self, ids: Sequence[str]) -> list[tuple[str, Loaded]]:
        """States of several jobs in one round trip; ids that the record does not know are left out."""
        keys = self.store.keys
        with translated():
            pipe = self.store.client.pipeline(transaction=False)
            for job_id in ids:
                pipe.hget(keys.heads, job_subject(job_id))
                pipe.hgetall(keys.job(job_id))
            answers = pipe.execute()
        found = []
        for job_id, head, fields in zip(ids, answers[::2], answers[1::2], strict=True):
            loaded = _loaded(head, fields)
            if loaded is None and (head or fields):
                loaded = self.load(job_id)  # it mends what is missing
            if loaded is not None:
                loaded.state.seen_with(self.store.vault)
                found.append((job_id, loaded))
        return found

    def open_work(self, *, messages: bool = False) -> list[tuple[str, dict[str, str]]]:
        """Open work with its fields and its ``deadline`` in ms (``inf``: none).

        Args:
            messages: those too; there may be very many, and the collector sees to them.
        """
        keys = self.store.keys
        with translated():
            listed = cast("list[tuple[str, float]]", self.store.client.zrange(keys.open, 0, -1, withscores=True))
            if not messages:
                listed = [(name, score) for name, score in listed if not name.startswith(MESSAGE)]
            pipe = self.store.client.pipeline(transaction=False)
            for name, _ in listed:
                pipe.hgetall(keys.work(name))
            answers: list[dict[str, str]] = pipe.execute()
        for (name, _), fields in zip(listed, answers, strict=True):
            if not fields and self.store.command("ZSCORE", keys.open, name) is not None:
                self._rebuild(f"work {name} is open, and nothing is kept of it")
                return self.open_work(messages=messages)
        return [
            (name, {**fields, "deadline": f"{score:.0f}"})
            for (name, score), fields in zip(listed, answers, strict=True)
            if fields
        ]

    def work(self, work_id: str) -> dict[str, str]:
        """Fields of one piece of work; empty where it is not open."""
        return cast("dict[str, str]", self.store.command("HGETALL", self.store.keys.work(work_id)))

    def consistent(self) -> str | None:
        """What of the derived keys does not match the heads, by their counts; None: all does."""
        keys = self.store.keys
        with translated():
            pipe = self.store.client.pipeline()
            pipe.hlen(keys.heads)
            pipe.hmget(keys.heads, ["@seq", "@open", SITE])
            pipe.zcard(keys.by_time)
            pipe.zcard(keys.open)
            pipe.exists(keys.log)
            for state in _states():
                pipe.zcard(keys.state(state))
            fields, (seq, open_count, site), by_time, opened, log, *states = pipe.execute()
        if seq is None:
            return "heads missing" if log else None
        jobs = fields - 5 - (1 if site else 0)
        if by_time != jobs or sum(states) != jobs:
            return "job sets differ from heads"
        if int(open_count) != opened:
            return "open work differs from its count"
        return None

    def each(self) -> Iterator[str]:
        """Every job id on the record."""
        offset = 0
        while page := self.ids(limit=1000, offset=offset):
            yield from page
            offset += len(page)


def settled(head: Any, fields: dict[str, str], indexed: int) -> Loaded | None:
    """A job from its head, its projection and the length of its index; None where they do not agree."""
    known = parse(head)
    return _loaded(head, fields) if known is not None and known.version - known.base <= indexed else None


def _loaded(head: Any, fields: dict[str, str]) -> Loaded | None:
    """A job from its head and projection; None where one of them is missing or cannot be read."""
    known = parse(head)
    return Loaded(JobState(fields), known.version, known.revision, known.last) if fields and known else None


def _filled(state: JobState, appended: Appended) -> JobState:
    """A state with the time and positions that the script gave to its events."""
    ms, _, seq = appended.positions[0].partition("-")
    filled = {
        name: value.filled(ms, int(seq)) if isinstance(value, StandIn) else value for name, value in state.items()
    }
    return JobState(filled).seen_with(state.vault)


def _states() -> list[Any]:
    from engine.lifecycle import State

    return [state.value for state in State]
