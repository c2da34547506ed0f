"""Apps without a network: what they cannot reach, what they still can, who decides, and what is recorded of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.actors import acting_as
from engine.client_engine import ClientEngine
from engine.errors import ArgumentInvalid
from engine.network import on_network
from engine.resources.passthrough import PassthroughResourceManager
from engine.site import Site
from events.envelope import Event
from events.errors import CallIdReused
from events.read import read, read_job
from tests.support import (
    SITE,
    check_record,
    in_state,
    kill,
    make_app,
    opened,
    processes_with,
    ready,
    state_of,
    until,
    zip_of,
)

STARTED = "Start the client app..."
FLIGHTLOG = Path(sys.executable).parent / "flightlog"
#: Says what there is, then whether the server of the test can be reached: exit code 0 where it can.
CALL = """
import os, socket, sys
print(*sorted(name for _, name in socket.if_nameindex()))
try:
    socket.create_connection(("127.0.0.1", int(os.environ["PORT"])), timeout=5).close()
except OSError as error:
    sys.exit(f"not reached: {error}")
print("reached")
"""

# Each of these runs a command on a machine that differs from this one.
#: Root, but without the right to make network namespaces: what it takes comes from a user namespace.
LESSER_ROOT = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all")
#: No network namespaces. The limit holds in this user namespace and below, and nowhere else.
NO_NETWORKS = (
    *("unshare", "--user", "--map-root-user"),
    *("sh", "-c", 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$0" "$@"'),
)
#: No user namespaces, and without them no right to make network namespaces: many a machine with users.
NO_USERS = (
    *("unshare", "--user", "--map-root-user"),
    *("sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"', *LESSER_ROOT),
)


def possible(*prefix: str) -> bool:
    """Whether this machine can be made to differ like that."""
    try:
        return subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(
    not possible("unshare", "--net") and not possible("unshare", "--user", "--net"),
    reason="this machine has no network namespaces for us",
)
lesser_root = pytest.mark.skipif(os.geteuid() != 0 or not possible(*LESSER_ROOT), reason="needs rights to give up")
limited = pytest.mark.skipif(not possible(*NO_NETWORKS) or not possible(*NO_USERS), reason="needs a user namespace")


class Server:
    """A TCP server on the host's loopback that counts who comes."""

    def __init__(self) -> None:
        self.calls = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = str(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.calls += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[ClientEngine]:
    """One engine, of a site whose network is open."""
    folder = tmp_path_factory.mktemp("network") / "ws"
    try:
        with opened(folder) as engine:
            yield ready(engine)
            check_record(engine.site.jobs.store)
    finally:
        for pid in processes_with(str(folder)):
            kill(pid)


_names = iter(range(10**6))


@pytest.fixture
def job() -> str:
    """A job id of its own."""
    return f"job-{next(_names)}"


def put(engine: ClientEngine, job: str, folder: Path, *command: str, **config: Any) -> None:
    assert engine.deploy_app("app", job, {}, SITE, zip_of(folder, *command, **config)) == ""


def ended(engine: ClientEngine, job: str) -> Event:
    """Wait for the end of a job's last attempt."""
    in_state(engine.site.jobs, job, "finished", "failed", "aborted")
    ends = ("AppFinished", "AppFailed", "AppAborted")
    return [event for event in read_job(engine.site.jobs.store, job) if event.type in ends][-1]


def output(engine: ClientEngine, job: str) -> str:
    return (engine.site.workspace.run(job) / "log.txt").read_text()


def networks(engine: ClientEngine, job: str, type_: str = "AppSpawned") -> list[str]:
    """What the record says, attempt by attempt."""
    return [e.body["network"] for e in read_job(engine.site.jobs.store, job) if e.type == type_]


# --- what they can reach --------------------------------------------------------------------------------


def test_without_a_network_an_app_cannot_reach_a_server_of_its_host_and_with_one_it_can(
    shared, job, tmp_path, server
):
    put(shared, job, tmp_path, "python", "-c", CALL, env={"PORT": server.port})
    assert shared.start_app(job, {}) == STARTED
    assert ended(shared, job).type == "AppFinished"
    assert (server.calls, output(shared, job).split()[-1]) == (1, "reached")
    with on_network("none"):
        assert shared.start_app(job, {}) == STARTED
    assert state_of(shared.site.jobs, job)["network"] == "none"
    end = ended(shared, job)
    assert (end.type, end.body["exit_code"]) == ("AppFailed", 1)
    assert server.calls == 1
    assert output(shared, job).startswith("lo\nnot reached: ")
    assert networks(shared, job, "StartRequested") == networks(shared, job) == ["open", "none"]
    # The choice was for that start alone.
    assert shared.start_app(job, {}) == STARTED
    assert ended(shared, job).type == "AppFinished"
    assert (server.calls, networks(shared, job)) == (2, ["open", "none", "open"])


def test_a_loopback_of_its_own_is_all_that_there_is(shared, job, tmp_path):
    script = """
import errno, os, socket
assert [name for _, name in socket.if_nameindex()] == ["lo"]
for family, here in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    if family == socket.AF_INET6 and not os.path.exists("/proc/net/if_inet6"):
        continue
    server = socket.create_server((here, 0), family=family)
    socket.create_connection(server.getsockname()[:2], timeout=5).close()
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    assert error.errno == errno.ENETUNREACH, error
else:
    raise AssertionError("something answered")
"""
    put(shared, job, tmp_path, "python", "-c", script)
    with on_network("none"):
        assert shared.start_app(job, {}) == STARTED
    assert ended(shared, job).type == "AppFinished", output(shared, job)


def test_unix_sockets_on_disk_are_files_and_work_without_a_network(shared, job, tmp_path):
    with tempfile.TemporaryDirectory(prefix="fl-") as folder, socket.socket(socket.AF_UNIX) as listening:
        path = f"{folder}/s"
        listening.bind(path)
        listening.listen()
        listening.settimeout(20)
        script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); s.sendall(b'from inside')"
        put(shared, job, tmp_path, "python", "-c", script)
        with on_network("none"):
            assert shared.start_app(job, {}) == STARTED
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(100) == b"from inside"
        assert ended(shared, job).type == "AppFinished"


