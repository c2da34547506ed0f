"""The status API: what it says is what the record says, now and at any moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from engine import present
from engine.actors import acting_as
from engine.calls.deploy import deploy
from engine.errors import JobLive
from engine.fold import JobState, apply, fact_of
from engine.jobs import Loaded
from engine.lifecycle import OF_THE_RECORD
from engine.record.sealing import seal_now
from events.bodies.record import ReviewRecorded
from events.envelope import iso
from events.read import read, read_job
from tests.histories import body
from tests.status.served import Served, over_unix, served
from tests.support import SITE, in_state, kill, new_call, processes_with, until, zip_of

pytestmark = pytest.mark.real
TURN = "while [ ! -e $FLIGHTLOG_RUN_DIR/rest ]; do :; done"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("status")
    with served(folder / "ws", workers=2, usage_every=0.5) as up:
        metrics = "import json,os; f=open(os.environ['FLIGHTLOG_RUN_DIR']+'/metrics.jsonl','w'); "
        metrics += (
            "[f.write(json.dumps({'round': n, 'loss': 1/(n+1)})+chr(10)) for n in range(3)]; f.write('rubbish\\n')"
        )
        up.run("well", folder, "python3", "-c", metrics + "; print('one\\ntwo\\nthree')")
        up.run("bad", folder, "sh", "-c", "echo lost it; exit 3", wait="failed")
        up.engine.start_app("well", None)
        in_state(up.engine.site.jobs, "well", "finished")
        up.run("busy", folder, "sh", "-c", f"echo here; {TURN}; sleep 600", wait="running")
        up.fed()
        yield up
    for pid in processes_with(str(folder)):
        kill(pid)


def test_a_job_is_shown_as_the_command_line_shows_it_with_its_attempts(site: Served) -> None:
    shown = site.get("/v1/jobs/well")
    expected = present.job("well", site.engine.site.jobs.load("well"), site.engine.site.workspace)
    assert {name: shown[name] for name in expected} == json.loads(json.dumps(expected))
    assert [one["attempt"] for one in shown["attempts"]] == [1, 2]
    assert {one["state"] for one in shown["attempts"]} == {"finished"}
    assert "start_app" in shown["allowed"]
    assert shown["refused"]["abort_app"]["code"] == "ALREADY_STOPPED"
    assert "well is finished" in shown["refused"]["abort_app"]["reason"]


def test_a_job_as_it_was_is_the_replay_at_every_version_position_and_time(site: Served) -> None:
    events = list(read_job(site.engine.site.jobs.store, "well"))
    state = JobState()
    for event in events:
        state = apply(state, fact_of(event))
        shown = site.get("/v1/jobs/well", at=str(event.version))
        state.seen_with(event.vault)
        expected = present.job("well", Loaded(state, event.version, 0, event.position))
        for name in set(expected) - {"revision"}:
            assert shown[name] == json.loads(json.dumps(expected[name])), (event.type, name)
        assert shown["event"] == event.as_dict()
        assert site.get("/v1/jobs/well", at=event.position)["version"] == event.version
        last = max(other.version for other in events if other.ms == event.ms)
        assert site.get("/v1/jobs/well", at=iso(event.ms))["version"] == last
        assert len(shown["attempts"]) == state.attempt
    assert shown["revision"] == site.get("/v1/jobs/well")["revision"]


def test_an_attempt_as_it_was_has_no_end_that_was_still_to_come(site: Served) -> None:
    events = {event.type: event for event in read_job(site.engine.site.jobs.store, "bad")}
    then = site.get("/v1/jobs/bad", at=str(events["AppStarted"].version))["attempts"][0]
    assert (then["state"], then["exit_code"], then["ended"]) == ("running", None, None)
    now = site.get("/v1/jobs/bad")["attempts"][0]
    assert (now["state"], now["exit_code"]) == ("failed", 3)


def test_attempts_as_they_were_grow_with_each_of_their_events(site: Served) -> None:
    for event in read_job(site.engine.site.jobs.store, "well"):
        attempts = site.get("/v1/jobs/well", at=str(event.version))["attempts"]
        if event.type == "StartRequested":
            one = attempts[-1]
            assert (one["state"], one["pid"], one["spawned"], one["started"]) == ("starting", None, None, None)
        elif event.type == "AppSpawned":
            assert (attempts[-1]["state"], attempts[-1]["pid"]) == ("starting", event.body["pid"])
            assert attempts[-1]["started"] is None
        elif event.type == "AppStarted":
            assert (attempts[-1]["state"], attempts[-1]["ended"]) == ("running", None)


def test_jobs_are_listed_by_state_app_actor_prefix_and_time(site: Served) -> None:
    def ids(**params: str) -> list[str]:
        return [job["job_id"] for job in site.get("/v1/jobs", **params)["items"]]

    assert ids() == ["busy", "well", "bad"]
    assert ids(state="failed") == ["bad"]
    assert ids(sort="created") == ["well", "bad", "busy"]
    assert ids(sort="-id") == ["well", "busy", "bad"]
    assert ids(prefix="b") == ["bad", "busy"]
    assert set(ids(app="app")) == {"busy", "well", "bad"}
    assert ids(app="another") == []
    assert set(ids(actor=site.get("/v1/jobs/well")["asked_by"])) == {"busy", "well", "bad"}
    assert ids(actor="nobody") == []
    assert ids(until="2020-01-01") == []
    assert set(ids(since="1h")) == {"busy", "well", "bad"}
    assert set(ids(state="failed", prefix="w")) == set()


@pytest.mark.parametrize("sort", ["-since", "since", "-created", "created", "id", "-id"])
def test_pages_of_one_show_each_job_once_in_order(site: Served, sort: str) -> None:
    whole = [job["job_id"] for job in site.get("/v1/jobs", sort=sort)["items"]]
    found, cursor = [], None
    while True:
        page = site.get("/v1/jobs", sort=sort, limit=1, **({"cursor": cursor} if cursor else {}))
        found += [job["job_id"] for job in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == whole


def test_events_are_paged_in_both_directions_without_a_gap_or_a_double(site: Served) -> None:
    def pages(path: str, **params: str) -> list[str]:
        found, cursor = [], None
        while True:
            page = site.get(path, limit=3, **params, **({"cursor": cursor} if cursor else {}))
            found += [event["position"] for event in page["items"]]
            cursor = page["next"]
            if cursor is None:
                return found

    job = [event.position for event in read_job(site.engine.site.jobs.store, "well")]
    assert pages("/v1/jobs/well/events") == job
    assert pages("/v1/jobs/well/events", order="desc") == job[::-1]
    end = job[-1]
    whole = [e.position for e in read(site.engine.site.jobs.store, upto=end) if e.type != "ReadsObserved"]
    assert [position for position in pages("/v1/events") if _seq(position) <= _seq(end)] == whole
    middle = job[len(job) // 2]
    page = site.get("/v1/jobs/well/events", cursor=middle, limit=2)
    assert page["items"][0]["position"] == job[len(job) // 2 + 1]
    back = site.get("/v1/jobs/well/events", cursor=page["previous"], order="desc", limit=1)
    assert back["items"][0]["position"] == middle


def test_events_are_found_by_type_actor_correlation_and_text(site: Served) -> None:
    spawned = site.get("/v1/events", type="AppSpawned")["items"]
    assert {event["type"] for event in spawned} == {"AppSpawned"}
    first = spawned[0]
    chain = site.get("/v1/events", correlation=first["correlation"])["items"]
    assert {event["correlation"] for event in chain} == {first["correlation"]}
    assert "StartRequested" in {event["type"] for event in chain}
    worker = site.get("/v1/jobs/well/events", actor="flightlog:worker")["items"]
    assert {event["actor"]["id"] for event in worker} == {"flightlog:worker"}
    assert site.get("/v1/events", q='exit_code":3')["items"][0]["subject"] == "job/bad"


def test_calls_about_a_job_that_never_was_are_found_under_its_id(site: Served) -> None:
    site.engine.abort_app("never-was")
    found = site.get("/v1/jobs/never-was/events")["items"]
    assert [event["type"] for event in found] == ["CallRefused"]


def test_output_comes_whole_by_lines_by_range_and_as_it_grows(site: Served) -> None:
    path = site.url + "/v1/jobs/well/log"
    assert httpx.get(path).text == "one\ntwo\nthree\n"
    assert httpx.get(path, params={"attempt": 1, "lines": 2}).text == "two\nthree\n"
    part = httpx.get(path, headers={"Range": "bytes=4-6"})
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "two", "bytes 4-6/14")
    assert httpx.get(path, headers={"Range": "bytes=-6"}).text == "three\n"
    assert httpx.get(path, params={"follow": True}).text == "one\ntwo\nthree\n"
    with httpx.stream("GET", site.url + "/v1/jobs/busy/log", params={"follow": True}, timeout=20) as answer:
        assert next(answer.iter_text()) == "here\n"


def test_metrics_of_an_app_come_as_rows_and_what_is_none_is_counted(site: Served) -> None:
    found = site.get("/v1/jobs/well/metrics")
    assert [row["round"] for row in found["items"]] == [0, 1, 2]
    assert found["broken"] == 1


def test_what_an_app_uses_is_sampled_while_it_runs(site: Served) -> None:
    def rows() -> list[dict[str, float]]:
        return [row for row in site.get("/v1/jobs/busy/usage")["items"] if row["cpu"] is not None]

    # It does nothing but turn, until it is told to rest.
    found = until(lambda: len(seen := rows()) >= 2 and max(row["cpu"] for row in seen) > 0.2 and seen, 30)
    (site.workspace / "busy" / "rest").touch()
    assert found[-1]["rss"] > 100_000
    assert found[-1]["processes"] >= 1


def test_the_site_its_workers_queues_and_table_are_shown(site: Served) -> None:
    (one,) = site.get("/v1/sites")["items"]
    assert (one["site"], one["up"], one["jobs"]["running"]) == (SITE, True, 1)
    workers = site.get("/v1/workers")
    assert {worker["kind"] for worker in workers["workers"]} == {"work", "io"}
    assert workers["reconciler"]
    assert workers["collector"]
    kinds = {row["kind"]: row["open"] for row in site.get("/v1/queues")["open_work"]}
    assert kinds["app"] == 1
    table = site.get("/v1/lifecycle")
    assert table["events"]["AppFinished"]["running"] == "finished"
    assert table["commands"]["start_app"]["deploying"] == "-DEPLOY_IN_PROGRESS"


def test_it_is_alive_ready_and_says_its_version(site: Served) -> None:
    assert site.get("/livez") == {"alive": True}
    ready = site.get("/readyz")
    assert ready["ready"], ready
    assert {check["check"] for check in ready["checks"]} >= {"record", "fabric", "caretaker", "reconciler"}
    assert site.get("/version")["site"] == SITE


def test_metrics_say_what_happened(site: Served) -> None:
    text = httpx.get(site.url + "/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['flightlog_events_total{type="AppFinished"}']) == 2
    assert float(values['flightlog_jobs{state="running"}']) == 1
    assert float(values['flightlog_work_total{kind="app",outcome="failed"}']) == 1
    assert float(values['flightlog_work_seconds_count{kind="deploy"}']) == 3
    assert float(values['flightlog_open_work{kind="app"}']) == 1
    assert float(values["flightlog_caretaker_up"]) == 1
    assert float(values["flightlog_append_seconds_count"]) > 10


def test_the_unix_socket_knows_its_peer_and_the_cli_asks_there(site: Served) -> None:
    with over_unix(site.workspace) as client:
        answer = client.post("/v1/jobs/bad/start", json={"reason": "once more"}, headers={"Prefer": "wait=20"})
        assert answer.status_code == 200, answer.text
    event = [e for e in read_job(site.engine.site.jobs.store, "bad") if e.type == "StartRequested"][-1]
    actor = event.as_dict()["actor"]
    assert (actor["auth"], actor["via"], actor["kind"]) == ("os-uid", "api", "person")
    assert event.body["reason"] == "once more"


def test_a_refusal_says_the_same_words_and_code_everywhere(site: Served, tmp_path: Path) -> None:
    with pytest.raises(JobLive) as refused, acting_as("somebody"):
        deploy(site.engine.core, "app", "busy", {}, SITE, zip_of(tmp_path, "true"))
    with site.client(site.operator) as client:
        app = zip_of(tmp_path, "true")
        answer = client.put("/v1/jobs/busy/app", content=app, headers={"Content-Type": "application/zip"})
    found = answer.json()
    assert (found["code"], found["detail"], found["fix"]) == (
        refused.value.code,
        refused.value.what,
        refused.value.fix,
    )
    assert found["state"] == "running"
    assert "abort_app" in found["allowed"]


def _seq(position: str) -> int:
    return int(position.partition("-")[2])


def test_the_audit_says_how_far_the_record_can_be_trusted_and_verifies_in_the_background(site: Served) -> None:
    seal_now(site.engine.site)
    store = site.engine.site.jobs.store
    until_ = next(read(store)).position
    site.engine.site.jobs.note(new_call(), [ReviewRecorded(until=until_, note="nothing unusual")])
    with site.client(site.operator) as client:
        assert client.post("/audit/verify", headers={"Origin": site.url}).status_code == 303
    told = until(lambda: (found := site.get("/v1/audit"))["verified"] and not found["verifying"] and found, 30)
    assert told["sealed"] > 5
    assert told["witnessed"] == 0
    assert told["verified"]["body"]["verdict"] == "SITE-SIGNED"
    assert told["verified"]["body"]["problems"] == 0
    assert told["reviewed"]["body"]["note"] == "nothing unusual"
    assert told["reviewed"]["actor"]["id"] == "tester"
    assert told["verified"]["actor"] | {"id": "olga", "auth": "token", "via": "api"} == told["verified"]["actor"]
    with site.client(site.viewer) as client:
        page = client.get("/audit").text
    assert "nothing unusual" in page
    assert "SITE-SIGNED" in page
    assert "Verify now" not in page, "a viewer looks"


def test_every_kind_of_act_on_the_record_can_be_shown(site: Served) -> None:
    for kind in sorted(OF_THE_RECORD):
        about = "well" if kind in ("HoldSet", "HoldLifted", "Erased") else None
        site.engine.site.jobs.note(new_call(), [body(kind)], about)
    site.fed()
    with site.client(site.viewer) as client:
        page = client.get("/audit")
    assert page.status_code == 200
    for kind in OF_THE_RECORD:
        assert kind in page.text


def test_a_disclosed_loss_stays_on_the_page_whatever_comes_after_it(site: Served) -> None:
    disclosed = site.engine.site.jobs.note(new_call(), [body("HistoryLost", reason="a failover")]).positions[0]
    for _ in range(6):
        site.engine.site.jobs.note(new_call(), [body("Verified")] * 50)
    site.fed()
    told = site.get("/v1/audit")
    assert disclosed in [one["position"] for one in told["losses"]]
    with site.client(site.viewer) as client:
        assert "a failover" in client.get("/audit").text
