"""Arrays and scalars of numpy as bytes and back, for the codec. numpy is used where it is there, and not needed."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

MAX_DIMENSIONS: Final = 64

#: As numpy writes a dtype; for its long doubles also the bits of their mantissa, which differ between machines.
_DTYPE = re.compile(r"([<>|][biufcUS][0-9]{1,10})(?:/([0-9]{1,3}))?")


class ArrayInvalid(Exception):
    """What is wrong with the array or scalar; it reads on after "a numpy value"."""


def array_bytes(np: Any, array: Any) -> tuple[bytes, memoryview]:
    """An array's dtype and shape, and its bytes in C order: its own memory where it has them so.

    Args:
        np: numpy.
        array: a plain ``ndarray``.

    Raises:
        ArrayInvalid: of a dtype that cannot be sent, or text that is no Unicode.
    """
    code = _dtype_code(np, array.dtype)
    if not array.flags.c_contiguous:
        array = array.copy(order="C")
    _check_content(np, array)
    head = code + struct.pack(f">{array.ndim}Q", *array.shape)
    return head, array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


def array(content: bytes, take: Callable[[int], memoryview]) -> Any:
    """The array, with memory of its own.

    Args:
        content: dtype and shape, from anybody.
        take: gives so many bytes of those that came along, or raises.

    Raises:
        ArrayInvalid: it is none. Other errors of numpy's: ValueError, TypeError, OverflowError.
        ImportError: no numpy.
    """
    np = _numpy()
    dtype, shape = _dtype_and_rest(np, content)
    if len(shape) % 8 or len(shape) > 8 * MAX_DIMENSIONS:
        raise ArrayInvalid("with a shape that is none")
    dimensions = struct.unpack(f">{len(shape) // 8}Q", shape)
    # Nothing is made before its bytes are seen to be there; without any, numpy still limits the shape.
    raw = take(math.prod(dimensions) * dtype.itemsize)
    made = np.empty(dimensions, dtype)
    if len(raw):
        made.reshape(-1).view(np.uint8)[:] = np.frombuffer(raw, np.uint8)
    _check_content(np, made)
    return made


def scalar_bytes(np: Any, value: Any) -> bytes:
    """A scalar's dtype and bytes.

    Raises:
        ArrayInvalid: of a dtype that cannot be sent, or text that is no Unicode.
    """
    if isinstance(value, np.str_):  # in an array, text and bytes would lose their last null characters
        try:
            text: bytes = value.encode()  # not str(value), which loses them too
            return b"U" + text
        except UnicodeEncodeError:
            raise ArrayInvalid("of text with a lone surrogate") from None
    if isinstance(value, np.bytes_):
        return b"S" + bytes(value)
    raw: bytes = value.tobytes()
    return _dtype_code(np, value.dtype) + raw


def scalar(content: bytes) -> Any:
    """The scalar; raises as ``array`` does."""
    np = _numpy()
    if content[:1] == b"U":
        return np.str_(content[1:].decode())
    if content[:1] == b"S":
        return np.bytes_(content[1:])
    dtype, raw = _dtype_and_rest(np, content)
    if len(raw) != dtype.itemsize or dtype.kind in "US":
        raise ArrayInvalid("of the wrong length")
    made = np.frombuffer(raw, dtype)
    _check_content(np, made)
    return made[0]


def _numpy() -> Any:
    return import_module("numpy")


def _dtype_code(np: Any, dtype: Any) -> bytes:
    """A dtype as it travels: its length in a byte, then kind, byte order and width as numpy writes them."""
    if dtype.hasobject:
        raise ArrayInvalid("of Python objects")
    if not _DTYPE.fullmatch(dtype.str) or np.dtype(dtype.str) != dtype or dtype.itemsize == 0:
        raise ArrayInvalid(f"of dtype {dtype}")
    text: bytes = (dtype.str + (f"/{_mantissa(np)}" if dtype.char in "gG" else "")).encode()
    return bytes((len(text),)) + text


def _dtype_and_rest(np: Any, content: bytes) -> tuple[Any, bytes]:
    end = 1 + content[0] if content else 0
    match = _DTYPE.fullmatch(content[1:end].decode("ascii"))
    if match is None:
        raise ArrayInvalid("of a dtype that is never sent")
    dtype = np.dtype(match[1])
    # An item without width is refused: numpy would give it one, and any number of them come without bytes.
    if dtype.str != match[1] or dtype.itemsize == 0:
        raise ArrayInvalid("of a dtype that is never sent")
    if match[2] != (str(_mantissa(np)) if dtype.char in "gG" else None):
        raise ArrayInvalid(f"of {dtype.name} as another kind of machine writes it; use float64 or complex128")
    return dtype, content[end:]


def _mantissa(np: Any) -> int:
    return int(np.finfo(np.longdouble).nmant)


def _check_content(np: Any, made: Any) -> None:
    """Refuse bytes that nothing of the dtype has: numpy takes them, and fails when somebody looks at them."""
    kind = made.dtype.kind
    if made.size and kind == "b" and made.reshape(-1).view(np.uint8).max() > 1:
        raise ArrayInvalid("with a bool that is neither true nor false")
    if made.size and kind == "U":
        points = made.reshape(-1).view(made.dtype.str[0] + "u4")
        points = points[points > 0xD7FF]
        if ((points < 0xE000) | (points > 0x10FFFF)).any():
            raise ArrayInvalid("with text that is no Unicode, such as a lone surrogate")
