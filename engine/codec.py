"""What travels between site, job and server, as bytes and back: typed, and without any code in it.

::

    version  1 byte
    size     8 bytes, big endian: of the tokens
    tokens   msgpack objects, in the order of reading
    buffers  bytes of arrays and of long byte strings, in the order in which the tokens name them

A token is a plain msgpack value or an ExtType. A container's ExtType has the number of its items, which
follow as tokens; msgpack's own arrays and maps are not used, so no size is believed before its content is
there, nothing is copied once per level, and an array's bytes are copied once on each way.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from enum import Enum
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType
from typing import Any, Final

from msgpack import ExtType, Packer, Unpacker
from msgpack.exceptions import UnpackException

from engine import arrays
from engine.constants import ReservedKey
from engine.errors import PayloadInvalid
from engine.shareable import Shareable

VERSION: Final = 1
MAX_DEPTH: Final = 100  # containers within each other
_HEAD = struct.Struct(">BQ")
_LONG = 4096  # bytes; byte strings from this length on are buffers

_INT, _LIST, _TUPLE, _DICT, _SHAREABLE, _BYTES, _ARRAY, _SCALAR = range(1, 9)
_PLAIN = frozenset({NoneType, bool, int, float, str, bytes})
_SIMPLE = frozenset({NoneType, bool, int, float})
_BASES = (Shareable, dict, list, tuple, str, bytes, bytearray, int, float)

_CAN = (
    "send None, bool, int, float, str, bytes, list, tuple, dict, Shareable, "
    "or numpy's arrays and scalars of numbers, bool, str and bytes"
)
_AGAIN = "have it sent again, by a peer of this version"
_END: Any = object()


class _Cannot(Exception):
    """Why a value cannot be sent; the way to it is added on the way back."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.way: list[Any] = []  # keys and indices, innermost first
        self.upto: int | None = None  # where the rest of the way only goes round


def encode(value: Any) -> bytes:
    """A value as bytes.

    None, bool, int, float, str, bytes, list, tuple, dict, ``Shareable`` and numpy's arrays and scalars come
    back as what they are. bytearray and memoryview come back as bytes, members of an Enum of str or int as
    plain str or int, arrays in C order and with memory of their own.

    Args:
        value: nested at most 100 levels deep.

    Raises:
        PayloadInvalid: something in it cannot be sent; the message names its place.
    """
    writer = _Writer()
    try:
        writer.write(value, 1)
    except _Cannot as error:
        place = _place(error.way[::-1][: error.upto])
        raise PayloadInvalid(f"{place} {error}", _CAN, field=place) from None
    except ValueError as error:  # more than 4 GiB in one piece
        raise PayloadInvalid(f"value cannot be sent: {error}", "send it in pieces") from error
    tokens = writer.packer.getbuffer()
    return b"".join((_HEAD.pack(VERSION, len(tokens)), tokens, *writer.buffers))


def decode(data: bytes | bytearray | memoryview) -> Any:
    """The value that was encoded; the bytes may come from anybody.

    Args:
        data: what ``encode`` gave, as bytes or another buffer of bytes. The value shares no memory with it.

    Raises:
        PayloadInvalid: it is anything else, or holds a numpy value and numpy is not installed here.
    """
    try:
        return _Reader(memoryview(data).cast("B")).read()
    except PayloadInvalid:
        raise
    except arrays.ArrayInvalid as error:
        raise _malformed(f"has a numpy value {error}") from None
    except ImportError as error:
        raise PayloadInvalid(
            "the payload has a value of numpy, which is not installed here", "pip install numpy"
        ) from error
    except (ValueError, TypeError, OverflowError, UnpackException, struct.error) as error:
        raise _malformed(f"cannot be read: {error}") from error


# -- writing -----------------------------------------------------------------------------------


