"""The shapes of answers, for ``/openapi.json``: field by field as the command line prints them with ``--json``.

Answers are not built from them, since that would cost more than the rest of a request; a test holds that they fit.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.lifecycle import State

POSITION = "1795531521766-6"
TIME = "2026-11-24T03:12:00.417Z"


class Shape(BaseModel):
    """Closed: a field that is not listed is a mistake of ours."""

    model_config = ConfigDict(extra="forbid")


class Refusal(Shape):
    """Why a command may not come now."""

    code: str = Field(examples=["JOB_LIVE"])
    reason: str = Field(examples=["job-17 is running since 2026-11-24 03:12:00 UTC (asked by mia)."])


class Attempt(Shape):
    """One start of the app, and what came of it."""

    attempt: int = Field(examples=[1])
    asked_by: str = Field(examples=["mia"])
    reason: str | None = None
    asked: str = Field(examples=[TIME])
    state: str = Field(examples=["finished"])
    resources: dict[str, Any] = {}
    host: str | None = None
    pid: int | None = None
    network: str | None = None
    spawned: str | None = None
    started: str | None = None
    ended: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    outcome: int | None = None
    duration: float | None = Field(default=None, description="seconds")
    killed: int | None = Field(default=None, description="processes that had to be killed")
    why: str | None = None


class Event(Shape):
    """One event of the record."""

    position: str = Field(examples=[POSITION], description="`<ms>-<seq>`; pages and streams go on from it")
    epoch: int = Field(examples=[1])
    subject: str = Field(examples=["job/job-17"])
    version: int = Field(examples=[6])
    type: str = Field(examples=["AppFinished"])
    schema_: int = Field(alias="schema", examples=[1])
    time: str = Field(examples=[TIME])
    actor: dict[str, Any] = Field(
        examples=[{"id": "mia", "kind": "person", "auth": "token", "via": "api", "claimed": None}]
    )
    call_id: str
    step: str
    arguments: str
    cause: str | None = Field(examples=[POSITION])
    correlation: str
    body: dict[str, Any] = Field(examples=[{"attempt": 1, "exit_code": 0}])


class JobInList(Shape):
    """A job's status."""

    job_id: str = Field(examples=["job-17"])
    state: State = Field(examples=["running"])
    client_status: str = Field(examples=["started"])
    version: int = Field(examples=[7], description="events of the job so far")
    revision: int = Field(examples=[5], description="transitions so far; `If-Match` compares it")
    attempt: int = Field(examples=[1])
    app: str | None = Field(examples=["breast_cancer"])
    since: str | None = Field(examples=[TIME], description="when it came into this state")
    created: str | None = Field(examples=[TIME])
    asked_by: str | None = Field(examples=["mia"])
    asked: str | None = Field(examples=["StartRequested"])
    reason: str | None = Field(examples=["first run"])
    waiting_for: str | None = Field(examples=["the app to end"])
    deadline: str | None = Field(examples=[TIME], description="until when")
    host: str | None
    network: str | None = Field(examples=["none"])
    pid: int | None
    task: str | None
    task_since: str | None
    tasks: int
    tasks_done: int
    last_task: str | None
    messages_out: int
    messages_failed: int
    messages_in: int
    transfers: int
    log_sharing: str | None
    started: str | None
    ended: str | None
    duration: float | None = Field(description="seconds")
    exit_code: int | None
    signal: int | None
    outcome: int | None
    outcome_text: str | None
    error: str | None
    resources: dict[str, Any]
    output_bytes: int | None
    refusals: int
    settled: bool | None = Field(description="all that its end brings was done")
    held: bool = Field(description="under a legal hold")
    erased: str | None = Field(description="when its personal fields were forgotten")
    position: str | None = Field(examples=[POSITION])
    allowed: list[str] = Field(examples=[["abort_app"]], description="commands that may come now")
    refused: dict[str, Refusal] = Field(description="the others, and why not")


class Job(JobInList):
    """A job with its attempts; with ``at``, as it was, and the event that made it so."""

    attempts: list[Attempt]
    event: Event | None = None


