"""Two sites with records of their own on one fabric: each sees its side, and nothing of the other's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.cell.fabric import Fabric, inbox_of
from engine.cell.message import Message
from engine.client_engine import ClientEngine
from engine.comm import ring_of
from engine.constants import ReturnCode
from engine.context import FLContext
from engine.shareable import Shareable
from events.read import read
from tests.integration.test_aux import Since, topic
from tests.integration.test_aux_sending import outcome
from tests.integration.test_cell_sealed import SECRET, plaintext
from tests.support import QUICK, check_record, kill, processes_with, ready, until

Two = tuple[ClientEngine, ClientEngine]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[Two]:
    """Two sites that trust each other's keys."""
    folder = tmp_path_factory.mktemp("sites")
    options: dict[str, Any] = {**QUICK, "workers": 2}
    try:
        with ClientEngine.open(site="site-a", workspace=folder / "a", **options) as one:
            url = one.site.servers.fabric_url
            with ClientEngine.open(site="site-b", workspace=folder / "b", fabric_url=url, **options) as other:
                rings = [ring_of(engine.site.workspace) for engine in (one, other)]
                rings[0].trust(rings[1].public())
                rings[1].trust(rings[0].public())
                yield ready(one), ready(other)
                for engine in (one, other):
                    check_record(engine.site.jobs.store)
    finally:
        for _ in range(50):
            left = processes_with(str(folder))
            if not left:
                break
            for pid in left:
                kill(pid)


def to(
    engine: ClientEngine, target: str, name: str, request: Shareable, timeout: float = 10.0, **more: Any
) -> Shareable:
    context = engine.new_context()
    return engine.aux_runner.send(name, request, timeout, context, target=target, **more)


def test_each_site_asks_the_other_and_each_record_has_its_own_side_only(two: Two) -> None:
    one, other = two
    name = topic()
    sides = [Since(engine) for engine in two]
    for engine in two:
        engine.register_aux_message_handler(
            name, lambda topic, request, fl_ctx: Shareable({"from": fl_ctx.get_identity_name()})
        )
    assert to(one, "site-b", name, Shareable())["from"] == "site-b"
    for since, kinds in zip(sides, (["AuxRequested", "AuxReplied"], ["AuxReceived", "AuxHandled"]), strict=True):
        assert [e.type for e in since.of("AuxRequested", "AuxReplied", "AuxReceived", "AuxHandled")] == kinds
    assert to(other, "site-a", name, Shareable())["from"] == "site-a"
    ids = [{e.body["id"] for e in since.of("AuxRequested", "AuxReceived")} for since in sides]
    assert ids[0] == ids[1], "both speak of the same messages"
    assert one.site.jobs.store.client.keys("fl:{site-b}*") == []
    assert other.site.jobs.store.client.keys("fl:{site-a}*") == []


def test_equal_messages_have_other_digests_at_another_site(two: Two) -> None:
    one, other = two
    name = topic()
    sides = [Since(engine) for engine in two]
    other.register_aux_message_handler(name, lambda topic, request, fl_ctx: Shareable())
    to(one, "site-b", name, Shareable({"a": 1}))
    (sent,), (came,) = sides[0].bodies("AuxRequested"), sides[1].bodies("AuxReceived")
    assert (sent["id"], sent["size"]) == (came["id"], came["size"])
    assert sent["digest"] != came["digest"], "whoever has both records could tell what was sent by its digest"


@pytest.mark.parametrize("reply", [True, False])
def test_L6_what_is_sealed_is_ciphertext_on_the_fabric_while_it_waits_and_is_signed_on_the_record(
    two: Two, reply: bool
) -> None:
    one, other = two
    name, seen = topic(), []
    fabric = Fabric(one.site.servers.fabric_url)

    def handler(topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        seen.append((request["w"], plaintext(fabric)))
        return Shareable({"back": SECRET})

    other.register_aux_message_handler(name, handler)
    sides = [Since(engine) for engine in two]
    answer = to(one, "site-b", name, Shareable({"w": SECRET}), 10.0 if reply else 0.0, secure=True)
    until(lambda: sides[1].of("AuxHandled"), 10)
    assert seen == [(SECRET, [])]
    assert answer.get("back") == (SECRET if reply else None)
    assert plaintext(fabric) == []
    fabric.close()
    (requested,), (received,) = sides[0].bodies("AuxRequested"), sides[1].of("AuxReceived")
    assert requested["secure"] is True
    assert received.body["secure"] is True
    actor = received.rest()["actor"]
    assert (actor["id"], actor["auth"]) == ("site-a", "signed")
    assert outcome(sides[0], name)[1] == "ok"


def test_L6_a_sealed_message_that_waits_for_a_receiver_is_ciphertext(two: Two) -> None:
    one, _ = two
    ring = ring_of(one.site.workspace)
    fabric = Fabric(one.site.servers.fabric_url)
    fabric.announce("site-b.sleeper", "nobody reads", {})
    fabric.client.pexpire("ff:{site-b.sleeper}:up", 60_000)
    assert ring.peer("site-b")
    since, name = Since(one), topic()
    to(one, "site-b.sleeper", name, Shareable({"w": SECRET}), 0.0, secure=True)
    assert outcome(since, name) == ("AuxSent", "ok")
    assert fabric.client.xlen(inbox_of("site-b.sleeper")) == 1
    assert plaintext(fabric) == []
    fabric.close()


def test_L9_what_is_to_be_sealed_for_a_stranger_does_not_leave_and_is_recorded_as_refused(two: Two) -> None:
    one, _ = two
    since, name = Since(one), topic()
    fabric = Fabric(one.site.servers.fabric_url)
    fabric.announce("stranger", "somebody", {})
    reply = to(one, "stranger", name, Shareable({"w": SECRET}), 2.0, secure=True)
    assert reply.get_return_code() == ReturnCode.ERROR
    assert "KEY_UNKNOWN" in reply.get_header("__why__")
    assert [b["code"] for b in since.bodies("CallRefused")] == ["KEY_UNKNOWN"]
    assert since.of("AuxRequested") == []
    assert fabric.client.xlen(inbox_of("stranger")) == 0
    fabric.close()


def test_a_job_of_one_site_does_not_pass_for_the_other_site(two: Two) -> None:
    one, other = two
    name, seen = topic(), []
    other.register_aux_message_handler(
        name,
        lambda topic, request, fl_ctx: (
            seen.append(dict(fl_ctx.get_peer_context().get_all_public_props())),
            Shareable(),
        )[1],
    )
    request = Shareable()
    reply = to(one, "site-b", name, request)
    assert reply.get_return_code() == ReturnCode.OK
    assert seen[0]["__identity_name__"] == "site-a"
    actors = {e.rest()["actor"]["id"] for e in read(other.site.jobs.store) if e.type == "AuxReceived"}
    assert actors <= {"site-a"}


def test_a_message_object_is_no_request(two: Two) -> None:
    one, _ = two
    since = Since(one)
    reply = to(one, "site-b", topic(), Message())  # type: ignore[arg-type]
    assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert len(since.of("CallRefused")) == 1