def test_an_app_without_a_network_is_the_same_user_in_the_same_folder_and_is_told_nothing_new(shared, job, tmp_path):
    dump = "import json, os; print(json.dumps([os.getresuid(), os.getresgid(), os.getcwd(), dict(os.environ)]))"
    put(shared, job, tmp_path, "python", "-c", dump)
    said = []
    for choice in ("open", "none"):
        with on_network(choice):
            assert shared.start_app(job, {}) == STARTED
        assert ended(shared, job).type == "AppFinished"
        *same, env = json.loads(output(shared, job))
        own = {name: env.pop(name) for name in ("FLIGHTLOG_MARKER", "FLIGHTLOG_ATTEMPT")}
        assert len(own) == 2
        said.append((same, env))
    assert said[0] == said[1]
    assert "FLIGHTLOG_NETWORK" not in said[1][1]


def test_L8_an_abort_ends_all_processes_of_an_app_without_a_network(shared, job, tmp_path):
    put(shared, job, tmp_path, "sh", "-c", "setsid sh -c 'trap \"\" TERM; sleep 2345.6' & echo up; sleep 2345.6")
    with on_network("none"):
        assert shared.start_app(job, {}) == STARTED
    until(lambda: output(shared, job) == "up\n")
    shared.abort_app(job)
    assert ended(shared, job).type == "AppAborted"
    assert not processes_with("sleep\0" + "2345.6")


def test_a_start_with_resources_is_taken_off_the_network_as_well(workspace, tmp_path):
    with opened(workspace, components={"resource_manager": PassthroughResourceManager()}) as engine:
        put(engine, "job", tmp_path, "true")
        with on_network("none"):
            engine.start_with_resources("job", {}, {"anything": 1})
        ended(engine, "job")
        assert networks(engine, "job", "StartRequested") == networks(engine, "job") == ["none"]


# --- who decides ----------------------------------------------------------------------------------------


def test_the_sites_setting_is_what_a_start_gets_that_asks_for_nothing(workspace, tmp_path, server):
    with opened(workspace, network="none") as engine:
        put(engine, "job", tmp_path, "python", "-c", CALL, env={"PORT": server.port})
        assert engine.start_app("job", {}) == STARTED
        assert ended(engine, "job").type == "AppFailed"
        assert server.calls == 0
        assert networks(engine, "job", "StartRequested") == networks(engine, "job") == ["none"]


def test_L9_a_start_cannot_open_what_the_site_has_closed_not_even_from_a_client_with_a_setting_of_its_own(
    workspace, tmp_path
):
    with opened(workspace, network="none") as owner, opened(workspace, network="open") as client:
        put(owner, "job", tmp_path, "true")
        for engine in (owner, client):
            with on_network("open"), pytest.raises(ArgumentInvalid) as caught:
                engine.start_app("job", {})
            assert caught.value.context["field"] == "network"
            assert "FLIGHTLOG_NETWORK=open" in caught.value.fix
            assert caught.value.recorded
        assert state_of(owner.site.jobs, "job").attempt == 0
        refused = [e.body for e in read(owner.site.jobs.store) if e.type == "CallRefused"]
        assert [(body["method"], body["code"]) for body in refused] == [("start_app", "ARGUMENT_INVALID")] * 2
        assert client.role == "client"
        assert client.start_app("job", {}) == STARTED
        assert networks(owner, "job", "StartRequested") == networks(owner, "job") == ["none"]
        check_record(owner.site.jobs.store)


