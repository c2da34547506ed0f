from __future__ import annotations

import math
import struct
import subprocess
import sys
import time
import tracemalloc
from collections import OrderedDict, defaultdict, namedtuple
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from itertools import count
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from engine.codec import MAX_DEPTH, VERSION, decode, encode
from engine.constants import ReturnCode
from engine.errors import PayloadInvalid
from engine.shareable import Shareable, make_reply
from events.errors import FlightlogError

INT, LIST, TUPLE, DICT, SHAREABLE, BYTES, ARRAY, SCALAR = range(1, 9)


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types, all the way down; NaN is NaN and 0.0 is not -0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, b) and same(v, w) for (a, v), (b, w) in zip(left.items(), right.items(), strict=True)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, np.generic) and not isinstance(left, str | bytes):
        return left.dtype == right.dtype and left.tobytes() == right.tobytes()
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)
    return bool(left == right)


def back(value: Any) -> Any:
    return decode(encode(value))


def refused(value: Any) -> str:
    with pytest.raises(PayloadInvalid) as caught:
        encode(value)
    return caught.value.what


def nested(levels: int, innermost: Any = 0) -> Any:
    for _ in range(levels):
        innermost = [innermost]
    return innermost


def message(tokens: bytes, buffers: bytes = b"", version: int = VERSION, size: int | None = None) -> bytes:
    """A payload made by hand, and not by ``encode``."""
    return struct.pack(">BQ", version, len(tokens) if size is None else size) + tokens + buffers


def ext(code: int, content: bytes = b"") -> bytes:
    return msgpack.packb(msgpack.ExtType(code, content))


def begin(code: int, items: int) -> bytes:
    return ext(code, items.to_bytes((items.bit_length() + 7) // 8 or 1, "big"))


def array_head(dtype: bytes, *shape: int) -> bytes:
    return ext(ARRAY, bytes([len(dtype)]) + dtype + struct.pack(f">{len(shape)}Q", *shape))


# --- what comes back ----------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ints = (
    st.integers() | st.integers(-(2**70), 2**70) | st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1])
)
floats = st.floats(allow_nan=True, allow_infinity=True)
keys = texts | ints | floats.filter(lambda f: f == f) | st.booleans() | st.none() | st.binary(max_size=8)
dtypes = (
    st.sampled_from(["?", "i1", "u1", "<i2", ">i2", "<u4", ">u4", "<i8", ">i8", "<u8", ">u8"])
    | st.sampled_from(["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "<c8", ">c8", "<c16", ">c16", "g", "G"])
    | st.sampled_from(["S1", "S7", "<U1", ">U5", "<U5"])
).map(np.dtype)
shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
elements = {"U": {"alphabet": st.characters(exclude_categories=["Cs"])}}


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    dtype, shape = draw(dtypes), draw(shapes)
    raw = draw(st.binary(min_size=32, max_size=32))
    source = np.random.default_rng(int.from_bytes(raw, "big"))
    if dtype.kind in "US":
        return draw(npst.arrays(dtype, shape, elements=npst.from_dtype(dtype, **elements.get(dtype.kind, {}))))
    return np.asarray(source.integers(-100, 100, shape)).astype(dtype)


@st.composite
def scalars(draw: st.DrawFn) -> Any:
    made = draw(arrays().filter(lambda a: a.size > 0))
    return made.reshape(-1)[0]


leaves = st.none() | st.booleans() | ints | floats | texts | st.binary(max_size=20) | arrays() | scalars()


def containers(inner: Any) -> Any:
    dicts = st.dictionaries(keys, inner, max_size=4)
    headers = st.dictionaries(texts, inner, max_size=3)
    return (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | dicts
        | st.builds(lambda d, h: Shareable({**d, "__headers__": h}), dicts, headers)
    )


values = st.recursive(leaves, containers, max_leaves=12)


@given(values)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_was_encoded_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    data = encode(value)
    assert type(data) is bytes
    assert same(decode(data), value)


@given(values)
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_the_same_value_has_the_same_bytes(value: Any) -> None:
    assert encode(value) == encode(back(value)) == encode(value)


@pytest.mark.parametrize("exponent", [7, 8, 31, 32, 62, 63, 64, 65, 127, 128, 1000, 100_000])
def test_ints_have_any_size(exponent: int) -> None:
    for number in (2**exponent, 2**exponent - 1, -(2**exponent), -(2**exponent) - 1):
        assert same(back(number), number)
        assert same(back({number: [number]}), {number: [number]})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308])
