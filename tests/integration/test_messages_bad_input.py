"""L9 for messages: each bad input has its return code, one event that says so, and no other effect at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.cell.cell import FabricCell
from engine.cell.fabric import Fabric, inbox_of
from engine.cell.message import Message
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.context import FLContext
from engine.shareable import Shareable
from events.envelope import Event
from tests.integration.test_aux import AUX, Since, acting, site_at, topic
from tests.support import SITE, check_record

SMALL = 20_000  # bytes that a message may have
_EVENTS = ("AuxRequested", "SendStarted", "AuxSent", "AuxReplied", "AuxFailed", "AuxOutcomeUnknown", "AuxReplyLost")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[ClientEngine]:
    """An engine that takes small messages only."""
    with site_at(tmp_path_factory.mktemp("bad") / "ws", payload_max=SMALL) as engine:
        yield engine
        check_record(engine.site.jobs.store)


@pytest.fixture
def since(site: ClientEngine) -> Since:
    return Since(site)


@pytest.fixture(autouse=True)
def nobody_at_the_servers(site: ClientEngine) -> Iterator[Fabric]:
    """The server's inbox takes messages, and nobody reads it: whatever leaves is seen in it."""
    fabric = Fabric(site.site.servers.fabric_url)
    fabric.client.delete(inbox_of("server"))
    fabric.announce("server", "nobody reads", {"once": True})
    fabric.client.pexpire("ff:{server}:up", 60_000)
    yield fabric
    fabric.client.delete(inbox_of("server"), "ff:{server}:up")
    fabric.close()


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[str]]:
    """What is logged of aux messages, here and nowhere else: some of it could not be shown."""
    lines: list[str] = []

    def kept(record: logging.LogRecord) -> bool:
        lines.append(record.getMessage())
        return False

    logger = logging.getLogger("flightlog.aux")
    logger.addFilter(kept)
    yield lines
    logger.removeFilter(kept)


def payloads(fabric: Fabric) -> set[bytes]:
    """Messages whose bytes are on the fabric."""
    return {key for key in fabric.client.keys("ff:*") if b"{" not in key and key != b"ff:cells"}


def refused_only(
    site: ClientEngine, since: Since, fabric: Fabric, call: Callable[[], Any], method: str
) -> tuple[Any, Event]:
    """What a call gave, and the one event that it left; nothing else has changed."""
    before = payloads(fabric)
    store = site.site.jobs.store
    open_before = store.client.zrange(store.keys.open, 0, -1)
    with acting(site):
        given = call()
    (event,) = since.of("CallRefused")
    assert event.body["method"] == method
    assert since.of(*_EVENTS) == []
    assert payloads(fabric) == before
    assert fabric.client.xlen(inbox_of("server")) == 0
    assert store.client.zrange(store.keys.open, 0, -1) == open_before
    assert len(event.raw) < 5000, "foreign text is cut"
    return given, event


