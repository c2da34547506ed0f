"""calls: deploy, start and abort as a caller sees them, on a real engine with its own pool."""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rq.job import Job

from benchmarks.harness import SITE, Result, Row, machine, millis, percentile, scratch
from engine.archive import pack
from engine.calls.abort import abort
from engine.client_engine import ClientEngine
from engine.lifecycle import State
from events.read import read_job

SAMPLES, WARM_UP = 45, 5
ABORTS = 5
GRACE = 1.0
APP_BYTES = 100_000
PATIENCE = 20.0
GOAL_DEPLOY, GOAL_START = 0.025, 0.060
#: Deaf to SIGTERM, and so are its children; says when it is.
STUBBORN = ("sh", "-c", 'trap "" TERM; echo deaf; while :; do sleep 1; done')


def run(notes: Console) -> Result:
    """Measure the group."""
    with scratch() as folder:
        options: dict[str, Any] = {"deploy_timeout": PATIENCE, "start_timeout": PATIENCE}
        with ClientEngine.open(site=SITE, workspace=folder / "ws", workers=2, **options) as engine:
            result = Result("calls", machine(engine.site.jobs.store))
            bench = Bench(engine, folder)
            bench.measure()
            notes.print(f"calls: {SAMPLES} deploys and starts")
            bench.aborts()
            notes.print(f"calls: {ABORTS} aborts")
            bench.tell(result)
        return result


