from __future__ import annotations

import json
from typing import Any

import pytest

from engine.constants import ReservedKey, ReturnCode
from engine.context import FLContextManager
from engine.errors import ArgumentTypeInvalid
from engine.shareable import Shareable, make_copy, make_reply


def test_a_shareable_is_a_dict_with_headers() -> None:
    assert Shareable() == {"__headers__": {}}
    assert Shareable({"k": 1}) == {"k": 1, "__headers__": {}}


def test_headers_are_copied_from_the_data_and_not_shared() -> None:
    first = Shareable()
    first.set_header("h", 1)
    second = Shareable(first)
    second.set_header("h", 2)
    assert (first.get_header("h"), second.get_header("h")) == (1, 2)


def test_headers_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(ArgumentTypeInvalid, match="__headers__"):
        Shareable({"__headers__": [1]})


def test_a_missing_header_gives_the_default() -> None:
    assert Shareable().get_header("h") is None
    assert Shareable().get_header("h", 1) == 1


def test_headers_survive_a_clear() -> None:
    shareable = Shareable()
    shareable.clear()
    assert shareable.get_header("h", 1) == 1
    shareable.set_header("h", 2)
    assert shareable.get_header("h") == 2


def test_without_a_return_code_it_is_ok() -> None:
    assert Shareable().get_return_code() == "OK"
    assert Shareable().get_return_code(ReturnCode.ERROR) == "ERROR"


def test_a_return_code_is_kept_as_a_plain_string() -> None:
    shareable = Shareable()
    shareable.set_return_code(ReturnCode.TIMEOUT)
    assert shareable.get_return_code() == ReturnCode.TIMEOUT
    assert type(shareable.get_return_code()) is str


def test_cookies_come_back_with_the_jar() -> None:
    request, reply = Shareable(), Shareable()
    assert request.get_cookie_jar() is None
    assert request.get_cookie("c", 0) == 0
    request.add_cookie("c", 1)
    request.add_cookie("d", 2)
    reply.set_cookie_jar(request.get_cookie_jar())
    assert (reply.get_cookie("c"), reply.get_cookie("d")) == (1, 2)


def test_peer_props_are_copied() -> None:
    props, shareable = {"k": 1}, Shareable()
    shareable.set_peer_props(props)
    props["k"] = 2
    assert shareable.get_peer_props() == {"k": 1}
    assert shareable.get_peer_prop("k") == 1
    assert shareable.get_peer_prop("other", 3) == 3


def test_peer_props_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(ArgumentTypeInvalid):
        Shareable().set_peer_props("k")  # type: ignore[arg-type]


def test_a_strangers_peer_props_may_be_anything() -> None:
    shareable = Shareable({"__headers__": {ReservedKey.PEER_PROPS: "nonsense"}})
    assert shareable.get_peer_props() == "nonsense"
    assert shareable.get_peer_prop("k", 1) == 1
    with pytest.raises(ArgumentTypeInvalid):
        shareable.get_peer_context()


def test_l6_a_peer_context_carries_public_props_only() -> None:
    ctx = FLContextManager(engine=object(), identity_name="site-1").new_context()
    ctx.set_prop("secret", 1)
    ctx.set_prop("k", 2, private=False)
    shareable = Shareable()
    shareable.set_peer_context(ctx)
    peer = shareable.get_peer_context()
    assert peer is not None
    assert peer.get_identity_name() == "site-1"
    assert peer.get_all_public_props() == ctx.get_all_public_props()
    assert peer.get_prop("secret") is None
    json.dumps(shareable)


def test_without_peer_props_there_is_no_peer_context() -> None:
    assert Shareable().get_peer_context() is None


def test_make_reply_has_code_and_headers() -> None:
    headers: dict[str, Any] = {"h": 1, ReservedKey.RC: "OK"}
    reply = make_reply(ReturnCode.ERROR, headers)
    assert (reply.get_return_code(), reply.get_header("h")) == ("ERROR", 1)
    assert headers == {"h": 1, ReservedKey.RC: "OK"}
    assert make_reply(ReturnCode.OK).get_return_code() == "OK"


def test_make_copy_shares_values_and_copies_headers() -> None:
    source = Shareable({"model": [1, 2]})
    source.set_header("h", {"deep": 1})
    twin = make_copy(source)
    twin.get_header("h")["deep"] = 2
    twin["more"] = 3
    assert isinstance(twin, Shareable)
    assert twin["model"] is source["model"]
    assert source.get_header("h") == {"deep": 1}
    assert "more" not in source


def test_make_copy_of_a_shareable_without_headers_has_some() -> None:
    source = Shareable()
    source.clear()
    assert make_copy(source) == {"__headers__": {}}
