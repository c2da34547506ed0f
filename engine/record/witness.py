"""A witness: it remembers what a log was, and signs only what begins with that (C2SP tlog-witness).

Who holds a site's key can write another history, and sign it; a witness that has seen the first one refuses the
second.
"""

from __future__ import annotations

import json
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from engine.errors import ArgumentInvalid
from engine.files import locked
from engine.record.ledger import Declined, Ledger, asked
from engine.record.serving import Serving, body_of
from engine.status.sockets import listen
from events.durable import write
from events.note import COSIGNATURE, Note, Signer, Verifier
from events.signing import chained


class Witness:
    """What one witness knows.

    Args:
        folder: for its key and what it has seen.
        name: of its key.
        first_use: take a log's key at its first checkpoint; else it has to be put into ``known`` first.
    """

    def __init__(self, folder: Path, name: str, *, first_use: bool = True) -> None:
        self.folder = folder
        self.ledger = Ledger(folder, "witness")
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
            chain: the site's public keys (``events.signing.Keys.chain``).

        Raises:
            Declined: 403 the key is not the log's, 409 another size was the last, 422 it is another log.
        """
        log = note.checkpoint.origin.rpartition("/")[0]
        with self.ledger.of(log) as seen:
            keys = self._keys(seen.keys, chain, log)
            if not note.signed_by(keys):
                raise Declined(403, f"this checkpoint of {log} is not signed by a key that is known to be its own")
            seen.check(old, proof, note.checkpoint)
            line = self.signer.line(note.text)
            seen.put(Note(note.text, (*note.lines, line)), keys)
            return line

    def _keys(self, known: list[Verifier], chain: list[str], log: str) -> list[Verifier]:
        path = self.folder / "known"
        if not known and path.exists():
            lines = path.read_text().splitlines()
            known = [key for key in map(Verifier.parse, filter(None, lines)) if key.name == log]
        if not known and self.first_use and chain:
            known = [key for key in [Verifier.parse(chain[0].partition(" ")[0])] if key.name == log]
        return chained(chain, known)


def witness_app(witness: Witness) -> Starlette:
    """The witness over HTTP: ``POST /add-checkpoint``, ``GET /checkpoint?log=`` (JSON), ``GET /key``."""

    async def add(request: Request) -> Response:
        try:
            old, proof, text = asked(await body_of(request))
            chain = [line.strip() for line in request.headers.get("flightlog-keys", "").split(",") if line.strip()]
            line = await run_in_threadpool(witness.add, old, proof, Note.parse(text), chain)
        except Declined as error:
            kind = "text/x.tlog.size" if error.status == 409 else "text/plain"
            return Response(str(error), error.status, media_type=kind)
        except ValueError as error:  # NoteInvalid is one, and what is no base64 or text
            return PlainTextResponse(f"this is no checkpoint: {error}\n", 400)
        return PlainTextResponse(line)

    async def last(request: Request) -> Response:
        try:
            found = await run_in_threadpool(witness.ledger.last, request.query_params.get("log", ""))
        except Declined as error:
            return PlainTextResponse(str(error), error.status)
        if not found:
            return PlainTextResponse("nothing was seen of this log\n", 404)
        return Response(json.dumps(found), media_type="application/json")

    async def key(request: Request) -> Response:
        return PlainTextResponse(f"{witness.signer.verifier}\n")

    async def logs(request: Request) -> Response:
        try:
            return Response(json.dumps(await run_in_threadpool(witness.ledger.logs)), media_type="application/json")
        except Declined as error:
            return PlainTextResponse(str(error), error.status)

    return Starlette(
        routes=[
            Route("/add-checkpoint", add, methods=["POST"]),
            Route("/checkpoint", last),
            Route("/key", key),
            Route("/logs", logs),
        ]
    )


class WitnessServer(Serving):
    """A witness that answers on an address of this host, in a thread of its own.

    Args:
        witness: what it knows.
        host: address.
        port: 0: any free one.
    """

    def __init__(self, witness: Witness, host: str = "127.0.0.1", port: int = 0) -> None:
        sock = listen(host, port, exactly=port != 0)
        self.url = f"http://{host}:{sock.getsockname()[1]}"
        super().__init__(witness_app(witness), sock, "witness")
