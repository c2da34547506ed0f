"""What a sealer does where its signer, its disk or its log fails it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineDown
from engine.rebuild import rebuild_site
from engine.record.sealed import log_name, sealed
from engine.record.witness import Witness, WitnessServer
from engine.site import Site
from events.bodies.record import HistoryLost
from events.epochs import open_epoch
from events.read import count, read
from events.seal import Sealer, latest
from events.signing import Keys
from tests.histories import body
from tests.record.rig import born, feed_site, sealing, verified
from tests.support import new_call, until
from workers.sealer import SealerDuty

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]


@contextmanager
def at_work(site: Site) -> Iterator[None]:
    """A sealer in this process."""
    stop = threading.Event()
    thread = threading.Thread(target=SealerDuty(site).run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(15)
        assert not thread.is_alive()


def test_where_nothing_can_be_sealed_it_is_still_said_that_there_is_no_room(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    born(site, "job-1")
    tight = Site.open(workspace=site.workspace.root, room_warn=0.00001, room_full=0.00002, seal_every=0.05)

    def away(*_: object) -> None:
        raise EngineDown("the signer does not answer", "start it")

    monkeypatch.setattr(Sealer, "step", away)
    with closing(tight), at_work(tight):
        until(lambda: site.jobs.store.client.get(site.jobs.store.keys.full), 15, "nobody says it")
        until(lambda: "signer" in (sealed(site.workspace)["broken"] or ""), 15)


def test_a_signature_that_failed_is_tried_again_and_called_no_damage(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    born(site, "job-1")
    feed_site(site, 20)
    really, failed = Keys.sign, []

    def failing(self: Keys, *words: Any) -> Any:
        if len(failed) < 2:
            failed.append(sealed(site.workspace)["broken"])
            raise EngineDown("the signer does not answer", "start it")
        return really(self, *words)

    monkeypatch.setattr(Keys, "sign", failing)
    monkeypatch.setattr("workers.sealer.PAUSE", 0.05)
    said: set[str] = set()
    with at_work(site):
        until(lambda: said.add(sealed(site.workspace)["broken"] or "") or sealed(site.workspace)["sealed"] >= 21, 15)
    assert len(failed) == 2
    assert not [one for one in said if "missing" in one]
    assert verified(site).verdict == "SITE-SIGNED"


def test_a_checkpoint_of_a_new_epoch_is_witnessed_though_the_log_is_shorter_than_before(
    site: Site, tmp_path: Path
) -> None:
    witness = Witness(tmp_path / "witness", "w.example")
    with WitnessServer(witness) as server:
        born(site, "job-1")
        feed_site(site, 60)
        with sealing(site, witness=server.url, witness_every=0.1):
            until(lambda: sealed(site.workspace)["witnessed"] >= 61, 15)
        size, store = count(site.jobs.store), site.jobs.store
        for event in list(read(store))[20:]:
            store.client.xdel(store.keys.log, event.position)
        rebuild_site(store)
        lost = HistoryLost(first=21, last=size, note=str(latest(site.workspace.seal)), reason="a failover")
        open_epoch(store, new_call(), [lost])
        witness.ledger.accept(f"{log_name(site.workspace)}/2")
        with sealing(site, witness=server.url, witness_every=0.1):
            until(lambda: 20 < sealed(site.workspace)["witnessed"] < 60, 15, "the new epoch is not witnessed")
        assert verified(site).witnessed > 20


def test_what_cannot_be_removed_of_an_erased_job_keeps_nothing_from_being_sealed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    born(site, "job-1")
    site.jobs.note(new_call(), [body("Erased", lives=0)], "job-1")
    stuck = [True]

    def refused(*_: object) -> None:
        if stuck[0]:
            raise PermissionError(13, "Permission denied", "log.txt")

    monkeypatch.setattr("engine.record.erasing.finish", refused)
    monkeypatch.setattr("workers.sealer.PAUSE", 0.05)
    with at_work(site):
        until(lambda: "log.txt" in (sealed(site.workspace)["broken"] or ""), 15, "it is not told")
        feed_site(site, 20)
        until(lambda: sealed(site.workspace)["sealed"] >= 22, 15, "nothing is sealed any more")
        stuck[0] = False
        until(lambda: not sealed(site.workspace)["broken"], 15, "it is not tried again")
