"""The federated example without a network: its own trainers, one after the other, under its own controller."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from engine.component import FLComponent
from engine.constants import ReturnCode
from engine.context import FLContext, FLContextManager
from engine.shareable import Shareable, make_reply

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "federated_breast_cancer"
SERVER_SIDE = ("fedavg", "baselines", "report")
APP_SIDE = ("data", "model", "trainer")
SITES = ["site-1", "site-2", "site-3"]
ROUNDS = 10


def stand_in(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    return module


def missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:  # not even its package is there
        return True


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The example's modules, imported as its job and its server import them, and the rows of metrics they wrote."""
    rows: list[dict[str, Any]] = []
    for name in (*SERVER_SIDE, *APP_SIDE):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if missing("engine.job"):
        monkeypatch.setitem(sys.modules, "engine.job", stand_in("engine.job", __path__=[]))
    if missing("engine.job.executor"):
        executor = stand_in("engine.job.executor", Executor=type("Executor", (FLComponent,), {}))
        monkeypatch.setitem(sys.modules, "engine.job.executor", executor)
    if missing("engine.job.metrics"):
        monkeypatch.setitem(sys.modules, "engine.job.metrics", stand_in("engine.job.metrics", metrics=None))
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLE), str(EXAMPLE / "app" / "custom")])
    modules = {name: importlib.import_module(name) for name in (*SERVER_SIDE, *APP_SIDE)}
    monkeypatch.setattr(modules["trainer"], "metrics", lambda **row: rows.append(row))
    yield SimpleNamespace(**modules, rows=rows)
    for name in modules:
        sys.modules.pop(name, None)


class Signal:
    """An abort signal that is triggered when it has been looked at so many times."""

    def __init__(self, after: float = float("inf")) -> None:
        self.after, self.looks = after, 0

    @property
    def triggered(self) -> bool:
        self.looks += 1
        return self.looks > self.after


class Site:
    """What runs at a site: the app of the example, built from its own config."""

    def __init__(self, name: str) -> None:
        config = json.loads((EXAMPLE / "app" / "config" / "config_fed_client.json").read_text())
        parts = {entry["id"]: build(entry) for entry in config["components"]}
        self._executors = {task: build(e["executor"]) for e in config["executors"] for task in e["tasks"]}
        self._contexts = FLContextManager(SimpleNamespace(get_component=parts.get), name, "job-1")

    def do(self, task: str, data: Shareable, signal: Signal | None = None) -> Shareable:
        with self._contexts.new_context() as fl_ctx:
            assert isinstance(fl_ctx, FLContext)
            executor = self._executors.get(task) or next(iter(self._executors.values()))
            return executor.execute(task, data, fl_ctx, signal or Signal())


