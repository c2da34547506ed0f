from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.context import FLContext
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, ResourcesLacking
from engine.resources.gpu import GPUResourceConsumer, GPUResourceManager, host_gpu_memory
from engine.resources.listed import ListResourceConsumer, ListResourceManager
from engine.resources.passthrough import PassthroughResourceConsumer, PassthroughResourceManager
from engine.resources.reserving import ReservingResourceManager
from engine.resources.spec import Resources

CTX = FLContext()
PERIOD = 30


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def gpus(number: int = 2, memory: float = 16, clock: Clock | None = None) -> GPUResourceManager:
    return GPUResourceManager(number, memory, expiration_period=PERIOD, ignore_host=True, clock=clock or Clock())


def items(clock: Clock | None = None, **lists: list[int | str]) -> ListResourceManager:
    return ListResourceManager(lists or {"gpu": [0, 1], "port": ["a", "b"]}, PERIOD, clock=clock or Clock())


def ask(number: int, memory: float = 0) -> dict[str, Any]:
    return {"num_of_gpus": number, "mem_per_gpu_in_GiB": memory}


def take(manager: ReservingResourceManager, requirement: dict[str, Any]) -> tuple[Resources, str]:
    """Reserve and allocate."""
    enough, token = manager.check_resources(requirement, CTX)
    assert enough
    return manager.allocate_resources(requirement, token, CTX), token