def test_a_site_that_is_closed_may_be_asked_for_no_network_too(workspace, tmp_path):
    with opened(workspace, network="none") as engine, on_network("none"):
        put(engine, "job", tmp_path, "true")
        assert engine.start_app("job", {}) == STARTED
        assert networks(engine, "job") == ["none"]


def test_a_pool_with_a_tighter_setting_than_the_engines_is_what_counts(workspace, tmp_path):
    with opened(workspace, pool="elsewhere") as engine:
        command = [sys.executable, "-P", "-m", "workers", "pool", "--until-eof", "--workspace", str(workspace)]
        env = {**os.environ, **engine.site.settings.environment(), "FLIGHTLOG_NETWORK": "none"}
        with (tmp_path / "pool.log").open("wb") as log:
            pool = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            put(engine, "job", tmp_path / "app", "true")
            assert engine.start_app("job", {}) == STARTED
            assert networks(engine, "job", "StartRequested") == ["open"]
            assert networks(engine, "job") == ["none"]
        finally:
            pool.communicate(timeout=20)


@pytest.mark.parametrize("nonsense", ["closed", "NONE", "", 0])
def test_L9_a_network_that_there_is_not_is_refused(shared, job, tmp_path, nonsense):
    put(shared, job, tmp_path, "true")
    with on_network(nonsense), pytest.raises(ArgumentInvalid) as caught:
        shared.start_app(job, {})
    assert caught.value.context["field"] == "network"
    assert state_of(shared.site.jobs, job).attempt == 0


def test_L4_a_call_id_that_was_for_an_open_network_is_not_the_same_call_without_one(shared, job, tmp_path):
    put(shared, job, tmp_path, "true")
    for _ in range(2):
        with acting_as("tester", call_id=f"mine-{job}"), on_network("none"):
            assert shared.start_app(job, {}) == STARTED
    for other in ("open", None):
        with acting_as("tester", call_id=f"mine-{job}"), on_network(other), pytest.raises(CallIdReused):
            shared.start_app(job, {})
    ended(shared, job)
    assert networks(shared, job) == ["none"]


# --- the command line ---------------------------------------------------------------------------------------