def test_floats_keep_every_bit(number: float) -> None:
    assert same(back([number]), [number])


def test_a_tuple_stays_a_tuple_and_a_list_a_list_also_where_they_are_empty() -> None:
    value = ((), [], ([],), [()], (1, [2, (3,)]))
    assert same(back(value), value)


def test_true_and_1_and_one_point_zero_stay_what_they_are() -> None:
    value = [True, 1, 1.0, False, 0, 0.0, {True: 1}, {1: True}, {1.0: None}]
    assert same(back(value), value)


def test_dicts_keep_their_order_and_the_types_of_their_keys() -> None:
    value = {"b": 1, "a": 2, 3: 4, b"c": 5, None: 6, False: 7, 2.5: 8, 2**99: 9}
    assert same(back(value), value)
    assert list(back(value)) == list(value)


def test_bytes_come_back_as_bytes_whatever_held_them() -> None:
    for content in (b"", b"abc", bytes(5000)):
        for holder in (bytes, bytearray, memoryview):
            assert same(back([holder(content)]), [content])
    table = memoryview(np.arange(6, dtype="<u2").reshape(2, 3))
    assert back(table) == np.arange(6, dtype="<u2").tobytes()
    assert back(memoryview(b"abcdef")[::2]) == b"ace"


def test_long_and_short_byte_strings_and_arrays_may_be_mixed() -> None:
    value = [b"x" * 4096, {"a": np.arange(3)}, b"y" * 4095, (np.zeros(0), b"z" * 10_000), np.arange(5.0)]
    assert same(back(value), value)


def test_members_of_enums_come_back_as_plain_text_and_plain_ints() -> None:
    class Colour(StrEnum):
        RED = "red"

    class Old(str, Enum):  # noqa: UP042 - how they were written before there was a StrEnum
        A = "a"

        def __str__(self) -> str:
            return "another"

    class Level(IntEnum):
        HIGH = 3

    class Flags(IntFlag):
        X = 4

    value = [Colour.RED, Old.A, Level.HIGH, Flags.X, {Colour.RED: 1, Level.HIGH: 2, Old.A: 3}]
    assert same(back(value), ["red", "a", 3, 4, {"red": 1, 3: 2, "a": 3}])


def test_a_shareable_stays_one_and_so_do_those_within() -> None:
    inner = Shareable({"n": 1})
    inner.set_header("h", (1, 2))
    reply = make_reply(ReturnCode.TIMEOUT, {"k": inner})
    reply["payload"] = [inner, {"deep": inner}]
    got = back(reply)
    assert same(got, reply) or got == reply
    assert type(got) is type(got["payload"][1]["deep"]) is type(got.get_header("k")) is Shareable
    assert got.get_return_code() == "TIMEOUT"
    assert got["payload"][0].get_header("h") == (1, 2)


def test_a_shareable_without_headers_comes_back_without_them() -> None:
    bare = Shareable()
    bare.clear()
    got = back(bare)
    assert type(got) is Shareable
    assert got == {}
    got.set_header("h", 1)
    assert got.get_header("h") == 1


def test_what_is_there_twice_is_there_twice_afterwards() -> None:
    shared = [1]
    got = back([shared, shared])
    assert got == [[1], [1]]
    assert got[0] is not got[1]


def test_any_buffer_of_bytes_can_be_decoded() -> None:
    data = encode({"a": np.arange(9), "b": bytes(9000)})
    for holder in (bytes, bytearray, memoryview):
        assert same(decode(holder(data)), decode(data))


