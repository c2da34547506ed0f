"""Who says that a job has started or is over: its own process alone, whatever else claims to be it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.cell.cell import FabricCell
from engine.cell.message import CellChannel, CellReturnCode, Message
from engine.client_engine import ClientEngine
from engine.constants import ClientStatus
from engine.job.grant import Grant, new_run_key
from engine.shareable import Shareable
from engine.tasking import TASK_ID, TASK_NAME, TaskTopic
from tests.integration.test_apps import STARTED, ended
from tests.integration.test_aux import Since, since
from tests.integration.test_job_process import SLEEP, Peer, app, begin, events, job, of_job, peer, running, shared
from tests.support import SITE, in_state, opened, state_of, until, zip_of

__all__ = ["job", "peer", "shared", "since"]  # fixtures
_numbers = iter(range(10**6))


@contextmanager
def stranger(engine: ClientEngine, name: str = "") -> Iterator[FabricCell]:
    """A cell that anybody can have who reaches the fabric; by its name it says who it is."""
    cell = FabricCell(engine.site.servers.fabric_url, name or f"stranger-{next(_numbers)}").start()
    try:
        yield cell
    finally:
        cell.stop()


def says(cell: FabricCell, said: Any, timeout: float = 10.0) -> Message:
    return cell.send_request(CellChannel.CLIENT_MAIN, "notify_job_status", SITE, Message(payload=said), timeout)


def refused(since: Since) -> list[tuple[str, str, str]]:
    return [(e.subject, e.body["code"], e.rest()["actor"]["id"]) for e in since.of("CallRefused")]


def seen(engine: ClientEngine, job: str) -> dict[str, str]:
    """What a job's status is, without what counts refusals."""
    state = dict(state_of(engine.site.jobs, job))
    return {name: value for name, value in state.items() if name not in ("refusals", "messages_in")}


# -- by the engine's own call -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [ClientStatus.STARTED, ClientStatus.STOPPED])
def test_L9_a_status_that_nobody_signed_is_refused_for_a_job_that_signs(
    shared: ClientEngine, peer: Peer, since: Since, job: str, tmp_path: Path, status: ClientStatus
) -> None:
    with running(shared, job, app(tmp_path)):
        before = seen(shared, job)
        shared.notify_job_status(job, status)
        assert [(s, c) for s, c, _ in refused(since)] == [(f"job/{job}", "NOT_AUTHORISED")]
        assert seen(shared, job) == before
        assert peer.does(job, "echo", data=1)["data"] == 1


def test_L9_another_engine_on_the_workspace_cannot_say_it_either(
    shared: ClientEngine, since: Since, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path)), opened(shared.site.workspace.root) as beside:
        assert beside.role == "client"
        beside.notify_job_status(job, ClientStatus.STOPPED)
        assert [c for _, c, _ in refused(since)] == ["NOT_AUTHORISED"]
        assert state_of(shared.site.jobs, job).state == "running"


def test_L9_before_the_spawn_is_on_the_record_nobody_can_say_that_it_has_started(
    workspace: Path, tmp_path: Path
) -> None:
    with opened(workspace, start_timeout=5.0) as engine:
        assert engine.deploy_app("app", "job", {}, SITE, app(tmp_path)) == ""
        with engine.site.workspace.lock("job"):  # a worker has the launch, and waits
            begin_only(engine, "job")
            since = Since(engine)
            engine.notify_job_status("job", ClientStatus.STARTED)
            assert [c for _, c, _ in refused(since)] == ["NOT_AUTHORISED"]
            forged = Grant(job="job", attempt=1, server="server", run_key=new_run_key()[0], settings={})
            with stranger(engine) as cell:
                assert says(cell, forged.sign(2)).payload != "ok"
            assert state_of(engine.site.jobs, "job").state == "starting"
            assert "AppStarted" not in [e.type for e in since.all()]
        in_state(engine.site.jobs, "job", "running")
        engine.abort_app("job")


def begin_only(engine: ClientEngine, job: str) -> None:
    """Start a job that will not come up soon."""
    assert "CALL_TIMEOUT" in engine.start_app(job, {})
    assert state_of(engine.site.jobs, job).state == "starting"


