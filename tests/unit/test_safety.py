"""L1: a server that could lose or evict the log is refused, with the setting to change."""

from __future__ import annotations

from typing import Any

import fakeredis
import pytest

from events.append import Log, NewEvent
from events.errors import ServerUnsafe
from events.safety import check_server
from events.store import Store
from tests.histories import body
from tests.support import new_call

SAFE: dict[str, Any] = {
    "redis_version": "7.2.4",
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
    "role": "master",
}


class Client:
    """As much of a client as the check asks for."""

    def __init__(self, **info: Any) -> None:
        self._info = {name: value for name, value in {**SAFE, **info}.items() if value is not None}
        self.asked = 0

    def info(self) -> dict[str, Any]:
        """What the server says of itself."""
        self.asked += 1
        return self._info


@pytest.mark.parametrize("version", ["7.0.0", "7.0.15", "7.2.4", "8.0.1", "10.0.0", "255.255.255"])
def test_a_server_that_keeps_what_it_is_given_is_taken(version):
    check_server(Client(redis_version=version))


@pytest.mark.parametrize("version", ["6.2.14", "6.0.9", "5.0", "2.8.0", "0"])
def test_l1_a_server_that_is_too_old_is_refused_with_its_version_and_what_to_use(version):
    with pytest.raises(ServerUnsafe, match=rf"version {version}") as caught:
        check_server(Client(redis_version=version))
    assert "7.0" in caught.value.fix


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "allkeys-random", "volatile-ttl", "allkeys-lfu"])
def test_l1_a_server_that_evicts_is_refused_with_the_setting_named(policy):
    with pytest.raises(ServerUnsafe, match=f"maxmemory-policy is {policy}") as caught:
        check_server(Client(maxmemory_policy=policy))
    assert caught.value.context["setting"] == "maxmemory-policy"
    assert "maxmemory-policy noeviction" in caught.value.fix


@pytest.mark.parametrize("enabled", [0, "0", None])
def test_l1_a_server_without_an_append_only_file_is_refused_with_the_setting_named(enabled):
    with pytest.raises(ServerUnsafe, match="appendonly is no") as caught:
        check_server(Client(aof_enabled=enabled))
    assert caught.value.context["setting"] == "appendonly"
    assert "appendonly yes" in caught.value.fix


def test_l1_a_replica_is_refused_and_the_setting_that_names_the_primary_is_told():
    with pytest.raises(ServerUnsafe, match="replica") as caught:
        check_server(Client(role="slave"))
    assert "record_url" in caught.value.fix


def test_l1_nothing_is_written_to_an_unsafe_server():
    client = fakeredis.FakeRedis(decode_responses=True)

    def check(_: object) -> None:
        raise ServerUnsafe("it evicts")

    with pytest.raises(ServerUnsafe):
        Log(Store(client, "site-1", check=check)).append(new_call(), [NewEvent("site", body("AgentSet"))])
    assert client.keys("*") == []


def test_a_server_is_asked_once_and_again_after_it_was_refused():
    answers = [ServerUnsafe("it evicts"), None]
    asked = []

    def check(client: object) -> None:
        asked.append(client)
        answer = answers[len(asked) - 1]
        if answer is not None:
            raise answer

    store = Store(fakeredis.FakeRedis(decode_responses=True), "site-1", check=check)
    with pytest.raises(ServerUnsafe):
        store.ensure_safe()
    store.ensure_safe()
    store.ensure_safe()
    assert len(asked) == 2