class Hostile:
    """Nothing about it works."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


LOOP: dict[str, Any] = {}
LOOP["self"] = LOOP


class OwnShareable(Shareable):
    """A kind of Shareable that no peer knows."""


def headless() -> Shareable:
    request = Shareable()
    request["__headers__"] = "text"
    return request


# -- each argument, one after the other -----------------------------------------------------------------

TOPICS: list[tuple[str, Any]] = [
    ("empty", ""),
    ("None", None),
    ("number", 7),
    ("bytes", b"topic"),
    ("list", ["t"]),
    ("too long", "t" * 201),
    ("very long", "t" * 2_000_000),
    ("newline", "a\nb"),
    ("NUL", "a\0b"),
    ("surrogate", "a\ud800"),
]


@pytest.mark.parametrize(("case", "given"), TOPICS, ids=[case for case, _ in TOPICS])
@pytest.mark.parametrize("method", ["send_aux_request", "fire_and_forget_aux_request"])
def test_L9_a_topic_that_is_none(
    site: ClientEngine, since: Since, nobody_at_the_servers: Fabric, method: str, case: str, given: Any
) -> None:
    def call() -> Shareable:
        if method == "send_aux_request":
            return site.send_aux_request(given, Shareable(), 0.3, site.new_context())
        return site.fire_and_forget_aux_request(given, Shareable(), site.new_context())

    reply, event = refused_only(site, since, nobody_at_the_servers, call, method)
    assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert "topic" in reply.get_header("__why__")
    assert event.body["code"] == "ARGUMENT_INVALID"
    assert "topic" in event.body["message"]


@pytest.mark.parametrize("given", ["t" * 2_000_000, "a\nERROR a forged line"], ids=["long", "lines"])
def test_what_is_logged_of_a_bad_topic_is_one_short_line_that_can_be_written(
    site: ClientEngine, logged: list[str], given: str
) -> None:
    with acting(site):
        site.send_aux_request(given, Shareable(), 0.3, site.new_context())
    assert len(logged) == 1
    assert len(logged[0]) < 3000
    assert "\n" not in logged[0]


REQUESTS: list[tuple[str, Any]] = [
    ("None", None),
    ("dict", {"a": 1}),
    ("text", "text"),
    ("Message", Message(payload=Shareable())),
    ("class", Shareable),
]


@pytest.mark.parametrize(("case", "given"), REQUESTS, ids=[case for case, _ in REQUESTS])
@pytest.mark.parametrize("timeout", [0.3, 0])
def test_L9_a_request_that_is_no_shareable(
    site: ClientEngine, since: Since, nobody_at_the_servers: Fabric, case: str, given: Any, timeout: float
) -> None:
    reply, event = refused_only(
        site,
        since,
        nobody_at_the_servers,
        lambda: site.send_aux_request(topic(), given, timeout, site.new_context()),
        "send_aux_request",
    )
    assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert "request" in reply.get_header("__why__")
    assert event.body["code"] == "ARGUMENT_INVALID"


TIMEOUTS: list[tuple[str, Any]] = [
    ("None", None),
    ("negative", -1),
    ("a little negative", -1e-9),
    ("NaN", float("nan")),
    ("infinite", float("inf")),
    ("minus infinite", float("-inf")),
    ("text", "5"),
    ("True", True),
    ("False", False),
    ("list", [5]),
    ("complex", 5j),
    ("longer than a clock can count", 1e10),
    ("longer than a float of ms", 1e306),
    ("an int of 400 digits", 10**400),
]


@pytest.mark.parametrize(("case", "given"), TIMEOUTS, ids=[case for case, _ in TIMEOUTS])
def test_L9_a_timeout_that_is_none(
    site: ClientEngine, since: Since, nobody_at_the_servers: Fabric, case: str, given: Any
) -> None:
    reply, event = refused_only(
        site,
        since,
        nobody_at_the_servers,
        lambda: site.send_aux_request(topic(), Shareable(), given, site.new_context()),
        "send_aux_request",
    )
    assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert "timeout" in reply.get_header("__why__")
    assert event.body["code"] == "ARGUMENT_INVALID"


CONTEXTS: list[tuple[str, Any]] = [("None", None), ("dict", {}), ("text", "ctx"), ("class", FLContext)]


@pytest.mark.parametrize(("case", "given"), CONTEXTS, ids=[case for case, _ in CONTEXTS])
@pytest.mark.parametrize("method", ["send_aux_request", "fire_and_forget_aux_request"])
def test_L9_a_context_that_is_none(
    site: ClientEngine, since: Since, nobody_at_the_servers: Fabric, method: str, case: str, given: Any
) -> None:
    request = Shareable({"a": 1})

    def call() -> Shareable:
        if method == "send_aux_request":
            return site.send_aux_request(topic(), request, 0.3, given)
        return site.fire_and_forget_aux_request(topic(), request, given)

    reply, event = refused_only(site, since, nobody_at_the_servers, call, method)
    assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert "fl_ctx" in reply.get_header("__why__")
    assert event.body["code"] == "ARGUMENT_INVALID"


PAYLOADS: list[tuple[str, Callable[[], Shareable], str]] = [
    ("an object", lambda: Shareable({"deep": {"a": [1, object()]}}), r"deep['a'][1]"),
    ("a function", lambda: Shareable({"f": print}), "f"),
    ("a class", lambda: Shareable({"c": dict}), "c"),
    ("itself", lambda: Shareable({"loop": LOOP}), "itself"),
    ("a set", lambda: Shareable({"s": {1}}), "s"),
    ("a key that is a tuple", lambda: Shareable({"d": {(1, 2): 3}}), "key"),
    ("a lone surrogate", lambda: Shareable({"t": "\ud800"}), "surrogate"),
    ("a Shareable of another kind", lambda: OwnShareable({"a": 1}), "OwnShareable"),
    ("headers that are none", headless, "header"),
    ("hostile", lambda: Shareable({"h": Hostile()}), "h"),
]


@pytest.mark.parametrize(("case", "made", "says"), PAYLOADS, ids=[case for case, *_ in PAYLOADS])
@pytest.mark.parametrize("timeout", [0.3, 0])
def test_L9_a_payload_that_cannot_be_encoded(
    site: ClientEngine,
    since: Since,
    nobody_at_the_servers: Fabric,
    case: str,
    made: Callable[[], Shareable],
    says: str,
    timeout: float,
) -> None:
    request = made()
    reply, event = refused_only(
        site,
        since,
        nobody_at_the_servers,
        lambda: site.send_aux_request(topic(), request, timeout, site.new_context()),
        "send_aux_request",
    )
    assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert says in reply.get_header("__why__")
    assert event.body["code"] in ("PAYLOAD_INVALID", "ARGUMENT_INVALID")


def test_L9_a_public_property_with_something_in_it_that_cannot_be_sent(
    site: ClientEngine, since: Since, nobody_at_the_servers: Fabric
) -> None:
    context = site.new_context()
    context.set_prop("handles", [object()], private=False, sticky=False)
    reply, event = refused_only(
        site,
        since,
        nobody_at_the_servers,
        lambda: site.send_aux_request(topic(), Shareable(), 0.3, context),
        "send_aux_request",
    )
    assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert "handles" in reply.get_header("__why__")
    assert event.body["code"] == "PAYLOAD_INVALID"


@pytest.mark.parametrize("timeout", [0.3, 0])
def test_L9_a_payload_that_is_too_large(
    site: ClientEngine, since: Since, nobody_at_the_servers: Fabric, timeout: float
) -> None:
    reply, event = refused_only(
        site,
        since,
        nobody_at_the_servers,
        lambda: site.send_aux_request(topic(), Shareable({"w": b"x" * SMALL}), timeout, site.new_context()),
        "send_aux_request",
    )
    assert reply.get_return_code() == ReturnCode.ERROR
    assert str(SMALL) in reply.get_header("__why__")
    assert event.body["code"] == "PAYLOAD_TOO_LARGE"


FLAGS: list[tuple[str, Any]] = [("object", object()), ("text", "maybe"), ("list", [1]), ("None", None)]


@pytest.mark.parametrize(("case", "given"), FLAGS, ids=[case for case, _ in FLAGS])
@pytest.mark.parametrize("flag", ["optional", "secure"])
def test_L9_a_flag_that_is_no_truth_value_is_refused_or_taken_for_its_truth_and_never_raises(
    site: ClientEngine, since: Since, nobody_at_the_servers: Fabric, flag: str, case: str, given: Any
) -> None:
    name = topic()
    with acting(site):
        reply = site.send_aux_request(name, Shareable(), 0.0, site.new_context(), **{flag: given})
    assert isinstance(reply, Shareable)
    assert len(since.of("CallRefused")) + len(since.of("AuxRequested")) == 1


def test_a_flag_that_is_a_number_is_a_flag_and_the_receiver_takes_the_message(
    site: ClientEngine, since: Since
) -> None:
    name = topic()
    fabric = Fabric(site.site.servers.fabric_url)
    fabric.client.delete("ff:{server}:up")  # nobody is there any more
    fabric.close()
    server = FabricCell(site.site.servers.fabric_url, "server").start()
    server.register_request_cb(channel=AUX, topic="*", cb=lambda m: Message(payload=Shareable({"b": 2})))
    try:
        reply = site.send_aux_request(name, Shareable(), 15.0, site.new_context(), 0, 0)  # type: ignore[arg-type]
        assert reply.get("b") == 2, reply
        assert [b["secure"] for b in since.bodies("AuxRequested")] == [False]
    finally:
        server.stop()


TARGETS: list[tuple[str, Any]] = [
    ("words", "no address"),
    ("path", "../server"),
    ("braces", "{server}"),
    ("dots", "a..b"),
    ("five parts", "a.b.c.d.e"),
    ("long", "a" * 200),
    ("newline", "server\n"),
    ("number", 7),
    ("bytes", b"server"),
]


@pytest.mark.parametrize(("case", "given"), TARGETS, ids=[case for case, _ in TARGETS])
def test_L9_a_target_that_is_no_address(
    site: ClientEngine, since: Since, nobody_at_the_servers: Fabric, case: str, given: Any
) -> None:
    runner = site.aux_runner
    reply, event = refused_only(
        site,
        since,
        nobody_at_the_servers,
        lambda: runner.send(topic(), Shareable(), 0.3, site.new_context(), target=given),
        "send_aux_request",
    )
    assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert "target" in reply.get_header("__why__") or "address" in reply.get_header("__why__")
    assert event.body["code"] == "ARGUMENT_INVALID"


def test_the_site_is_as_usable_as_before_after_all_of_this(site: ClientEngine, since: Since) -> None:
    assert site.get_cell() is not None
    assert site.get_client_name() == SITE
    assert site.send_aux_request(topic(), Shareable(), 0, site.new_context()) == Shareable()
    assert len(since.of("AuxRequested")) == 1
