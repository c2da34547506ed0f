"""The site's side of a witness: it is shown each checkpoint, with the proof that nothing before it has changed."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from engine.errors import EngineDown
from engine.files import read_json, write_json
from engine.record.ledger import asking
from engine.site import Site
from engine.workspace import Workspace
from events.errors import RecordDamaged
from events.merkle import Tree
from events.note import Note, NoteInvalid, Verifier
from events.signing import Keys

PATIENCE = 5.0  # seconds
#: Keys of witnesses that came with a history from elsewhere.
WITNESSES = "witnesses"


class Refused(Exception):
    """A witness does not cosign a checkpoint, and says why."""


def submit(workspace: Workspace, tree: Tree, note: Note, url: str) -> tuple[Note, Verifier]:
    """Have a witness cosign a checkpoint; the note with its signature, and its key.

    The key is taken at the first time, and has to be the same from then on.

    Raises:
        Refused: it has seen another log. EngineDown: it does not answer.
    """
    known = _known(workspace)
    mine: dict[str, Any] = known.get(url, {})
    key = Verifier.parse(mine["key"]) if mine else Verifier.parse(_ask(f"{url}/key")[1])
    checkpoint = note.checkpoint
    old = int(mine.get("sizes", {}).get(checkpoint.origin, 0))
    for _ in range(2):
        if old > checkpoint.size:
            raise Refused(f"it has seen {old} events of this log, which has {checkpoint.size}")
        proof = tree.consistency(old, checkpoint.size) if old else []
        chain = Keys(workspace.seal).chain()
        status, said = _ask(f"{url}/add-checkpoint", asking(old, proof, str(note)), chain)
        if status != 409:
            break
        old = int(said) if said.strip().isdigit() else 0
    if status != 200:
        raise Refused(said.strip() or f"it answers {status}")
    cosigned = Note(note.text, (*note.lines, said))
    if not cosigned.signed_by([key]):
        raise Refused("it answers with a signature that is not of the key that it had before")
    sizes = {**mine.get("sizes", {}), checkpoint.origin: checkpoint.size}
    known[url] = {"key": str(key), "sizes": sizes, "size": checkpoint.size, "at": time.time()}
    write_json(workspace.seal / "witnesses.json", known)
    return cosigned, key


def witnesses(site: Site) -> list[str]:
    """Addresses of the witnesses that this site shows its checkpoints: its own, and the federation's server."""
    named = [url.strip() for url in site.settings.witness.split(",")]
    of_server = (read_json(site.workspace.seal / "federation.json") or {}).get("witness", "")
    return [url for url in dict.fromkeys([*named, str(of_server)]) if url]


def _known(workspace: Workspace) -> dict[str, Any]:
    path = workspace.seal / "witnesses.json"
    known = read_json(path) or {}
    try:
        if not known and path.exists():
            raise ValueError(path.name)
        for one in known.values():
            Verifier.parse(one["key"])
            int(one["size"]), float(one["at"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordDamaged(
            f"{path} does not say which witnesses this site has been with: {error!r}", "restore it from a backup"
        ) from error
    return known


def witness_keys(workspace: Workspace) -> list[Verifier]:
    """Keys of the witnesses that this site has been with, and that the site had whose history it took in."""
    path = workspace.seal / WITNESSES
    taken = path.read_text().split() if path.exists() else []
    return [Verifier.parse(text) for text in dict.fromkeys([*(w["key"] for w in _known(workspace).values()), *taken])]


def seen_by(workspace: Workspace, url: str, origin: str) -> int:
    """How many events of an epoch a witness has cosigned."""
    return int(_known(workspace).get(url, {}).get("sizes", {}).get(origin, 0))


def witnessed(workspace: Workspace, origin: str) -> tuple[int, float]:
    """Up to which event of an epoch a witness vouches, and since when."""
    known = _known(workspace).values()
    found = [(int(one["sizes"][origin]), float(one["at"])) for one in known if origin in one.get("sizes", {})]
    return max(found, default=(0, 0.0))


def last_seen(url: str, log: str) -> list[Note]:
    """What a witness has seen last of a log, of each epoch, the newest first; none: nothing.

    Raises:
        EngineDown: it does not answer, or with something else.
    """
    status, said = _ask(f"{url}/checkpoint?{urllib.parse.urlencode({'log': log})}")
    if status == 404:
        return []
    try:
        return [Note.parse(one) for one in json.loads(said)]
    except (NoteInvalid, ValueError, TypeError, AttributeError) as error:
        raise EngineDown(f"{url} is no witness: {error}", "name one with --witness") from error


def _ask(url: str, body: bytes | None = None, chain: list[str] | None = None) -> tuple[int, str]:
    if not url.startswith(("http://", "https://")):
        raise EngineDown(f"the witness {url[:100]!r} is no address", "it reads http://HOST:PORT")
    headers = {"Flightlog-Keys": ", ".join(chain)} if chain else {}
    try:
        request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - http or https, see above
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            return int(answer.status), answer.read(65_536).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(65_536).decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EngineDown(f"the witness {url} does not answer: {error}", "it is asked again later") from error
