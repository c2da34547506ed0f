"""Commands over HTTP: the engine's calls, by callers that are known, each once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from events.envelope import Event
from events.read import read, read_job
from tests.status.served import SLEEPER, Served, over_unix, problem, served
from tests.support import in_state, kill, processes_with, state_of, types_of, until, zip_of

pytestmark = pytest.mark.real
ZIP = {"Content-Type": "application/zip"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("commands")
    with served(folder / "ws", workers=2) as up:
        yield up
    for pid in processes_with(str(folder)):
        kill(pid)


def test_a_job_lives_its_life_over_http(site: Served, tmp_path: Path) -> None:
    with site.client(site.operator) as client:
        put = client.put(
            "/v1/jobs/life/app",
            content=zip_of(tmp_path, *SLEEPER),
            params={"name": "sleeper", "meta": '{"scope": "a"}', "reason": "first run"},
            headers={**ZIP, "Prefer": "wait=20"},
        )
        assert put.status_code == 200, put.text
        assert (put.json()["state"], put.json()["app"], put.json()["reason"]) == ("deployed", "sleeper", "first run")
        assert put.headers["preference-applied"] == "wait"
        started = client.post("/v1/jobs/life/start", json={"reason": "go"}, headers={"Prefer": "wait=20"})
        assert (started.status_code, started.json()["state"]) == (200, "running")
        answer = client.post("/v1/jobs/life/abort", json={"reason": "enough", "grace": 0.5})
        assert answer.status_code == 202
        assert answer.headers["location"] == "/v1/jobs/life"
        in_state(site.engine.site.jobs, "life", "aborted")
        gone = client.post("/v1/jobs/life/delete", headers={"Prefer": "wait=20"})
        assert (gone.status_code, gone.json()["state"]) == (200, "deleted")
    asked = [e for e in read_job(site.engine.site.jobs.store, "life") if e.type.endswith("Requested")]
    assert {e.type: e.body["reason"] for e in asked} == {
        "DeployRequested": "first run",
        "StartRequested": "go",
        "AbortRequested": "enough",
        "DeleteRequested": None,
    }
    assert all(e.as_dict()["actor"] == {"id": "olga", "kind": "person", "auth": "token", "via": "api"} for e in asked)


def test_without_a_preference_it_is_on_the_record_and_not_waited_for(site: Served, tmp_path: Path) -> None:
    with site.client(site.operator) as client:
        answer = client.put("/v1/jobs/later/app", content=zip_of(tmp_path, "true"), headers=ZIP)
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers
    in_state(site.engine.site.jobs, "later", "deployed")


def test_the_same_key_is_the_same_call_and_another_call_under_it_is_refused(site: Served, tmp_path: Path) -> None:
    """L4: twice is once, over HTTP too, at the same time too."""
    app = zip_of(tmp_path, *SLEEPER)
    with site.client(site.operator) as client:
        client.put("/v1/jobs/once/app", content=app, headers={**ZIP, "Prefer": "wait=20"})

        def start(number: int) -> int:
            headers = {"Idempotency-Key": "key-of-the-one-start"}
            return client.post("/v1/jobs/once/start", json={}, headers=headers).status_code

        with ThreadPoolExecutor(8) as many:
            assert set(many.map(start, range(8))) == {202}
        assert types_of(site.engine.site.jobs.store, "once").count("StartRequested") == 1
        headers = {"Idempotency-Key": "key-of-the-one-start"}
        other = client.post("/v1/jobs/later/start", json={}, headers=headers)
        problem(other, 409, "CALL_ID_REUSED")
        client.post("/v1/jobs/once/abort", json={"grace": 0})


def test_a_keyed_command_may_be_the_very_first_and_its_key_is_its_own(tmp_path: Path) -> None:
    with served(tmp_path / "ws") as up, up.client(up.operator) as client:
        app = zip_of(tmp_path / "app", "true")
        headers = {**ZIP, "Prefer": "wait=20", "Idempotency-Key": "the-first-key-of-all"}
        answers = [client.put("/v1/jobs/first/app", content=app, headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        events = list(read(up.engine.site.jobs.store))
        opened = [event.rest() for event in events if event.type == "EngineOpened"]
        assert not any("the-first-key-of-all" in json.dumps(one) for one in opened)
        assert [event.type for event in events].count("DeployRequested") == 1


def test_a_repeat_waits_for_the_outcome_of_the_first_and_nobody_elses_answers_wait_for_it(
    site: Served, tmp_path: Path
) -> None:
    app = zip_of(tmp_path, *SLEEPER)
    with site.client(site.operator) as client:
        client.put("/v1/jobs/twin/app", content=app, headers={**ZIP, "Prefer": "wait=20"})
        headers = {"Idempotency-Key": "key-of-the-twins", "Prefer": "Wait=20"}

        def start(number: int) -> tuple[int, str]:
            answer = client.post("/v1/jobs/twin/start", json={}, headers=headers)
            return answer.status_code, answer.json()["state"]

        with ThreadPoolExecutor(4) as many:
            assert set(many.map(start, range(4))) == {(200, "running")}
        client.post("/v1/jobs/twin/abort", json={"grace": 0})


def test_commands_that_wait_keep_nobody_else_waiting_and_are_not_withdrawn(tmp_path: Path) -> None:
    with served(tmp_path / "ws", workers=2) as up, up.client(up.operator) as client:
        # One that comes up only later would not be stopped, and do the work.
        workers = until(lambda: [w["pid"] for w in up.get("/v1/workers")["workers"] if w["kind"] == "work"])
        for pid in workers:
            kill(pid, 19)
        try:
            app = zip_of(tmp_path / "app", "true")

            def put(number: int) -> int:
                headers = {**ZIP, "Prefer": "wait=3"}
                return client.put(f"/v1/jobs/many-{number}/app", content=app, headers=headers).status_code

            with ThreadPoolExecutor(45) as many:
                answers = [many.submit(put, number) for number in range(45)]
                until(lambda: len(up.get("/v1/jobs", limit=100)["items"]) == 45, 20)
                assert not any(answer.done() and answer.result() != 202 for answer in answers)
                assert up.get("/readyz")["ready"]
            assert {answer.result() for answer in answers} == {202}
        finally:
            for pid in workers:
                kill(pid, 18)
        for number in range(45):
            in_state(up.engine.site.jobs, f"many-{number}", "deployed", seconds=60)


def test_a_start_that_fails_answers_with_its_error(site: Served, tmp_path: Path) -> None:
    with site.client(site.operator) as client:
        client.put("/v1/jobs/gone/app", content=zip_of(tmp_path, "true"), headers={**ZIP, "Prefer": "wait=20"})
        (site.workspace / "gone").rename(tmp_path / "was-gone")
        answer = client.post("/v1/jobs/gone/start", headers={"Prefer": "wait=20"})
    assert answer.status_code >= 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    shown = site.get("/v1/jobs/gone")
    assert (shown["state"], shown["error"].partition(":")[0]) == ("launch_failed", answer.json()["code"])
    failed = next(e for e in read_job(site.engine.site.jobs.store, "gone") if e.type == "LaunchFailed")
    assert answer.json()["recorded"] == failed.position
    assert "CallRefused" not in types_of(site.engine.site.jobs.store, "gone")  # it was not refused: it failed


def test_a_revision_that_is_not_the_jobs_any_more_is_refused_and_recorded(site: Served, tmp_path: Path) -> None:
    app = zip_of(tmp_path, *SLEEPER)
    with site.client(site.operator) as client:
        put = client.put("/v1/jobs/seen/app", content=app, headers={**ZIP, "Prefer": "wait=20"})
        etag = put.headers["etag"]
        assert etag == client.get("/v1/jobs/seen").headers["etag"]
        started = client.post("/v1/jobs/seen/start", headers={"If-Match": etag, "Prefer": "wait=20"})
        assert started.status_code == 200
        found = problem(client.post("/v1/jobs/seen/abort", headers={"If-Match": etag}), 412, "REVISION_CONFLICT")
        assert found["state"] == "running"
        assert found["recorded"]
        assert state_of(site.engine.site.jobs, "seen").state == "running"
        now = client.get("/v1/jobs/seen").headers["etag"]
        assert client.post("/v1/jobs/seen/abort", json={"grace": 0}, headers={"If-Match": now}).status_code == 202
    assert "CallRefused" in types_of(site.engine.site.jobs.store, "seen")


def test_what_the_state_forbids_is_refused_with_what_it_allows(site: Served, tmp_path: Path) -> None:
    with site.client(site.operator) as client:
        client.put("/v1/jobs/rest/app", content=zip_of(tmp_path, "true"), headers={**ZIP, "Prefer": "wait=20"})
        found = problem(client.post("/v1/jobs/rest/abort"), 409, "NOT_STARTED")
        assert set(found["allowed"]) == {"deploy_app", "start_app", "delete_run"}
        problem(client.post("/v1/jobs/nobody/start"), 404, "JOB_UNKNOWN")
        problem(client.post("/v1/jobs/nobody/abort-task"), 404, "JOB_UNKNOWN")
        problem(client.post("/v1/jobs/rest/abort-task"), 409, "NOT_LIVE")
        problem(client.post("/v1/jobs/rest/abort", json={"lost": True}), 409, "NOT_LIVE")


def test_who_may_only_look_may_not_command_and_nobody_may_not_either(site: Served, tmp_path: Path) -> None:
    app = zip_of(tmp_path, "true")
    with site.client(site.viewer) as viewer, site.client() as nobody, site.client("fl_wrong") as wrong:
        found = problem(viewer.put("/v1/jobs/mine/app", content=app, headers=ZIP), 403, "NOT_AUTHORISED")
        assert "vera" in found["detail"]
        answer = nobody.post("/v1/jobs/rest/start")
        problem(answer, 401, "NOT_AUTHORISED")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        problem(wrong.get("/v1/jobs"), 401, "NOT_AUTHORISED")
        assert viewer.get("/v1/jobs").status_code == 200
        assert nobody.get("/v1/jobs").status_code == 200
    assert not site.engine.site.jobs.load("mine").known
    refused = until(lambda: [e for e in read(site.engine.site.jobs.store) if e.type == "CallRefused"])
    assert ("vera", "NOT_AUTHORISED") in [(e.as_dict()["actor"]["id"], e.body["code"]) for e in refused]


def test_a_token_that_was_taken_back_is_refused_from_then_on(site: Served) -> None:
    from engine.status.tokens import Tokens

    tokens = Tokens(site.engine.site.workspace)
    token = tokens.add("passing", "viewer")
    with site.client(token) as client:
        assert client.get("/v1/jobs").status_code == 200
        tokens.remove("passing")
        problem(client.get("/v1/jobs"), 401, "NOT_AUTHORISED")


def test_an_abort_over_http_works_with_the_record_away(tmp_path: Path) -> None:
    """L8: the order goes to disk and to the keepers at once, and enters the record when that is back."""
    with served(tmp_path / "ws", workers=2) as up:
        up.run("away", tmp_path, *SLEEPER, wait="running")
        with up.client(up.operator) as client:
            assert client.post("/v1/jobs/nobody/start").status_code == 404  # its engine is open
            record = next(server for server in up.engine.site.servers.embedded if server.role == "record")
            pid = record.pid()
            assert pid is not None
            kill(pid, 19)  # it stands still: nobody starts another one
            try:
                answer = client.post("/v1/jobs/away/abort", json={"reason": "now", "grace": 0.5})
                assert answer.status_code == 202, answer.text
                until(lambda: not processes_with(f"{tmp_path}/ws/away"), 20, "the app runs on")
            finally:
                kill(pid, 18)
        in_state(up.engine.site.jobs, "away", "aborted")
        asked = until(lambda: [e for e in read_job(up.engine.site.jobs.store, "away") if _by(e) == "olga"])
        assert asked[0].as_dict()["actor"]["auth"] == "token"  # the abort, or that it came after the end
    for left in processes_with(str(tmp_path)):
        kill(left)


def _by(event: Event) -> str:
    return str(event.as_dict()["actor"]["id"])


def test_over_the_unix_socket_no_token_is_needed(site: Served, tmp_path: Path) -> None:
    with over_unix(site.workspace) as client:
        put = client.put("/v1/jobs/near/app", content=zip_of(tmp_path, "true"), headers={**ZIP, "Prefer": "wait=20"})
        assert put.status_code == 200
    event = next(read_job(site.engine.site.jobs.store, "near"))
    assert event.as_dict()["actor"]["auth"] == "os-uid"


def test_reads_are_recorded_with_who_asked_folded(tmp_path: Path) -> None:
    with served(tmp_path / "ws", workers=2) as up:
        with up.client(up.viewer) as client:
            for _ in range(5):
                assert client.get("/v1/lifecycle").status_code == 200
            assert client.get("/v1/jobs/nobody").status_code == 404
        up.api.terminate()
        up.api.wait(15)
        seen = [
            (e.as_dict()["actor"]["id"], e.body["method"], e.body["result"], e.body["count"])
            for e in read(up.engine.site.jobs.store)
            if e.type == "ReadsObserved"
        ]
        # By the minute, and a minute may have passed in between.
        counts = [count for *what, count in seen if what == ["vera", "GET /v1/lifecycle", "ok"]]
        assert (sum(counts), len(counts) <= 2) == (5, True)
        assert ("vera", "GET /v1/jobs/{job_id}", "refused:404", 1) in seen
        types = [e.type for e in read(up.engine.site.jobs.store)]
        assert ("ApiOpened" in types, "ApiClosed" in types) == (True, True)
