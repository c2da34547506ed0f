"""A frame: what was packed comes out as it was; what was forged, cut, altered or mislabelled is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import codec
from engine.cell.cell import open_answer
from engine.cell.keys import KeyRing
from engine.cell.message import CellReturnCode, Message, MessageHeaderKey
from engine.cell.wire import HEADER_MAX, MAGIC, Envelope, envelope_of, key_digest, new_key, pack, unpack
from engine.errors import KeyUnknown, PayloadInvalid, SealBroken
from engine.shareable import Shareable
from events.errors import FlightlogError

ID = "ab" * 16
SECRET = b"the weights of a hospital"
LENGTH = struct.Struct(">I")


def envelope(**fields: Any) -> Envelope:
    return Envelope(
        **{
            "id": ID,
            "kind": "request",
            "sender": "site-1",
            "target": "server",
            "channel": "aux_communication",
            "topic": "t",
            "reply": True,
            "key": "k" * 32,
            **fields,
        }
    )


def header_of(frame: bytes) -> dict[str, Any]:
    (length,) = LENGTH.unpack_from(frame, 4)
    found: dict[str, Any] = codec.decode(frame[8 : 8 + length])
    return found


def framed(header: Any, body: bytes) -> bytes:
    """A frame of any header, as a forger would make it."""
    raw = codec.encode(header)
    return MAGIC + LENGTH.pack(len(raw)) + raw + body


def body_of(frame: bytes) -> bytes:
    (length,) = LENGTH.unpack_from(frame, 4)
    return frame[8 + length :]


def with_header(frame: bytes, **changed: Any) -> bytes:
    """The same frame with another header; nothing else is touched."""
    return framed({**header_of(frame), **changed}, body_of(frame))


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KeyRing]:
    """Three that know each other, and a stranger whom nobody knows."""
    folder = tmp_path_factory.mktemp("rings")
    found = {name: KeyRing(folder / name, name) for name in ("site-1", "site-2", "server", "stranger")}
    for ring in found.values():
        for peer in found.values():
            if peer is not ring and "stranger" not in (peer.name, ring.name):
                ring.trust(peer.public())
    found["stranger"].trust(found["server"].public())
    return found


# -- there and back ----------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(payload=VALUES, headers=st.dictionaries(st.sampled_from(["a", "b", "origin", "secure"]), VALUES, max_size=3))
def test_what_was_packed_comes_out_as_it_was(payload: Any, headers: dict[str, Any]) -> None:
    frame, final = pack(envelope(), Message(headers, payload))
    assert envelope_of(frame) == final
    assert final.size == len(body_of(frame))
    message = unpack(frame, envelope_of(frame))
    assert message.payload == payload
    own = {"origin", "destination", "channel", "topic", "request_id", "secure"}
    assert {k: v for k, v in message.headers.items() if k not in own} == {
        k: v for k, v in headers.items() if k not in own
    }


def test_the_headers_of_a_message_are_the_carriers_whatever_the_sender_wrote_there() -> None:
    lies = {"origin": "server", "destination": "x", "channel": "c", "topic": "x", "request_id": "x", "secure": True}
    frame, _ = pack(envelope(), Message(lies, 1))
    headers = unpack(frame, envelope_of(frame)).headers
    assert headers[MessageHeaderKey.ORIGIN] == "site-1"
    assert headers[MessageHeaderKey.DESTINATION] == "server"
    assert headers[MessageHeaderKey.TOPIC] == "t"
    assert headers[MessageHeaderKey.REQUEST_ID] == ID
    assert headers[MessageHeaderKey.SECURE] is False


def test_the_code_of_an_answer_is_the_envelopes_whatever_its_headers_say() -> None:
    frame, _ = pack(envelope(kind="answer", code="timeout"), Message({"return_code": "ok"}, 1))
    assert unpack(frame, envelope_of(frame)).return_code == "timeout"


def test_packing_changes_neither_the_message_nor_the_envelope_that_was_given() -> None:
    message, before = Message({"a": 1}, Shareable({"w": [1]})), envelope()
    pack(before, message)
    assert message.headers == {"a": 1}
    assert before == envelope()


def test_keys_are_new_each_time_and_their_digest_does_not_tell_them() -> None:
    one, other = new_key(), new_key()
    assert one != other
    assert one not in key_digest(one)
    assert key_digest(one) == hashlib.sha256(one.encode()).hexdigest()


# -- what is no frame ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [b"", b"F", MAGIC, MAGIC + b"\0\0\0", b"FLM2" + b"\0" * 20, b"\0" * 64, MAGIC + b"\xff\xff\xff\xff"],
    ids=["empty", "a letter", "magic only", "no length", "another version", "zeros", "a length of 4 GiB"],
)
def test_bytes_that_are_no_frame_are_refused(frame: bytes) -> None:
    with pytest.raises(PayloadInvalid):
        envelope_of(frame)


def test_a_frame_that_is_cut_anywhere_is_refused_by_the_envelope_or_by_the_body() -> None:
    frame, _ = pack(envelope(), Message({"h": 1}, Shareable({"w": b"x" * 50})))
    for end in range(len(frame)):
        with pytest.raises(PayloadInvalid):
            unpack(frame[:end], envelope_of(frame[:end]))


def test_a_frame_that_goes_on_after_its_end_is_refused() -> None:
    frame, _ = pack(envelope(), Message(payload=1))
    with pytest.raises(PayloadInvalid):
        unpack(frame + b"\0", envelope_of(frame + b"\0"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_body_in_which_one_bit_was_turned_is_refused(data: st.DataObject) -> None:
    frame, _ = pack(envelope(), Message(payload={"weights": list(range(20))}))
    start = len(frame) - len(body_of(frame))
    index = data.draw(st.integers(start, len(frame) - 1))
    turned = bytearray(frame)
    turned[index] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PayloadInvalid, match="altered"):
        unpack(bytes(turned), envelope_of(bytes(turned)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_behind_the_magic_are_refused_with_an_error_of_ours(noise: bytes) -> None:
    for frame in (MAGIC + noise, MAGIC + LENGTH.pack(len(noise)) + noise):
        with pytest.raises(PayloadInvalid):
            unpack(frame, envelope_of(frame))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_header_in_which_a_byte_was_changed_gives_an_error_of_ours_or_an_envelope_of_the_right_types(
    data: st.DataObject,
) -> None:
    frame, _ = pack(envelope(), Message({"a": [1, "x"]}, {"w": 1}))
    end = len(frame) - len(body_of(frame))
    turned = bytearray(frame)
    turned[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    try:
        found = envelope_of(bytes(turned))
        unpack(bytes(turned), found)
    except FlightlogError:
        return
    assert type(found.reply) is bool
    assert all(type(getattr(found, name)) is str for name in ("id", "kind", "sender", "target", "channel", "topic"))


WRONG: list[tuple[str, Any]] = [
    *((name, 3) for name in ("id", "kind", "sender", "target", "channel", "topic", "reply_to", "key", "code")),
    ("id", b"ab"),
    ("id", None),
    ("reply", 1),
    ("sealed", 0),
    ("sealed", None),
    ("size", True),
    ("size", 3.0),
    ("sha256", "ab" * 32),
    ("headers", []),
    ("headers", None),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_header_field_of_the_wrong_type_is_refused_by_its_name(name: str, value: Any) -> None:
    frame, _ = pack(envelope(), Message(payload=1))
    with pytest.raises(PayloadInvalid, match=name):
        envelope_of(with_header(frame, **{name: value}))


@pytest.mark.parametrize("change", ["missing", "more", "a list", "a Shareable key"])
def test_a_header_with_other_fields_is_refused(change: str) -> None:
    frame, _ = pack(envelope(), Message(payload=1))
    header: Any = header_of(frame)
    if change == "missing":
        header.pop("reply_to")
    elif change == "more":
        header["more"] = 1
    elif change == "a list":
        header = list(header.items())
    else:
        header[3] = header.pop("key")
    with pytest.raises(PayloadInvalid):
        envelope_of(framed(header, body_of(frame)))


@pytest.mark.parametrize("size", [-1, 0, 2**62])
def test_a_size_that_is_not_the_bodys_is_refused(size: int) -> None:
    frame, _ = pack(envelope(), Message(payload=1))
    wrong = with_header(frame, size=size)
    with pytest.raises(PayloadInvalid, match="altered"):
        unpack(wrong, envelope_of(wrong))


def test_headers_that_take_more_than_their_share_are_refused_when_they_are_packed() -> None:
    with pytest.raises(PayloadInvalid, match="headers"):
        pack(envelope(), Message({"big": b"x" * HEADER_MAX}, 1))


def test_what_cannot_be_encoded_is_refused_with_its_place() -> None:
    with pytest.raises(PayloadInvalid, match=r"w\['a'\]\[1\]"):
        pack(envelope(), Message(payload={"w": {"a": [1, object()]}}))
    with pytest.raises(PayloadInvalid):
        pack(envelope(), Message({"h": object()}, 1))


# -- sealed ---------------------------------------------------------------------------------------


def sealed_frame(rings: dict[str, KeyRing], by: str = "site-1", **fields: Any) -> bytes:
    frame, _ = pack(envelope(sealed=True, sender=by, **fields), Message({"h": "header secret"}, SECRET), rings[by])
    return frame


def test_a_sealed_frame_shows_neither_payload_nor_headers_and_opens_for_its_receiver(
    rings: dict[str, KeyRing],
) -> None:
    frame = sealed_frame(rings)
    assert SECRET not in frame
    assert b"header secret" not in frame
    message = unpack(frame, envelope_of(frame), rings["server"])
    assert message.payload == SECRET
    assert message.get_header("h") == "header secret"
    assert message.get_header(MessageHeaderKey.SECURE) is True


@pytest.mark.parametrize(
    "change",
    [
        {"id": "cd" * 16},
        {"sender": "site-2"},
        {"target": "server.job"},
        {"channel": "task"},
        {"topic": "another"},
        {"kind": "answer"},
        {"code": "ok"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_sealed_frame_whose_envelope_was_changed_does_not_open(rings: dict[str, KeyRing], change: Any) -> None:
    frame = with_header(sealed_frame(rings), **change)
    with pytest.raises(SealBroken):
        unpack(frame, envelope_of(frame), rings["server"])


def test_a_sealed_frame_that_is_said_to_be_plain_is_no_message(rings: dict[str, KeyRing]) -> None:
    frame = with_header(sealed_frame(rings), sealed=False)
    with pytest.raises(PayloadInvalid):
        unpack(frame, envelope_of(frame), rings["server"])


def test_a_plain_frame_that_is_said_to_be_sealed_does_not_open(rings: dict[str, KeyRing]) -> None:
    frame, _ = pack(envelope(), Message(payload=b"x" * 500))
    frame = with_header(frame, sealed=True)
    with pytest.raises(SealBroken):
        unpack(frame, envelope_of(frame), rings["server"])


def test_a_sealed_frame_for_another_does_not_open(rings: dict[str, KeyRing]) -> None:
    frame = sealed_frame(rings)
    with pytest.raises(SealBroken):
        unpack(frame, envelope_of(frame), rings["site-2"])


def test_a_sealed_frame_of_a_stranger_does_not_open(rings: dict[str, KeyRing]) -> None:
    frame = sealed_frame(rings, by="stranger")
    with pytest.raises(KeyUnknown, match="stranger"):
        unpack(frame, envelope_of(frame), rings["server"])


def test_nothing_is_sealed_for_a_stranger_nor_without_keys(rings: dict[str, KeyRing]) -> None:
    with pytest.raises(KeyUnknown, match="stranger"):
        pack(envelope(sealed=True, target="stranger"), Message(payload=SECRET), rings["site-1"])
    with pytest.raises(KeyUnknown):
        pack(envelope(sealed=True), Message(payload=SECRET))
    frame = sealed_frame(rings)
    with pytest.raises(KeyUnknown):
        unpack(frame, envelope_of(frame))


@pytest.mark.parametrize("content", [[1], {"a": 1}, [{}, 1, 2], [[], 1], "text"])
def test_sealed_content_that_is_no_message_is_refused(rings: dict[str, KeyRing], content: Any) -> None:
    from engine.cell.sealing import seal

    plain = envelope(sealed=True)
    body = seal(codec.encode(content), rings["site-1"], "server", plain.context)
    header = {name: getattr(plain, name) for name in Envelope.__slots__}
    header |= {"size": len(body), "sha256": hashlib.sha256(body).digest()}
    frame = framed(header, body)
    with pytest.raises(PayloadInvalid, match="sealed"):
        unpack(frame, envelope_of(frame), rings["server"])


# -- answers ----------------------------------------------------------------------------------------


def answer_to(request: Envelope, rings: dict[str, KeyRing] | None = None, **fields: Any) -> bytes:
    made = Envelope(
        **{
            "id": request.id,
            "kind": "answer",
            "sender": request.target,
            "target": request.sender,
            "channel": request.channel,
            "topic": request.topic,
            "key": request.key,
            "code": "ok",
            "sealed": rings is not None,
            **fields,
        }
    )
    frame, _ = pack(made, Message({"a": 1}, SECRET), rings["server"] if rings else None)
    return frame


def test_an_answer_opens_with_its_payload_and_code() -> None:
    request = envelope()
    answer = open_answer(answer_to(request), request, None)
    assert (answer.return_code, answer.payload) == (CellReturnCode.OK, SECRET)


@pytest.mark.parametrize(
    "change",
    [{"id": "cd" * 16}, {"kind": "request"}, {"sender": "site-2"}, {"key": "x" * 32}, {"key": ""}],
    ids=["id", "kind", "sender", "key", "no key"],
)
def test_an_answer_that_is_not_to_this_request_is_forged(change: dict[str, Any]) -> None:
    request = envelope()
    answer = open_answer(answer_to(request, **change), request, None)
    assert answer.return_code == CellReturnCode.AUTHENTICATION_ERROR
    assert answer.payload is None


def test_an_unsealed_success_to_a_sealed_request_is_refused(rings: dict[str, KeyRing]) -> None:
    request = envelope(sealed=True)
    assert open_answer(answer_to(request, rings), request, rings["site-1"]).payload == SECRET
    plain = open_answer(answer_to(request), request, rings["site-1"])
    assert (plain.return_code, plain.payload) == (CellReturnCode.AUTHENTICATION_ERROR, None)


def test_a_failure_that_came_unsealed_to_a_sealed_request_brings_no_payload(rings: dict[str, KeyRing]) -> None:
    request = envelope(sealed=True)
    answer = open_answer(answer_to(request, code="process_exception"), request, rings["site-1"])
    assert answer.return_code != CellReturnCode.OK
    assert answer.payload is None, "nobody has vouched for this payload"


@pytest.mark.parametrize("frame", [None, b"", b"garbage", MAGIC + b"\0\0\0\1\0"])
def test_an_answer_that_is_gone_or_garbage_is_a_failure_and_not_an_error(frame: bytes | None) -> None:
    answer = open_answer(frame, envelope(), None)
    assert answer.return_code == CellReturnCode.COMM_ERROR
    assert answer.get_header(MessageHeaderKey.ERROR)


def test_an_envelope_is_never_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        envelope().code = "ok"  # type: ignore[misc]
