"""Transfers whose process died: they are closed, their other end is told, and nothing of them stays behind."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, cast

from engine.jobs import Note
from engine.orders import is_gone
from engine.site import Site
from engine.streaming.fabric import ALIVE_MS, END, StreamFabric
from engine.streaming.session import CONSUMER_LOST, PRODUCER_LOST
from events.append import WorkRefused
from events.bodies.transfers import TransferClosed
from events.errors import LogUnavailable
from events.store import translated

log = logging.getLogger("flightlog.collector")

PREFIX = "transfer_"
MOST = 2**53  # of a count that is believed
FIELDS = ("job", "position", "correlation", "opened", "tx", "direction", "process", "sender", "targets")


class LostTransfers:
    """Looks after open transfers.

    Args:
        site: opened.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.fabric = StreamFabric(site.servers.fabric_url, site.name)
        #: Transfers of whose producer nothing was heard, and since when.
        self._silent: dict[str, float] = {}

    def sweep(self) -> None:
        """Close what nobody can bring to its end; raises ``LogUnavailable``."""
        open_now = self._open()
        for work in open_now:
            try:
                self._look(work)
            except LogUnavailable:
                raise
            except Exception:  # one transfer's trouble is not the others'
                log.exception("transfer %s cannot be looked after", work["tx"])
        self._silent = {tx: since for tx, since in self._silent.items() if tx in {w["tx"] for w in open_now}}

    def _look(self, work: dict[str, str]) -> None:
        if not _process_gone(work["process"]):
            return
        if work["direction"] == "out":
            self._producer_lost(work)
        elif self._producer_silent(work["tx"]):
            self._close(work, CONSUMER_LOST, "the process that consumed it died, and its producer is gone", {})

    def _open(self) -> list[dict[str, str]]:
        store = self.site.jobs.store
        # Work without a deadline: there is little of it.
        names = [
            name
            for name in cast("list[str]", store.command("ZRANGEBYSCORE", store.keys.open, "+inf", "+inf"))
            if name.startswith(PREFIX)
        ]
        if not names:
            return []
        with translated():
            pipe = store.client.pipeline(transaction=False)
            for name in names:
                pipe.hmget(store.keys.work(name), FIELDS)
            answers = pipe.execute()
        found = [{name: value or "" for name, value in zip(FIELDS, answer, strict=True)} for answer in answers]
        return [work for work in found if work["tx"]]

    def _producer_silent(self, tx: str) -> bool:
        """Whether nothing was heard of a producer for longer than it may be silent."""
        if self.fabric.producer_lives(tx):
            self._silent.pop(tx, None)
            return False
        since = self._silent.setdefault(tx, time.monotonic())
        return time.monotonic() - since > ALIVE_MS / 1000

    def _producer_lost(self, work: dict[str, str]) -> None:
        counts = _counts(self.fabric.counts(work["tx"]))
        targets = work["targets"].split()
        if self._close(work, PRODUCER_LOST, "the process that produced it died", counts):
            log.warning("transfer %s has lost its producer", work["tx"])
        self.fabric.forget(work["tx"], targets)
        # The targets look for the producer themselves, and find it gone: nobody has to believe us.
        self.fabric.tell_end(work["tx"], {f"{END}:{target}": None for target in targets})

    def _close(self, work: dict[str, str], code: str, why: str, counts: dict[str, Any]) -> bool:
        now = self.site.jobs.store.now_ms()
        body = TransferClosed(
            id=work["tx"],
            direction="out" if work["direction"] == "out" else "in",
            code=code,
            why=why,
            objects=counts.get("objects", 0),
            bytes=counts.get("bytes", 0),
            ms=max(0, now - int(work["opened"] or now)),
            codes=dict.fromkeys(work["targets"].split(), code),
            left=counts.get("left", {}),
            at_least=True,
        )
        call = self.site.system_call("closed", call_id=f"lost:{body.direction}:{body.id}", role="collector")
        try:
            self.site.jobs.note_all(call, [Note(body, work["job"], work["position"], work["correlation"])])
        except WorkRefused:
            return False  # it has come to its end by itself
        return True


def _process_gone(process: str) -> bool:
    """Whether ``host:pid:start ticks`` is a process of this host that is gone."""
    parts = process.rsplit(":", 2)
    return (
        len(parts) == 3
        and parts[1].isdigit()
        and parts[2].isdigit()
        and is_gone(parts[0], int(parts[1]), int(parts[2]))
    )


def _counts(said: str) -> dict[str, Any]:
    """What a producer's engine said last of its transfer."""
    try:
        found = json.loads(said or "{}")
        return {
            "objects": _count(found.get("objects", 0)),
            "bytes": _count(found.get("bytes", 0)),
            "left": {str(name)[:600]: _count(count) for name, count in list(found.get("left", {}).items())[:1000]},
        }
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}  # somebody else has written there


def _count(value: Any) -> int:
    return min(max(0, int(value)), MOST)