def test_a_job_with_a_command_is_still_told_by_whoever_launched_it(
    shared: ClientEngine, job: str, tmp_path: Path
) -> None:
    assert shared.deploy_app("app", job, {}, SITE, zip_of(tmp_path, *SLEEP, started_by="notify")) == ""
    assert shared.start_app(job, {}) == STARTED
    shared.notify_job_status(job, ClientStatus.STARTED)
    in_state(shared.site.jobs, job, "running")
    shared.abort_app(job)


# -- by a notice -------------------------------------------------------------------------------------------


def test_L9_notices_that_the_runs_key_has_not_signed_are_refused_as_their_senders(
    shared: ClientEngine, peer: Peer, since: Since, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path)), running(shared, f"{job}-b", app(tmp_path)):
        own, other = of_job(shared, peer, job), of_job(shared, peer, f"{job}-b")
        good = own.sign(3)
        forged = {
            "garbage": {**good, "signature": "00" * 64},
            "no hex": {**good, "signature": "x"},
            "of another status": {**good, "signature": own.sign(2)["signature"]},
            "of another job": {**other.sign(3), "job": job},
            "of nobody": Grant(job=job, attempt=1, server="s", run_key=new_run_key()[0], settings={}).sign(3),
            "of a later attempt": Grant(job=job, attempt=2, server="s", run_key=own.run_key, settings={}).sign(3),
        }
        before = seen(shared, job)
        for name, said in forged.items():
            with stranger(shared) as cell:
                answer = says(cell, said)
                assert answer.return_code == CellReturnCode.OK
                assert "NOT_AUTHORISED" in answer.payload, name
                assert refused(since)[-1] == (f"job/{job}", "NOT_AUTHORISED", cell.get_fqcn()), name
        assert len(refused(since)) == len(forged)
        assert seen(shared, job) == before


def test_L9_what_an_earlier_attempt_has_signed_does_not_count_for_the_next(
    shared: ClientEngine, peer: Peer, since: Since, job: str, tmp_path: Path
) -> None:
    begin(shared, job, app(tmp_path))
    old = of_job(shared, peer, job)
    peer.tell(job, TaskTopic.END_RUN)
    ended(shared, job)
    assert shared.start_app(job, {}) == STARTED
    in_state(shared.site.jobs, job, "running")
    again = Grant(job=job, attempt=2, server="server", run_key=old.run_key, settings={})
    with stranger(shared) as cell:
        assert "NOT_AUTHORISED" in says(cell, old.sign(3)).payload
        assert "NOT_AUTHORISED" in says(cell, again.sign(3)).payload
    assert [c for _, c, _ in refused(since)] == ["NOT_AUTHORISED"] * 2
    assert state_of(shared.site.jobs, job).state == "running"
    shared.abort_app(job)


def test_L4_a_true_notice_that_somebody_repeats_moves_nothing(
    shared: ClientEngine, peer: Peer, since: Since, job: str, tmp_path: Path
) -> None:
    with running(shared, job, app(tmp_path)):
        said = of_job(shared, peer, job).sign(2)
        with stranger(shared) as cell:
            assert says(cell, said).payload == "ok"
        assert state_of(shared.site.jobs, job).state == "running"
        assert len(since.of("AppStarted")) == 1


def test_L9_a_signed_notice_for_an_app_with_a_command_is_refused_not_put_off(
    shared: ClientEngine, since: Since, job: str, tmp_path: Path
) -> None:
    assert shared.deploy_app("app", job, {}, SITE, zip_of(tmp_path, *SLEEP)) == ""
    assert shared.start_app(job, {}) == STARTED
    forged = Grant(job=job, attempt=1, server="server", run_key=new_run_key()[0], settings={})
    with stranger(shared) as cell:
        answer = says(cell, forged.sign(3))
        assert answer.return_code == CellReturnCode.OK, "no key will ever come that could have signed this"
        assert "NOT_AUTHORISED" in answer.payload
    assert [c for _, c, _ in refused(since)] == ["NOT_AUTHORISED"]
    assert state_of(shared.site.jobs, job).state == "running"
    shared.abort_app(job)


