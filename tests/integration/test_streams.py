"""Streams between a site, its peers and a server: the sender's table 5.3, several targets, windows, the record."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from engine.client_engine import ClientEngine
from engine.comm import ring_of
from engine.constants import FLContextKey, ReturnCode
from engine.egress import egress
from engine.errors import (
    ArgumentInvalid,
    JobIdInvalid,
    JobUnknown,
    KeyUnknown,
    PayloadInvalid,
    PayloadTooLarge,
    StreamerDown,
)
from engine.federation.server import FederationServer
from engine.job.signal import Signal
from engine.shareable import Shareable, make_reply
from engine.streaming import ConsumerFactory, ObjectConsumer, StreamContext, StreamContextKey
from engine.streaming.chunk import Framer, addressed
from engine.streaming.fabric import inbox_for, objects_of
from engine.transfers import transfers
from engine.workspace import host_name
from events.bodies.transfers import TransferOpened
from events.envelope import Actor, Event
from events.read import read
from tests.integration.streams import Numbers, Seen, Taking
from tests.integration.test_aux import Since
from tests.support import QUICK, check_record, kill, processes_with, ready, until

_topics = iter(range(10**6))


class Parties:
    """A site, another one, and a server, on one fabric."""

    def __init__(self, one: ClientEngine, other: ClientEngine, server: FederationServer) -> None:
        self.one, self.other, self.server = one, other, server
        self.url = one.site.servers.fabric_url

    def takes(
        self, does: Callable[[Shareable], Any] | None = None, at: Any = None, **more: Any
    ) -> tuple[str, Taking]:
        """A topic of its own, and who takes in its streams."""
        topic, factory = f"topic-{next(_topics)}", Taking(does)
        for party in [self.server] if at is None else at:
            party.register_stream_processing("c", topic, factory, **more)
        return topic, factory

    def stream(self, topic: str, producer: Any, *targets: str, **more: Any) -> tuple[str, Any]:
        ctx = more.pop("ctx", {"model": "m-1"})
        fl_ctx = more.pop("fl_ctx", None) or self.one.new_context()
        return self.one.stream_objects("c", topic, ctx, list(targets or ("server",)), producer, fl_ctx, **more)


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[Parties]:
    folder = tmp_path_factory.mktemp("streams")
    options: dict[str, Any] = {**QUICK, "workers": 2, "stream_stall": 20.0}
    try:
        with ClientEngine.open(site="site-1", workspace=folder / "a", **options) as one:
            url = one.site.servers.fabric_url
            with (
                ClientEngine.open(site="site-2", workspace=folder / "b", fabric_url=url, **options) as other,
                FederationServer(folder / "server", fabric_url=url) as server,
            ):
                rings = [ring_of(one.site.workspace), ring_of(other.site.workspace), server.ring]
                for ring in rings:
                    for peer in rings:
                        if peer is not ring:
                            ring.trust(peer.public())
                yield Parties(ready(one), ready(other), server)
                for engine in (one, other):
                    check_record(engine.site.jobs.store)
    finally:
        for pid in processes_with(str(folder)):
            kill(pid)


@pytest.fixture
def since(parties: Parties) -> Since:
    return Since(parties.one)


def left_on(url: str) -> list[bytes]:
    """What is left of streams on the fabric."""
    with redis.Redis.from_url(url) as client:
        return [*client.keys("ff:tx:*"), *client.keys("ff:*:si")]


# -- table 5.3, and what ours adds --------------------------------------------------------------------------------


def test_objects_arrive_in_order_each_once_and_each_reply_is_processed_in_order(parties: Parties) -> None:
    topic, factory = parties.takes(lambda o: (True, Shareable({"echo": o["number"]})))
    producer = Numbers(100)
    assert parties.stream(topic, producer) == (ReturnCode.OK, None)
    assert factory.made[0].numbers == list(range(100))
    assert [one["server"]["echo"] for one in producer.replies] == list(range(100))
    assert 1 < producer.most <= 17


def test_the_context_goes_along_and_each_end_learns_what_is_the_engines(parties: Parties) -> None:
    topic, factory = parties.takes()
    ctx: dict[str, Any] = {"round": 7, "weights": [0.5, 1.5]}
    parties.stream(topic, Numbers(1), ctx=ctx)
    until(factory.made[0].over.is_set)
    there = factory.made[0].ctx
    assert (ctx[StreamContextKey.CHANNEL], ctx[StreamContextKey.TOPIC]) == ("c", topic)
    assert (there["round"], there["weights"], there[StreamContextKey.SENDER]) == (7, [0.5, 1.5], "site-1")
    assert there[StreamContextKey.TX_ID] == ctx[StreamContextKey.TX_ID]


@pytest.mark.parametrize("ctx", [None, {}])
def test_an_empty_context_is_made_one(parties: Parties, ctx: Any) -> None:
    topic, factory = parties.takes()
    assert parties.stream(topic, Numbers(1), ctx=ctx)[0] == ReturnCode.OK
    assert factory.made[0].numbers == [0]


def test_values_of_all_kinds_come_as_they_were(parties: Parties) -> None:
    topic, factory = parties.takes()
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": 7, "b": b"\x00\xff", "t": ["a", None, True]}
    parties.stream(topic, Numbers(1, makes=lambda n: (Shareable({"number": n, **weights}), 5.0)))
    got = factory.made[0].objects[0]
    assert np.array_equal(got["w"], weights["w"])
    assert got["w"].dtype == np.float32
    assert (got["n"], got["b"], got["t"]) == (7, b"\x00\xff", ["a", None, True])


def test_the_producers_objects_are_left_as_they_are(parties: Parties) -> None:
    topic, _ = parties.takes()
    mine = Shareable({"number": 0})
    parties.stream(topic, Numbers(1, makes=lambda n: (mine, 5.0)))
    assert dict(mine) == {"number": 0, "__headers__": {}}


def test_an_empty_stream_is_over_at_once_and_nobody_hears_of_it(parties: Parties, since: Since) -> None:
    topic, factory = parties.takes()
    assert parties.stream(topic, Numbers(0)) == (ReturnCode.OK, None)
    assert not factory.made
    (closed,) = since.of("TransferClosed")
    assert (closed.body["code"], closed.body["objects"]) == ("OK", 0)


def test_where_nobody_takes_it_in_the_producer_reads_so(parties: Parties) -> None:
    producer = Numbers(3, ends=lambda replies: False)
    code, result = parties.stream("nobody-takes-this", producer)
    assert (code, result) == (ReturnCode.ERROR, False)
    assert producer.codes[0] == {"server": ReturnCode.EXECUTION_EXCEPTION}


@pytest.mark.parametrize(("value", "code"), [("done", ReturnCode.OK), (0, ReturnCode.ERROR), ({}, ReturnCode.ERROR)])
def test_what_the_producer_makes_of_replies_ends_the_stream(parties: Parties, value: Any, code: str) -> None:
    topic, factory = parties.takes()
    producer = Numbers(1000, ends=lambda replies: value if len(producer.replies) == 5 else None)
    assert parties.stream(topic, producer) == (code, value)
    assert len(producer.replies) == 5
    until(factory.made[0].over.is_set)
    assert factory.made[0].rc == ReturnCode.TASK_ABORTED


def test_a_consumer_that_has_enough_gives_the_result_of_its_callback(parties: Parties) -> None:
    seen: list[dict[str, Any]] = []

    def done(stream_ctx: StreamContext, fl_ctx: Any, **kwargs: Any) -> str:
        seen.append({"rc": stream_ctx[StreamContextKey.RC], **kwargs})
        return "stored as m-1"

    topic, _ = parties.takes(lambda o: (o["number"] < 3, make_reply(ReturnCode.OK)), stream_done_cb=done, shelf=4)
    producer = Numbers(4, ends=lambda r: r["server"].get_header("ObjectStreamer.END_RESULT"))
    assert parties.stream(topic, producer) == (ReturnCode.OK, "stored as m-1")
    assert seen == [{"rc": ReturnCode.OK, "shelf": 4}]


def test_a_callback_is_called_after_each_object(parties: Parties) -> None:
    count: list[int] = []
    topic, _ = parties.takes(consumed_cb=lambda stream_ctx, fl_ctx, **kwargs: count.append(kwargs["step"]), step=2)
    parties.stream(topic, Numbers(5))
    assert count == [2] * 5


def test_a_signal_that_is_set_before_makes_nothing(parties: Parties, since: Since) -> None:
    topic, factory = parties.takes()
    fl_ctx, signal = parties.one.new_context(), Signal()
    fl_ctx.set_prop(FLContextKey.RUN_ABORT_SIGNAL, signal, private=True, sticky=False)
    signal.trigger()
    assert parties.stream(topic, Numbers(5), fl_ctx=fl_ctx) == (ReturnCode.TASK_ABORTED, None)
    assert not factory.made
    assert since.of("TransferClosed")[0].body["code"] == ReturnCode.TASK_ABORTED


def test_a_signal_in_the_middle_ends_it_at_both_ends_though_the_consumer_hangs(parties: Parties) -> None:
    go = threading.Event()
    topic, factory = parties.takes(lambda o: go.wait(20) and None)
    fl_ctx, signal = parties.one.new_context(), Signal()
    fl_ctx.set_prop(FLContextKey.RUN_ABORT_SIGNAL, signal, private=True, sticky=False)
    began: list[float] = []

    def abort() -> None:
        until(lambda: factory.made and factory.made[0].numbers)
        began.append(time.monotonic())
        signal.trigger()

    threading.Thread(target=abort).start()
    assert parties.stream(topic, Numbers(50), fl_ctx=fl_ctx) == (ReturnCode.TASK_ABORTED, None)
    assert time.monotonic() - began[0] < 5
    go.set()
    until(factory.made[0].over.is_set)
    assert factory.made[0].rc == ReturnCode.TASK_ABORTED


def test_a_producer_that_raises_ends_the_stream_and_is_heard(parties: Parties, since: Since) -> None:
    topic, factory = parties.takes()

    def makes(number: int) -> Any:
        if number == 3:
            until(lambda: factory.made)
            raise RuntimeError("the disk went away")
        return Shareable({"number": number}), 5.0

    with pytest.raises(RuntimeError, match="the disk went away"):
        parties.stream(topic, Numbers(10, makes=makes))
    until(factory.made[0].over.is_set)
    (closed,) = since.of("TransferClosed")
    assert closed.body["code"] == ReturnCode.EXECUTION_EXCEPTION
    assert "the disk went away" in closed.body["why"]


def test_a_producer_that_raises_over_replies_ends_the_stream_too(parties: Parties) -> None:
    topic, factory = parties.takes()

    def ends(replies: Any) -> Any:
        raise KeyError("accuracy")

    with pytest.raises(KeyError):
        parties.stream(topic, Numbers(10, ends=ends))
    until(factory.made[0].over.is_set)


@pytest.mark.parametrize(
    ("made", "field"),
    [
        ("nothing", "produce"),
        (None, "produce"),
        ((Shareable(),), "produce"),
        (({"a": 1}, 5.0), "produce"),
        ((Shareable(), 5), "timeout"),
        ((Shareable(), None), "timeout"),
        ((Shareable(), "5"), "timeout"),
        ((Shareable(), 0.0), "timeout"),
        ((Shareable(), -1.0), "timeout"),
        ((Shareable(), float("nan")), "timeout"),
        ((Shareable(), float("inf")), "timeout"),
    ],
)
def test_a_producer_that_makes_no_object_is_told_what_it_made(
    parties: Parties, since: Since, made: Any, field: str
) -> None:
    topic, _ = parties.takes()
    with pytest.raises(ArgumentInvalid) as raised:
        parties.stream(topic, Numbers(2, makes=lambda n: made))
    assert raised.value.context["field"] == field
    assert since.of("TransferClosed")[0].body["code"] == ReturnCode.EXECUTION_EXCEPTION
    assert not left_on(parties.url)


def test_an_object_that_cannot_be_encoded_or_is_too_large_is_named(parties: Parties) -> None:
    topic, _ = parties.takes()
    with pytest.raises(PayloadInvalid):
        parties.stream(topic, Numbers(1, makes=lambda n: (Shareable({"x": object()}), 5.0)))
    with pytest.raises(PayloadTooLarge, match="object 0 has"):
        parties.stream(topic, Numbers(1, size=17 * 2**20))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"channel": ""}, "channel"),
        ({"channel": 7}, "channel"),
        ({"topic": None}, "topic"),
        ({"stream_ctx": "text"}, "stream_ctx"),
        ({"stream_ctx": [1]}, "stream_ctx"),
        ({"producer": object()}, "producer"),
        ({"producer": None}, "producer"),
        ({"fl_ctx": None}, "fl_ctx"),
        ({"targets": []}, "targets"),
        ({"targets": "server"}, "targets"),
        ({"targets": None}, "targets"),
        ({"targets": ["server", "server"]}, "targets"),
        ({"targets": ["server", "site-1"]}, "targets"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_by_its_field_and_nothing_is_sent(
    parties: Parties, since: Since, change: dict[str, Any], field: str
) -> None:
    given = {
        "channel": "c",
        "topic": "t",
        "stream_ctx": {},
        "targets": ["server"],
        "producer": Numbers(1),
        "fl_ctx": parties.one.new_context(),
        **change,
    }
    # Somebody else each time: of one actor, so many refusals would be folded.
    with parties.one.acting_as(Actor(id=str(change), kind="person")), pytest.raises(ArgumentInvalid) as raised:
        parties.one.stream_objects(**given)
    assert raised.value.context["field"] == field
    assert isinstance(raised.value, ValueError)
    assert [e.body["method"] for e in since.of("CallRefused")] == ["stream_objects"]
    assert not since.of("TransferOpened")


def test_a_target_that_does_not_exist_fails_by_name_and_soon(parties: Parties, since: Since) -> None:
    topic, factory = parties.takes()
    producer = Numbers(5, ends=lambda replies: None)
    began = time.monotonic()
    code, _ = parties.stream(topic, producer, "server", "site-nowhere")
    assert time.monotonic() - began < 12
    assert code == ReturnCode.OK  # the producer went on without it
    assert producer.codes == [{"server": "OK", "site-nowhere": "COMMUNICATION_ERROR"}] * 5
    assert factory.made[0].numbers == list(range(5))
    (closed,) = since.of("TransferClosed")
    assert closed.body["codes"] == {"server": "OK", "site-nowhere": "COMMUNICATION_ERROR"}
    assert closed.body["left"]["site-nowhere"] == 0


def test_where_no_target_is_left_the_stream_ends_though_the_producer_does_not(parties: Parties) -> None:
    producer = Numbers(10**9)
    code, result = parties.stream("t", producer, "site-nowhere")
    assert (code, result) == (ReturnCode.COMMUNICATION_ERROR, None)
    assert producer.made <= 17


def test_several_targets_get_every_object_and_the_slowest_sets_the_pace(parties: Parties) -> None:
    topic, fast = parties.takes()
    slow = Taking(lambda o: time.sleep(0.01))
    parties.other.register_stream_processing("c", topic, slow)
    producer = Numbers(40)
    assert parties.stream(topic, producer, "server", "site-2")[0] == ReturnCode.OK
    assert fast.made[0].numbers == slow.made[0].numbers == list(range(40))
    assert all(set(one) == {"server", "site-2"} for one in producer.replies)
    assert producer.most <= 17


def test_a_target_that_takes_too_long_fails_and_the_others_go_on(parties: Parties) -> None:
    go = threading.Event()

    def hangs(o: Shareable) -> None:
        if o["number"] == 2:
            go.wait(20)

    topic, fast = parties.takes()
    parties.other.register_stream_processing("c", topic, Taking(hangs))
    producer = Numbers(30, timeout=3.0)
    try:
        assert parties.stream(topic, producer, "server", "site-2")[0] == ReturnCode.OK
    finally:
        go.set()
    assert [one["site-2"] for one in producer.codes] == ["OK"] * 2 + ["TIMEOUT"] * 28
    assert fast.made[0].numbers == list(range(30))


def test_a_slow_transfer_that_progresses_does_not_fail_by_the_clock(parties: Parties) -> None:
    topic, factory = parties.takes(lambda o: time.sleep(0.25))
    producer = Numbers(16, timeout=2.0)  # in all it takes 4 s, and most of them wait for longer than theirs
    assert parties.stream(topic, producer)[0] == ReturnCode.OK
    assert factory.made[0].numbers == list(range(16))


def test_a_producer_that_stops_and_waits_has_one_under_way(parties: Parties) -> None:
    topic, _ = parties.takes()
    producer = Numbers(20, wait=True)
    parties.stream(topic, producer)
    assert producer.most == 1


def test_bytes_bound_the_window_too(parties: Parties) -> None:
    topic, _ = parties.takes(lambda o: time.sleep(0.02))
    producer = Numbers(20, size=6 * 2**20)
    assert parties.stream(topic, producer)[0] == ReturnCode.OK
    assert producer.most <= 4  # of 6 MiB each, where 16 may be under way


def test_a_consumer_that_raises_in_the_middle_is_told_to_the_producer(parties: Parties) -> None:
    def does(o: Shareable) -> Any:
        if o["number"] == 3:
            raise ValueError("not our model")

    topic, factory = parties.takes(does)
    producer = Numbers(10, ends=lambda r: False if r["server"].get_return_code() != ReturnCode.OK else None)
    assert parties.stream(topic, producer) == (ReturnCode.ERROR, False)
    assert [one["server"] for one in producer.codes] == ["OK", "OK", "OK", ReturnCode.EXECUTION_EXCEPTION]
    assert factory.made[0].numbers == [0, 1, 2, 3]
    assert factory.made[0].rc == ReturnCode.EXECUTION_EXCEPTION


def test_a_reply_that_cannot_be_sent_ends_the_stream(parties: Parties) -> None:
    topic, factory = parties.takes(lambda o: (True, Shareable({"x": object()})))
    producer = Numbers(5, ends=lambda r: False)
    assert parties.stream(topic, producer) == (ReturnCode.ERROR, False)
    assert producer.codes[0] == {"server": ReturnCode.EXECUTION_EXCEPTION}
    until(factory.made[0].over.is_set)


def test_eight_streams_at_once_do_not_mix(parties: Parties) -> None:
    topic, factory = parties.takes()
    results: list[Any] = []

    def one() -> None:
        results.append(parties.stream(topic, Numbers(100, size=1000)))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [(ReturnCode.OK, None)] * 8
    assert [made.numbers for made in factory.made] == [list(range(100))] * 8


# -- sealed ------------------------------------------------------------------------------------------------------


def test_a_sealed_stream_shows_carriers_nothing_and_its_replies_neither(parties: Parties) -> None:
    secret, shown = b"patient 4711 " * 40, []

    def does(o: Shareable) -> Any:
        with redis.Redis.from_url(parties.url) as client:
            tx = factory.made[-1].ctx[StreamContextKey.TX_ID]
            shown.extend([*client.hvals(objects_of(tx)), *client.lrange(f"ff:tx:{tx}:a", 0, -1)])
        return True, Shareable({"echo": o["data"]})

    topic, factory = parties.takes(does, at=[parties.server, parties.other])
    makes = Numbers(20, makes=lambda n: (Shareable({"number": n, "data": secret}), 5.0))
    ctx = {"who": secret.decode()}
    assert parties.stream(topic, makes, "server", "site-2", ctx=ctx, secure=True)[0] == ReturnCode.OK
    assert [one["server"]["echo"] for one in makes.replies] == [secret] * 20
    assert [o["data"] for o in factory.made[0].objects] == [secret] * 20
    assert shown
    assert not [frame for frame in shown if b"patient" in frame]


def test_without_a_targets_key_nothing_is_streamed(parties: Parties, since: Since) -> None:
    with pytest.raises(KeyUnknown):
        parties.stream("t", Numbers(1), "site-9", secure=True)
    assert not since.of("TransferOpened")


# -- on the record -----------------------------------------------------------------------------------------------


def test_both_records_have_the_transfer_and_no_payload(parties: Parties, since: Since) -> None:
    there = Since(parties.other)
    topic, _ = parties.takes(at=[parties.other])
    parties.stream(topic, Numbers(30, size=5000), "site-2", optional=True)
    (opened,), (closed,) = since.of("TransferOpened"), since.of("TransferClosed")

    def theirs(kind: str) -> list[Event]:  # a transfer of another test may end there only now
        return [event for event in there.of(kind) if event.body["id"] == opened.body["id"]]

    until(lambda: theirs("TransferClosed"))
    assert (opened.body["direction"], opened.body["targets"], opened.body["optional"]) == ("out", ["site-2"], True)
    assert (closed.body["code"], closed.body["objects"]) == ("OK", 30)
    assert closed.body["acknowledged"] == {"site-2": 30}
    assert closed.body["left"]["site-2"] == closed.body["bytes"] > 150_000
    (came,), (ended,) = theirs("TransferOpened"), theirs("TransferClosed")
    assert (came.body["direction"], came.body["sender"], came.body["id"]) == ("in", "site-1", opened.body["id"])
    assert (ended.body["code"], ended.body["objects"], ended.body["bytes"]) == ("OK", 30, closed.body["bytes"])
    assert bytes(100).decode() not in str([e.rest() for e in (*since.of(), *there.of())])


def test_the_digest_of_the_whole_tells_content_from_content(parties: Parties, since: Since) -> None:
    topic, _ = parties.takes()
    for value in (b"a", b"a", b"b"):
        parties.stream(topic, Numbers(2, makes=lambda n, v=value: (Shareable({"number": n, "data": v}), 5.0)))
    first, same, other = [e.body["digest"] for e in since.of("TransferClosed")]
    assert len(first) == 64
    assert first != other
    # The transfer's id is in each object, so two streams of the same content differ as well.
    assert first != same


def test_progress_is_recorded_once_a_second_at_most(parties: Parties, since: Since) -> None:
    topic, _ = parties.takes(lambda o: time.sleep(0.05))
    began = time.monotonic()
    parties.stream(topic, Numbers(60))
    progress = since.of("TransferProgress")
    assert 2 <= len(progress) <= time.monotonic() - began + 1
    counts = [e.body["objects"] for e in progress]
    assert counts == sorted(counts)
    gaps = [int(b.ms) - int(a.ms) for a, b in itertools.pairwise(progress)]
    assert all(gap > 900 for gap in gaps)


def test_egress_counts_what_left_by_target_and_transfers_show_it(parties: Parties, since: Since) -> None:
    topic, _ = parties.takes(at=[parties.server, parties.other])
    parties.stream(topic, Numbers(10, size=1000), "server", "site-2")
    events = list(read(parties.one.site.jobs.store))
    rows = [row for row in egress(events, "site-1") if row["topic"] == topic]
    assert [(row["target"], row["outcome"]) for row in rows] == [("server", "streamed"), ("site-2", "streamed")]
    assert all(row["size"] > 10_000 for row in rows)
    (shown,) = [t for t in transfers(events, now=0) if t["what"] == f"c:{topic}"]
    assert (shown["state"], shown["objects"], shown["peers"]) == ("done", 10, ["server", "site-2"])


def test_nothing_is_left_on_the_fabric(parties: Parties) -> None:
    topic, _ = parties.takes()
    parties.stream(topic, Numbers(50, size=10_000))
    until(lambda: not left_on(parties.url), 10, f"{left_on(parties.url)}")


# -- rubbish on the fabric -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw", [b"", b"nonsense", b"0" * 32 + b" 0 0", b"\xff\xfe \x00 x", b"zz 1", b"0" * 32 + b" end:server 0"]
)
def test_rubbish_in_an_inbox_hurts_nobody(parties: Parties, raw: bytes) -> None:
    with redis.Redis.from_url(parties.url) as client:
        client.rpush(inbox_for("server"), raw)
    topic, factory = parties.takes()
    assert parties.stream(topic, Numbers(5))[0] == ReturnCode.OK
    assert factory.made[0].numbers == list(range(5))


def test_an_object_that_is_altered_on_its_way_is_asked_for_again(parties: Parties, since: Since) -> None:
    stop, altered = threading.Event(), []

    def alter() -> None:
        with redis.Redis.from_url(parties.url) as client:
            while not stop.is_set() and len(altered) < 3:
                for key in client.keys("ff:tx:" + "?" * 32):
                    for name, frame in client.hgetall(key).items():
                        if name.isdigit() and len(frame) > 2000 and frame[-1:] != b"X":
                            client.hset(key, name, frame[:-1] + b"X")
                            altered.append(name)

    topic, factory = parties.takes(lambda o: time.sleep(0.01))
    thread = threading.Thread(target=alter)
    thread.start()
    try:
        assert parties.stream(topic, Numbers(60, size=3000))[0] == ReturnCode.OK
    finally:
        stop.set()
        thread.join()
    assert altered
    assert factory.made[0].numbers == list(range(60))
    assert all(o["data"] == bytes(3000) for o in factory.made[0].objects)


def test_a_forged_answer_counts_for_nothing_and_is_recorded(parties: Parties, since: Since) -> None:
    def does(o: Shareable) -> Any:
        with redis.Redis.from_url(parties.url) as client:
            client.rpush(f"ff:tx:{factory.made[-1].ctx[StreamContextKey.TX_ID]}:a", b"forged")

    topic, factory = parties.takes(does)
    assert parties.stream(topic, Numbers(3))[0] == ReturnCode.OK
    assert factory.made[0].numbers == [0, 1, 2]
    assert [e.body["code"] for e in since.of("MessageRefused")][:1] == ["PAYLOAD_INVALID"]


def test_an_object_that_is_put_unsealed_into_a_sealed_stream_is_not_taken(parties: Parties) -> None:
    there = Since(parties.other)

    def does(o: Shareable) -> Any:
        if o["number"] == 0:
            tx = factory.made[-1].ctx[StreamContextKey.TX_ID]
            framer = Framer.new(tx, "site-1", None, secure=False)
            forged = addressed(Shareable({"number": 666}), tx, 1, "c", topic)
            frames, _, _ = framer.frames(1, forged, ["site-2"])
            with redis.Redis.from_url(parties.url) as client:
                client.hset(objects_of(tx), "1", frames["1"])
                client.rpush(inbox_for("site-2"), f"{tx} 1 0")
            time.sleep(0.5)  # so that it is read before the true one

    topic, factory = parties.takes(does, at=[parties.other])
    assert parties.stream(topic, Numbers(5, wait=True), "site-2", secure=True)[0] == ReturnCode.OK
    assert factory.made[0].numbers == [0, 1, 2, 3, 4]
    until(lambda: there.of("MessageRefused"))


def test_a_producer_that_comes_back_late_has_nothing_handed_over(parties: Parties, tmp_path: Path) -> None:
    folder = tmp_path / "late"
    topic, factory = parties.takes()
    go = threading.Event()

    def makes(number: int) -> Any:
        go.wait(20)
        return Shareable({"number": number}), 5.0

    with ClientEngine.open(site="site-4", workspace=folder, fabric_url=parties.url, **QUICK) as engine:
        results: list[Any] = []
        run = lambda: results.append(  # noqa: E731
            engine.stream_objects("c", topic, {}, ["server"], Numbers(1, makes=makes), engine.new_context())
        )
        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: [e for e in read(engine.site.jobs.store) if e.type == "TransferOpened"])
        engine.shutdown_streamer()
        go.set()
        thread.join(10)
        (closed,) = [e for e in read(engine.site.jobs.store) if e.type == "TransferClosed"]
        assert (results, closed.body["code"]) == ([(ReturnCode.TASK_ABORTED, None)], ReturnCode.TASK_ABORTED)
        assert closed.body["left"] == {"server": 0}
        time.sleep(0.5)
        assert not factory.made
        assert not left_on(parties.url)
    for pid in processes_with(str(folder)):
        kill(pid)


def test_what_was_answered_while_the_producer_was_at_work_is_no_timeout(parties: Parties) -> None:
    topic, factory = parties.takes()

    def slow(replies: Any) -> None:
        if len(producer.replies) == 1:
            time.sleep(5.0)

    producer = Numbers(10, timeout=3.0, ends=slow)
    assert parties.stream(topic, producer)[0] == ReturnCode.OK
    assert producer.codes == [{"server": "OK"}] * 10
    assert factory.made[0].numbers == list(range(10))


def test_a_size_of_the_whole_that_is_none_hurts_nobody(parties: Parties, since: Since) -> None:
    topic, _ = parties.takes(lambda o: time.sleep(0.1))
    producer = Numbers(25)
    producer.total_bytes = -1
    assert parties.stream(topic, producer)[0] == ReturnCode.OK
    assert [e.body["total"] for e in since.of("TransferProgress")] == [None] * len(since.of("TransferProgress"))


def test_answers_to_a_stream_that_came_in_count_as_egress(parties: Parties) -> None:
    topic, _ = parties.takes(lambda o: (True, Shareable({"data": bytes(10_000)})), at=[parties.other])
    parties.stream(topic, Numbers(5), "site-2")
    there = parties.other.site.jobs.store
    rows = until(lambda: [r for r in egress(read(there), "site-2") if r["topic"] == topic])
    assert [(row["target"], row["outcome"]) for row in rows] == [("site-1", "answers")]
    assert rows[0]["size"] > 50_000


@pytest.mark.parametrize("planted", ['{"objects": -5}', '{"objects": 1e999}', "[" * 100_000, "list"])
def test_rubbish_in_a_sign_of_life_keeps_no_lost_transfer_from_its_end(parties: Parties, planted: str) -> None:
    store = parties.one.site.jobs.store
    lost = []
    for number in range(2):
        tx = f"{time.time_ns():032x}"
        lost.append(tx)
        body = TransferOpened(
            id=tx,
            direction="out",
            channel="c",
            topic="t",
            sender="site-1",
            targets=["server"],
            secure=False,
            window=1,
            stall=60.0,
            process=f"{host_name()}:{2**22 - 1 - number}:1",
        )
        parties.one.site.jobs.note(parties.one.core.call("planted", tx), [body])
        with redis.Redis.from_url(parties.url) as client:
            if planted == "list":
                client.rpush(f"ff:tx:{tx}:up", "x")
            else:
                client.set(f"ff:tx:{tx}:up", planted)

    def ends() -> list[str]:
        return [e.body["id"] for e in read(store) if e.type == "TransferClosed" and e.body["code"] == "PRODUCER_LOST"]

    until(lambda: set(lost) <= set(ends()), 20)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"path": 5}, "path"),
        ({"path": "a\0b"}, "path"),
        ({"path": "/nowhere/at/all"}, "path"),
        ({"targets": None}, "targets"),
        ({"targets": []}, "targets"),
        ({"targets": "server"}, "targets"),
        ({"targets": [1, "a"]}, "target"),
        ({"targets": ["site-1"]}, "targets"),
        ({"job": 5}, "job_id"),
        ({"job": "../../x"}, "job_id"),
        ({"chunk": 0}, "chunk"),
        ({"chunk": 1.5}, "chunk"),
    ],
)
def test_a_file_that_cannot_be_sent_so_is_refused_by_its_field(
    parties: Parties, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"x")
    with (
        parties.one.acting_as(Actor(id=str(change), kind="person")),
        pytest.raises((ArgumentInvalid, JobIdInvalid)) as raised,
    ):
        parties.one.send_file(**{"path": path, "targets": ["server"], **change})
    assert field in str(raised.value.context.get("field", raised.value))


def test_a_file_for_a_job_that_nobody_knows_is_refused(parties: Parties, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"x")
    with pytest.raises(JobUnknown):
        parties.one.send_file(path, ["server"], job="never-heard-of")


# -- the end -----------------------------------------------------------------------------------------------------


class Kept(ObjectConsumer):
    """Keeps numbers where the next process finds them."""

    def __init__(self, kept: list[int], pause: list[float]) -> None:
        self.kept, self.pause = kept, pause

    def consume(self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: Any) -> Any:
        time.sleep(self.pause[0])
        self.kept.append(shareable["number"])
        return True, None

    def resume(self, stream_ctx: StreamContext, fl_ctx: Any) -> int:
        return len(self.kept)


class Keeps(ConsumerFactory):
    def __init__(self) -> None:
        self.kept: list[int] = []
        self.pause = [0.1]  # seconds: long enough for a site to be closed in the middle

    def get_consumer(self, stream_ctx: StreamContext, fl_ctx: Any) -> ObjectConsumer:
        return Kept(self.kept, self.pause)


def test_a_receiver_that_is_closed_and_opened_again_goes_on_with_what_its_consumer_kept(
    parties: Parties, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"site": "site-5", "workspace": tmp_path / "five", "fabric_url": parties.url, **QUICK}
    keeps, topic = Keeps(), f"topic-{next(_topics)}"
    producer, results = Numbers(300), []
    with ClientEngine.open(**options) as five:
        five.register_stream_processing("c", topic, keeps)
        thread = threading.Thread(target=lambda: results.append(parties.stream(topic, producer, "site-5")))
        thread.start()
        until(lambda: len(keeps.kept) > 20)
    keeps.pause[0] = 0.0
    with ClientEngine.open(**options) as five:
        five.register_stream_processing("c", topic, keeps)
        thread.join(60)
        assert results == [(ReturnCode.OK, None)]
        assert keeps.kept == list(range(300))
        assert producer.codes == [{"site-5": "OK"}] * 300
        until(lambda: [e for e in read(five.site.jobs.store) if e.type == "TransferClosed"])
        types = [e.type for e in read(five.site.jobs.store) if e.type.startswith("Transfer")]
        assert [t for t in types if t != "TransferProgress"] == [
            "TransferOpened",
            "TransferResumed",
            "TransferClosed",
        ]
    for pid in processes_with(str(tmp_path / "five")):
        kill(pid)


def test_after_shutdown_streams_end_and_none_begins(parties: Parties, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    topic, factory = parties.takes(lambda o: time.sleep(0.05))
    with ClientEngine.open(site="site-3", workspace=folder, fabric_url=parties.url, **QUICK) as engine:
        results: list[Any] = []
        run = lambda: results.append(  # noqa: E731
            engine.stream_objects("c", topic, {}, ["server"], Numbers(10**6), engine.new_context())
        )
        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: factory.made and factory.made[0].numbers)
        engine.shutdown_streamer()
        thread.join(10)
        assert results == [(ReturnCode.TASK_ABORTED, None)]
        with pytest.raises(StreamerDown):
            engine.stream_objects("c", topic, {}, ["server"], Numbers(1), engine.new_context())
    for pid in processes_with(str(folder)):
        kill(pid)


def test_seen_is_what_it_says() -> None:
    """The helper itself: a consumer that sees nothing would make the tests above say nothing."""
    seen = Seen(None)
    seen.consume(Shareable({"number": 4}), StreamContext(), None)  # type: ignore[arg-type]
    assert seen.numbers == [4]
