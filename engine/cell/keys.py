"""A site's own keys, and the public keys of its peers.

::

    startup/keys/own.json           X25519 and Ed25519, private; for this user only
    startup/keys/peers/<name>.json  what a peer's ``flightlog keys show`` printed
    startup/keys/lock               held while one of them is written

A job's cell uses its site's keys. Nothing here asks the network who somebody is: an operator says whom the
site trusts, and compares the fingerprint.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, HostError, KeyUnknown
from engine.files import locked, read_plain, write_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_FIELDS: Final = ("name", "x25519", "ed25519", "fingerprint")
_SHOW: Final = "take the whole text that flightlog keys show prints at the peer's"
_MOST = 2**16  # bytes of a key file


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom a message can be sealed for, and whose signature can be verified.

    Attributes:
        name: of the site or server.
        x25519: for sealing.
        ed25519: for signatures.
        fingerprint: of name and keys, for people to compare: 32 hex digits in groups of 4.
    """

    name: str
    x25519: X25519PublicKey
    ed25519: Ed25519PublicKey
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Own:
    """Our own keys."""

    sealing: X25519PrivateKey
    signing: Ed25519PrivateKey
    peer: Peer

    def __repr__(self) -> str:
        return f"Own({self.peer.name})"


class KeyRing:
    """The keys of one site or server. Nothing is read or made before it is asked for.

    May be used from any thread, and by several processes on the same folder.

    Args:
        folder: the workspace's ``startup/``.
        name: of the site or server.

    Raises:
        ArgumentInvalid: the name cannot be one.
    """

    def __init__(self, folder: Path, name: str) -> None:
        if not is_name(name):
            raise ArgumentInvalid(
                f"name {name!r} has no keys", "use letters, digits, - and _, at most 128", field="name"
            )
        self.name = name
        self.folder = Path(folder) / "keys"
        self._own: Own | None = None
        self._peers: dict[str, tuple[object, Peer]] = {}

    def public(self) -> dict[str, str]:
        """Our public keys, for a peer to trust: name, x25519 and ed25519 (base64 of 32 bytes each), fingerprint.

        Raises:
            HostError: ``own.json`` cannot be read, or is of somebody else.
        """
        return _shown(self.own().peer)

    def own(self) -> Own:
        """Our keys; made at the first call ever, once, whoever else asks at that moment.

        Raises:
            HostError: ``own.json`` cannot be read or written, or is of somebody else. It is never replaced.
            DiskFull: no room for it.
        """
        if self._own is None:  # two threads may get here at once: the file settles it, as between processes
            self._own = self._read_own() or self._make_own()
        return self._own

    def trust(self, public: Mapping[str, Any], *, replace: bool = False) -> Peer:
        """Take in a peer's public keys. The same again does nothing.

        Args:
            public: what ``public()`` gives at the peer's.
            replace: also where we know other keys of that name.

        Raises:
            ArgumentInvalid: malformed, other keys than the known ones, or other keys than our own
                under our own name.
            DiskFull: no room; the keys that were known before still are.
            HostError: the folder cannot be written.
        """
        peer = _peer_of(public)
        if peer.name == self.name:
            if peer.fingerprint != self.own().peer.fingerprint:
                raise ArgumentInvalid(
                    f"the keys are said to be those of {self.name}, which is this site, and are not",
                    "a peer needs a name of its own",
                    field="name",
                )
            return peer
        path = self._path(peer.name)
        with self._writing():
            try:
                known = self._read_peer(peer.name)
            except KeyUnknown:
                known = None
            if known is not None and known.fingerprint == peer.fingerprint:
                return peer
            if path.exists() and not replace:
                before = known.fingerprint if known else "unreadable"
                raise ArgumentInvalid(
                    f"other keys of {peer.name} are trusted already: fingerprint {before}, not {peer.fingerprint}",
                    f"ask {peer.name}'s operator which is right, and if it is this one: "
                    "flightlog keys trust FILE --replace",
                    field="fingerprint",
                )
            write_json(path, _shown(peer))
        return peer

    def peer(self, name: str) -> Peer:
        """A peer's public keys; our own under our own name.

        What another process trusts, replaces or removes counts from the next call on.

        Raises:
            KeyUnknown: none are known, or the name cannot be one.
        """
        if name == self.name:
            return self.own().peer
        if not is_name(name):
            raise KeyUnknown(f"no key of {name!r:.140} is known, and none can be", _trust(""), peer=str(name)[:128])
        return self._read_peer(name)

    def trusts(self, name: str) -> bool:
        """Whether a key of this name was ever trusted here, and not removed; one that cannot be read counts."""
        return name == self.name or (is_name(name) and os.path.lexists(self._path(name)))

    def _read_peer(self, name: str) -> Peer:
        path = self._path(name)
        try:
            status = os.stat(path, follow_symlinks=False)
            mark = (status.st_ino, status.st_size, status.st_mtime_ns)  # files are replaced, never changed
            cached = self._peers.get(name)
            if cached is not None and cached[0] == mark:
                return cached[1]
            peer = _peer_of(json.loads(read_plain(path, _MOST)))
            if peer.name != name:
                raise ArgumentInvalid(f"it has the keys of {peer.name}")
        except FileNotFoundError:
            self._peers.pop(name, None)
            raise KeyUnknown(f"no key of {name} is known here", _trust(name), peer=name) from None
        except (OSError, ValueError, RecursionError) as error:
            why = error.what if isinstance(error, ArgumentInvalid) else str(error)
            raise KeyUnknown(f"the key of {name} in {path} cannot be read: {why}", _trust(name), peer=name) from error
        self._peers[name] = mark, peer
        return peer

    def _read_own(self) -> Own | None:
        path = self.folder / "own.json"
        try:
            found = json.loads(read_plain(path, _MOST))
            name = found["name"]
            own = _own(
                name,
                X25519PrivateKey.from_private_bytes(_raw(found["x25519_private"])),
                Ed25519PrivateKey.from_private_bytes(_raw(found["ed25519_private"])),
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError(
                f"this site's keys in {path} cannot be read: {error.strerror}", "look at that file and its rights"
            ) from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise HostError(
                f"this site's keys in {path} cannot be read: {type(error).__name__}",
                "put them back from a backup; without one, remove the file: new keys are made, and every peer "
                "has to trust them anew",
            ) from None  # the text of such an error may have a part of the keys
        if name != self.name:
            raise HostError(
                f"{path} has the keys of {name}, not of {self.name}",
                "give each site a startup folder of its own; keys are not passed on",
            )
        return own

    def _make_own(self) -> Own:
        with self._writing():
            if own := self._read_own():  # another process was faster
                return own
            own = _own(self.name, X25519PrivateKey.generate(), Ed25519PrivateKey.generate())
            private = {
                "name": self.name,
                "x25519_private": _text(own.sealing.private_bytes_raw()),
                "ed25519_private": _text(own.signing.private_bytes_raw()),
            }
            write_json(self.folder / "own.json", private, 0o600)
            return own

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock of the folder, which is made where it is missing."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self.folder / "lock"):
                yield
        except OSError as error:
            raise HostError(
                f"keys cannot be kept in {self.folder}: {error.strerror}", "look at the rights of that folder"
            ) from error

    def _path(self, name: str) -> Path:
        return self.folder / "peers" / f"{name}.json"


def is_name(name: object) -> bool:
    """It can be the name of a site or server, and so of a key file."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _own(name: str, sealing: X25519PrivateKey, signing: Ed25519PrivateKey) -> Own:
    x25519, ed25519 = sealing.public_key(), signing.public_key()
    return Own(sealing, signing, Peer(name, x25519, ed25519, _fingerprint(name, x25519, ed25519)))


def _peer_of(public: object) -> Peer:
    """A peer from its public keys, of which nothing is believed.

    Raises:
        ArgumentInvalid: what is wrong with them.
    """
    if not isinstance(public, Mapping):
        raise ArgumentTypeInvalid(f"public keys are a mapping, not {type(public).__name__}", _SHOW)
    if "x25519_private" in public or "ed25519_private" in public:
        raise ArgumentInvalid("these are private keys, which never leave their site", _SHOW)
    for field in _FIELDS:
        if not isinstance(public.get(field), str):
            raise ArgumentInvalid(f"{field} is missing from the public keys, or no text", _SHOW, field=field)
    name = public["name"]
    if not is_name(name):
        raise ArgumentInvalid(f"name {name!r:.140} is no name of a site", _SHOW, field="name")
    try:
        x25519 = X25519PublicKey.from_public_bytes(_raw(public["x25519"]))
        # Refused by the exchange: points of low order, with which everybody would share the secret.
        X25519PrivateKey.generate().exchange(x25519)
    except ValueError:
        raise ArgumentInvalid("x25519 is no key: base64 of 32 bytes is expected", _SHOW, field="x25519") from None
    try:
        ed25519 = Ed25519PublicKey.from_public_bytes(_raw(public["ed25519"]))
    except ValueError:
        raise ArgumentInvalid("ed25519 is no key: base64 of 32 bytes is expected", _SHOW, field="ed25519") from None
    fingerprint = _fingerprint(name, x25519, ed25519)
    if public["fingerprint"] != fingerprint:
        raise ArgumentInvalid("fingerprint is not the one of this name and these keys", _SHOW, field="fingerprint")
    return Peer(name, x25519, ed25519, fingerprint)


def _shown(peer: Peer) -> dict[str, str]:
    return {
        "name": peer.name,
        "x25519": _text(peer.x25519.public_bytes_raw()),
        "ed25519": _text(peer.ed25519.public_bytes_raw()),
        "fingerprint": peer.fingerprint,
    }


def _fingerprint(name: str, x25519: X25519PublicKey, ed25519: Ed25519PublicKey) -> str:
    """The first 128 bits of a digest of all three; nobody finds other keys with the same ones."""
    raw = x25519.public_bytes_raw() + ed25519.public_bytes_raw()
    digest = hashlib.sha256(b"flightlog key 1\0" + raw + name.encode()).hexdigest()
    return "-".join(digest[i : i + 4] for i in range(0, 32, 4))


def _raw(text: str) -> bytes:
    """Key bytes of their base64; raises ``ValueError`` for anything else."""
    return base64.b64decode(text.encode("ascii"), validate=True)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _trust(name: str) -> str:
    of = f", where FILE is what flightlog keys show prints at {name}" if name else ""
    return f"flightlog keys trust FILE{of}"