@pytest.fixture(autouse=True)
def _no_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with an ``nvidia-smi`` that shows what is in the file returned."""
    shown = tmp_path / "shown"
    shown.write_text("0, 16384\n1, 16384\n2, 8192\n")
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ -s {shown} ] || exit 9\nexec cat {shown}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return shown


# Tokens


def test_what_is_reserved_is_not_given_twice() -> None:
    manager = gpus(2)
    assert manager.check_resources(ask(2, 16), CTX)[0]
    assert manager.check_resources(ask(1, 1), CTX) == (False, "")


def test_a_cancelled_reservation_can_be_given_again() -> None:
    manager = gpus(1)
    _, token = manager.check_resources(ask(1, 16), CTX)
    manager.cancel_resources(ask(1, 16), token, CTX)
    assert manager.check_resources(ask(1, 16), CTX)[0]


def test_a_cancel_does_not_end_an_allocation() -> None:
    manager = gpus(1)
    _, token = take(manager, ask(1, 16))
    manager.cancel_resources(ask(1, 16), token, CTX)
    assert manager.report_resources(CTX) == {"0": 0}


def test_cancelling_and_freeing_an_unknown_token_changes_nothing() -> None:
    manager = gpus(1)
    take(manager, ask(1, 4))
    manager.cancel_resources({}, "unknown", CTX)
    manager.free_resources({"0": 4.0}, "unknown", CTX)
    assert manager.report_resources(CTX) == {"0": 12}


def test_a_reservation_lasts_for_its_period_and_not_longer() -> None:
    clock = Clock()
    manager = gpus(1, clock=clock)
    manager.check_resources(ask(1, 16), CTX)
    clock.now += PERIOD - 0.001
    assert manager.report_resources(CTX) == {"0": 0}
    clock.now += 0.001
    assert manager.report_resources(CTX) == {"0": 16}


def test_an_expired_reservation_cannot_be_allocated_even_if_nobody_else_asked() -> None:
    clock = Clock()
    manager = gpus(1, clock=clock)
    _, token = manager.check_resources(ask(1, 16), CTX)
    clock.now += PERIOD
    with pytest.raises(RuntimeError, match="No reserved resources for token"):
        manager.allocate_resources(ask(1, 16), token, CTX)


def test_an_allocation_does_not_expire() -> None:
    clock = Clock()
    manager = gpus(1, clock=clock)
    take(manager, ask(1, 16))
    clock.now += 100 * PERIOD
    assert manager.report_resources(CTX) == {"0": 0}


def test_an_unknown_token_and_an_allocated_one_cannot_be_allocated() -> None:
    manager = gpus(1)
    _, token = take(manager, ask(1, 16))
    for each in ("unknown", token):
        with pytest.raises(ResourcesLacking):
            manager.allocate_resources(ask(1, 16), each, CTX)


def test_an_allocation_is_what_was_reserved_whatever_is_asked_later() -> None:
    manager = gpus(2)
    _, token = manager.check_resources(ask(1, 4), CTX)
    assert manager.allocate_resources(ask(2, 16), token, CTX) == {"0": 4}


def test_l4_freeing_twice_is_freeing_once() -> None:
    manager = items(gpu=[0, 1])
    first, token = take(manager, {"gpu": 1})
    take(manager, {"gpu": 1})
    manager.free_resources(first, token, CTX)
    manager.free_resources(first, token, CTX)
    assert manager.report_resources(CTX) == {"gpu": [0]}


def test_the_caller_cannot_change_what_is_held() -> None:
    manager = items(gpu=[0, 1])
    given, _ = take(manager, {"gpu": 2})
    given["gpu"].clear()
    assert manager.report_resources(CTX) == {"gpu": []}


@pytest.mark.parametrize("manager", [gpus(), items()])
def test_who_asks_for_nothing_gets_nothing_and_holds_nothing(manager: ReservingResourceManager) -> None:
    before = manager.report_resources(CTX)
    given, token = take(manager, {})
    assert given == {}
    assert manager.report_resources(CTX) == before
    manager.free_resources(given, token, CTX)


@pytest.mark.parametrize("requirement", [None, [], "num_of_gpus", 1])
def test_l9_a_requirement_that_is_no_dict_is_a_type_error(requirement: Any) -> None:
    with pytest.raises(TypeError, match="must be a dict"):
        gpus().check_resources(requirement, CTX)


@pytest.mark.parametrize("period", ["30", None, True])
def test_a_period_that_is_no_number_is_a_type_error(period: Any) -> None:
    with pytest.raises(TypeError, match="expiration_period"):
        ListResourceManager({}, period)


@pytest.mark.parametrize("period", [0, -1, math.inf, math.nan])
def test_a_period_that_makes_no_sense_is_a_value_error(period: float) -> None:
    with pytest.raises(ValueError, match="expiration_period"):
        ListResourceManager({}, period)


# Restoring


@pytest.mark.parametrize(("make", "requirement"), [(lambda: gpus(2, 8), ask(2, 5)), (items, {"gpu": 1, "port": 2})])
def test_l5_a_live_jobs_allocation_comes_back_from_the_log(make: Any, requirement: dict[str, Any]) -> None:
    before = make()
    given, token = take(before, requirement)
    recorded = json.loads(json.dumps(given))
    assert recorded == given

    after = make()
    for _ in range(2):
        after.restore_resources(recorded, token, CTX)
        assert after.report_resources(CTX) == before.report_resources(CTX)
    after.free_resources(recorded, token, CTX)
    assert after.report_resources(CTX) == make().report_resources(CTX)


def test_a_site_that_became_smaller_gives_nothing_until_it_fits_again() -> None:
    manager = gpus(1, 8)
    manager.restore_resources({"0": 12, "7": 12}, "old", CTX)
    assert manager.report_resources(CTX) == {"0": 0}
    assert not manager.check_resources(ask(1, 1), CTX)[0]
    assert not manager.check_resources(ask(1, 0), CTX)[0]
    manager.free_resources({}, "old", CTX)
    assert manager.report_resources(CTX) == {"0": 8}


def test_an_item_that_two_live_jobs_hold_is_free_when_both_have_ended() -> None:
    manager = items(gpu=[0])
    manager.restore_resources({"gpu": [0]}, "one", CTX)
    manager.restore_resources({"gpu": [0]}, "other", CTX)
    manager.free_resources({}, "one", CTX)
    assert manager.report_resources(CTX) == {"gpu": []}
    manager.free_resources({}, "other", CTX)
    assert manager.report_resources(CTX) == {"gpu": [0]}


@pytest.mark.parametrize("resources", [{"0": -8}, {"0": "8"}, {"0": None}, {"0": math.nan}, ["0"]])
def test_l9_restoring_nonsense_changes_nothing(resources: Any) -> None:
    manager = gpus(1)
    with pytest.raises(ArgumentInvalid):
        manager.restore_resources(resources, "old", CTX)
    assert manager.report_resources(CTX) == {"0": 16}


@pytest.mark.parametrize("resources", [{"gpu": 1}, {"gpu": "0"}, {"gpu": [[0]]}, {"gpu": None}])
def test_l9_restoring_nonsense_into_a_list_changes_nothing(resources: Any) -> None:
    manager = items(gpu=[0])
    with pytest.raises(ArgumentTypeInvalid):
        manager.restore_resources(resources, "old", CTX)
    assert manager.report_resources(CTX) == {"gpu": [0]}


# GPUs


def test_the_first_gpus_that_fit_are_given() -> None:
    manager = gpus(3, 16)
    assert take(manager, ask(1, 10))[0] == {"0": 10}
    assert take(manager, ask(1, 10))[0] == {"1": 10}
    assert take(manager, ask(2, 6))[0] == {"0": 6, "1": 6}
    assert manager.report_resources(CTX) == {"0": 0, "1": 0, "2": 16}


def test_a_job_that_names_no_memory_shares_a_full_gpu() -> None:
    manager = gpus(1, 16)
    take(manager, ask(1, 16))
    for _ in range(3):
        assert take(manager, {"num_of_gpus": 1})[0] == {"0": 0}


def test_zero_gpus_are_nothing() -> None:
    assert take(gpus(), ask(0))[0] == {}


def test_more_gpus_or_memory_than_there_is_is_not_enough() -> None:
    assert gpus(2, 16).check_resources(ask(3), CTX) == (False, "")
    assert gpus(2, 16).check_resources(ask(1, 16.5), CTX) == (False, "")


def test_ten_tenths_fill_a_gpu_exactly() -> None:
    manager = gpus(1, 1)
    for _ in range(10):
        take(manager, ask(1, 0.1))
    assert manager.report_resources(CTX) == {"0": 0}


@pytest.mark.parametrize(
    "requirement",
    [
        {"mem_per_gpu_in_GiB": 1},
        {"num_of_gpus": -1},
        {"num_of_gpus": 1.0},
        {"num_of_gpus": True},
        {"num_of_gpus": "1"},
        {"num_of_gpus": 1, "mem_per_gpu_in_GiB": -1},
        {"num_of_gpus": 1, "mem_per_gpu_in_GiB": math.nan},
        {"num_of_gpus": 1, "mem_per_gpu_in_GiB": 10**400},
        {"num_of_gpus": 1, "mem_per_gpu_in_GiB": "4"},
    ],
)
def test_l9_a_gpu_requirement_that_makes_no_sense_is_refused(requirement: dict[str, Any]) -> None:
    manager = gpus(1)
    with pytest.raises(ArgumentInvalid, match=r"num_of_gpus|mem_per_gpu_in_GiB"):
        manager.check_resources(requirement, CTX)
    assert manager.report_resources(CTX) == {"0": 16}


def test_the_requirements_keys_can_be_named_otherwise() -> None:
    manager = GPUResourceManager(1, 8, num_gpu_key="n", gpu_mem_key="m", ignore_host=True)
    assert take(manager, {"n": 1, "m": 2})[0] == {"0": 2}


def test_a_site_without_gpus_needs_no_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert GPUResourceManager(0, 0).report_resources(CTX) == {}
    with pytest.raises(ArgumentInvalid, match="shows 0"):
        GPUResourceManager(1, 0)


@pytest.mark.usefixtures("host")
def test_the_host_must_have_the_gpus_and_their_memory() -> None:
    assert GPUResourceManager(2, 16).report_resources(CTX) == {"0": 16, "1": 16}
    with pytest.raises(ValueError, match="num_of_gpus is 4, but this host shows 3"):
        GPUResourceManager(4, 1)
    with pytest.raises(ValueError, match=r"GPU 2 has 8\.0 GiB"):
        GPUResourceManager(3, 16)


@pytest.mark.usefixtures("host")
def test_only_the_visible_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 1")
    assert list(GPUResourceManager(2, 8).report_resources(CTX)) == ["2", "1"]
    assert list(GPUResourceManager(2, 99, ignore_host=True).report_resources(CTX)) == ["2", "1"]
    with pytest.raises(ArgumentInvalid, match="shows 2"):
        GPUResourceManager(3, 8)


@pytest.mark.usefixtures("host")
def test_visible_devices_without_numbers_are_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    assert list(GPUResourceManager(1, 8).report_resources(CTX)) == ["0"]
    assert "ignored" in caplog.text


def test_an_nvidia_smi_that_fails_or_babbles_shows_no_gpus(host: Path) -> None:
    for shown in ("", "no devices were found\n", "0, [N/A]\n"):
        host.write_text(shown)
        assert host_gpu_memory() == {}


def test_the_consumer_shows_the_app_its_gpus_and_leaves_the_engine_alone() -> None:
    consumer = GPUResourceConsumer(ignore_host=True)
    assert consumer.consume({"0": 4, "1": 4}) == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert consumer.consume({}) == {}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_consumer_refuses_memory_that_someone_else_uses(host: Path) -> None:
    host.write_text("0, 2048\n1, 16384\n")
    assert GPUResourceConsumer().consume({"1": 16}) == {"CUDA_VISIBLE_DEVICES": "1"}
    with pytest.raises(RuntimeError, match=r"GPU 0 has 2\.0 GiB free, the job needs 4"):
        GPUResourceConsumer().consume({"0": 4})
    with pytest.raises(RuntimeError, match="GPU 5 is not on this host"):
        GPUResourceConsumer().consume({"5": 4})


# Lists


def test_items_are_given_in_the_sites_order() -> None:
    manager = items(gpu=[3, 1, 2])
    first, token = take(manager, {"gpu": 2})
    assert first == {"gpu": [3, 1]}
    manager.free_resources(first, token, CTX)
    assert take(manager, {"gpu": 1})[0] == {"gpu": [3]}


def test_all_keys_must_suffice_or_none_is_given() -> None:
    manager = items()
    assert manager.check_resources({"gpu": 1, "port": 3}, CTX) == (False, "")
    assert manager.report_resources(CTX) == {"gpu": [0, 1], "port": ["a", "b"]}


def test_a_key_that_the_site_does_not_have_is_not_enough() -> None:
    assert items().check_resources({"licence": 1}, CTX) == (False, "")


def test_none_of_a_key_is_nothing() -> None:
    assert take(items(), {"gpu": 0, "licence": 0})[0] == {}


def test_an_item_that_is_listed_twice_can_be_given_twice() -> None:
    manager = items(gpu=[0, 0])
    take(manager, {"gpu": 1})
    assert take(manager, {"gpu": 1})[0] == {"gpu": [0]}
    assert not manager.check_resources({"gpu": 1}, CTX)[0]


@pytest.mark.parametrize("wanted", [-1, "1", None, 1.5])
def test_l9_a_list_requirement_that_makes_no_sense_is_refused(wanted: Any) -> None:
    with pytest.raises(ArgumentInvalid, match="gpu"):
        items().check_resources({"gpu": wanted}, CTX)


@pytest.mark.parametrize("resources", [None, [], {"gpu": 2}, {"gpu": "01"}, {"gpu": [None]}])
def test_a_site_must_list_its_items(resources: Any) -> None:
    with pytest.raises(ArgumentTypeInvalid):
        ListResourceManager(resources)


def test_the_list_consumer_shows_the_gpus() -> None:
    assert ListResourceConsumer().consume({"gpu": [1, "2"], "port": ["a"]}) == {"CUDA_VISIBLE_DEVICES": "1,2"}
    assert ListResourceConsumer("card").consume({"card": [1]}) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert ListResourceConsumer().consume({"port": ["a"]}) == {}


# Passthrough


def test_passthrough_says_yes_and_gives_nothing() -> None:
    manager = PassthroughResourceManager()
    (yes, token), (_, other) = manager.check_resources({"x": 1}, CTX), manager.check_resources({}, CTX)
    assert yes
    assert token != other
    assert manager.allocate_resources({"x": 1}, token, CTX) == {}
    manager.cancel_resources({}, token, CTX)
    manager.restore_resources({"x": 1}, token, CTX)
    manager.free_resources({}, token, CTX)
    assert manager.report_resources(CTX) == {}
    assert PassthroughResourceConsumer().consume({"x": 1}) == {}


# Any sequence of calls


class Ledger(RuleBasedStateMachine):
    """What jobs hold and what is left is always what the site has."""

    manager: ReservingResourceManager
    whole: Resources

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        #: token -> (what it holds as far as we were told, when that ends)
        self.reserved: dict[str, float] = {}
        self.allocated: dict[str, Resources] = {}
        self.over: list[str] = []

    # What differs between managers.

    def make(self) -> ReservingResourceManager:
        raise NotImplementedError

    def requirement(self, number: int, size: int) -> dict[str, Any]:
        raise NotImplementedError

    def amounts(self, resources: Resources) -> dict[str, float]:
        """Resources as a number per thing that can be held."""
        raise NotImplementedError

    @initialize()
    def open(self) -> None:
        self.manager = self.make()
        self.whole = self.manager.report_resources(CTX)

    @rule(number=st.integers(0, 4), size=st.integers(0, 10))
    def check(self, number: int, size: int) -> None:
        before = self.manager.report_resources(CTX)
        enough, token = self.manager.check_resources(self.requirement(number, size), CTX)
        if enough:
            self.reserved[token] = self.clock.now + PERIOD
        else:
            assert token == ""
            assert self.manager.report_resources(CTX) == before

    @precondition(lambda self: self.reserved)
    @rule(data=st.data(), times=st.integers(1, 2))
    def cancel(self, data: st.DataObject, times: int) -> None:
        token = data.draw(st.sampled_from(list(self.reserved)))
        for _ in range(times):
            self.manager.cancel_resources({}, token, CTX)
        del self.reserved[token]
        self.over.append(token)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(list(self.reserved)))
        if self.reserved.pop(token) <= self.clock.now:
            self.over.append(token)
            with pytest.raises(ResourcesLacking):
                self.manager.allocate_resources({}, token, CTX)
            return
        given = self.manager.allocate_resources({}, token, CTX)
        if given:
            self.allocated[token] = given
        else:
            self.over.append(token)

    @precondition(lambda self: self.allocated)
    @rule(data=st.data(), times=st.integers(1, 3))
    def free(self, data: st.DataObject, times: int) -> None:
        token = data.draw(st.sampled_from(list(self.allocated)))
        for _ in range(times):
            self.manager.free_resources(self.allocated[token], token, CTX)
        del self.allocated[token]
        self.over.append(token)

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def use_a_token_that_is_over(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(self.over))
        before = self.manager.report_resources(CTX)
        self.manager.cancel_resources({}, token, CTX)
        self.manager.free_resources(self.whole, token, CTX)
        with pytest.raises(ResourcesLacking):
            self.manager.allocate_resources({}, token, CTX)
        assert self.manager.report_resources(CTX) == before

    @precondition(lambda self: self.allocated)
    @rule(data=st.data())
    def cancel_what_is_allocated(self, data: st.DataObject) -> None:
        self.manager.cancel_resources({}, data.draw(st.sampled_from(list(self.allocated))), CTX)

    @rule(seconds=st.sampled_from([1, PERIOD // 2, PERIOD]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def die_and_open_again(self) -> None:
        """Reservations are gone, allocations come back from the log."""
        self.manager = self.make()
        self.over += self.reserved
        self.reserved.clear()
        for token, resources in self.allocated.items():
            for _ in range(2):
                self.manager.restore_resources(json.loads(json.dumps(resources)), token, CTX)

    @invariant()
    def nothing_is_gained_or_lost(self) -> None:
        if not hasattr(self, "manager"):
            return
        left = self.amounts(self.manager.report_resources(CTX))
        whole = self.amounts(self.whole)
        held = [self.amounts(resources) for resources in self.allocated.values()]
        for thing, all_of_it in whole.items():
            allocated = sum(each.get(thing, 0) for each in held)
            assert 0 <= left.get(thing, 0) <= all_of_it - allocated
            if not any(self.clock.now < ends for ends in self.reserved.values()):
                assert left.get(thing, 0) == all_of_it - allocated

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        for token in [*self.reserved, *self.allocated]:
            self.manager.free_resources({}, token, CTX)
        assert self.manager.report_resources(CTX) == self.whole


class GPULedger(Ledger):
    def make(self) -> ReservingResourceManager:
        return gpus(3, 10, self.clock)

    def requirement(self, number: int, size: int) -> dict[str, Any]:
        return ask(number, size)

    def amounts(self, resources: Resources) -> dict[str, float]:
        return resources


class ListLedger(Ledger):
    def make(self) -> ReservingResourceManager:
        return items(self.clock, gpu=[0, 1, 2, 2], port=["a", "b", "c", "d", "e", "f"])

    def requirement(self, number: int, size: int) -> dict[str, Any]:
        return {"gpu": number, "port": size}

    def amounts(self, resources: Resources) -> dict[str, float]:
        return {f"{key} {item}": listed.count(item) for key, listed in resources.items() for item in set(listed)}


TestGPULedger = GPULedger.TestCase
TestListLedger = ListLedger.TestCase
TestGPULedger.settings = TestListLedger.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_threads_never_hold_the_same_item_at_once() -> None:
    manager = ListResourceManager({"gpu": list(range(3))})
    in_use, clashes, guard = set[int](), list[int](), threading.Lock()

    def run() -> None:
        for _ in range(150):
            enough, token = manager.check_resources({"gpu": 1}, CTX)
            if not enough:
                continue
            given = manager.allocate_resources({"gpu": 1}, token, CTX)
            [item] = given["gpu"]
            with guard:
                clashes.extend({item} & in_use)
                in_use.add(item)
            with guard:
                in_use.discard(item)
            manager.free_resources(given, token, CTX)
            manager.free_resources(given, token, CTX)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []
    assert manager.report_resources(CTX) == {"gpu": [0, 1, 2]}
