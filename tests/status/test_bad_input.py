"""Bad input over HTTP: refused by name, as a problem, and nothing else happens (L9)."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from engine.status.params import encoded
from engine.status.tokens import Tokens
from events.read import read
from tests.status.served import Served, problem, served
from tests.support import in_state, kill, processes_with, zip_of

pytestmark = pytest.mark.real
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("bad")
    with served(folder / "ws", env={"FLIGHTLOG_API_BODY_MAX": "200000"}, workers=2) as up:
        up.run("job", folder, "sh", "-c", f"echo '{SCRIPT}'; exit 4", wait="failed")
        up.fed()
        yield up
        log = (up.workspace / ".flightlog" / "api.log").read_text()
        assert "Traceback" not in log, log
    for pid in processes_with(str(folder)):
        kill(pid)


@pytest.mark.parametrize(
    ("path", "status", "code", "field"),
    [
        ("/v1/jobs/nobody", 404, "JOB_UNKNOWN", None),
        ("/v1/jobs/.hidden", 422, "JOB_ID_INVALID", None),
        ("/v1/jobs/startup", 422, "JOB_ID_INVALID", None),
        ("/v1/jobs/a%00b", 422, "JOB_ID_INVALID", None),
        ("/v1/jobs/%ff%fe", 422, "JOB_ID_INVALID", None),
        ("/v1/jobs/%2e%2e%2f%2e%2e%2fetc", 404, "PATH_UNKNOWN", None),
        ("/v1/jobs/..%5c..%5cetc/log", 422, "JOB_ID_INVALID", None),
        (f"/v1/jobs/{'a' * 300}", 422, "JOB_ID_INVALID", None),
        (f"/v1/jobs/{'a' * 300}/events", 422, "ARGUMENT_INVALID", "job_id"),
        ("/v1/jobs?cursor=rubbish", 422, "ARGUMENT_INVALID", "cursor"),
        ("/v1/jobs?cursor=W10", 422, "ARGUMENT_INVALID", "cursor"),
        ("/v1/jobs?cursor=WyItc2luY2UiLDEsMl0", 422, "ARGUMENT_INVALID", "cursor"),
        ("/v1/jobs?cursor=WyJpZCIsMSwiYSJd&sort=since", 422, "ARGUMENT_INVALID", "cursor"),
        ("/v1/jobs?limit=0", 422, "ARGUMENT_INVALID", "limit"),
        ("/v1/jobs?limit=501", 422, "ARGUMENT_INVALID", "limit"),
        ("/v1/jobs?limit=many", 422, "ARGUMENT_INVALID", "limit"),
        ("/v1/jobs?limit=1&limit=2", 422, "ARGUMENT_INVALID", "limit"),
        ("/v1/jobs?sort=size", 422, "ARGUMENT_INVALID", "sort"),
        (f"/v1/jobs?cursor={encoded(['-since', float('nan'), 'a'])}", 422, "ARGUMENT_INVALID", "cursor"),
        (f"/v1/jobs?cursor={encoded(['-since', True, 'a'])}", 422, "ARGUMENT_INVALID", "cursor"),
        (f"/v1/jobs?cursor={encoded(['-since', 1e300, 'a'])}", 422, "ARGUMENT_INVALID", "cursor"),
        (f"/v1/jobs?sort=id&cursor={encoded(['id', 0, chr(0xD800)])}", 422, "ARGUMENT_INVALID", "cursor"),
        ("/v1/jobs?state=dead", 422, "ARGUMENT_INVALID", "state"),
        ("/v1/jobs?since=yesterday", 422, "ARGUMENT_INVALID", "since"),
        ("/v1/jobs?since=1h&until=2h", 422, "ARGUMENT_INVALID", "since"),
        ("/v1/jobs?since=99999-01-01", 422, "ARGUMENT_INVALID", "since"),
        ("/v1/jobs?stat=running", 422, "ARGUMENT_INVALID", "stat"),
        ("/v1/jobs/job?at=0", 422, "ARGUMENT_INVALID", "at"),
        ("/v1/jobs/job?at=-1", 422, "ARGUMENT_INVALID", "at"),
        ("/v1/jobs/job?at=999", 422, "ARGUMENT_INVALID", "at"),
        ("/v1/jobs/job?at=999999999999999999999", 422, "ARGUMENT_INVALID", "at"),
        ("/v1/jobs/job?at=2099-01-01", 422, "ARGUMENT_INVALID", "at"),
        ("/v1/jobs/job?at=1960-01-01", 404, "JOB_UNKNOWN", "at"),
        ("/v1/jobs/job?at=0001-01-01", 404, "JOB_UNKNOWN", "at"),
        ("/v1/jobs/job?at=1&at=2", 422, "ARGUMENT_INVALID", "at"),
        ("/v1/jobs/job?at=99999999999999-1", 422, "ARGUMENT_INVALID", "at"),
        ("/v1/jobs/job?at=1795531521766-99999999", 422, "ARGUMENT_INVALID", "at"),
        ("/v1/jobs/job?at=", 422, "ARGUMENT_INVALID", "at"),
        ("/v1/jobs/job?at=2001-01-01", 404, "JOB_UNKNOWN", "at"),
        ("/v1/jobs/job?at=%D9%A3", 422, "ARGUMENT_INVALID", "at"),
        ("/v1/jobs/job/log?attempt=7", 404, "JOB_UNKNOWN", None),
        ("/v1/jobs/job/log?attempt=0", 422, "ARGUMENT_INVALID", "attempt"),
        ("/v1/jobs/job/log?lines=3&follow=true", 422, "ARGUMENT_INVALID", "lines"),
        ("/v1/jobs/nobody/log", 404, "JOB_UNKNOWN", None),
        ("/v1/jobs/nobody/metrics", 404, "JOB_UNKNOWN", None),
        ("/v1/jobs/nobody/usage", 404, "JOB_UNKNOWN", None),
        ("/v1/jobs/nobody/events", 404, "JOB_UNKNOWN", None),
        ("/v1/events?type=Nothing", 422, "ARGUMENT_INVALID", "type"),
        ("/v1/events?cursor=1", 422, "ARGUMENT_INVALID", "cursor"),
        ("/v1/events?order=up", 422, "ARGUMENT_INVALID", "order"),
        ("/v1/events?reads=perhaps", 422, "ARGUMENT_INVALID", "reads"),
        ("/v1/events?job=../../etc", 422, "JOB_ID_INVALID", None),
        ("/v1/events/stream?after=now", 422, "ARGUMENT_INVALID", "after"),
        ("/v1/events/stream?limit=0", 422, "ARGUMENT_INVALID", "limit"),
        ("/v1/jobs/job/usage?attempt=77", 404, "JOB_UNKNOWN", None),
        ("/v1/egress/totals?since=2026-99-99", 422, "ARGUMENT_INVALID", "since"),
        ("/v1/messages?state=lost", 422, "ARGUMENT_INVALID", "state"),
        ("/v1/messages?cursor=WyJhIl0", 422, "ARGUMENT_INVALID", "cursor"),
        ("/v1/messages?job=nobody", 404, "JOB_UNKNOWN", None),
        ("/v1/transfers?state=lost", 422, "ARGUMENT_INVALID", "state"),
        ("/v1/egress/totals?since=monday", 422, "ARGUMENT_INVALID", "since"),
        ("/v1/nothing", 404, "PATH_UNKNOWN", None),
        ("/static/../app.py", 404, "PATH_UNKNOWN", None),
        ("/static/%2e%2e/%2e%2e/app.py", 404, "PATH_UNKNOWN", None),
        ("/errors/..%2f..%2fetc", 404, "PATH_UNKNOWN", None),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    site: Served, path: str, status: int, code: str, field: str | None
) -> None:
    problem(_raw(site, path), status, code, field)


def _raw(site: Served, path: str, method: str = "GET", **headers: str) -> httpx_like:
    """Asked as it stands: a client would tidy the path up."""
    url = urlsplit(site.url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    try:
        return httpx_like(connection.getresponse())
    finally:
        connection.close()


class httpx_like:  # only as much of an answer as ``problem`` looks at
    def __init__(self, answer: http.client.HTTPResponse) -> None:
        import json

        self.status_code = answer.status
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.text = answer.read().decode()
        self.json = lambda: json.loads(self.text)


def test_bodies_that_are_too_large_of_a_wrong_type_or_no_json_are_refused(site: Served, tmp_path: Path) -> None:
    app = zip_of(tmp_path, "true")
    with site.client(site.operator) as client:
        kind = {"Content-Type": "application/zip"}
        problem(
            client.put("/v1/jobs/big/app", content=b"x" * 300_000, headers=kind), 413, "PAYLOAD_TOO_LARGE", "body"
        )
        pieces = (b"x" * 50_000 for _ in range(10))
        problem(client.put("/v1/jobs/big/app", content=pieces, headers=kind), 413, "PAYLOAD_TOO_LARGE", "body")
        problem(client.put("/v1/jobs/big/app", content=b"", headers=kind), 422, "ARGUMENT_INVALID", "body")
        problem(client.put("/v1/jobs/big/app", content=b"no zip", headers=kind), 422, "BAD_ARCHIVE")
        problem(client.put("/v1/jobs/big/app", content=app), 415, "MEDIA_TYPE_WRONG", None)
        problem(client.put("/v1/jobs/big/app", data={"a": "b"}), 415, "MEDIA_TYPE_WRONG", None)
        bad = client.put("/v1/jobs/big/app", content=app, headers=kind, params={"meta": "[1]"})
        problem(bad, 422, "ARGUMENT_INVALID", "meta")
        path, text = "/v1/jobs/job/start", {"Content-Type": "text/plain"}
        problem(client.post(path, content=b"{}", headers=text), 415, "MEDIA_TYPE_WRONG")
        js = {"Content-Type": "application/json"}
        problem(client.post(path, content=b"{", headers=js), 422, "ARGUMENT_INVALID", "body")
        problem(client.post(path, content=b"\xff\xfe", headers=js), 422, "ARGUMENT_INVALID", "body")
        problem(client.post(path, content=b"[" * 60_000, headers=js), 422, "ARGUMENT_INVALID")
        problem(client.post(path, json={"a": "x" * 70_000}), 413, "PAYLOAD_TOO_LARGE", "body")
        problem(client.post(path, json={"resons": "a slip"}), 422, "ARGUMENT_INVALID", "resons")
        problem(client.post(path, json={"network": "all"}), 422, "ARGUMENT_INVALID", "network")
        problem(client.post(path, json={"reason": "x" * 501}), 422, "ARGUMENT_INVALID", "reason")
        problem(client.post("/v1/jobs/job/abort", json={"grace": -1}), 422, "ARGUMENT_INVALID", "grace")
        problem(client.post("/v1/jobs/job/abort", json={"grace": 1, "lost": True}), 422, "ARGUMENT_INVALID", "lost")
        problem(client.post(path, headers={"Idempotency-Key": "short"}), 422, "ARGUMENT_INVALID", "Idempotency-Key")
        problem(client.post(path, headers={"If-Match": "a"}), 422, "ARGUMENT_INVALID", "If-Match")
        problem(client.delete("/v1/jobs/job"), 405, "METHOD_NOT_ALLOWED")
    assert not site.engine.site.jobs.load("big").known
    assert in_state(site.engine.site.jobs, "job", "failed").attempt == 1


def test_L9_a_command_that_no_engine_was_asked_for_is_on_the_record_with_who_sent_it(site: Served) -> None:
    # Somebody of their own: what one caller is refused more often than ten times a second is folded.
    token = Tokens(site.engine.site.workspace).add("oscar", "operator")
    with site.client(token) as client:
        told = [
            problem(client.post("/v1/jobs/job/start", json={"resons": "a slip"}), 422, "ARGUMENT_INVALID", "resons"),
            problem(client.post("/v1/jobs/job/start", headers={"If-Match": "a"}), 422, "ARGUMENT_INVALID"),
            problem(client.post("/v1/jobs/nobody/abort-task"), 404, "JOB_UNKNOWN"),
        ]
    events = {event.position: event for event in read(site.engine.site.jobs.store)}
    for found in told:
        event = events[found["recorded"]]
        assert (event.type, event.body["code"]) == ("CallRefused", found["code"])
        assert event.as_dict()["actor"]["id"] == "oscar"


def test_ranges_that_are_none_or_beyond_the_end_are_refused(site: Served) -> None:
    with site.client() as client:
        whole = client.get("/v1/jobs/job/log")
        for asked in ("bytes=99999-", "bytes=5-1"):
            answer = client.get("/v1/jobs/job/log", headers={"Range": asked})
            problem(answer, 416, "ARGUMENT_INVALID", "Range")
            assert answer.headers["content-range"] == f"bytes */{len(whole.content)}"
        for asked in ("bytes=-", "lines=1-2", "bytes=0-1,3-4"):  # what no server has to know
            answer = client.get("/v1/jobs/job/log", headers={"Range": asked})
            assert (answer.status_code, answer.content) == (200, whole.content)


def test_a_host_that_is_not_ours_is_refused(site: Served) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:8787", "", "[::1", "a b"):
        problem(_raw(site, "/v1/jobs", Host=host), 421, "HOST_UNKNOWN", "Host")


def test_a_post_of_another_sites_page_is_refused_whoevers_token_it_brings(site: Served) -> None:
    with site.client(site.operator) as client:
        for headers in (
            {"Origin": "https://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "null"},
            {"Origin": "http://["},
        ):
            problem(client.post("/v1/jobs/job/start", headers=headers), 403, "CROSS_SITE")
        form = {"command": "start", "reason": "csrf"}
        problem(client.post("/jobs/job/do", data=form, headers={"Origin": "https://evil.example"}), 403, "CROSS_SITE")
    assert site.engine.site.jobs.load("job").state.attempt == 1


def test_odd_credentials_are_refused_and_odd_cookies_are_nobody(site: Served) -> None:
    with site.client() as client:
        for given in ("Basic b2xnYQ==", "Bearer", "fl_x", "Bearer fl_x y"):
            problem(client.get("/v1/jobs", headers={"Authorization": given}), 401, "NOT_AUTHORISED")
        assert client.get("/v1/jobs", headers={"Cookie": 'a=;;=;flightlo; "=;'}).status_code == 200
        mine = f"flightlog-site-1={site.viewer}"
        for cookie in ("flightlog-site-1=rubbish", "flightlog-site-2=fl_another", f'a={{"x":1}}; {mine}', mine):
            assert client.get("/v1/jobs", headers={"Cookie": cookie}).status_code == 200
        post = client.post("/v1/jobs/job/start", headers={"Cookie": f'a={{"x":1}}; {mine}'})
        problem(post, 403, "NOT_AUTHORISED")
        assert client.get("/livez", headers={"Authorization": "Basic x"}).status_code == 200


def test_what_is_no_http_is_answered_or_dropped_and_the_server_goes_on(site: Served) -> None:
    url = urlsplit(site.url)
    for rubbish in (b"\x00\xff" * 50, b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n"):
        with socket.create_connection((url.hostname, url.port), timeout=10) as line:
            line.sendall(rubbish)
            line.shutdown(socket.SHUT_WR)
            assert b" 200 " not in line.recv(4096)
    assert site.get("/livez")["alive"]


def test_files_that_an_app_made_into_links_are_not_followed(site: Served, tmp_path: Path) -> None:
    command = "rm -f log.txt; ln -s /etc/passwd metrics.jsonl; ln -sf /etc/passwd log.txt; echo done"
    site.run("links", tmp_path, "sh", "-c", f'cd "$FLIGHTLOG_RUN_DIR" && {command}')
    assert site.get("/v1/jobs/links/metrics") == {"items": [], "broken": 0}
    with site.client() as client:
        assert "root:" not in client.get("/v1/jobs/links/log").text
    folder = site.workspace / ".flightlog" / "jobs" / "links" / "1"
    (folder / "usage.jsonl").unlink(missing_ok=True)
    os.symlink("/etc/passwd", folder / "usage.jsonl")
    assert site.get("/v1/jobs/links/usage")["items"] == []


def test_a_folder_that_an_app_made_into_a_link_is_not_followed(site: Served, tmp_path: Path) -> None:
    site.run("moved", tmp_path, "sh", "-c", "echo '{\"a\": 1}' > $FLIGHTLOG_RUN_DIR/metrics.jsonl; echo mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "metrics.jsonl").write_text('{"secret": 1}\n')
    (elsewhere / "log.txt").write_text("secret\n")
    for folder in (site.workspace / "moved", site.workspace / ".flightlog" / "jobs" / "moved" / "1"):
        folder.rename(tmp_path / f"was-{folder.name}")
        folder.symlink_to(elsewhere)
    assert site.get("/v1/jobs/moved/metrics")["items"] == []
    with site.client() as client:
        problem(client.get("/v1/jobs/moved/log"), 404, "JOB_UNKNOWN")
        assert "secret" not in client.get("/jobs/moved", headers={"Accept": "text/html"}).text


def test_rows_that_no_page_could_show_are_counted_as_broken(site: Served, tmp_path: Path) -> None:
    bad = ['{"a": ' + "9" * 400 + "}", '{"a": 1e999}', '{"a": "\\ud800"}', '{"a": ' + "[" * 300 + "]" * 300 + "}"]
    bad += ['{"time": ' + "9" * 400 + "}", "{", "[1]", '{"\\udfff": 1}']
    site.run("odd", tmp_path, "true")
    (site.workspace / "odd" / "metrics.jsonl").write_text("\n".join([*bad, '{"a": NaN, "b": 2}', '{"half": ']))
    (site.workspace / ".flightlog" / "jobs" / "odd" / "1" / "usage.jsonl").write_text("\n".join(bad) + "\n")
    assert site.get("/v1/jobs/odd/metrics") == {"items": [{"a": None, "b": 2}], "broken": len(bad)}
    assert site.get("/v1/jobs/odd/usage")["items"] == []
    with site.client() as client:
        for path in ("/jobs/odd", "/jobs/odd?at=3"):
            assert client.get(path, headers={"Accept": "text/html"}).status_code == 200


def test_what_is_before_everything_is_an_empty_page_and_a_head_has_no_body(site: Served) -> None:
    for query in ("since=1960-01-01&order=desc&cursor=0-0", "order=desc&until=1960-01-01", "order=desc&cursor=0-0"):
        for path in ("/v1/events", "/v1/jobs/job/events"):
            with site.client() as client:
                answer = client.get(f"{path}?{query}")
                assert (answer.status_code, answer.json()["items"]) == (200, []), query
    with site.client() as client:
        head = client.head("/v1/jobs/job")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["etag"] == client.get("/v1/jobs/job").headers["etag"]


def test_script_is_shown_as_text_and_none_would_run(site: Served) -> None:
    with site.client() as client:
        page = client.get("/jobs/job", headers={"Accept": "text/html"})
        assert page.status_code == 200
        assert SCRIPT not in page.text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy
        log = client.get("/v1/jobs/job/log")
        assert log.headers["content-type"].startswith("text/plain")
        assert log.headers["x-content-type-options"] == "nosniff"
        odd = client.get(f"/jobs/{SCRIPT}", headers={"Accept": "text/html"})
        assert SCRIPT not in odd.text


def test_what_was_refused_left_no_trace_but_refusals(site: Served) -> None:
    """L9: a refused command is an event, and nothing else of it is."""
    kinds = {e.type for e in read(site.engine.site.jobs.store) if e.as_dict()["actor"]["id"] in ("olga", "vera")}
    assert kinds <= {"CallRefused", "ReadsObserved", "EngineOpened", "CellAttached"}
