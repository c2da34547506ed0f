"""The signer: a process of a user of its own, that holds a site's key and signs what goes on from what it signed.

Whoever is the site's user can have the next checkpoint signed, as its sealer does. He cannot read the key, and cannot
have another history signed: the signer remembers which it was, as a witness does.
"""

from __future__ import annotations

import re
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from engine.record.ledger import Declined, Ledger, asked
from engine.record.serving import body_of
from events.note import Checkpoint, Note, NoteInvalid
from events.signing import Keys

_LOG = re.compile(r"flightlog/[^/+\s]+/[^/+\s]+")


class Signatory:
    """What one signer holds.

    Args:
        folder: for the key and what was signed. One log, the first that asks.
    """

    def __init__(self, folder: Path) -> None:
        self.keys = Keys(folder)
        self.ledger = Ledger(folder, "signer")

    def chain(self, log: str) -> list[str]:
        """The public keys; raises ``Declined`` (403) for another log than the first."""
        with self.keys.held():
            return self._chain(log)

    def sign(self, old: int, proof: list[bytes], text: str) -> str:
        """Sign a checkpoint that goes on from the last; the signature line.

        Raises:
            Declined: 403 another log, 409 another size was the last, 422 another history.
            NoteInvalid: it is no checkpoint.
        """
        checkpoint = Checkpoint.parse(text)
        if checkpoint.text() != text:
            raise NoteInvalid("it holds more than origin, size, root and position, or writes them otherwise")
        log = checkpoint.origin.rpartition("/")[0]
        with self.keys.held():
            self._chain(log)
            with self.ledger.of(log) as seen:
                seen.check(old, proof, checkpoint)
                line = self.keys.signer(log).line(text)
                seen.put(Note(text, (line,)), self.keys.verifiers())
        return line

    def rotate(self, log: str) -> None:
        """Take another key; raises ``Declined`` for another log."""
        self.chain(log)
        self.keys.rotate(log)

    def _chain(self, log: str) -> list[str]:
        if not _LOG.fullmatch(log):
            raise Declined(400, f"{log!r} names no log: flightlog/SITE/ID\n")
        mine = self.keys.signer(log).verifier.name
        if mine != log:
            raise Declined(
                403, f"this signer holds the key of {mine}, not of {log}: a site has a signer of its own\n"
            )
        return self.keys.chain()


def signer_app(signatory: Signatory, users: frozenset[int]) -> Starlette:
    """The signer over HTTP: ``POST /sign``, ``GET /keys?log=``, ``POST /rotate?log=``, ``GET /livez``.

    Args:
        signatory: what it holds.
        users: who may ask, by number.
    """

    async def alive(request: Request) -> Response:
        return PlainTextResponse("it signs\n")

    async def answer(request: Request) -> Response:
        peer = str(request.client.host if request.client else "")
        if peer.removeprefix("uid:") not in {str(uid) for uid in users}:
            return PlainTextResponse(f"{peer} may not have anything signed here: flightlog signer --for USER\n", 403)
        log = request.query_params.get("log", "")
        try:
            if request.url.path == "/sign":
                said = await run_in_threadpool(signatory.sign, *asked(await body_of(request)))
            elif request.url.path == "/rotate":
                await run_in_threadpool(signatory.rotate, log)
                said = ""
            else:
                said = "".join(f"{line}\n" for line in await run_in_threadpool(signatory.chain, log))
        except Declined as error:
            return PlainTextResponse(str(error), error.status)
        except ValueError as error:  # NoteInvalid is one, and what is no base64 or text
            return PlainTextResponse(f"this is no checkpoint: {error}\n", 400)
        return PlainTextResponse(said)

    return Starlette(
        routes=[
            Route("/livez", alive),
            Route("/sign", answer, methods=["POST"]),
            Route("/keys", answer, methods=["GET"]),
            Route("/rotate", answer, methods=["POST"]),
        ]
    )