def test_what_was_decoded_shares_no_memory_with_the_bytes() -> None:
    data = bytearray(encode([np.arange(4, dtype="i8"), b"a" * 5000]))
    array, text = decode(data)
    data[:] = bytes(len(data))
    data.clear()  # nobody holds on to it
    assert array.tolist() == [0, 1, 2, 3]
    assert text == b"a" * 5000


# --- arrays -------------------------------------------------------------------------------------


def test_decoded_arrays_can_be_written_and_own_their_memory() -> None:
    frozen = np.arange(6.0).reshape(2, 3)
    frozen.flags.writeable = False
    for array in (frozen, np.array(1.5), np.zeros((0, 3)), np.array(["ab", "c"]), np.array([True])):
        got = back(array)
        assert got.flags.writeable
        assert got.flags.owndata
        assert got.flags.c_contiguous
        assert got.flags.aligned
    got[...] = False


def test_arrays_in_any_order_come_back_in_c_order() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    for view in (array.T, np.asfortranarray(array), array[:, ::-1, ::2], array[::-1], array[1:, 1], array[..., None]):
        got = back(view)
        assert got.dtype == view.dtype
        assert got.shape == view.shape
        assert got.flags.c_contiguous
        assert (got == view).all()
    stretched = np.broadcast_to(np.float32(3), (4, 5))
    assert same(back(stretched), stretched.copy())


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (0, 2**40), (1,) * 32])
def test_arrays_have_any_shape(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, "f4")
    assert same(back(array), array)
    assert type(back(array)) is np.ndarray


@pytest.mark.parametrize("order", "<>")
def test_the_byte_order_of_an_array_is_kept_and_so_are_its_values(order: str) -> None:
    for kind in ("i2", "u4", "f8", "c16", "U3"):
        array = np.array([1, 2, 300]).astype(order + kind)
        got = back(array)
        assert got.dtype == array.dtype
        assert got.tolist() == array.tolist()


def test_numpy_scalars_stay_scalars_of_their_type() -> None:
    made: list[Any] = [np.float16(1.5), np.float32(2), np.float64("nan"), np.int8(-1), np.uint64(2**64 - 1)]
    made += [np.bool_(True), np.complex64(1 + 2j), np.longdouble("1.1"), np.clongdouble(1j)]
    made += [np.str_(""), np.str_("é\0"), np.bytes_(b""), np.bytes_(b"a\0")]
    for scalar in made:
        assert same(back(scalar), scalar), repr(scalar)
        assert type(back({"k": (scalar,)})["k"][0]) is type(scalar)


def test_text_arrays_hold_any_character() -> None:
    array = np.array(["", "é", "\U0010ffff", "a\0b"])
    assert same(back(array), array)


def test_a_megabyte_of_floats_takes_well_under_two_milliseconds_each_way() -> None:
    array = np.random.default_rng(1).random(131_072)
    data = encode(array)

    def fastest(act: Any) -> float:
        times = []
        for _ in range(30):
            start = time.perf_counter()
            act()
            times.append(time.perf_counter() - start)
        return min(times)

    assert fastest(lambda: encode(array)) < 0.002
    assert fastest(lambda: decode(data)) < 0.002


def test_an_array_is_copied_once_on_each_way_however_deep_it_lies() -> None:
    size = 2**22
    value = nested(40, (Shareable({"w": np.zeros(size, "u1")}),))
    tracemalloc.start()
    try:
        data = encode(value)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * size
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        decode(data)
        assert tracemalloc.get_traced_memory()[1] - before < 1.1 * size
    finally:
        tracemalloc.stop()


RUN = """
import sys
sys.modules["numpy"] = None
from engine.codec import decode, encode
from engine.errors import PayloadInvalid
assert decode(encode({"a": (1, b"x" * 9000)})) == {"a": (1, b"x" * 9000)}
for data in map(bytes.fromhex, sys.argv[1:]):
    try:
        decode(data)
    except PayloadInvalid as error:
        assert "numpy" in error.what and "pip install numpy" in error.fix, error
    else:
        raise AssertionError
"""


