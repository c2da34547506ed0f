"""A witness: it remembers what a log was, and signs only what begins with that (C2SP tlog-witness).

It holds nothing of a log but sizes, roots and signatures. Who holds a site's key can write another history, and
sign it; a witness that has seen the first one refuses the second.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from pathlib import Path
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from engine.errors import ArgumentInvalid
from engine.files import locked, read_json, write_json
from engine.status.sockets import listen
from events.merkle import consistent
from events.note import COSIGNATURE, Note, NoteInvalid, Signer, Verifier
from events.seal import chained, write

BODY_MAX = 64 * 1024


class Declined(Exception):
    """A checkpoint is not cosigned; with the HTTP status and what the caller is told."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class Witness:
    """What one witness knows.

    Args:
        folder: for its key and what it has seen.
        name: of its key.
        first_use: take a log's key at its first checkpoint; else it has to be put into ``known`` first.
    """

    def __init__(self, folder: Path, name: str, *, first_use: bool = True) -> None:
        self.folder = folder
        self.first_use = first_use
        path = folder / "key"
        with locked(folder / "lock"):
            if not path.exists():
                write(path, str(Signer.new(name, COSIGNATURE)))
        self.signer = Signer.parse(path.read_text())
        if self.signer.verifier.name != name:
            raise ArgumentInvalid(
                f"the witness in {folder} is {self.signer.verifier.name!r}, not {name!r}",
                "name another folder, or the name that it has",
                field="--name",
            )

    def add(self, old: int, proof: list[bytes], note: Note, chain: list[str]) -> str:
        """Look at a checkpoint and cosign it; the signature line.

        Args:
            old: size that the caller believes to be the last that we saw; 0: none.
            proof: of consistency, from there.
            note: the checkpoint, signed by the site.
            chain: the site's public keys (``events.seal.Keys.chain``).

        Raises:
            Declined: 403 the key is not the log's, 409 another size was the last, 422 it is another log.
        """
        checkpoint = note.checkpoint
        log, _, epoch = checkpoint.origin.rpartition("/")
        with locked(self._path(log).with_suffix(".lock")):
            seen = read_json(self._path(log)) or {}
            keys = self._keys(seen, chain, log)
            if not note.signed_by(keys):
                raise Declined(403, f"this checkpoint of {log} is not signed by a key that is known to be its own")
            known = seen.get("epochs", {}).get(epoch)
            size, root = (known["size"], bytes.fromhex(known["root"])) if known else (0, b"")
            if old != size:
                raise Declined(409, f"{size}\n")
            if size and not consistent(size, root, checkpoint.size, checkpoint.root, proof):
                raise Declined(
                    422, f"a log that does not begin with the {size} events seen before: this is another history"
                )
            if not epoch.isdigit():
                raise Declined(422, f"{epoch!r} is no epoch")
            if known is None and seen.get("epochs") and checkpoint.origin not in self._accepted():
                # Whoever has the key can begin one, and leave out what he likes: that is for people to settle.
                raise Declined(
                    422,
                    f"epoch {epoch} is another history of a log that was seen before: whoever runs this witness "
                    f"has to accept it (flightlog witness --accept {checkpoint.origin})",
                )
            line = self.signer.line(note.text)
            epochs = {
                **seen.get("epochs", {}),
                epoch: {
                    "size": checkpoint.size,
                    "root": checkpoint.root.hex(),
                    "note": str(Note(note.text, (*note.lines, line))),
                },
            }
            write_json(self._path(log), {"log": log, "keys": [str(key) for key in keys], "epochs": epochs})
            return line

    def accept(self, origin: str) -> None:
        """Cosign an epoch of a known log from now on, that does not begin with what was seen: an operator's word."""
        accepted = sorted({*self._accepted(), origin})
        write(self.folder / "accepted", "".join(f"{one}\n" for one in accepted))

    def _accepted(self) -> list[str]:
        path = self.folder / "accepted"
        return path.read_text().splitlines() if path.exists() else []

    def last(self, log: str) -> list[str]:
        """The last checkpoint of each epoch of a log that was cosigned here, the newest epoch first."""
        epochs = (read_json(self._path(log)) or {}).get("epochs", {})
        return [str(epochs[epoch]["note"]) for epoch in sorted(epochs, key=int, reverse=True)]

    def logs(self) -> list[dict[str, Any]]:
        """All logs that were seen."""
        return [seen for path in sorted((self.folder / "logs").glob("*.json")) if (seen := read_json(path))]

    def _keys(self, seen: dict[str, Any], chain: list[str], log: str) -> list[Verifier]:
        known = [Verifier.parse(text) for text in seen.get("keys", [])]
        path = self.folder / "known"
        if not known and path.exists():
            lines = path.read_text().splitlines()
            known = [key for key in map(Verifier.parse, filter(None, lines)) if key.name == log]
        if not known and self.first_use and chain:
            known = [Verifier.parse(chain[0].partition(" ")[0])]
        return chained(chain, known)

    def _path(self, log: str) -> Path:
        return self.folder / "logs" / f"{hashlib.sha256(log.encode()).hexdigest()[:32]}.json"


def witness_app(witness: Witness) -> Starlette:
    """The witness over HTTP: ``POST /add-checkpoint``, ``GET /checkpoint?log=`` (JSON), ``GET /key``."""

    async def add(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_MAX:
                return PlainTextResponse(f"more than {BODY_MAX} bytes\n", 413)
        try:
            head, _, text = body.decode().partition("\n\n")
            first, *steps = head.split("\n")
            word, _, old = first.partition(" ")
            if word != "old" or not old.isdigit():
                raise NoteInvalid("the first line reads: old <size>")
            proof = [base64.b64decode(step, validate=True) for step in steps]
            chain = [line.strip() for line in request.headers.get("flightlog-keys", "").split(",") if line.strip()]
            line = await run_in_threadpool(witness.add, int(old), proof, Note.parse(text), chain)
        except Declined as error:
            kind = "text/x.tlog.size" if error.status == 409 else "text/plain"
            return Response(str(error), error.status, media_type=kind)
        except ValueError as error:  # NoteInvalid is one, and what is no base64 or text
            return PlainTextResponse(f"this is no checkpoint: {error}\n", 400)
        return PlainTextResponse(line)

    async def last(request: Request) -> Response:
        found = await run_in_threadpool(witness.last, request.query_params.get("log", ""))
        if not found:
            return PlainTextResponse("nothing was seen of this log\n", 404)
        return Response(json.dumps(found), media_type="application/json")

    async def key(request: Request) -> Response:
        return PlainTextResponse(f"{witness.signer.verifier}\n")

    async def logs(request: Request) -> Response:
        return Response(json.dumps(await run_in_threadpool(witness.logs)), media_type="application/json")

    return Starlette(
        routes=[
            Route("/add-checkpoint", add, methods=["POST"]),
            Route("/checkpoint", last),
            Route("/key", key),
            Route("/logs", logs),
        ]
    )


class WitnessServer:
    """A witness that answers on an address of this host, in a thread of its own.

    Args:
        witness: what it knows.
        host: address.
        port: 0: any free one.
    """

    def __init__(self, witness: Witness, host: str = "127.0.0.1", port: int = 0) -> None:
        self._socket = listen(host, port, exactly=port != 0)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(witness_app(witness), log_level="warning", lifespan="off", server_header=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="witness", daemon=True
        )

    def start(self) -> None:
        """Answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(5)
        self._socket.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