class Typed:
    """Commands in a folder with a site of its own, on this machine or one that differs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "ws"
        env = {k: v for k, v in os.environ.items() if not k.startswith("FLIGHTLOG_") and k != "COLUMNS"}
        env |= {"FLIGHTLOG_LEASE": "1.5", "FLIGHTLOG_RECONCILE_EVERY": "0.5", "FLIGHTLOG_GRACE": "2"}
        env |= {"FLIGHTLOG_RUNTIME_DIR": os.environ["FLIGHTLOG_RUNTIME_DIR"], "FLIGHTLOG_WORKSPACE": str(self.root)}
        self.env = env

    def __call__(self, *words: str, on: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*on, str(FLIGHTLOG), *words],
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def show(self, job: str) -> dict[str, Any]:
        said = self("show", job, "--json")
        assert said.returncode == 0, said
        shown: dict[str, Any] = json.loads(said.stdout)
        return shown

    def events(self, job: str) -> list[Event]:
        site = Site.open(workspace=self.root)
        try:
            check_record(site.jobs.store)
            return list(read_job(site.jobs.store, job))
        finally:
            site.close()


@pytest.fixture
def flightlog(tmp_path: Path, workspace: Path) -> Typed:
    assert workspace == tmp_path / "ws"
    return Typed(tmp_path)


def test_run_and_start_take_the_choice_and_show_and_why_tell_it(flightlog, tmp_path, server):
    app = str(make_app(tmp_path / "app", "python", "-c", CALL, env={"PORT": server.port}))
    said = flightlog("run", app, "--job", "job", "--follow", "--network", "none")
    assert said.returncode == 1
    assert "lo\nnot reached" in said.stdout
    assert flightlog.show("job")["network"] == "none"
    why = flightlog("why", "job").stdout
    assert "asked to start it, without a network (attempt 1)" in why
    assert f"was started on host {socket.gethostname()}, without a network" in why
    assert flightlog("start", "job").returncode == 0
    until(lambda: server.calls == 1)
    assert flightlog.show("job")["network"] == "open"
    assert flightlog("start", "nobody", "--network", "closed").returncode == 2


def test_L9_run_with_a_network_that_the_site_does_not_allow_deploys_nothing(flightlog, tmp_path):
    app = str(make_app(tmp_path / "app", "true"))
    said = flightlog("run", app, "--job", "job", "--network", "open", FLIGHTLOG_NETWORK="none")
    assert said.returncode == 2
    assert "ARGUMENT_INVALID: network is 'open'" in said.stderr
    assert "Try: leave it out" in said.stderr
    assert "Recorded as event" in said.stderr
    assert flightlog("show", "job").returncode == 5
    said = flightlog("run", app, "--job", "job", "--follow", FLIGHTLOG_NETWORK="none")
    assert said.returncode == 0, said
    assert flightlog.show("job")["network"] == "none"
    said = flightlog("start", "job", FLIGHTLOG_NETWORK="shut")
    assert said.returncode == 2
    assert "FLIGHTLOG_NETWORK" in said.stderr


@lesser_root
def test_without_the_right_to_make_a_network_namespace_an_app_gets_one_in_a_user_namespace(
    flightlog, tmp_path, server
):
    inside = "import os; print(os.getuid(), os.readlink('/proc/self/ns/user'))"
    app = str(make_app(tmp_path / "app", "python", "-c", inside + CALL, env={"PORT": server.port}))
    said = flightlog("run", app, "--job", "job", "--follow", "--network", "none", on=LESSER_ROOT)
    user, namespace = said.stdout.splitlines()[0].split()
    assert user == str(os.getuid())
    assert namespace != os.readlink("/proc/self/ns/user")
    assert "lo\nnot reached" in said.stdout
    assert server.calls == 0
    assert flightlog.show("job")["network"] == "none"
    # The keeper finds and ends what runs in there.
    script = "setsid sh -c 'trap \"\" TERM; touch $UP; sleep 3456.7' & while [ ! -e $UP ]; do sleep 0.02; done"
    stays = str(make_app(tmp_path / "stays", "sh", "-c", script, env={"UP": str(tmp_path / "up")}))
    assert flightlog("run", stays, "--job", "stays", "--network", "none", on=LESSER_ROOT).returncode == 0
    assert [e.body["killed"] for e in flightlog.events("stays") if e.type == "AppFinished"] == [2]
    assert not processes_with("sleep\0" + "3456.7")


# --- where it cannot be had ---------------------------------------------------------------------------------


@limited
@pytest.mark.parametrize(
    ("machine", "missing"),
    [(NO_NETWORKS, "user.max_net_namespaces=0"), (NO_USERS, "user.max_user_namespaces=0")],
    ids=["no-networks", "no-users"],
)
def test_where_an_app_cannot_be_taken_off_the_network_it_does_not_run(flightlog, tmp_path, server, machine, missing):
    ran = tmp_path / "ran"
    script = f"open({str(ran)!r}, 'w').close()\n" + CALL
    app = str(make_app(tmp_path / "app", "python", "-c", script, env={"PORT": server.port}))
    said = flightlog("run", app, "--job", "job", "--network", "none", on=machine)
    assert said.returncode == 1, said
    assert "NETWORK_ISOLATION_UNAVAILABLE: no network namespace: unshare(" in said.stderr
    assert "No space left on device" in said.stderr  # the kernel's word for a limit
    assert missing in said.stderr
    assert not ran.exists()
    assert server.calls == 0
    shown = flightlog.show("job")
    assert (shown["state"], shown["network"]) == ("launch_failed", None)
    types = [e.type for e in flightlog.events("job")]
    assert "LaunchFailed" in types
    assert "AppSpawned" not in types
    why = flightlog("why", "job").stdout
    assert "The launch failed (NETWORK_ISOLATION_UNAVAILABLE)" in why
    assert missing in why
    # Nothing else stands against the same app there.
    assert flightlog("run", app, "--job", "other", on=machine).returncode == 0
    assert ran.exists()
    assert server.calls == 1


@limited
def test_doctor_says_whether_an_app_can_be_taken_off_the_network_here(flightlog):
    def finding(*, on: tuple[str, ...] = (), **env: str) -> tuple[int, dict[str, str]]:
        said = flightlog("doctor", "--json", on=on, **env)
        return said.returncode, next(f for f in json.loads(said.stdout) if f["what"] == "apps without a network")

    assert finding()[1]["verdict"] == "ok"
    code, found = finding(on=NO_USERS)
    assert (code, found["verdict"]) == (0, "warn")
    assert "user.max_user_namespaces=0" in found["found"]
    assert "no such app starts here" in found["fix"]
    code, found = finding(on=NO_USERS, FLIGHTLOG_NETWORK="none")
    assert (code, found["verdict"]) == (1, "fail")
    assert "no app starts here" in found["fix"]
