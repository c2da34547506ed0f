"""The choice of an app's network: it can only be tightened, and a record that says nothing of it stays readable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import ArgumentInvalid, from_code
from engine.fold import apply
from engine.network import asked_network, chosen, on_network, tighter
from engine.outcome import spawn_bodies
from engine.settings import settings
from events.bodies import parse_body
from tests.histories import body, event, fact
from tests.unit.test_outcome import IDENTITY, SPEC, a_job
from workers import keeper


@pytest.mark.parametrize(
    ("site", "asked", "gets"),
    [
        ("open", None, "open"),
        ("open", "open", "open"),
        ("open", "none", "none"),
        ("none", None, "none"),
        ("none", "none", "none"),
    ],
)
def test_a_start_gets_what_it_asks_for_and_never_more_than_the_site_has(site, asked, gets):
    assert chosen(site, asked) == gets


@pytest.mark.parametrize(("site", "asked"), [("none", "open"), ("open", "closed"), ("none", "closed"), ("open", "")])
def test_l9_more_than_the_site_has_or_what_there_is_not_is_refused_by_name_and_with_what_to_do(site, asked):
    with pytest.raises(ArgumentInvalid, match="network is") as caught:
        chosen(site, asked)
    assert caught.value.context["field"] == "network"
    assert caught.value.fix


def test_of_two_networks_none_is_the_tighter():
    assert [tighter(a, b) for a in ("open", "none") for b in ("open", "none")] == ["open", "none", "none", "none"]


def test_a_choice_holds_within_its_block_and_nobody_has_one_outside():
    assert asked_network() is None
    with on_network("none"):
        with on_network(None):
            assert asked_network() is None
        assert asked_network() == "none"
    assert asked_network() is None


def test_the_setting_is_open_unless_the_site_says_otherwise(monkeypatch):
    monkeypatch.delenv("FLIGHTLOG_NETWORK", raising=False)
    assert settings().network == "open"
    monkeypatch.setenv("FLIGHTLOG_NETWORK", "none")
    assert settings().network == "none"
    monkeypatch.setenv("FLIGHTLOG_NETWORK", "off")
    with pytest.raises(ArgumentInvalid, match="network"):
        settings()


def test_a_start_from_before_there_was_a_choice_was_an_open_one():
    old = body("StartRequested").model_dump(mode="json", exclude={"type", "network"})
    assert parse_body("StartRequested", old).network == "open"


@pytest.mark.parametrize(("spec", "network"), [(SPEC, "open"), ({**SPEC, "network": "none"}, "none")])
def test_a_spawn_says_what_network_the_app_was_given(spec, network):
    spawned = spawn_bodies(a_job(), 1, IDENTITY, spec)[0]
    assert spawned.network == network


def test_l3_the_network_of_a_job_is_that_of_its_running_attempt():
    state = a_job("LaunchFailed", "StartRequested")
    assert state["network"] == ""
    state = apply(state, fact(event("AppSpawned", state, network="none")))
    assert state["network"] == "none"
    for name in ("AppStarted", "AppFinished", "StartRequested"):
        assert state["network"] == "none"
        state = apply(state, fact(event(name, state)))
    assert state["network"] == ""


def test_a_refused_launch_is_an_error_that_callers_of_the_reference_catch():
    error = from_code("NETWORK_ISOLATION_UNAVAILABLE", "what")
    assert isinstance(error, RuntimeError)


def test_the_keeper_says_what_it_tried_and_what_the_limits_are():
    """A flag that no kernel knows stands for a kernel without such namespaces; in a process of its own."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); import keeper; keeper.CLONE_NEWNET |= 1; keeper.probe()"
    command = [sys.executable, "-I", "-S", "-c", script, str(Path(keeper.__file__).parent)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.stdout.startswith("no network namespace: unshare(CLONE_NEWNET): " + os.strerror(22))
    assert "user.max_user_namespaces=" in said.stdout