class Bench:
    """One engine and what it took, in seconds."""

    def __init__(self, engine: ClientEngine, folder: Path) -> None:
        self.engine = engine
        # An app of its own for every deploy: the bytes of one that came before are on disk already.
        self.apps = iter([_app(folder / f"app-{n}", n, "sleep", "60") for n in range(WARM_UP + SAMPLES)])
        self.stubborn = _app(folder / "stubborn", 0, *STUBBORN)
        self.took: dict[str, list[float]] = {}

    def measure(self) -> None:
        """In turn an empty task, a deploy and a start, each of a job of its own."""
        for number in range(-WARM_UP, SAMPLES):
            job = f"job-{number + WARM_UP:03}"
            took = {
                "empty task": self.empty_task(),
                "deploy": self.deploy(job, next(self.apps)),
                "start": self.start(job),
            }
            self.end(job)
            if number < 0:
                continue
            for name, seconds in {**took, **self.steps(job)}.items():
                self.took.setdefault(name, []).append(seconds)

    def empty_task(self) -> float:
        """A bell for work that is not open: RQ's way to a forked worker and back, and nothing else."""
        client = self.engine.site.bells.client
        began = time.perf_counter()
        self.engine.site.bells.ring("deploy", "deploy_nothing_1")
        while time.perf_counter() - began < PATIENCE:
            if not client.keys(Job.key_for("deploy_nothing_1-*")):  # RQ removes it at its end: result_ttl is 0
                return time.perf_counter() - began
            time.sleep(0.0005)
        raise AssertionError("no worker hears the bell")

    def deploy(self, job: str, app: bytes) -> float:
        """Deploy a new job."""
        began = time.perf_counter()
        said = self.engine.deploy_app("app", job, {"job_id": job, "name": "bench"}, SITE, app)
        seconds = time.perf_counter() - began
        assert said == "", said
        return seconds

    def start(self, job: str) -> float:
        """Start it; the answer comes when its process is there."""
        began = time.perf_counter()
        said = self.engine.start_app(job, {"job_id": job, "name": "bench"})
        seconds = time.perf_counter() - began
        assert said == "Start the client app...", said
        return seconds

    def end(self, job: str) -> None:
        """End its app and wait until all that follows is done, so that the next sample begins quietly."""
        abort(self.engine.core, job, timeout=PATIENCE)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            state = self.engine.site.jobs.load(job).state
            if state.get("settled") == str(state.attempt):
                time.sleep(0.01)
                return
            time.sleep(0.005)
        raise AssertionError(f"{job} does not settle")

    def steps(self, job: str) -> dict[str, float]:
        """Where the time went, by the record's clock (whole ms): from intent to claim to outcome."""
        at: dict[str, int] = {}
        for event in read_job(self.engine.site.jobs.store, job):
            name = event.body["work"].partition("_")[0] if event.type == "WorkClaimed" else event.type
            at.setdefault(name, int(event.ms))
        return {
            "deploy: intent to claim": (at["deploy"] - at["DeployRequested"]) / 1000,
            "deploy: claim to outcome": (at["DeploySucceeded"] - at["deploy"]) / 1000,
            "start: intent to claim": (at["launch"] - at["StartRequested"]) / 1000,
            "start: claim to outcome": (at["AppSpawned"] - at["launch"]) / 1000,
        }

    def aborts(self) -> None:
        """Abort apps that are deaf to SIGTERM, until their end is on the record."""
        took = self.took.setdefault("abort", [])
        for number in range(ABORTS):
            job = f"deaf-{number}"
            self.deploy(job, self.stubborn)
            self.start(job)
            self._await_deaf(job)
            began = time.perf_counter()
            state = abort(self.engine.core, job, grace=GRACE, timeout=PATIENCE)
            took.append(time.perf_counter() - began)
            assert state.state is State.ABORTED, state.state

    def _await_deaf(self, job: str) -> None:
        log = self.engine.site.workspace.run(job) / "log.txt"
        until = time.monotonic() + PATIENCE
        while "deaf" not in log.read_text():
            assert time.monotonic() < until, "the app does not come up"
            time.sleep(0.01)

    def tell(self, result: Result) -> None:
        """Rows from what was taken."""
        for name, values in self.took.items():
            result.keep(f"{name}, s", values)
        empty = "empty RQ task " + _shown(self.took["empty task"])
        floor = statistics.median(self.took["empty task"])
        calls = (
            (f"deploy_app, {APP_BYTES // 1000} kB", "deploy", GOAL_DEPLOY),
            ("start_app to a running process", "start", GOAL_START),
        )
        for what, name, goal in calls:
            median = statistics.median(self.took[name])
            result.add(
                Row(
                    what=f"{what}, n={SAMPLES}",
                    ours=_shown(self.took[name]),
                    against=empty,
                    figure=f"p50 {millis(median)}, {median / floor:.1f} tasks",
                    goal=f"p50 <= {goal * 1000:.0f} ms",
                    met=median <= goal,
                )
            )
            for step in ("intent to claim", "claim to outcome"):
                values = self.took[f"{name}: {step}"]
                result.add(Row(what=f"- of which {step}", ours=_shown(values)))
        median = statistics.median(self.took["abort"])
        result.add(
            Row(
                what=f"abort of an app deaf to SIGTERM, grace {GRACE:.0f} s, to its recorded end, n={ABORTS}",
                ours=_shown(self.took["abort"]),
                figure=f"grace + {millis(median - GRACE)}",
                goal=f"all <= {GRACE + 1:.0f} s",
                met=max(self.took["abort"]) <= GRACE + 1,
            )
        )


def _shown(values: list[float]) -> str:
    p95 = f", p95 {millis(percentile(values, 0.95))}" if len(values) >= 20 else ""
    return f"p50 {millis(statistics.median(values))}{p95} [{millis(min(values))}-{millis(max(values))}]"


def _app(folder: Path, number: int, *command: str) -> bytes:
    """An app of about 100 kB as a zip: a config, some code, and a file that does not compress."""
    for part in ("config", "custom"):
        (folder / part).mkdir(parents=True)
    config = json.dumps({"format_version": 2, "command": list(command)})
    (folder / "config" / "config_fed_client.json").write_text(config)
    (folder / "custom" / "train.py").write_text("# trains\n" * 100)
    archive = len(pack(folder))
    (folder / "custom" / "weights.bin").write_bytes(random.Random(number).randbytes(APP_BYTES - archive - 200))
    return pack(folder)