class AsOf(Shape):
    """How far the read models are."""

    position: str = Field(examples=[POSITION])
    lag: int = Field(examples=[0], description="events that the record has beyond that")


class Page(Shape):
    """A page."""

    next: str | None = Field(description="cursor of the next page; null: there is none")


class JobPage(Page):
    """Jobs."""

    items: list[JobInList]
    sort: str = Field(examples=["-since"])


class EventPage(Page):
    """Events. A page may be short, where few of many fit."""

    items: list[Event]
    previous: str | None = Field(description="cursor for the other direction")
    end: str = Field(description="the log's end before it was read: from there on a stream has what comes after")
    order: Literal["asc", "desc"]


class Message(Shape):
    """A message that was sent, or came in."""

    id: str
    direction: Literal["out", "in"]
    peer: str = Field(examples=["server"])
    job: str | None
    state: str = Field(examples=["answered"])
    position: str = Field(examples=[POSITION])
    channel: str
    topic: str
    size: int = Field(description="bytes")
    digest: str
    sealed: bool
    since: str = Field(examples=[TIME])
    asked_by: str
    ended: str | None
    code: str | None
    ms: int | None
    why: str | None


class Transfer(Shape):
    """A stream of objects or a file, as one of its ends sees it."""

    id: str
    direction: Literal["out", "in"]
    job: str | None
    what: str = Field(examples=["model.npz"])
    kind: str = Field(examples=["file"])
    peers: list[str]
    state: Literal["under way", "done", "failed"]
    objects: int
    bytes: int
    total: int | None
    resumed: int
    sealed: bool
    asked_by: str
    since: str
    ms: int
    ended_ms: int | None
    code: str | None
    why: str | None
    digest: str | None
    position: str
    process: str
    seconds: float
    bytes_per_second: int | None


class Sent(Shape):
    """Something that left the site, or may have, for one target."""

    time: str
    ms: int
    position: str
    id: str
    target: str
    channel: str
    topic: str
    job: str | None
    size: int
    digest: str | None
    sealed: bool
    asked_by: str
    network: str | None
    outcome: str = Field(examples=["answered"])


class RowPage(Page):
    """Rows, the newest first."""

    as_of: AsOf


class MessagePage(RowPage):
    """Messages."""

    items: list[Message]


class TransferPage(RowPage):
    """Transfers."""

    items: list[Transfer]


class EgressPage(RowPage):
    """What left the site through Flightlog."""

    items: list[Sent]
    note: str


class DayTotal(Shape):
    """What left on one day, to one target, of one topic and job."""

    day: str = Field(examples=["2026-11-24"])
    target: str
    topic: str
    job: str | None
    bytes: int
    messages: int


class AppNetwork(Shape):
    """How often an app ran with a network, or without."""

    app: str
    network: str
    runs: int


class EgressTotals(Shape):
    """Sums of what left, and which apps had the network."""

    totals: list[DayTotal]
    networks: list[AppNetwork]
    as_of: AsOf
    note: str


class Site(Shape):
    """A site."""

    site: str = Field(examples=["site-1"])
    workspace: str
    up: bool
    held_by: str | None
    engine_pid: int | None
    up_since: str | None
    listens_as: str | None
    page: str | None
    caretaker: str
    jobs: dict[str, int] = Field(examples=[{"running": 2, "finished": 17}])
    events: int


class SitePage(Page):
    """The sites of this server."""

    items: list[Site]


class Worker(Shape):
    """An RQ worker."""

    name: str
    kind: str
    pid: int | None
    host: str | None
    state: str


class Workers(Shape):
    """Who works."""

    workers: list[Worker]
    caretaker: str
    reconciler: str | None
    collector: str | None
    died: int
    killed: int
    refused_tasks: int
    as_of: AsOf


class Queue(Shape):
    """A queue of bells; the work itself is on the record."""

    queue: str
    kind: str
    bells: int | None
    error: str | None = None


class OpenWork(Shape):
    """Open work of one kind."""

    kind: str
    open: int
    oldest_age: float = Field(description="seconds")


