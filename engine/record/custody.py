"""The site's side of a signer: the key is with a process of another user, and is asked over a unix socket."""

from __future__ import annotations

import http.client
from pathlib import Path
from urllib.parse import urlencode

from engine.actors import os_name
from engine.errors import EngineDown
from engine.files import read_json
from engine.record.ledger import asking
from engine.record.sealed import log_name
from engine.settings import Settings
from engine.status.sockets import UnixConnection
from engine.workspace import Workspace
from events.errors import HistoryBroken
from events.note import Checkpoint
from events.signing import Prove

PATIENCE = 5.0  # seconds


class Custody:
    """A signer that holds the key of one log (``events.signing.Custodian``).

    Args:
        path: of its socket.
        log: what the key is called.
    """

    def __init__(self, path: Path, log: str) -> None:
        self.path = path
        self.log = log
        #: The user that it runs as, once asked.
        self.uid: int | None = None
        self._last: dict[str, int] = {}

    def chain(self) -> list[str]:
        """Its public keys; raises ``EngineDown``."""
        return self._done(*self._ask("GET", f"/keys?{urlencode({'log': self.log})}")).splitlines()

    def sign(self, checkpoint: Checkpoint, prove: Prove) -> str:
        """Have a checkpoint signed.

        Raises:
            HistoryBroken: it has signed another history. EngineDown: it is away.
        """
        old = self._last.get(checkpoint.origin, 0)
        for _ in range(2):
            if old > checkpoint.size:
                raise HistoryBroken(
                    f"the signer has signed {old} events of this log, which has {checkpoint.size}", "flightlog verify"
                )
            proof = prove(old) if old else []
            status, said = self._ask("POST", "/sign", asking(old, proof, checkpoint.text()))
            if status != 409 or not said.strip().isdecimal():
                break
            old = int(said)
        line = self._done(status, said)
        self._last[checkpoint.origin] = checkpoint.size
        return line

    def rotate(self) -> None:
        """Have it take another key; raises ``EngineDown``."""
        self._done(*self._ask("POST", f"/rotate?{urlencode({'log': self.log})}"))

    def _done(self, status: int, said: str) -> str:
        if status == 200:
            return said
        if status >= 500:
            why = said.strip()[:200]
            raise EngineDown(f"the signer at {self.path} cannot sign: {why}", "look at its log, and its disk")
        raise HistoryBroken(
            f"the signer at {self.path} refuses: {said.strip() or status}",
            "change nothing, and look: flightlog verify; who runs the signer settles what it may sign",
        )

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        connection = UnixConnection(self.path, PATIENCE)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            said = answer.read(65_536).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise EngineDown(
                f"the signer at {self.path} does not answer: {error}",
                "start it, as its own user: flightlog signer; FLIGHTLOG_SIGNER names its socket",
            ) from error
        else:
            self.uid = connection.uid
            return answer.status, said
        finally:
            connection.close()


def custody_of(workspace: Workspace, settings: Settings) -> Custody | None:
    """Who holds a site's key, where it is not the site: as the settings say, or the sealer said last."""
    told = read_json(workspace.seal / "state.json") or {}
    path = settings.signer or told.get("signer_at")
    return Custody(Path(str(path)).resolve(), log_name(workspace)) if path else None


def user_name(uid: int | None) -> str:
    """Who runs a signer."""
    return os_name(uid) if uid is not None else "a signer that was not asked yet"