class _Writer:
    """Tokens and buffers of one value."""

    def __init__(self) -> None:
        self.packer = Packer(autoreset=False, default=_big, buf_size=_LONG)
        self.buffers: list[Any] = []
        self._pack = self.packer.pack
        self._parents: list[int] = []

    def write(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind in _SIMPLE:
            self._pack(value)
        elif kind is str:
            self._text(value)
        elif kind in (bytes, bytearray, memoryview):
            self._bytes(value)
        elif kind is list:
            self._items(_LIST, value, depth)
        elif kind is dict:
            self._pairs(_DICT, value, depth)
        elif kind is Shareable:
            if type(value.get(ReservedKey.HEADERS, {})) is not dict:
                raise _Cannot("is a Shareable whose headers are not a dict")
            self._pairs(_SHAREABLE, value, depth)
        elif kind is tuple:
            self._items(_TUPLE, value, depth)
        elif issubclass(kind, Enum) and issubclass(kind, str | int):
            self.write(_member(value), depth)
        else:
            self._numpy(value)

    def _items(self, code: int, value: Iterable[Any], depth: int) -> None:
        items = tuple(value)  # as they are now, whoever else has the list
        self._begin(code, value, len(items), depth)
        index = 0
        try:
            for index, item in enumerate(items):  # noqa: B007 - the handler wants it
                if type(item) in _SIMPLE:
                    self._pack(item)
                else:
                    self.write(item, depth + 1)
        except _Cannot as error:
            error.way.append(index)
            raise
        self._parents.pop()

    def _pairs(self, code: int, value: dict[Any, Any], depth: int) -> None:
        pairs = tuple(value.items())
        self._begin(code, value, len(pairs), depth)
        key: Any = None
        try:
            for key, item in pairs:
                self._key(key)
                self.write(item, depth + 1)
        except _Cannot as error:
            if not isinstance(error, _CannotKey):
                error.way.append(key)
                raise
            raise _Cannot(str(error)) from None  # the place is the dict
        self._parents.pop()

    def _begin(self, code: int, value: object, count: int, depth: int) -> None:
        self._parents.append(id(value))
        if depth > MAX_DEPTH:
            raise self._too_deep()
        self._mark(code, _number(count))

    def _too_deep(self) -> _Cannot:
        seen: set[int] = set()
        for step, parent in enumerate(self._parents):
            if parent in seen:
                error = _Cannot("contains itself, which cannot be sent")
                error.upto = step
                return error
            seen.add(parent)
        return _Cannot(f"is nested deeper than {MAX_DEPTH} levels, which cannot be sent")

    def _key(self, key: Any) -> None:
        if isinstance(key, Enum) and isinstance(key, str | int):
            key = _member(key)
        if type(key) not in _PLAIN:
            raise _CannotKey(
                f"has a key that is {_described(key)}, but keys are str, int, float, bool, bytes or None"
            )
        try:
            self._pack(key)
        except ValueError as error:
            raise _CannotKey(f"has a key that cannot be sent: {_text_fault(error)}") from None

    def _text(self, text: str) -> None:
        try:
            self._pack(text)
        except ValueError as error:
            raise _Cannot(f"is {_text_fault(error)}") from None

    def _bytes(self, value: bytes | bytearray | memoryview) -> None:
        if isinstance(value, memoryview):
            try:
                if value.format != "B" or value.ndim != 1 or not value.c_contiguous:
                    value = value.tobytes()
            except ValueError:
                raise _Cannot("is a memoryview that was released") from None
        if len(value) < _LONG:
            self._pack(value)
        else:
            self._mark(_BYTES, _number(len(value)))
            self.buffers.append(value)

    def _numpy(self, value: Any) -> None:
        np: Any = sys.modules.get("numpy")  # where it was never imported, no value is of it
        try:
            if np is not None and type(value) is np.ndarray:
                content, buffer = arrays.array_bytes(np, value)
                self._mark(_ARRAY, content)
                self.buffers.append(buffer)
            elif np is not None and isinstance(value, np.generic) and type(value) is value.dtype.type:
                self._mark(_SCALAR, arrays.scalar_bytes(np, value))
            else:
                raise _Cannot(f"is {_described(value)}, which cannot be sent")
        except arrays.ArrayInvalid as error:
            raise _Cannot(f"is a numpy value {error}, which cannot be sent") from None

    def _mark(self, code: int, content: bytes) -> None:
        self.packer.pack_ext_type(code, content)


class _CannotKey(_Cannot):
    """Of a dict: one of its keys."""


def _big(value: Any) -> ExtType:
    """An int that has no room in 64 bits; msgpack hands over what it cannot do."""
    return ExtType(_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _number(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8 or 1, "big")


def _member(value: Any) -> str | int:
    """What a member of an Enum is besides: its own methods may say something else."""
    return str.__str__(value) if isinstance(value, str) else int.__int__(value)


def _text_fault(error: ValueError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"text with a lone surrogate, {error.object[error.start]!r}, at character {error.start}"
    return f"text that is too long: {error}"


def _described(value: object) -> str:
    if isinstance(value, type):
        return "a class"
    if isinstance(value, FunctionType | BuiltinFunctionType | MethodType):
        return "a function"
    kind = type(value)
    article = "an" if kind.__name__[:1].lower() in "aeiou" else "a"
    base = next((f", a kind of {b.__name__}" for b in _BASES if issubclass(kind, b) and kind is not b), "")
    return f"{article} {kind.__name__}{base}"


def _place(way: list[Any]) -> str:
    """The way to a value, as one would write it: ``weights['layer1'][3]``."""
    start = "value"
    if way and type(way[0]) is str and way[0].isidentifier():
        start, way = way[0][:80], way[1:]
    steps = [f"[{_shown(key)}]" for key in way]
    if len(steps) > 12:
        steps[6:-3] = ["..."]
    return start + "".join(steps)


def _shown(key: Any) -> str:
    if isinstance(key, Enum):
        key = _member(key)
    if isinstance(key, int) and key.bit_length() > 256:
        return f"an int of {key.bit_length()} bits"  # Python refuses to write out much longer ones
    text = repr(key)
    return text if len(text) <= 80 else text[:77] + "..."


# -- reading -----------------------------------------------------------------------------------


class _Reader:
    """The value that tokens and buffers make."""

    def __init__(self, data: memoryview) -> None:
        version, size = _HEAD.unpack_from(data)
        if version != VERSION:
            raise _malformed(f"is of version {version}, and this side reads {VERSION}")
        if not 0 < size <= len(data) - _HEAD.size:
            raise _malformed("is cut off")
        self._size = size
        self._rest = data[_HEAD.size + size :]
        self._unpacker = Unpacker(max_buffer_size=size, max_array_len=0, max_map_len=0)
        self._unpacker.feed(data[_HEAD.size : _HEAD.size + size])

    def read(self) -> Any:
        value = self._value(1)
        if self._unpacker.tell() != self._size or len(self._rest):
            raise _malformed("goes on after its end")
        return value

    def _value(self, depth: int) -> Any:
        token = next(self._unpacker, _END)
        return token if type(token) in _PLAIN else self._special(token, depth)

    def _special(self, token: Any, depth: int) -> Any:
        if token is _END:
            raise _malformed("is cut off")
        if type(token) is not ExtType:
            raise _malformed(f"holds a {type(token).__name__} of msgpack's, which is never sent")
        code, content = token
        if code == _INT:
            return int.from_bytes(content, "big", signed=True)
        if code == _BYTES:
            return bytes(self._take(_count(content)))
        if code == _ARRAY:
            return arrays.array(content, self._take)
        if code == _SCALAR:
            return arrays.scalar(content)
        if code not in (_LIST, _TUPLE, _DICT, _SHAREABLE):
            raise _malformed(f"holds an unknown kind of value, {code}")
        if depth > MAX_DEPTH:
            raise _malformed(f"is nested deeper than {MAX_DEPTH} levels")
        count = _count(content)
        if count > self._size:  # each item takes a byte at least
            raise _malformed("is cut off")
        if code in (_LIST, _TUPLE):
            items = self._items(count, depth + 1)
            return items if code == _LIST else tuple(items)
        return self._pairs({} if code == _DICT else Shareable.__new__(Shareable), count, depth + 1)

    def _items(self, count: int, depth: int) -> list[Any]:
        items = [
            token if type(token) in _PLAIN else self._special(token, depth) for token in islice(self._unpacker, count)
        ]
        if len(items) != count:
            raise _malformed("is cut off")
        return items

    def _pairs(self, made: dict[Any, Any], count: int, depth: int) -> dict[Any, Any]:
        for _ in range(count):
            key = next(self._unpacker, _END)
            if type(key) not in _PLAIN:
                if type(key) is not ExtType or key.code != _INT:
                    raise _malformed("is cut off, or has a key that is none")
                key = self._special(key, depth)
            made[key] = self._value(depth)
        if len(made) != count:
            raise _malformed("has a key twice")
        if type(made) is Shareable and type(made.get(ReservedKey.HEADERS, {})) is not dict:
            raise _malformed("has a Shareable whose headers are not a dict")
        return made

    def _take(self, size: int) -> memoryview:
        if size > len(self._rest):
            raise _malformed("is cut off")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def _malformed(what: str) -> PayloadInvalid:
    return PayloadInvalid(f"the payload {what}", _AGAIN)


def _count(content: bytes) -> int:
    if not 0 < len(content) <= 8:
        raise _malformed("has a number of the wrong length")
    return int.from_bytes(content, "big")