class Lane(Shape):
    """Messages that wait for one target."""

    target: str
    waiting: int
    drained_by: str | None


class Queues(Shape):
    """What waits."""

    queues: list[Queue]
    open_work: list[OpenWork]
    messages_open: int
    lanes: list[Lane]
    refused: list[Event]


class Lifecycle(Shape):
    """The table: what may come in which state, and where each event leads."""

    states: list[str]
    commands: dict[str, dict[str, str]] = Field(
        description="command -> state -> event, `-CODE`, `=` (answered from the record) or `+` (noted)"
    )
    events: dict[str, dict[str, str]] = Field(description="event -> state -> next state")
    work: dict[str, str] = Field(description="event -> work that it opens (+) and closes (-)")


class Usage(Shape):
    """What an attempt's processes used, over time."""

    attempt: int
    items: list[dict[str, Any]] = Field(
        examples=[[{"time": 1795531521.7, "cpu": 0.97, "rss": 91_000_000, "processes": 3, "gpu": None}]],
        description="cpu: cores busy since the sample before; rss and gpu: bytes",
    )


class Rounds(Shape):
    """Rows that the app left in its metrics.jsonl."""

    items: list[dict[str, Any]] = Field(examples=[[{"time": 1795531521.7, "round": 1, "accuracy": 0.93}]])
    broken: int = Field(description="lines that are none")


class Check(Shape):
    """One thing that readiness needs."""

    check: str
    ok: bool
    found: str


class Ready(Shape):
    """Whether the site can do its work."""

    ready: bool
    checks: list[Check]


class Audit(Shape):
    """How far the record can be trusted."""

    events: int = Field(description="on the record", examples=[1204])
    sealed: int = Field(description="the site signed that many of them", examples=[1203])
    sealed_until: str | None = Field(examples=[TIME])
    origin: str | None = Field(description="what checkpoints call this log")
    sealing: bool = Field(description="a sealer is there")
    broken: str | None = Field(description="why nothing is sealed")
    signer: str | None = Field(description="the user that holds the site's key; null: the site itself")
    witnessed: int = Field(description="a witness cosigned that many")
    witnessed_at: float | None = Field(description="s since the epoch")
    witness_refused: str | None
    verified: Event | None = Field(description="the last verification")
    verifying: bool
    reviewed: Event | None = Field(description="the last review")
    losses: list[Event] = Field(description="losses that were disclosed, and histories that were taken in")


class Version(Shape):
    """What runs here."""

    release: str
    site: str
    python: str
    api: str


class Problem(BaseModel):
    """RFC 9457: what went wrong, by the code that record and command line have too."""

    type: str = Field(examples=["/errors/JOB_LIVE"])
    title: str
    status: int = Field(examples=[409])
    detail: str = Field(examples=["job-17 is running since 2026-11-24 03:12:00 UTC (asked by mia)."])
    code: str = Field(examples=["JOB_LIVE"])
    fix: str | None = Field(default=None, examples=["flightlog abort job-17 --wait"])
    retry: str | None = Field(default=None, examples=["later"])
    recorded: str | None = Field(default=None, description="position of the event", examples=[POSITION])
    state: str | None = None
    allowed: list[str] | None = None
    field: str | None = None


class StartBody(Shape):
    """How to start."""

    reason: str | None = Field(default=None, max_length=500, examples=["first run"])
    meta: dict[str, Any] | None = Field(default=None, description="to be compared with the deployed metadata")
    resources: dict[str, Any] | None = Field(default=None, examples=[{"num_of_gpus": 1}])
    network: Literal["open", "none"] | None = Field(default=None, description="a start can only tighten it")


class AbortBody(Shape):
    """How to abort."""

    reason: str | None = Field(default=None, max_length=500, examples=["wrong data"])
    grace: float | None = Field(default=None, ge=0, le=86_400, description="seconds before the kill")
    lost: bool = Field(default=False, description="nobody will ever see its end: close it")


class ReasonBody(Shape):
    """Why."""

    reason: str | None = Field(default=None, max_length=500, examples=["no longer needed"])


class TaskAnswer(Shape):
    """What the job's process said."""

    answer: str
