"""What runs a site for good: alerts and dashboard ask for metrics that there are, the unit leaves apps alone."""

from __future__ import annotations

import configparser
import itertools
import json
import logging
import re
from pathlib import Path

import pytest
import yaml

from engine import logs
from engine.jobs import Jobs
from engine.lifecycle import State, compiled_events
from engine.status.pages.diagram import GROUPS, PLACES, diagram, taken
from engine.status.pages.drawing import time_line
from events.envelope import Event
from events.read import read_job
from tests.histories import body
from tests.support import fake_store, new_call

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SOURCE = (ROOT / "engine" / "status" / "metrics.py").read_text()


def lived(*types: str) -> list[Event]:
    """The events of a job that went this way."""
    jobs = Jobs(fake_store())
    for kind in types:
        jobs.transact(new_call(), "j", lambda state, kind=kind: [body(kind)])  # type: ignore[misc]
    return list(read_job(jobs.store, "j"))


def exposed() -> set[str]:
    """Names of metrics as Prometheus has them."""
    found = set()
    for kind, name in re.findall(
        r"(CounterMetricFamily|GaugeMetricFamily|HistogramMetricFamily|SummaryMetricFamily|Counter|Gauge|Histogram)"
        r'\(\s*f?"(flightlog_[a-z_{}]+)"',
        SOURCE,
    ):
        for full in [name.replace("{who}", who) for who in ("caretaker", "reconciler")] if "{" in name else [name]:
            if kind.startswith("Counter"):
                found.add(f"{full}_total")
            elif kind.startswith(("Histogram", "Summary")):
                found |= {f"{full}_bucket", f"{full}_sum", f"{full}_count"}
            else:
                found.add(full)
    return found


def test_alerts_ask_for_metrics_that_there_are_and_say_what_to_do() -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    for rule in rules:
        asked = set(re.findall(r"flightlog_[a-z_]+", rule["expr"]))
        assert asked, rule["alert"]
        assert asked <= exposed(), (rule["alert"], asked - exposed())
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]
    told = " ".join(rule["alert"] for rule in rules)
    for what in ("Stuck", "Fail", "NoCaretaker", "Memory"):
        assert what in told


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    board = json.loads((DEPLOY / "grafana" / "flightlog.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"flightlog_[a-z_]+", target["expr"])
    }
    assert asked <= exposed(), asked - exposed()
    assert len(board["panels"]) > 10


def test_the_unit_ends_the_engine_alone_and_leaves_apps_running() -> None:
    """L5: an app survives a restart of its site's service."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "flightlog@.service")
    service = unit["Service"]
    assert service["KillMode"] == "process"
    assert " up --site %i " in service["ExecStart"]
    assert service["Restart"] == "always"
    assert service["RuntimeDirectoryPreserve"] == "yes"


def test_the_signers_unit_runs_as_another_user_than_the_site_and_signs_for_it() -> None:
    units = {}
    for name in ("flightlog@.service", "flightlog-signer@.service"):
        units[name] = configparser.ConfigParser(strict=False, interpolation=None)
        units[name].optionxform = str  # type: ignore[assignment,method-assign]
        units[name].read(DEPLOY / name)
    site, signer = (unit["Service"] for unit in units.values())
    assert site["User"] != signer["User"]
    assert signer["ExecStart"].endswith(f"--for {site['User']}")
    assert signer["StateDirectoryMode"] == "0700"


def test_the_image_runs_as_nobody_special_and_has_a_health_check() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER flightlog$", text, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", text, re.MULTILINE)
    assert "--require-hashes" in text
    for name in re.findall(r"^COPY (requirements\S+)", text, re.MULTILINE):
        assert (ROOT / name).exists()


def test_a_line_of_a_log_is_json_with_the_call_that_it_is_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logging.getLogger().handlers[:]
    monkeypatch.setenv("FLIGHTLOG_LOG_FORMAT", "json")
    try:
        logs.set_up()
        with logs.about("call-1", "first-1"):
            logging.getLogger("flightlog.test").warning("it is %s", "so")
        logging.getLogger("flightlog.test").warning("of no call")
    finally:
        logging.getLogger().handlers[:] = before
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["message"], first["level"], first["logger"]) == ("it is so", "WARNING", "flightlog.test")
    assert (first["call_id"], first["correlation"]) == ("call-1", "first-1")
    assert "call_id" not in second


def test_every_state_has_a_place_in_the_picture_and_no_two_share_one() -> None:
    assert set(PLACES) == set(State)
    assert len(set(PLACES.values())) == len(PLACES)


def test_the_path_that_was_taken_is_lit() -> None:
    life = lived("DeployRequested", "DeploySucceeded")
    ways, here = taken(life)
    assert ways == [("new", "deploying"), ("deploying", "deployed")]
    drawn = diagram(ways, here)
    assert [node.name for node in drawn.nodes if node.kind == "here"] == ["deployed"]
    assert sum(edge.kind == "lit" for edge in drawn.edges) == 2


def test_the_picture_has_every_way_of_the_table_and_no_other() -> None:
    ways = set()
    for edge in diagram().edges:
        source, _, rest = edge.events.partition(" → ")
        there, _, events = rest.partition(": ")
        sources = [state.value for state in GROUPS[source]] if source in GROUPS else [source]
        ways |= {(state, there, event) for state in sources for event in events.split(", ")}
    table = compiled_events()
    assert ways >= {
        (source, there, event) for event, row in table.items() for source, there in row.items() if source != there
    }
    pairs = {(source, there) for row in table.values() for source, there in row.items()}
    assert {(source, there) for source, there, _ in ways} <= pairs


def test_no_two_boxes_of_the_picture_overlap() -> None:
    drawn = diagram()
    boxes = sorted(drawn.nodes, key=lambda box: box.x)
    for one, other in itertools.combinations(boxes, 2):
        apart = one.x + one.width < other.x or one.y + one.height < other.y or other.y + other.height < one.y
        assert apart, f"{one.name} and {other.name}"
    assert all(box.x >= 0 and box.y >= 0 for box in (*drawn.groups, *drawn.nodes))
    assert all(box.x + box.width <= drawn.width and box.y + box.height <= drawn.height for box in drawn.groups)


def test_a_bar_goes_from_an_intent_to_its_outcome_and_an_open_one_to_now() -> None:
    life = lived("DeployRequested", "DeploySucceeded", "StartRequested")
    line = time_line(life, int(life[-1].ms) + 5000)
    assert line is not None
    assert [(bar.row, bar.kind) for bar in line.bars] == [("deploy", "good"), ("launch", "open")]
    assert line.bars[1].seconds == 5
    assert all(0 <= bar.x <= bar.x + bar.width <= line.width for bar in line.bars)
    assert time_line([], 0) is None