@pytest.mark.parametrize(
    "change",
    [
        None,
        "STARTED",
        [],
        {},
        {"job": None},
        {"job": "../x"},
        {"attempt": "1"},
        {"attempt": True},
        {"status": 2.0},
        {"status": None},
        {"signature": b"00"},
        {"signature": None},
    ],
    ids=str,
)
def test_L9_a_notice_of_another_shape_is_refused_and_recorded_as_its_senders(
    shared: ClientEngine, since: Since, change: Any
) -> None:
    good = Grant(job="no-such-job", attempt=1, server="server", run_key=new_run_key()[0], settings={}).sign(2)
    said = {**good, **change} if isinstance(change, dict) and change else change
    with stranger(shared) as cell:
        answer = says(cell, said)
        assert answer.return_code == CellReturnCode.OK
        assert answer.payload != "ok"
        ((_, code, actor),) = refused(since)
        assert code in ("ARGUMENT_INVALID", "JOB_ID_INVALID")
        assert actor == cell.get_fqcn()


def test_L9_a_notice_for_a_job_that_is_not_on_the_record_is_refused(shared: ClientEngine, since: Since) -> None:
    forged = Grant(job="no-such-job", attempt=0, server="server", run_key=new_run_key()[0], settings={})
    with stranger(shared) as cell:
        assert "NOT_AUTHORISED" in says(cell, forged.sign(2)).payload
    assert [c for _, c, _ in refused(since)] == ["NOT_AUTHORISED"]
    assert not state_of(shared.site.jobs, "no-such-job")


# -- tasks and commands by strangers -----------------------------------------------------------------------


def test_L9_a_task_or_an_end_that_comes_from_another_than_the_server_is_refused(
    shared: ClientEngine, peer: Peer, job: str, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    with running(shared, job, app(tmp_path)), stranger(shared) as cell:
        headers = {TASK_ID: "forged", TASK_NAME: "work"}
        for topic in (TaskTopic.ASSIGN, TaskTopic.ABORT, TaskTopic.END_RUN):
            message = Message(headers, Shareable({"how": "mark", "mark": str(mark)}))
            answer = cell.send_request(CellChannel.SERVER_MAIN, topic, f"{SITE}.{job}", message, 10.0)
            assert answer.return_code == CellReturnCode.UNAUTHENTICATED
        assert peer.does(job, "echo", data=1)["data"] == 1
        assert not mark.exists()


@pytest.mark.parametrize("topic", ["abort_task", "show_stats", "show_errors", "reset_errors", "configure_job_log"])
def test_L9_a_command_to_a_job_that_comes_from_another_than_its_engine_is_refused(
    shared: ClientEngine, job: str, tmp_path: Path, topic: str
) -> None:
    with running(shared, job, app(tmp_path)), stranger(shared) as cell:
        message = Message(payload="DEBUG")
        answer = cell.send_request(CellChannel.CLIENT_COMMAND, topic, f"{SITE}.{job}", message, 10.0)
        assert answer.return_code == CellReturnCode.UNAUTHENTICATED


def test_L9_who_only_says_that_it_is_the_jobs_engine_cannot_have_the_job_run_its_code(
    shared: ClientEngine, job: str, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    config = {"handlers": {"h": {"()": "os.open", "path": str(mark), "flags": 0o101}}, "root": {"handlers": ["h"]}}
    with running(shared, job, app(tmp_path)):
        cell = FabricCell(shared.site.servers.fabric_url, SITE)  # it takes nothing over, it only says so
        message = Message(payload=config)
        sent = cell.fire_and_forget(CellChannel.CLIENT_COMMAND, "configure_job_log", f"{SITE}.{job}", message)
        assert sent == {f"{SITE}.{job}": ""}
        kinds = ("AuxHandled", "MessageRefused")
        until(lambda: [e for e in events(shared, job, *kinds) if e.body.get("topic") in (None, "configure_job_log")])
        assert not mark.exists()
        cell.stop()
