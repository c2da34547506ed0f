"""Metrics in Prometheus form: from read models, projections and the server's own figures, at the time of asking.

They are counted by the record, not by this process, so they are the same whichever process is asked, and survive it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import cast

import redis
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from engine import overview
from engine.lifecycle import EXECUTORS, State
from engine.readmodels.models import BUCKETS
from engine.record.sealed import sealed
from engine.status import reads
from engine.status.desk import Desk
from events.errors import FlightlogError
from events.read import last_position
from events.store import translated

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
CARETAKER = ("AppAdopted", "AbortSignalled", "OutputClosed", "LateExit", "SpoolDrained", "WorkerKilled")
RECONCILER = ("WorkRerung", "DeployExpired", "LaunchExpired", "DeleteAbandoned")

OWN = CollectorRegistry()
REQUESTS = Counter("flightlog_http_requests", "Requests to this process", ["route", "method", "status"], registry=OWN)
SECONDS = Histogram(
    "flightlog_http_seconds",
    "How long this process took over requests",
    ["route"],
    registry=OWN,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
WATCHERS = Gauge("flightlog_watchers", "Open event streams of this process", registry=OWN)


def exposition(desk: Desk) -> bytes:
    """The metrics as text."""
    WATCHERS.set(desk.hub.watchers)
    registry = CollectorRegistry()
    registry.register(_OfSite(desk))
    return generate_latest(registry) + generate_latest(OWN)


class _OfSite(Collector):
    """What the record says now."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def collect(self) -> Iterable[Metric]:
        """All metrics; with the record away, only that it is."""
        up = GaugeMetricFamily("flightlog_record_up", "1 where the record answers")
        try:
            found = list(self._found())
        except (FlightlogError, redis.RedisError):
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        return [up, *found]

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the record is asked when somebody asks us."""
        return []

    def _found(self) -> Iterator[Metric]:
        desk = self._desk
        types = reads.counts_of(desk, desk.names.types)
        yield from self._events(types)
        yield from self._work()
        yield from self._traffic()
        yield from self._followers()
        yield from _acts(types)
        yield from self._servers()
        yield from self._health()

    def _events(self, types: dict[str, int]) -> Iterator[Metric]:
        desk = self._desk
        by_type = CounterMetricFamily("flightlog_events", "Events on the record, by type", labels=["type"])
        for name, count in sorted(types.items()):
            by_type.add_metric([name], count)
        yield by_type
        jobs = GaugeMetricFamily("flightlog_jobs", "Jobs, by state", labels=["state"])
        counts = overview.by_state(desk.site.jobs)
        for state in State:
            jobs.add_metric([state.value], counts.get(state.value, 0))
        yield jobs

    def _work(self) -> Iterator[Metric]:
        desk = self._desk
        waiting = reads.queues(desk)
        opened = GaugeMetricFamily("flightlog_open_work", "Open work, by kind", labels=["kind"])
        oldest = GaugeMetricFamily(
            "flightlog_open_work_oldest_seconds", "Age of the oldest open work", labels=["kind"]
        )
        known = {row["kind"]: row for row in waiting["open_work"]}
        for kind in EXECUTORS:
            opened.add_metric([kind], known.get(kind, {}).get("open", 0))
            oldest.add_metric([kind], known.get(kind, {}).get("oldest_age", 0))
        late = GaugeMetricFamily("flightlog_open_work_overdue", "Open work that is past its deadline")
        now = desk.store.now_ms()
        with translated():
            late.add_metric([], desk.store.client.zcount(desk.store.keys.open, 1, now))
        depth = GaugeMetricFamily("flightlog_queue_depth", "Bells that nobody has heard yet", labels=["queue"])
        for row in waiting["queues"]:
            if row["bells"] is not None:
                depth.add_metric([row["kind"]], row["bells"])
        lanes = GaugeMetricFamily(
            "flightlog_lane_depth", "Messages that wait to be sent, by target", labels=["target"]
        )
        for row in waiting["lanes"]:
            lanes.add_metric([row["target"]], row["waiting"])
        yield from (opened, oldest, late, depth, lanes)
        yield from self._durations()

    def _durations(self) -> Iterator[Metric]:
        desk = self._desk
        outcomes = CounterMetricFamily(
            "flightlog_work", "Work that came to its end, by outcome", labels=["kind", "outcome"]
        )
        for field, count in sorted(reads.counts_of(desk, desk.names.outcomes).items()):
            outcomes.add_metric(field.split(" "), count)
        yield outcomes
        took = HistogramMetricFamily("flightlog_work_seconds", "How long work took, from its intent", labels=["kind"])
        with translated():
            found = cast("dict[str, str]", desk.store.client.hgetall(desk.names.durations))
        by_kind: dict[str, dict[str, float]] = defaultdict(dict)
        for field, value in found.items():
            kind, _, bucket = field.partition(" ")
            by_kind[kind][bucket] = float(value)
        for kind, counts in sorted(by_kind.items()):
            total, buckets = 0.0, []
            for number, bound in enumerate((*map(str, BUCKETS), "+Inf")):
                total += counts.get(str(number), 0)
                buckets.append((bound, total))
            took.add_metric([kind], buckets, counts.get("sum", 0.0))
        yield took

    def _traffic(self) -> Iterator[Metric]:
        desk = self._desk
        left: dict[str, int] = defaultdict(int)
        with translated():
            sizes = cast("dict[str, str]", desk.store.client.hgetall(desk.names.days_bytes))
        for field, size in sizes.items():
            left[str(json.loads(field)[1])] += int(size)
        out = CounterMetricFamily("flightlog_egress_bytes", "Bytes that left the site, by target", labels=["target"])
        for target, total in sorted(left.items()):
            out.add_metric([target], total)
        yield out

    def _followers(self) -> Iterator[Metric]:
        desk = self._desk
        end = _seq(last_position(desk.store))
        lag = GaugeMetricFamily("flightlog_follower_lag_events", "Events a follower is behind", labels=["follower"])
        lag.add_metric(["readmodels"], desk.as_of()["lag"])
        lag.add_metric(["live"], max(0, end - _seq(desk.hub.position)))
        reactor = desk.store.command("GET", desk.store.keys.cursor("reactor"))
        if reactor:
            lag.add_metric(["reactor"], max(0, end - _seq(str(reactor))))
        yield lag

    def _servers(self) -> Iterator[Metric]:
        """Appends are the record's script calls; how long they take is its own figure, without the way there."""
        desk = self._desk
        with translated():
            stats = desk.store.client.info("commandstats").get("cmdstat_evalsha", {})
            memory = desk.store.client.info("memory")
            latency = desk.store.client.info("latencystats")
        took = SummaryMetricFamily(
            "flightlog_append_seconds",
            "Script calls of the record server: appends",
            count_value=int(stats.get("calls", 0)),
            sum_value=int(stats.get("usec", 0)) / 1e6,
        )
        yield took
        quantiles = GaugeMetricFamily(
            "flightlog_append_quantile_seconds", "The same, by quantile", labels=["quantile"]
        )
        for name, value in dict(latency.get("latency_percentiles_usec_evalsha", {})).items():
            quantiles.add_metric([f"{float(name.lstrip('p')) / 100:g}"], float(value) / 1e6)
        yield quantiles
        used = GaugeMetricFamily("flightlog_record_memory_bytes", "Memory of the record server")
        used.add_metric([], memory["used_memory"])
        limit = GaugeMetricFamily("flightlog_record_memory_limit_bytes", "Its maxmemory; 0: none is set")
        limit.add_metric([], memory.get("maxmemory", 0))
        yield from (used, limit)

    def _health(self) -> Iterator[Metric]:
        desk = self._desk
        seen = overview.caretaker_seen(desk.site.workspace)
        there = GaugeMetricFamily("flightlog_caretaker_up", "1 where somebody looks after the apps")
        there.add_metric([], int(seen != "none" and not seen.startswith("STUCK")))
        reconciler = GaugeMetricFamily("flightlog_reconciler_up", "1 where somebody looks after open work")
        reconciler.add_metric([], int(reads.lease_holder(desk, "reconciler") is not None))
        disk = GaugeMetricFamily("flightlog_disk_free_bytes", "Room on the workspace's disk")
        disk.add_metric([], overview.disk_free(desk.site.workspace))
        workers = GaugeMetricFamily("flightlog_workers", "Workers of the queues", labels=["kind"])
        counts: dict[str, int] = defaultdict(int)
        for worker in overview.workers(desk.site):
            counts[worker["kind"]] += 1
        for kind in desk.site.bells.queues():
            workers.add_metric([kind], counts[kind])
        yield from (there, reconciler, disk, workers)
        state = sealed(self._desk.site.workspace)
        sealing = GaugeMetricFamily("flightlog_sealer_up", "1 where somebody seals the log, and nothing is wrong")
        sealing.add_metric([], float(state["sealing"] and not state["broken"]))
        signed = GaugeMetricFamily("flightlog_sealed_events", "Events that the site's last checkpoint is over")
        signed.add_metric([], state["sealed"])
        cosigned = GaugeMetricFamily("flightlog_witnessed_events", "Events that a witness cosigned")
        cosigned.add_metric([], state["witnessed"])
        forked = GaugeMetricFamily("flightlog_witness_refuses", "1 where a witness has seen another history")
        forked.add_metric([], float(bool(state["witness_refused"])))
        yield from (sealing, signed, cosigned, forked)


def _acts(types: dict[str, int]) -> Iterator[Metric]:
    for who, acts in (("caretaker", CARETAKER), ("reconciler", RECONCILER)):
        family = CounterMetricFamily(f"flightlog_{who}_acts", f"What the {who} did, by event", labels=["type"])
        for name in acts:
            family.add_metric([name], types.get(name, 0))
        yield family
    restarts = CounterMetricFamily("flightlog_worker_restarts", "Workers that ended and were started anew")
    restarts.add_metric([], types.get("WorkerDied", 0))
    refused = CounterMetricFamily("flightlog_refused_tasks", "Tasks found in Redis that are none of ours")
    refused.add_metric([], types.get("TaskRefused", 0))
    yield from (restarts, refused)


def _seq(position: str) -> int:
    return int(position.partition("-")[2])
