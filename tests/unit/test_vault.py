"""Personal fields: nowhere to be read without their key, and folds need no key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.fold import JobState
from engine.jobs import Jobs
from engine.present import job as shown
from events.bodies.app import StartRequested
from events.bodies.base import personal
from events.bodies.job import CallRefused, DeployRequested
from events.envelope import Actor
from events.read import read, read_job
from events.store import Store
from events.vault import ERASED, LOCKED, MARK, Vault
from tests.histories import body
from tests.support import fake_store, new_call

ALICE = Actor(id="alice@ward-7", kind="person", auth="token", claimed="Dr. Alice Liddell")
META = {"job_id": "job-1", "submitter": "alice@ward-7", "scope": "x", "notes": {"phone": ["+49 0815", 7]}}


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "keys")


@pytest.fixture
def store(vault: Vault) -> Store:
    made = fake_store()
    made.vault = vault
    return made


def _deploy(store: Store, job: str = "job-1") -> None:
    asked = body("DeployRequested", app="app", meta=META, reason="for Bob's tumour", signers=["alice@ward-7"])
    call = replace(new_call(), actor=ALICE)
    Jobs(store).transact(call, job, lambda state: [asked])


def _everything(store: Store) -> str:
    client, kept = store.client, []
    for key in client.keys("*"):
        kind = client.type(key)
        whole = {
            "string": lambda k: client.get(k),
            "hash": lambda k: client.hgetall(k),
            "list": lambda k: client.lrange(k, 0, -1),
            "set": lambda k: list(client.smembers(k)),
            "zset": lambda k: client.zrange(k, 0, -1, withscores=True),
            "stream": lambda k: client.xrange(k),
        }[kind](key)
        kept.append(f"{key} {whole}")
    return "\n".join(kept)


def test_what_names_a_person_is_in_redis_only_as_tokens_and_is_read_as_it_was_given(store: Store) -> None:
    _deploy(store)
    for text in ("alice", "Liddell", "tumour", "+49 0815"):  # none of which a time or a token can hold
        assert text not in _everything(store)
    (event,) = read_job(store, "job-1")
    assert event.rest()["actor"]["id"] == "alice@ward-7"
    assert event.rest()["actor"]["claimed"] == "Dr. Alice Liddell"
    assert (event.body["meta"], event.body["reason"]) == (META, "for Bob's tumour")
    assert event.body["signers"] == ["alice@ward-7"]
    assert event.as_dict()["body"]["meta"] == META
    told = shown("job-1", Jobs(store).load("job-1"))
    assert (told["asked_by"], told["reason"]) == ("alice@ward-7", "for Bob's tumour")


def test_what_the_engine_decides_by_stays_readable(store: Store) -> None:
    _deploy(store)
    assert json.loads(Jobs(store).load("job-1").state["next_meta"]) == {"job_id": "job-1", "scope": "x"}


def test_l3_the_fold_of_a_log_whose_keys_are_gone_is_the_projection(store: Store, vault: Vault) -> None:
    _deploy(store)
    before = dict(Jobs(store).load("job-1").state)
    vault.destroy("job-1")
    store.client.delete(store.keys.heads)
    Jobs(store).rebuild("test")
    assert dict(Jobs(store).load("job-1").state) == before


def test_without_its_key_a_field_is_erased_and_another_jobs_is_not(store: Store, vault: Vault) -> None:
    _deploy(store)
    _deploy(store, "job-2")
    assert vault.destroy("job-1") == 1
    one, two = read(store)
    assert (one.rest()["actor"]["id"], one.body["reason"], one.body["meta"]["notes"]) == (ERASED, ERASED, ERASED)
    assert (two.rest()["actor"]["id"], two.body["meta"]) == ("alice@ward-7", META)
    assert shown("job-1", Jobs(store).load("job-1"))["asked_by"] == ERASED


def test_another_process_forgets_a_destroyed_key_too(store: Store, vault: Vault, tmp_path: Path) -> None:
    _deploy(store)
    (event,) = read(store)
    other = Vault(tmp_path / "keys")
    event.vault = other
    assert event.rest()["actor"]["id"] == "alice@ward-7"
    vault.destroy("job-1")
    other._keys = {name: (key, gone, at - 10) for name, (key, gone, at) in other._keys.items()}  # a moment later
    assert event.rest()["actor"]["id"] == ERASED


def test_a_job_has_another_key_in_its_next_life(vault: Vault) -> None:
    first = vault.hide("job-1", "alice")
    assert vault.hide("job-1", "alice") == first
    vault.destroy("job-1")
    second = vault.hide("job-1", "alice")
    assert second != first
    assert (vault.reveal(first), vault.reveal(second)) == (ERASED, "alice")
    assert vault.destroy("job-1") == 1
    assert vault.reveal(second) == ERASED


def test_a_token_within_a_text_is_read_and_what_only_looks_like_one_is_left(vault: Vault, tmp_path: Path) -> None:
    token = vault.hide("job-1", "no room left")
    assert vault.reveal(f"DISK_FULL: {token}!") == "DISK_FULL: no room left!"
    forged = f"{MARK}{token[4:20]}.AAAAAAAAAAAAAAAAAAAAAAAA~"
    assert vault.reveal(forged) == forged
    assert Vault(tmp_path / "elsewhere").reveal(token) == LOCKED
    # A text that looks like a token is told as it was given: what a token hides is not looked into again.
    assert vault.reveal(vault.hide("job-2", token)) == token


def test_keys_are_for_their_owner_alone_and_each_is_written_once(vault: Vault, tmp_path: Path) -> None:
    vault.hide("job-1", "alice")
    (key,) = (path for path in (tmp_path / "keys").rglob("*") if path.is_file())
    assert key.stat().st_mode & 0o777 == 0o600
    assert Vault(tmp_path / "keys").hide("job-1", "alice") == vault.hide("job-1", "alice")


def test_keys_go_to_another_site_and_a_destroyed_one_does_not_come_back(vault: Vault, tmp_path: Path) -> None:
    token = vault.hide("job-1", "alice")
    keys = vault.keys_of("job-1")
    other = Vault(tmp_path / "other")
    other.adopt(keys)
    assert other.reveal(token) == "alice"
    vault.destroy("job-1")
    vault.adopt(keys)
    assert vault.reveal(token) == ERASED
    assert vault.keys_of("job-1") == {}


def test_the_actor_of_the_site_itself_is_no_person(vault: Vault) -> None:
    assert vault.hide_actor("job-1", Actor(id="flightlog", kind="system").model_dump()) == {}
    assert set(vault.hide_actor("job-1", ALICE.model_dump())) == {"id", "claimed"}


def test_a_mark_is_found_however_deep_it_is() -> None:
    assert set(personal(DeployRequested)) == {"meta", "signers", "reason"}
    assert set(personal(CallRefused)) == {"message", "job"}
    assert set(personal(StartRequested)) == {"reason"}
    assert JobState(reason="x").told("reason") == "x"