def test_without_numpy_all_else_goes_on_and_an_array_is_a_clear_error() -> None:
    data = [encode(v).hex() for v in (np.arange(3), np.float64(1), np.str_("a"))]
    done = subprocess.run([sys.executable, "-P", "-c", RUN, *data], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_numpy_is_imported_only_where_a_value_of_it_comes() -> None:
    run = "import sys; from engine.codec import decode, encode; decode(encode([1, 'a']))"
    run += "; assert 'numpy' not in sys.modules; decode(bytes.fromhex(sys.argv[1])); assert 'numpy' in sys.modules"
    done = subprocess.run(
        [sys.executable, "-P", "-c", run, encode(np.arange(3)).hex()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- what is refused, and how it is said --------------------------------------------------------


class OwnDict(dict[str, Any]):
    pass


class OwnInt(int):
    pass


class OwnText(str):
    pass


class OwnShareable(Shareable):
    pass


class Plain(Enum):
    A = object()


@dataclass
class Box:
    x: int = 1


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda: 0, "a function"),
        (print, "a function"),
        ([].append, "a function"),
        (int, "a class"),
        (Box, "a class"),
        (Box(), "a Box"),
        (object(), "an object"),
        ({1}, "a set"),
        (frozenset(), "a frozenset"),
        (1j, "a complex"),
        (Decimal(1), "a Decimal"),
        (range(3), "a range"),
        (count(), "a count"),
        (OwnDict(), "an OwnDict, a kind of dict"),
        (OrderedDict(), "an OrderedDict, a kind of dict"),
        (defaultdict(list), "a defaultdict, a kind of dict"),
        (OwnInt(1), "an OwnInt, a kind of int"),
        (OwnText("a"), "an OwnText, a kind of str"),
        (OwnShareable(), "an OwnShareable, a kind of Shareable"),
        (Pair(1, 2), "a Pair, a kind of tuple"),
        (Plain.A, "a Plain"),
        (ValueError("x"), "a ValueError"),
        (np.ma.array([1]), "a MaskedArray"),
        (np.array([object()]), "a numpy value of Python objects"),
        (np.array([{}], dtype=object), "a numpy value of Python objects"),
        (np.array([None]), "a numpy value of Python objects"),
        (np.array([(1, 2.0)], dtype="i4,f8"), "a numpy value of dtype"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "a numpy value of dtype datetime64[D]"),
        (np.timedelta64(1, "s"), "a numpy value of dtype timedelta64[s]"),
        (np.void(b"abc"), "a numpy value of dtype |V3"),
        (np.zeros(2, np.dtypes.StringDType()), "a numpy value of "),
        (np.zeros(2, [("a", "U0"), ("b", "i4")])["a"], "a numpy value of dtype <U0"),
        (np.array("\ud800"), "a numpy value with text that is no Unicode"),
        (np.array([b"\x02"], "S1").view("?"), "a numpy value with a bool that is neither"),
        (np.str_("\udfff"), "a numpy value of text with a lone surrogate"),
        ("a\ud800", "text with a lone surrogate, '\\ud800', at character 1"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_its_kind_its_place_and_what_can_be(value: Any, said: str) -> None:
    assert refused(value).startswith(f"value is {said}")
    assert refused({"weights": {"layer1": [0, 1.0, "two", value]}}).startswith(f"weights['layer1'][3] is {said}")
    assert refused([1, (2, {"a b": Shareable({"k": value})})]).startswith(f"value[1][1]['a b']['k'] is {said}")
    with pytest.raises(PayloadInvalid) as caught:
        encode([value])
    assert "numpy's arrays" in caught.value.fix
    assert caught.value.context["field"] == "value[0]"


def test_the_message_reads_as_one_would_write_the_place() -> None:
    error = "weights['layer1'][3] is a function, which cannot be sent"
    assert refused({"weights": {"layer1": [1, 2, 3, print]}}) == error


def test_the_error_is_one_of_the_catalogues_and_a_value_error() -> None:
    with pytest.raises(ValueError) as caught:
        encode(object())
    assert isinstance(caught.value, FlightlogError)
    assert (caught.value.code, caught.value.http, caught.value.retry) == ("PAYLOAD_INVALID", 422, "no")


def test_a_place_is_named_by_keys_of_every_kind() -> None:
    class Key(StrEnum):
        K = "k"

    assert refused({1: {b"b": {None: {2.5: {Key.K: {True: print}}}}}}).startswith(
        "value[1][b'b'][None][2.5]['k'][True] is"
    )
    assert refused({2**5000: print}).startswith("value[an int of 5001 bits] is")
    assert len(refused({"x" * 10_000: {"y" * 10_000: print}})) < 300


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ((1, 2), "a tuple"),
        (frozenset(), "a frozenset"),
        (np.int64(1), "an int64"),
        (np.str_("a"), "a str_, a kind of str"),
        (OwnText("a"), "an OwnText, a kind of str"),
        (Plain.A, "a Plain"),
        (print, "a function"),
        (memoryview(b"a"), "a memoryview"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_with_the_place_of_its_dict(key: Any, said: str) -> None:
    assert refused({"a": [{"k": 1, key: 2}]}).startswith(f"a[0] has a key that is {said}, but keys are str, int")


def test_a_key_with_a_lone_surrogate_is_refused() -> None:
    assert refused({"a": {"\ud800": 1}}).startswith("a has a key that cannot be sent: text with a lone surrogate")


def test_headers_that_are_no_dict_are_refused() -> None:
    wrong = Shareable()
    wrong["__headers__"] = [1]
    assert refused([wrong]) == "value[0] is a Shareable whose headers are not a dict"


def test_a_released_memoryview_is_refused() -> None:
    view = memoryview(b"abc")
    view.release()
    assert "released" in refused([view])


def test_a_hundred_levels_are_enough_and_one_more_is_too_deep() -> None:
    value = nested(MAX_DEPTH)
    assert back(value) == value
    assert refused(nested(MAX_DEPTH + 1)) == (
        "value[0][0][0][0][0][0]...[0][0][0] is nested deeper than 100 levels, which cannot be sent"
    )
    deep: Any = 1
    for _ in range(MAX_DEPTH // 2):
        deep = Shareable({"k": (deep,)})
    assert same(back(deep), deep)
    assert "deeper than 100" in refused((deep,))


def test_a_very_deep_value_is_refused_and_does_not_overflow_the_stack() -> None:
    assert "deeper than 100" in refused(nested(100_000))


def test_a_circle_is_refused_with_the_place_where_it_closes() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert refused(circle) == "value[0] contains itself, which cannot be sent"
    parent: dict[str, Any] = {"child": {"n": 1}}
    parent["child"]["parents"] = [0, parent, parent]
    assert refused([parent]) == "value[0]['child']['parents'][1] contains itself, which cannot be sent"


# --- what is no payload -------------------------------------------------------------------------


def unreadable(data: Any) -> str:
    with pytest.raises(PayloadInvalid) as caught:
        decode(data)
    return caught.value.what


WHOLE = encode(
    Shareable(
        {
            "weights": {"a": np.arange(6.0).reshape(2, 3), "b": np.array(["x", "yz"])},
            "n": (1, -5, 2**80, 1.5, None, True, "text", b"bytes", np.float32(2), np.str_("s")),
            "long": [b"q" * 4096, np.array([True, False])],
        }
    )
)


HEAD = 9 + struct.unpack_from(">Q", WHOLE, 1)[0]  # bytes before the buffers


def test_a_payload_that_is_cut_anywhere_is_refused() -> None:
    for end in range(len(WHOLE)):
        unreadable(WHOLE[:end])


@pytest.mark.parametrize("more", [b"\0", b"\xc0", WHOLE])
def test_what_follows_a_payload_is_refused(more: bytes) -> None:
    assert "goes on" in unreadable(WHOLE + more)


def test_tokens_after_the_value_are_refused_whole_or_cut() -> None:
    for more in (b"\xc0", b"\xc4", b"\xdd\xff"):
        assert "goes on" in unreadable(message(b"\x01" + more))


def test_another_version_is_refused_with_both_numbers() -> None:
    assert unreadable(b"\x02" + WHOLE[1:]) == "the payload is of version 2, and this side reads 1"


@pytest.mark.parametrize("data", [None, "text", 3, [], memoryview(b"abcdef")[::2], np.zeros((2, 2)).T])
def test_what_is_no_bytes_is_refused(data: Any) -> None:
    unreadable(data)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused_or_decoded_and_nothing_else_happens(data: bytes) -> None:
    for made in (data, message(data), message(data[:50], data[50:])):
        with suppress(PayloadInvalid):
            decode(made)


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_a_payload_that_was_damaged_is_refused_or_decoded_and_nothing_else_happens(data: st.DataObject) -> None:
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, HEAD + 64))] = data.draw(st.integers(0, 255))
    try:
        got = decode(damaged)
    except PayloadInvalid:
        return
    repr(got)  # what was decoded can be looked at
    assert same(back(got), got)


U8 = 2**64 - 1

STRANGE = (
    *(b"|O", b"|O8", b"O8", b"|V8", b"<M8[s]", b"<m8", b"i4,O", b"", b"f8", b"=f8", b"<f3", b"<b1", b"|f8", b"<f08"),
    *(b"<f8\n", b"<f8/63", b"<f16", b"<f16/7", b"{'names':1}", b"(2,)<f8", b"\xff\xfe", b"<q8", b"|U1", b"<S1"),
)

HOSTILE = {
    "nothing": b"",
    "only the head of a payload": struct.pack(">BQ", VERSION, 0),
    "a huge size of the tokens": message(b"\x01", size=U8),
    "a huge text": message(b"\xdb\xff\xff\xff\xff"),
    "huge bytes": message(b"\xc6\xff\xff\xff\xff"),
    "a huge ExtType": message(b"\xc9\xff\xff\xff\xff\x02"),
    "a huge list": message(begin(LIST, 2**32)),
    "a list of 2**64 items": message(begin(LIST, U8)),
    "a huge tuple": message(begin(TUPLE, 2**40) + b"\x01"),
    "a huge dict": message(begin(DICT, 2**40) + b"\x01"),
    "a huge Shareable": message(begin(SHAREABLE, 2**62)),
    "a count of too many bytes": message(ext(LIST, b"\x01" * 9)),
    "a count of none": message(ext(LIST)),
    "a list of msgpack's": message(b"\x91\x01"),
    "an empty list of msgpack's": message(b"\x90"),
    "a huge list of msgpack's": message(b"\xdd\xff\xff\xff\xff"),
    "many huge lists of msgpack's": message(b"\xdd\x00\xff\xff\xff" * 1000),
    "a dict of msgpack's": message(b"\x81\x01\x01"),
    "an empty dict of msgpack's": message(begin(LIST, 1) + b"\x80"),
    "a time of msgpack's": message(b"\xd6\xff\x00\x00\x00\x01"),
    "a time in a list": message(begin(LIST, 1) + b"\xd6\xff\x00\x00\x00\x01"),
    "a time as a key": message(begin(DICT, 1) + b"\xd6\xff\x00\x00\x00\x01\x01"),
    "a reserved byte": message(b"\xc1"),
    "an unknown ExtType": message(ext(9, b"a")),
    "another unknown ExtType": message(begin(LIST, 1) + ext(127)),
    "ExtType 0": message(ext(0)),
    "a negative ExtType": message(b"\xd4\xf0\x00"),
    "text that is no UTF-8": message(b"\xa1\xff"),
    "a lone surrogate": message(b"\xa3\xed\xa0\x80"),
    "a lone surrogate in numpy's text": message(ext(SCALAR, b"U\xed\xa0\x80")),
    "a list as a key": message(begin(DICT, 1) + begin(LIST, 0) + b"\x01"),
    "an array as a key": message(begin(DICT, 1) + array_head(b"<i4", 0) + b"\x01"),
    "a key twice": message(begin(DICT, 2) + b"\xa1a\x01\xa1a\x02"),
    "a key twice, as int and bool": message(begin(DICT, 2) + b"\x01\x01\xc3\x02"),
    "headers that are a list": message(begin(SHAREABLE, 1) + b"\xab__headers__" + begin(LIST, 0)),
    "bytes that are not there": message(ext(BYTES, b"\x05"), b"1234"),
    "bytes that nothing names": message(b"\x01", b"1234"),
    "2**64 bytes": message(ext(BYTES, b"\xff" * 8)),
    "101 lists": message(begin(LIST, 1) * 101 + b"\x01"),
    "a million lists": message(begin(LIST, 1) * 1_000_000),
    "a million dicts": message((begin(DICT, 1) + b"\x01") * 1_000_000),
    "an array with too few bytes": message(array_head(b"<f8", 2), bytes(15)),
    "an array with too many bytes": message(array_head(b"<f8", 2), bytes(17)),
    "a huge array": message(array_head(b"<f8", 2**61), bytes(8)),
    "a shape whose product is 2**64": message(array_head(b"|u1", 2**32, 2**32)),
    "a negative shape": message(array_head(b"|u1", U8), bytes(8)),
    "two negative lengths": message(array_head(b"|u1", U8, U8), b"\0"),
    "a huge empty shape": message(array_head(b"<f8", 0, U8)),
    "65 dimensions": message(array_head(b"|u1", *[1] * 65), b"\0"),
    "a million dimensions": message(array_head(b"|u1", *[3] * 1_000_000)),
    "half a dimension": message(ext(ARRAY, b"\x03|u1" + bytes(7))),
    "an array of nothing": message(ext(ARRAY)),
    "a dtype that is cut": message(ext(ARRAY, b"\x05<f8")),
    "a bool of 2": message(array_head(b"|b1", 1), b"\x02"),
    "a scalar bool of 2": message(ext(SCALAR, b"\x03|b1\x02")),
    "text beyond Unicode": message(array_head(b"<U1", 1), b"\xff\xff\xff\xff"),
    "text with a surrogate": message(array_head(b">U1", 1), b"\x00\x00\xd8\x00"),
    "text of no width": message(array_head(b"<U0", 2**40)),
    "bytes of no width": message(array_head(b"|S0", 2**40)),
    "text of immense width": message(array_head(b"<U9999999999", 0)),
    "a scalar that is short": message(ext(SCALAR, b"\x03<f8" + bytes(7))),
    "a scalar that is long": message(ext(SCALAR, b"\x03<f8" + bytes(9))),
    "a scalar of text by dtype": message(ext(SCALAR, b"\x03<U1" + bytes(4))),
    "a scalar of nothing": message(ext(SCALAR)),
    **{f"dtype {dtype!r}": message(array_head(dtype, 1), bytes(16)) for dtype in STRANGE},
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_payload_is_refused_at_once_and_without_much_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        start = time.monotonic()
        said = unreadable(data)
        assert time.monotonic() - start < 5
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 3 * len(data)
    finally:
        tracemalloc.stop()
    assert said.startswith("the payload ")
    assert len(said) < 300


def test_a_buffer_is_named_once_so_a_small_payload_stays_small() -> None:
    """Were buffers named by place, a million names of one buffer would be a million copies."""
    once = message(begin(LIST, 2) + ext(BYTES, b"\x04") * 2, b"1234")
    assert "cut off" in unreadable(once)


def test_a_long_double_of_another_kind_of_machine_is_refused_and_not_misread() -> None:
    data = encode(np.longdouble(1))
    code = np.dtype("g").str.encode() + b"/"
    assert code in data
    at = data.index(code) + len(code)
    assert "another kind of machine" in unreadable(data[:at] + b"99" + data[at + 2 :])


def test_nothing_in_a_payload_is_code() -> None:
    import pickle

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        unreadable(pickle.dumps(print, protocol))
        unreadable(message(pickle.dumps(print, protocol)))
