"""Read models: fed in whatever pieces, by whoever, they are what the log says; a moment is the replay up to it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.egress import egress
from engine.errors import ArgumentInvalid, JobUnknown
from engine.fold import JobState, apply, fact_of
from engine.readmodels import moments as moments_module
from engine.readmodels.docs import Docs, Rows
from engine.readmodels.feeder import Feeder, Stale
from engine.readmodels.models import LIFE, Models
from engine.readmodels.moments import Moments, moment
from engine.readmodels.names import Names
from engine.transfers import transfers
from events.envelope import iso
from events.read import read, read_job
from events.store import Store
from tests.histories import Player, body
from tests.support import fake_store, new_call


def fed(store: Store, sizes: list[int]) -> None:
    """Feed the whole log in batches of these sizes, by feeders that know nothing of each other."""
    for size in sizes:
        feeder, models = _feeder(store), Models(store)
        cursor = feeder.begin()
        batch = [event for _, event in zip(range(size), read(store, after=cursor), strict=False)]
        if batch:
            feeder.apply(models, batch, cursor)


def _feeder(store: Store) -> Feeder:
    feeder = Feeder.__new__(Feeder)  # without a site: no lease, and nothing that follows
    feeder.store, feeder.names = store, Names(store)
    feeder._moments, feeder._looked = Moments(store), 0.0
    return feeder


def dumped(store: Store) -> dict[str, Any]:
    """All that the read models keep."""
    found: dict[str, Any] = {}
    for key in store.client.scan_iter(match="*rm:*"):
        kind = store.client.type(key)
        if kind == "hash":
            found[key] = store.client.hgetall(key)
        elif kind == "zset":
            found[key] = store.client.zrange(key, 0, -1, withscores=True)
        else:
            found[key] = store.client.lrange(key, 0, -1)
    return found


def history(seed: int, events: int = 160) -> Store:
    """A store with random lives of jobs, and messages and streams among them."""
    store = fake_store()
    player, rng = Player(store), random.Random(seed)
    number = 0
    while number < events:
        number += 1
        player.step(rng.randrange(10**9))
    return store


@pytest.mark.parametrize("seed", range(6))
def test_read_models_are_the_same_in_whatever_pieces_they_were_fed(seed: int) -> None:
    """L2, L3: a batch is taken once, whoever takes it, and nothing depends on where batches end."""
    store = history(seed)
    total = store.client.xlen(store.keys.log)
    fed(store, [total])
    whole = dumped(store)
    _feeder(store).drop()
    assert dumped(store) == {}
    rng = random.Random(seed)
    sizes = []
    while sum(sizes) < total:
        sizes.append(rng.randint(1, 40))
    fed(store, sizes)
    assert dumped(store) == whole


@pytest.mark.parametrize("seed", range(4))
def test_rows_and_sums_are_those_of_the_log(seed: int) -> None:
    store = history(seed)
    fed(store, [10_000])
    events = list(read(store))
    names, docs = Names(store), Docs(store)
    left = {row["position"] + row["target"]: row for row in egress(events, store.site)}
    kept = [docs.get(names.rows("egress"), key) for key in store.client.zrange(names.order("egress"), 0, -1)]
    assert {row["position"] + row["target"]: row for row in kept if row} == left
    streams = transfers(events, now=0)
    assert store.client.zcard(names.order("transfers")) == len(streams)
    counted = {name: int(count) for name, count in store.client.hgetall(names.types).items()}
    assert sum(counted.values()) == len(events)
    for job in store.client.zrange(names.ids, 0, -1):
        told = [event.position for event in read_job(store, job) if event.type in LIFE]
        assert store.client.lrange(names.life(job), 0, -1) == told


def test_a_page_ends_between_rows_of_one_event_and_none_is_left_out() -> None:
    """A stream to several targets is several rows of one event."""
    from engine.status.paging import by_score

    store = fake_store()
    store.client.zadd("order", {f"row-{n:03}": n // 3 for n in range(700)})
    for down in (True, False):
        for size in (1, 7, 100, 333):
            found: list[str] = []
            after = None
            while True:
                chunks = by_score(store, "order", limit=size, down=down, after=after)
                page = [pair for chunk in chunks for pair in chunk][:size]
                if not page:
                    break
                found += [member for member, _ in page]
                after = (page[-1][1], page[-1][0])
            assert found == store.client.zrange("order", 0, -1, desc=down)


def test_a_batch_that_another_has_fed_is_not_fed_again() -> None:
    store = history(1)
    feeder, models = _feeder(store), Models(store)
    cursor = feeder.begin()
    events = list(read(store))
    feeder.apply(models, events[:10], cursor)
    with pytest.raises(Stale):
        feeder.apply(Models(store), events[:10], cursor)
    whole = dumped(store)
    assert sum(int(count) for count in whole[Names(store).types].values()) == 10


def test_models_that_are_not_whole_or_of_another_release_are_written_anew() -> None:
    store = history(2)
    fed(store, [10_000])
    whole = dumped(store)
    names = Names(store)
    store.client.hincrby(names.types, "AppSpawned", 1)
    fed(store, [10_000])
    assert dumped(store) == whole
    store.client.hset(names.cursor, "format", "0")
    fed(store, [10_000])
    assert dumped(store) == whole


def test_the_oldest_rows_make_way() -> None:
    store = fake_store()
    docs = Docs(store)
    rows = Rows(docs, "rows", "order", cap=3)
    for number in range(5):
        rows[f"r{number}"] = {"position": f"1-{number}", "job": "j"}
        pipe = store.client.pipeline()
        rows.write(pipe, store)
        docs.write(pipe)
        pipe.execute()
        rows.written()
        docs.written()
    assert store.client.zrange("order", 0, -1) == ["r2", "r3", "r4"]
    assert store.client.zrange("order:j", 0, -1) == ["r2", "r3", "r4"]
    assert sorted(store.client.hkeys("rows")) == ["r2", "r3", "r4"]


@pytest.mark.parametrize("seed", range(3))
def test_any_moment_of_a_job_is_the_replay_up_to_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "KEEP_FROM", 4)  # states are kept often, so that both ways are gone
    store = history(seed)
    moments = Moments(store)
    for job in list(store.client.zrange(store.keys.by_time, 0, -1)):
        events = list(read_job(store, job))
        states = [JobState()]
        for event in events:
            states.append(apply(states[-1], fact_of(event)))
        for version in random.Random(seed).sample(range(1, len(events) + 1), len(events)):
            event = events[version - 1]
            loaded = moments.at_version(job, version)
            assert (loaded.state, loaded.version, loaded.last) == (states[version], version, event.position)
            assert moments.resolve(job, event.position) == version
            assert moments.resolve(job, iso(event.ms)) == max(e.version for e in events if int(e.ms) <= int(event.ms))
        with pytest.raises(JobUnknown, match="was not on the record"):
            moments.resolve(job, "2001-01-01T00:00:00Z")


@pytest.mark.parametrize(
    "given", ["", "x", "-1", "0", "1-", "-", "1-2-3", "99999-01-01", "1e9", "\uff12", "NaN", " "]
)
def test_what_is_no_moment_is_refused(given: str) -> None:
    with pytest.raises(ArgumentInvalid, match=r"^ARGUMENT_INVALID: at is"):
        moment(given)


def test_a_message_that_was_answered_has_one_row_with_how_it_ended() -> None:
    store = fake_store()
    from engine.jobs import Jobs

    jobs = Jobs(store)
    for kind in ("AuxRequested", "SendStarted", "AuxReplied"):
        jobs.note(new_call(), [body(kind)])
    fed(store, [100])
    names, docs = Names(store), Docs(store)
    (key,) = store.client.zrange(names.order("messages"), 0, -1)
    row = docs.get(names.rows("messages"), key)
    assert row is not None
    assert (row["state"], row["code"], row["peer"]) == ("answered", "ok", "server")
