"""Sealing: whoever carries a message cannot read it, nor change it or its sender without being noticed.

::

    version     1 byte
    ephemeral  32 bytes: an X25519 public key, of this message only
    nonce      12 bytes
    signature  64 bytes: Ed25519, by the sender
    ciphertext  AES-256-GCM with its tag, of the message

The cipher's key is HKDF-SHA256 of what the ephemeral key and the receiver's have in common. The signature is
over the digest of everything else: version, both parties' names and keys, the context, ephemeral key, nonce
and ciphertext. Names and context go into cipher and key too, so nobody can put their own signature onto the
message of another. A message that comes twice is not noticed here: the context has its id for that.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.cell.keys import KeyRing, Peer
from engine.errors import SealBroken

VERSION: Final = 1
_HEAD = struct.Struct(">B32s12s64s")
_TAG = 16
#: Bytes that a sealed message has more than the plain one.
OVERHEAD: Final = _HEAD.size + _TAG
_LABEL = b"flightlog seal"


def owner(fqcn: str) -> str:
    """Whose keys a cell uses: ``site-1`` for ``site-1.job-7``."""
    return fqcn.partition(".")[0]


def seal(plain: bytes, ring: KeyRing, receiver: str, context: bytes) -> bytes:
    """A message that only the receiver can read, and that only we can have written.

    Args:
        plain: the message, up to 2 GiB.
        ring: our keys.
        receiver: FQCN of a cell; any cell of the same site can open it.
        context: what the receiver must know alike, such as message id, cells, channel and topic.
            It is bound to the message and not in it.

    Raises:
        KeyUnknown: no key of the receiver is known.
    """
    to, own = ring.peer(owner(receiver)), ring.own()
    ephemeral = X25519PrivateKey.generate()
    point, nonce = ephemeral.public_key().public_bytes_raw(), os.urandom(12)
    about = _about(own.peer, to, context, point)
    key = _key(ephemeral, to.x25519, about)
    ciphertext = AESGCM(key).encrypt(nonce, plain, about)
    signature = own.signing.sign(_signed(about, nonce, ciphertext))
    return b"".join((_HEAD.pack(VERSION, point, nonce, signature), ciphertext))


def unseal(sealed: bytes, ring: KeyRing, sender: str, context: bytes) -> bytes:
    """The message, where it is the sender's, for us, in this context, and whole.

    Args:
        sealed: what ``seal`` gave, as bytes or another buffer of bytes.
        ring: our keys.
        sender: FQCN of the cell that is said to have sent it.
        context: as it was given to ``seal``.

    Raises:
        KeyUnknown: no key of the sender is known.
        SealBroken: it is anything else. Nothing was deciphered before the signature was verified.
    """
    view = memoryview(sealed)
    if len(view) < OVERHEAD:
        raise _broken(sender, "it is cut off")
    version, point, nonce, signature = _HEAD.unpack_from(view)
    if version != VERSION:
        raise _broken(sender, f"it is sealed in version {version}, and this side opens {VERSION}")
    by, own = ring.peer(owner(sender)), ring.own()
    about, ciphertext = _about(by, own.peer, context, point), view[_HEAD.size :]
    try:
        by.ed25519.verify(signature, _signed(about, nonce, ciphertext))
        key = _key(own.sealing, X25519PublicKey.from_public_bytes(point), about)
        return AESGCM(key).decrypt(nonce, ciphertext, about)
    except InvalidSignature:
        raise _broken(
            sender, f"it was altered, is for another cell or context, or not signed with the key {by.fingerprint}"
        ) from None
    except (InvalidTag, ValueError, OverflowError) as error:  # signed like this by the sender itself
        raise _broken(sender, "it was not sealed as messages are") from error


def _about(sender: Peer, receiver: Peer, context: bytes, point: bytes) -> bytes:
    """Digest of all that a message is bound to, beside its content; each part with its length before it."""
    digest = hashlib.sha256(_LABEL)
    for part in (
        bytes((VERSION,)),
        sender.name.encode(),
        sender.ed25519.public_bytes_raw(),
        receiver.name.encode(),
        receiver.x25519.public_bytes_raw(),
        context,
        point,
    ):
        digest.update(struct.pack(">Q", len(part)))
        digest.update(part)
    return digest.digest()


def _signed(about: bytes, nonce: bytes, ciphertext: bytes | memoryview) -> bytes:
    """What the signature is over. The three before the ciphertext have lengths that never change."""
    digest = hashlib.sha256(_LABEL + about + nonce)
    digest.update(ciphertext)
    return _LABEL + digest.digest()


def _key(mine: X25519PrivateKey, theirs: X25519PublicKey, about: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=_LABEL + about).derive(mine.exchange(theirs))


def _broken(sender: str, why: str) -> SealBroken:
    return SealBroken(
        f"the sealed message from {sender!r:.140} does not verify: {why}",
        "have it sent again; if it stays so, compare the sender's flightlog keys show with what is trusted here",
        sender=sender[:128],
    )
