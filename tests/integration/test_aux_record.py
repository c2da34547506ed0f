"""What comes into a site is on its record, once, with a part of what strangers write and none of what they send."""

from __future__ import annotations

from typing import Any

import pytest

from engine.cell.cell import FabricCell
from engine.cell.fabric import Fabric, inbox_of
from engine.cell.message import CellReturnCode, Message
from engine.cell.wire import Envelope, new_key, pack
from engine.client_engine import ClientEngine
from engine.ids import new_call_id
from engine.shareable import Shareable
from tests.integration.test_aux import AUX, Since, ask, asked, nothing, server, shared, since, topic
from tests.support import SITE, until

__all__ = ["server", "shared", "since"]  # fixtures


def plant(engine: ClientEngine, payload: Any, life: int = 30_000, name: str = "", **fields: Any) -> str:
    """Put a request into the site's inbox as somebody else would; its id."""
    made = {
        "id": name or new_call_id().replace("-", ""),
        "kind": "request",
        "sender": "server",
        "target": SITE,
        "channel": AUX,
        "topic": "t",
        "reply": False,
        "key": new_key(),
        **fields,
    }
    frame, envelope = pack(Envelope(**made), Message(payload=payload))
    fabric = Fabric(engine.site.servers.fabric_url)
    fabric.client.set(f"ff:{envelope.id}", frame, px=life)
    fabric.client.xadd(inbox_of(SITE), {"i": envelope.id})
    fabric.close()
    return envelope.id


def test_L1_a_message_whose_id_comes_again_later_is_not_handled_without_a_record_of_it(
    shared: ClientEngine, since: Since
) -> None:
    name, seen = topic(), []
    shared.register_aux_message_handler(name, lambda topic, request, fl_ctx: (seen.append(1), Shareable())[1])
    message = plant(shared, asked(), topic=name)
    until(lambda: since.of("AuxHandled"), 5)
    fabric = Fabric(shared.site.servers.fabric_url)
    assert fabric.client.delete(f"ff:{{{SITE}}}:seen:{message}") == 1  # the cell has forgotten it
    plant(shared, asked(), topic=name, name=message)
    last = plant(shared, asked(), topic=name)
    until(lambda: any(b["id"] == last for b in since.bodies("AuxHandled")), 5)
    cell: Any = shared.get_cell()
    until(lambda: cell._busy == 0, 5)
    fabric.close()
    recorded = len(since.of("AuxReceived"))
    assert len(seen) == recorded, f"handled {len(seen)} times, and received {recorded} times on the record"


@pytest.mark.parametrize("field", ["channel", "topic", "sender"])
def test_L6_of_long_foreign_text_the_record_keeps_a_part(shared: ClientEngine, since: Since, field: str) -> None:
    plant(shared, asked(), **{field: "x" * 50_000})
    found = until(lambda: since.of("AuxReceived", "MessageRefused"), 5)
    assert all(len(event.raw) < 5_000 for event in since.all()), f"{len(found[0].raw)} bytes of a stranger's text"


def test_a_corrupted_message_is_recorded_as_refused_with_who_is_said_to_have_sent_it(
    shared: ClientEngine, since: Since
) -> None:
    fabric = Fabric(shared.site.servers.fabric_url)
    fabric.client.set("ff:corrupt", b"\xffgarbage", px=20_000)
    fabric.client.xadd(inbox_of(SITE), {"i": "corrupt"})
    fabric.close()
    plant(shared, asked(), target="site-9")
    until(lambda: len(since.of("MessageRefused")) == 2, 5)
    assert sorted((b["code"], b["sender"]) for b in since.bodies("MessageRefused")) == [
        ("invalid_request", "?"),
        ("invalid_target", "server"),
    ]
    assert since.of("AuxReceived") == []


def test_a_flood_of_forged_messages_is_counted_and_does_not_flood_the_record(
    shared: ClientEngine, since: Since, server: FabricCell
) -> None:
    for _ in range(200):
        plant(shared, asked(), target="site-9", sender="flooder")
    name = topic()
    shared.register_aux_message_handler(name, nothing)
    assert ask(server, name, asked()).return_code == CellReturnCode.OK
    fabric = Fabric(shared.site.servers.fabric_url)
    until(lambda: fabric.client.xlen(inbox_of(SITE)) == 0, 10)
    fabric.close()

    def counted() -> int:
        folded = [b["count"] for b in since.bodies("ReadsObserved") if b["result"] == "refused:invalid_target"]
        return len(since.of("MessageRefused")) + sum(folded)

    until(lambda: counted() == 200, 10)
    assert len(since.of("MessageRefused")) <= 60


def test_a_receipt_that_is_recorded_twice_over_a_broken_line_is_handled_all_the_same(
    shared: ClientEngine, since: Since, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first append's answer is lost, and the client sends it again: that is no second message."""
    name, seen = topic(), []
    shared.register_aux_message_handler(name, lambda topic, request, fl_ctx: (seen.append(1), Shareable())[1])
    log = shared.site.jobs.log
    append = log.append

    def twice(*args: Any, **options: Any) -> Any:
        append(*args, **options)
        return append(*args, **options)

    monkeypatch.setattr(log, "append", twice)
    plant(shared, asked(), topic=name)
    until(lambda: since.of("AuxHandled"), 5)
    assert len(seen) == len(since.of("AuxReceived")) == 1
