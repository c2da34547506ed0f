"""A Merkle tree over the log, RFC 6962: roots, proofs, and their verification.

Leaf ``i`` is the event with sequence ``i + 1``. Hashes of whole subtrees are kept for every eighth level, one
after the other, so each 8,192 bytes at a multiple of 8,192 are a full tile as C2SP tlog-tiles has them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from events.errors import RecordDamaged

HASH = 32  # bytes
TILE = 256  # hashes: one more kept level
LEVELS = (0, 8, 16, 24)
EMPTY = sha256(b"").digest()


def canonical(position: str, kind: str, subject: str, version: str | int, d: str) -> bytes:
    """The bytes of an event that the tree is over: each stored field, with its length before it."""
    parts = [one.encode("utf-8", "surrogatepass") for one in (position, kind, subject, str(version), d)]
    return b"".join([len(part).to_bytes(4, "big") + part for part in parts])


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf (RFC 6962, 2.1)."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node from its two children."""
    return sha256(b"\1" + left + right).digest()


def _perfect(hashes: Sequence[bytes]) -> bytes:
    """The root over a power of two of hashes."""
    level = list(hashes)
    while len(level) > 1:
        level = [sha256(b"\1" + level[i] + level[i + 1]).digest() for i in range(0, len(level), 2)]
    return level[0]


class Tree:
    """A tree that grows.

    Args:
        folder: where its hashes are kept, a file per kept level; None: in memory.
    """

    def __init__(self, folder: Path | None = None, *, readonly: bool = False) -> None:
        self.folder = folder
        self._memory = {level: bytearray() for level in LEVELS} if folder is None else {}
        self._files: dict[int, int] = {}
        if folder is not None:
            if not readonly:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            how = os.O_RDONLY if readonly else os.O_RDWR | os.O_CREAT
            for level in LEVELS:
                if not readonly or (folder / str(level)).exists():
                    self._files[level] = os.open(folder / str(level), how | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Let go of the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._length(0)

    @property
    def whole(self) -> bool:
        """Whether all that is made of the leaves is there."""
        return all(self._length(level) == self.size >> level for level in LEVELS)

    def append(self, leaves: Sequence[bytes]) -> None:
        """Add leaves, given by their hashes."""
        self._grow(0, b"".join(leaves))

    def _grow(self, level: int, data: bytes) -> None:
        start = self._length(level)
        if level in self._memory:
            self._memory[level] += data
        else:
            view, offset = memoryview(data), start * HASH
            while view:
                done = os.pwrite(self._files[level], view, offset)
                view, offset = view[done:], offset + done
        if level + 8 > LEVELS[-1]:
            return
        tiles = range(self._length(level + 8), (start + len(data) // HASH) // TILE)
        if tiles:
            self._grow(level + 8, b"".join(_perfect(self._read(level, n * TILE, TILE)) for n in tiles))

    def cut(self, size: int) -> None:
        """Take leaves away again, down to ``size``."""
        for level in LEVELS:
            keep = (size >> level) * HASH
            if level in self._memory:
                del self._memory[level][keep:]
            elif os.fstat(self._files[level]).st_size > keep:
                os.ftruncate(self._files[level], keep)

    def sync(self) -> None:
        """Put what was added on disk."""
        for fd in self._files.values():
            os.fdatasync(fd)

    def leaf(self, index: int) -> bytes:
        """The hash of one leaf."""
        return self._read(0, index, 1)[0]

    def leaves(self, start: int, stop: int) -> list[bytes]:
        """The hashes of some leaves."""
        return self._read(0, start, stop - start)

    def root(self, size: int | None = None) -> bytes:
        """The root over the first ``size`` leaves, or all."""
        size = self.size if size is None else size
        return self._over(0, size) if size else EMPTY

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The proof that a leaf is in the tree of that size (RFC 6962, 2.1.1)."""
        if not 0 <= index < size <= self.size:
            raise ValueError(f"leaf {index} is not in a tree of {size}, of which {self.size} are here")
        proof: list[bytes] = []
        low, high = 0, size
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                proof.append(self._over(middle, high))
                high = middle
            else:
                proof.append(self._over(low, middle))
                low = middle
        return proof[::-1]

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of size ``new`` begins with that of size ``old`` (RFC 6962, 2.1.2)."""
        if not 0 < old <= new <= self.size:
            raise ValueError(f"no consistency between {old} and {new}, of which {self.size} are here")
        proof: list[bytes] = []
        low, high, whole = 0, new, True
        while old - low != high - low:
            middle = low + _split(high - low)
            if old <= middle:
                proof.append(self._over(middle, high))
                high = middle
            else:
                proof.append(self._over(low, middle))
                low, whole = middle, False
        if not whole:
            proof.append(self._over(low, high))
        return proof[::-1]

    def _over(self, low: int, high: int) -> bytes:
        count = high - low
        if count & (count - 1) == 0 and low % count == 0:
            height = count.bit_length() - 1
            level = height // 8 * 8
            return _perfect(self._read(level, low >> level, 1 << (height - level)))
        middle = low + _split(count)
        return node_hash(self._over(low, middle), self._over(middle, high))

    def _length(self, level: int) -> int:
        if level in self._memory:
            return len(self._memory[level]) // HASH
        return os.fstat(self._files[level]).st_size // HASH if level in self._files else 0

    def _read(self, level: int, start: int, count: int) -> list[bytes]:
        if level in self._memory:
            data: bytes | bytearray = self._memory[level][start * HASH : (start + count) * HASH]
        else:
            data = os.pread(self._files[level], count * HASH, start * HASH)
        if len(data) != count * HASH:
            raise RecordDamaged(
                f"the tree of the seal has no hashes {start} to {start + count} at level {level}",
                "the sealer makes them anew: flightlog seal",
            )
        return [bytes(data[i : i + HASH]) for i in range(0, len(data), HASH)]


def _split(count: int) -> int:
    """The largest power of two below ``count``."""
    return 1 << ((count - 1).bit_length() - 1)


def included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether a proof shows that a leaf is in the tree with this root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    first, last, have = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if first & 1 or first == last:
            have = node_hash(step, have)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            have = node_hash(have, step)
        first, last = first >> 1, last >> 1
    return last == 0 and have == root


def consistent(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether a proof shows that one tree begins with the other (RFC 9162, 2.1.4.2)."""
    if old == new:
        return old_root == new_root and not proof
    if not 0 < old < new or not proof:
        return False
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    first, last = old - 1, new - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    was = now = path[0]
    for step in path[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            was, now = node_hash(step, was), node_hash(step, now)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            now = node_hash(now, step)
        first, last = first >> 1, last >> 1
    return last == 0 and was == old_root and now == new_root
