"""Who may ask over TCP: tokens with roles, from a file of their hashes."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import ArgumentInvalid
from engine.files import locked, read_json, write_json
from engine.workspace import Workspace
from events.envelope import Actor

Role = Literal["viewer", "operator"]
#: What a role may do: a viewer looks, an operator commands too.
RANK: dict[str, int] = {"none": 0, "viewer": 1, "operator": 2}
PREFIX = "fl_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


@dataclass(frozen=True)
class Caller:
    """Somebody who asks, how that is known, and what they may do."""

    actor: Actor
    role: str

    def may(self, role: Role) -> bool:
        """Whether they may do what this role may."""
        return RANK[self.role] >= RANK[role]


def cookie_of(site: str) -> str:
    """Where a page keeps the token of who has signed in: a browser shares cookies among the ports of a host."""
    return f"flightlog-{site}"


class Tokens:
    """The tokens of one site. Only hashes are kept: a token has 256 random bits, so a plain hash hides it.

    Args:
        workspace: of the site.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.path: Path = workspace.flight / "tokens.json"
        self._stamp: tuple[int, int, int] | None = None
        self._known: dict[str, dict[str, str]] = {}

    def caller(self, token: str) -> Caller | None:
        """Whose token it is; None where it is nobody's."""
        digest = _digest(token)
        for name, entry in self.listed().items():
            if secrets.compare_digest(entry["sha256"], digest):
                kind = "service" if entry["kind"] == "service" else "person"
                return Caller(Actor(id=name, kind=kind, auth="token", via="api"), entry["role"])
        return None

    def listed(self) -> dict[str, dict[str, str]]:
        """Name -> role, kind and hash; read again when the file has changed."""
        try:
            info = self.path.stat()
            stamp = (info.st_mtime_ns, info.st_ino, info.st_size)
        except FileNotFoundError:
            self._known, self._stamp = {}, None
            return self._known
        if stamp != self._stamp:
            self._known, self._stamp = (read_json(self.path) or {}), stamp
        return self._known

    def add(
        self, name: str, role: Role, *, service: bool = False, record: Callable[[], object] = lambda: None
    ) -> str:
        """Make a token; it is shown once and never again. ``record`` is called before it is good for anything.

        Raises:
            ArgumentInvalid: the name is none, or has a token already.
        """
        if not _NAME.fullmatch(name):
            raise ArgumentInvalid(
                f"NAME is {name[:80]!r}",
                "1 to 64 letters, digits and . _ @ -, with a letter or digit first",
                field="NAME",
            )
        token = PREFIX + secrets.token_urlsafe(32)
        with locked(self.path.with_suffix(".lock"), timeout=10):
            known = dict(self.listed())
            if name in known:
                raise ArgumentInvalid(f"{name} has a token", f"flightlog token remove {name}, first", field="NAME")
            record()
            known[name] = {"role": role, "kind": "service" if service else "person", "sha256": _digest(token)}
            write_json(self.path, known)
        return token

    def remove(self, name: str, *, record: Callable[[], object] = lambda: None) -> None:
        """Take a token back; it is refused from the next request on. ``record`` is called before.

        Raises:
            ArgumentInvalid: there is none of that name.
        """
        with locked(self.path.with_suffix(".lock"), timeout=10):
            known = dict(self.listed())
            if known.pop(name, None) is None:
                raise ArgumentInvalid(f"{name!r} has no token", "flightlog token list", field="NAME")
            record()
            write_json(self.path, known)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()