def build(entry: dict[str, Any]) -> Any:
    module, _, name = entry["path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**entry["args"])


class FakeJob:
    """Sites in this process. ``spoil`` may put another reply in a site's place, or None for no reply at all."""

    def __init__(
        self, sites: list[str], spoil: Callable[[str, str, Shareable], Shareable | None] | None = None
    ) -> None:
        self.sites = sites
        self._running = {name: Site(name) for name in sites}
        self._spoil = spoil or (lambda site, task, reply: reply)
        self.asked: list[str] = []

    def broadcast_task(
        self, name: str, data: Shareable | dict[str, Shareable], timeout: float, min_replies: int | None = None
    ) -> dict[str, Shareable]:
        assert timeout > 0
        assert data.keys() == set(self.sites)
        self.asked.append(name)
        replies = {site: self._spoil(site, name, self._running[site].do(name, data[site])) for site in self.sites}
        return {site: reply for site, reply in reversed(replies.items()) if reply is not None}


def task(weights: dict[str, Any] | None = None, **other: Any) -> Shareable:
    return Shareable({"round": 1, "weights": weights or {}, "site_index": 0, "sites": 3, **other})


# --- what it is for ---------------------------------------------------------------------------------------------


def test_the_federation_beats_the_small_site_clearly_and_comes_near_all_rows_in_one_place(example) -> None:
    began = time.process_time()
    result = example.fedavg.FedAvg(ROUNDS).run(FakeJob(SITES))
    assert time.process_time() - began < 2
    compared = example.baselines.baselines(SITES, ROUNDS)
    federated = example.baselines.accuracy(result.weights)
    assert federated > 0.95
    assert federated > min(each.accuracy for each in compared.alone) + 0.05
    assert federated > max(each.accuracy for each in compared.alone) - 0.015
    assert abs(federated - compared.centralised) < 0.015
    assert result.accuracy.keys() == set(SITES)


def test_the_same_run_gives_the_same_bits(example) -> None:
    first, second = (example.fedavg.FedAvg(3).run(FakeJob(SITES)) for _ in range(2))
    for name, array in first.weights.items():
        assert array.tobytes() == second.weights[name].tobytes()
    assert [row[:5] for row in first.history] == [row[:5] for row in second.history]
    assert example.baselines.baselines(SITES, 3) == example.baselines.baselines(SITES, 3)


def test_a_federation_of_one_is_that_site_alone(example) -> None:
    result = example.fedavg.FedAvg(ROUNDS).run(FakeJob(["only"]))
    compared = example.baselines.baselines(["only"], ROUNDS)
    assert example.baselines.accuracy(result.weights) == compared.alone[0].accuracy == compared.centralised


# --- the data ---------------------------------------------------------------------------------------------------


def fingerprints(*parts: Any) -> list[bytes]:
    return [row.tobytes() for part in parts for row in part]


@pytest.mark.parametrize("sites", range(1, 11))
def test_the_sites_have_every_row_but_the_held_out_ones_each_once(example, sites) -> None:
    shares = [example.data.share(index, sites) for index in range(sites)]
    held, _ = example.data.held_out()
    everything = fingerprints(held, *(part for share in shares for part in (share.x, share.x_valid)))
    assert len(everything) == len(set(everything)) == 569
    for share in shares:
        assert share.y.any()
        assert not share.y.all()
        assert len(share.y_valid) >= 3


def test_shares_differ_in_size_and_in_kind(example) -> None:
    shares = [example.data.share(index, 3) for index in range(3)]
    assert shares[0].samples > 1.5 * shares[1].samples > 3 * shares[2].samples
    assert shares[0].malignant > 0.45 > 0.3 > shares[1].malignant > 0.2 > 0.06 > shares[2].malignant > 0


@pytest.mark.parametrize(("index", "sites"), [(3, 3), (-1, 3), (0, 0), (0, 11), ("0", 3), (0, None)])
def test_a_site_that_cannot_be_is_refused(example, index, sites) -> None:
    with pytest.raises(ValueError, match="sites"):
        example.data.share(index, sites)


def test_the_scale_is_the_one_of_the_data_description_and_not_of_the_rows(example) -> None:
    from sklearn.datasets import load_breast_cancer

    numbers = [line.split()[-2:] for line in load_breast_cancer().DESCR.splitlines() if line.count(":") == 1]
    table = [(float(low), float(high)) for low, high in (n for n in numbers if len(n) == 2) if is_number(low, high)]
    assert table == list(zip(example.data.LOW.tolist(), example.data.HIGH.tolist(), strict=True))


def is_number(*words: str) -> bool:
    return all(word.replace(".", "", 1).isdigit() for word in words)


# --- the executor -----------------------------------------------------------------------------------------------


def test_train_gives_back_new_weights_and_writes_a_row_of_metrics(example) -> None:
    reply = Site("site-1").do("train", task(round=4))
    assert reply.get_return_code() == ReturnCode.OK
    assert {name: array.shape for name, array in reply["weights"].items()} == {"coef": (30,), "intercept": (1,)}
    share = example.data.share(0, 3)
    assert reply["samples"] == share.samples
    assert example.rows == [{"round": 4, "loss": reply["loss"], "accuracy": reply["accuracy"]}]
    assert reply["loss"] == example.model.loss(reply["weights"], share.x_valid, share.y_valid) < np.log(2)
    for name, kind in {"samples": int, "loss": float, "accuracy": float}.items():
        assert type(reply[name]) is kind


def test_train_goes_on_from_the_given_weights_and_leaves_them_alone(example) -> None:
    site = Site("site-1")
    given = site.do("train", task())["weights"]
    kept = {name: array.copy() for name, array in given.items()}
    again = site.do("train", task(given))
    assert all((given[name] == kept[name]).all() for name in given)
    assert again["loss"] < example.rows[0]["loss"]


def test_validate_measures_the_given_weights_on_the_rows_kept_for_it(example) -> None:
    site = Site("site-2")
    weights = site.do("train", task(site_index=1))["weights"]
    reply = site.do("validate", task(weights, site_index=1))
    share = example.data.share(1, 3)
    assert reply["accuracy"] == example.model.accuracy(weights, share.x_valid, share.y_valid)
    assert reply["samples"] == len(share.y_valid)
    assert len(example.rows) == 1


@pytest.mark.parametrize("looks", [0, 1, 4])
def test_train_stops_at_the_next_epoch_when_it_is_aborted(example, looks) -> None:
    signal = Signal(after=looks)
    reply = Site("site-1").do("train", task(), signal)
    assert reply.get_return_code() == ReturnCode.TASK_ABORTED
    assert signal.looks == looks + 1
    assert "weights" not in reply
    assert example.rows == []


def test_an_unknown_task_is_said_to_be_unknown(example) -> None:
    assert Site("site-1").do("dance", task()).get_return_code() == ReturnCode.TASK_UNKNOWN


BAD = {
    "no weights": ("validate", {}),
    "another model's weights": ("train", {"weights": {"w": np.zeros(30)}}),
    "weights of another shape": ("train", {"weights": {"coef": np.zeros(29), "intercept": np.zeros(1)}}),
    "weights that are no numbers": ("train", {"weights": {"coef": np.full(30, np.nan), "intercept": np.zeros(1)}}),
    "weights of another kind": ("train", {"weights": [1.0]}),
    "no such site": ("train", {"site_index": 3}),
    "no round": ("train", {"round": None}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_task_with_bad_data_is_answered_and_not_done(example, case) -> None:
    name, other = BAD[case]
    assert Site("site-1").do(name, task(**other)).get_return_code() == ReturnCode.BAD_TASK_DATA
    assert example.rows == []


# --- the controller ---------------------------------------------------------------------------------------------


def test_every_round_is_told_with_the_weights_that_it_gave(example) -> None:
    told = []
    job = FakeJob(SITES)
    result = example.fedavg.FedAvg(4, lambda row, weights: told.append((row, weights))).run(job)
    assert [row for row, _ in told] == result.history
    assert [row.number for row in result.history] == [1, 2, 3, 4]
    assert told[-1][1] is result.weights
    assert all(row.answered == SITES and row.failed == {} and row.seconds > 0 for row in result.history)
    assert [row.loss for row in result.history] == sorted((row.loss for row in result.history), reverse=True)
    assert job.asked == ["train"] * 4 + ["validate"]


def test_a_site_counts_as_often_as_it_has_samples(example) -> None:
    def fixed(site: str, name: str, reply: Shareable) -> Shareable:
        value = float(SITES.index(site))
        samples = [1, 2, 5][SITES.index(site)]
        return Shareable({"weights": {"w": np.full(2, value)}, "samples": samples, "loss": value, "accuracy": 0.5})

    result = example.fedavg.FedAvg(1).run(FakeJob(SITES, fixed))
    assert result.weights["w"].tolist() == [1.5, 1.5]
    assert (result.history[0].loss, result.history[0].accuracy) == (1.5, 0.5)


FAILURES = {
    "fails": (make_reply(ReturnCode.EXECUTION_EXCEPTION), "EXECUTION_EXCEPTION"),
    "does not answer": (None, "TIMEOUT"),
    "sends nothing": (Shareable(), "EXECUTION_RESULT_ERROR"),
    "sends a NaN": ({"weights": {"coef": np.full(30, np.nan), "intercept": np.zeros(1)}}, "EXECUTION_RESULT_ERROR"),
    "sends another shape": ({"weights": {"coef": np.zeros(3), "intercept": np.zeros(1)}}, "EXECUTION_RESULT_ERROR"),
    "sends no samples": ({"samples": 0}, "EXECUTION_RESULT_ERROR"),
    "sends samples without end": ({"samples": float("inf")}, "EXECUTION_RESULT_ERROR"),
    "sends a loss that is none": ({"loss": float("inf")}, "EXECUTION_RESULT_ERROR"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_round_survives_a_site_that(example, case) -> None:
    sent, code = FAILURES[case]
    seen = iter(range(100))

    def spoil(site: str, name: str, reply: Shareable) -> Shareable | None:
        if site != "site-2" or name != "train" or next(seen) != 1:
            return reply
        return sent if sent is None or isinstance(sent, Shareable) else Shareable({**reply, **sent})

    result = example.fedavg.FedAvg(3).run(FakeJob(SITES, spoil))
    assert [row.failed for row in result.history] == [{}, {"site-2": code}, {}]
    assert [len(row.answered) for row in result.history] == [3, 2, 3]
    assert example.baselines.accuracy(result.weights) > 0.85


def away(*names: str) -> Callable[[str, str, Shareable], Shareable | None]:
    return lambda site, name, reply: None if site in names else reply


def test_fewer_than_half_of_the_sites_end_the_training_and_each_failure_is_told(example) -> None:
    with pytest.raises(
        example.fedavg.TooFewReplies, match="round 1: 1 sites answered, 2 must; site-1: TIMEOUT, site-3"
    ):
        example.fedavg.FedAvg(2).run(FakeJob(SITES, away("site-1", "site-3")))


def test_half_of_the_sites_are_enough_unless_more_are_asked_for(example) -> None:
    example.fedavg.FedAvg(1).run(FakeJob(SITES[:2], away("site-1")))
    example.fedavg.FedAvg(1, min_replies=1).run(FakeJob(SITES, away("site-1", "site-2")))
    with pytest.raises(example.fedavg.TooFewReplies):
        example.fedavg.FedAvg(1, min_replies=3).run(FakeJob(SITES, away("site-1")))


def test_without_sites_or_rounds_there_is_nothing_to_train(example) -> None:
    with pytest.raises(example.fedavg.TooFewReplies, match="there are none"):
        example.fedavg.FedAvg(1).run(FakeJob([]))
    with pytest.raises(ValueError, match="rounds"):
        example.fedavg.FedAvg(0)


def test_a_site_that_does_not_validate_costs_the_training_nothing(example) -> None:
    answers = {"site-1": Shareable({"accuracy": None}), "site-2": make_reply(ReturnCode.ERROR)}
    job = FakeJob(SITES, lambda site, name, reply: answers.get(site, reply) if name == "validate" else reply)
    assert example.fedavg.FedAvg(1).run(job).accuracy.keys() == {"site-3"}


# --- the report -------------------------------------------------------------------------------------------------


def printed(show: Callable[[Console], Any], **options: Any) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=80, **options))
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_rounds_are_shown_as_they_come_and_whole_at_the_end(example, terminal) -> None:
    def show(console: Console) -> None:
        with example.report.LiveRounds(12, example.baselines.accuracy, console) as live:
            example.fedavg.FedAvg(12, live.add).run(FakeJob(SITES, away("site-2")))

    shown = printed(show, force_terminal=terminal, height=10)
    assert "12/12" in shown
    assert "2 of 3" in shown
    assert "site-2: TIMEOUT" in shown
    assert shown.count("ROUND") > 12 if terminal else shown.count("ROUND") == 1
    assert all(f"{number}/12" in shown[shown.rindex("ROUND") :] for number in range(1, 13))


def test_the_last_table_has_each_site_alone_the_federation_and_all_in_one_place(example) -> None:
    compared = example.baselines.baselines(["site-1", "[b]2"], 1)
    lines = printed(lambda console: example.report.results(compared, 0.9437, console)).splitlines()
    assert lines[2].split() == ["[b]2", "alone", "97", "5%", f"{compared.alone[1].accuracy:.1%}"]
    assert lines[3].split() == ["federated", "341", "37%", "94.4%"]
    assert lines[4].split()[:5] == ["all", "in", "one", "place", "341"]
    assert "142 held-out rows" in lines[5]


def test_what_each_site_sent_is_shown_by_target_and_topic_with_its_sum(example) -> None:
    rows = [
        {"target": "server", "topic": "task_result", "job": "job-1", "messages": 11, "bytes": 4096},
        {"target": "server", "topic": "[red]heartbeat", "job": "", "messages": 2, "bytes": 100},
    ]
    shown = [
        line.split() for line in printed(lambda c: example.report.sent({"site-1": rows, "s2": []}, c)).splitlines()
    ]
    assert shown[1] == ["site-1", "server", "task_result", "job-1", "11", "4.1", "kB"]
    assert shown[2] == ["site-1", "server", "[red]heartbeat", "2", "100", "bytes"]
    assert shown[3] == ["site-1", "in", "all", "13", "4.2", "kB"]
    assert shown[4] == ["s2", "in", "all", "0", "0", "bytes"]
