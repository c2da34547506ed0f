"""The envelope and the vocabulary: names, round trips, strictness."""

from __future__ import annotations

import datetime
import json
import types
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from engine.fold import COUNTERS, LAST_WRITER, RULES
from engine.lifecycle import EVENTS, WORK
from events.bodies import BODIES, AnyBody, parse_body
from events.bodies.base import PersonalMark
from events.envelope import Actor, Call, Event, digest_of, encode, from_entry, iso
from events.errors import RecordDamaged
from tests.histories import FIELDS, body
from tests.support import TESTER

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    if annotation is JsonValue:
        return JSON
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (Union, types.UnionType):
        return st.one_of([values(arg) for arg in args])
    if origin is list:
        return st.lists(values(args[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=3)
    if hasattr(annotation, "__metadata__"):
        return values(args[0])
    simple = {
        str: TEXT,
        bool: st.booleans(),
        type(None): st.none(),
        int: st.integers(1, 2**53),
        float: NUMBER.map(abs),
    }
    return simple[annotation]


@st.composite
def bodies(draw: st.DrawFn, name: str) -> Any:
    """Bodies of a type, with values of their own in every field."""
    cls = BODIES[name]
    fields = {
        field: draw(values(info.annotation).filter(lambda v: v != 0 or isinstance(v, bool)))
        for field, info in cls.model_fields.items()
        if field != "type"
    }
    return cls.model_validate(fields)


@pytest.mark.parametrize("name", BODIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_body_comes_back_from_the_log_as_it_was(name, data):
    new = data.draw(bodies(name))
    call = Call(call_id="c", actor=TESTER, arguments="a")
    raw = encode(call, TESTER.model_dump_json(exclude_none=True), new, 1)
    event = Event("5-1", name, "site", 1, raw)
    assert event.typed() == new
    assert event.body == json.loads(new.model_dump_json(exclude={"type"}))
    assert "type" not in event.body, "the type is a field of the stream"
    # What the fold of the live path sees is what a replay sees.
    assert event.body == new.model_dump(mode="json", exclude={"type"})


@pytest.mark.parametrize("name", BODIES)
def test_a_body_rejects_an_unknown_field_and_a_missing_one_and_cannot_be_changed(name):
    facts = body(name).model_dump(mode="json", exclude={"type"})
    assert parse_body(name, facts) == body(name)
    with pytest.raises(ValidationError, match="stranger"):
        parse_body(name, {**facts, "stranger": 1})
    for field, info in BODIES[name].model_fields.items():
        if info.is_required():
            with pytest.raises(ValidationError, match=field):
                parse_body(name, {key: value for key, value in facts.items() if key != field})
    with pytest.raises(ValidationError, match="frozen"):
        body(name).type = "AnotherType"


@pytest.mark.parametrize("name", BODIES)
def test_numbers_that_are_none_are_rejected_so_that_a_replay_reads_what_was_written(name):
    for field, value in FIELDS[name].items():
        if isinstance(value, float):
            for bad in (float("nan"), float("inf")):
                with pytest.raises(ValidationError, match=field):
                    body(name, **{field: bad})


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_numbers_that_are_none_are_rejected_within_free_json_too(bad):
    with pytest.raises(ValidationError, match="finite"):
        body("StartRequested", resources={"gpu": [bad]})
    with pytest.raises(ValidationError, match="finite"):
        body("DeployRequested", meta={"deep": {"er": bad}})


def test_an_unknown_type_is_rejected():
    with pytest.raises(ValidationError, match="NoSuchEvent"):
        parse_body("NoSuchEvent", {})


def test_the_union_knows_every_body_by_its_name():
    for name, cls in BODIES.items():
        assert name == cls.__name__ == cls.name() == cls.model_fields["type"].default
        assert type(AnyBody.validate_python({"type": name, **body(name).model_dump(exclude={"type"})})) is cls


def test_lifecycle_events_are_exactly_those_of_the_table():
    assert {name for name, cls in BODIES.items() if cls.lifecycle} == set(EVENTS)


def test_every_event_that_a_table_names_exists():
    assert set(EVENTS) <= set(BODIES)
    assert set(WORK) <= set(BODIES)
    assert set(RULES) == set(EVENTS)
    assert set(COUNTERS) | set(LAST_WRITER) <= set(BODIES) - set(EVENTS)


def test_events_of_an_attempt_say_which():
    for name, cls in BODIES.items():
        if name.startswith(("App", "Launch", "Start", "Abort")):
            assert "attempt" in cls.model_fields, f"{name} does not say which attempt it concerns"


def test_every_body_has_a_docstring_and_fields_for_free_text_are_marked_personal():
    for name, cls in BODIES.items():
        assert cls.__doc__, f"{name} has no docstring"
        assert cls.__doc__ != cls.__mro__[1].__doc__, f"{name} has only its parent's docstring"
        for field, info in cls.model_fields.items():
            if field in ("reason", "error", "message") and name != "AppLost":
                marks = [m for m in info.metadata if isinstance(m, PersonalMark)]
                inner = [m for a in get_args(info.annotation) for m in getattr(a, "__metadata__", ())]
                assert marks or inner, f"{name}.{field} holds free text and is not marked"


# -- the envelope --------------------------------------------------------------------------


def an_event() -> Event:
    """An event as the log has it."""
    call = Call(call_id="c-1", actor=TESTER, step="s", arguments="ab", cause="4-3", correlation="c-0")
    raw = encode(call, TESTER.model_dump_json(exclude_none=True), body("DeploySucceeded"), 2)
    return from_entry("1767225600123-7", ["t", "DeploySucceeded", "s", "job/j", "v", "3", "d", raw])


def test_the_whole_envelope_by_its_names():
    assert an_event().as_dict() == {
        "position": "1767225600123-7",
        "epoch": 2,
        "subject": "job/j",
        "version": 3,
        "type": "DeploySucceeded",
        "schema": 1,
        "time": "2026-01-01T00:00:00.123Z",
        "actor": {"id": "tester", "kind": "person", "auth": "os-uid", "via": "python"},
        "call_id": "c-1",
        "step": "s",
        "arguments": "ab",
        "cause": "4-3",
        "correlation": "c-0",
        "body": {"files": 3, "bytes": 100},
    }


def test_an_event_knows_its_time_and_sequence():
    assert (an_event().ms, an_event().seq) == ("1767225600123", 7)
    json.dumps(an_event().as_dict())


@pytest.mark.parametrize("ms", [0, 1, 999, 1767225600000, "1767225600999", 4102444800001])
def test_a_time_is_rfc_3339_with_milliseconds_and_comes_back(ms):
    text = iso(ms)
    assert text.endswith("Z")
    back = datetime.datetime.fromisoformat(text)
    assert (back - datetime.datetime.fromtimestamp(0, datetime.UTC)) / datetime.timedelta(milliseconds=1) == int(ms)


@pytest.mark.parametrize("missing", ["t", "s", "v", "d"])
def test_l7_an_entry_that_is_none_of_ours_is_named_in_a_clear_error(missing):
    fields = {"t": "AgentSet", "s": "site", "v": "1", "d": "{}"}

    def entry(**given: str) -> list[str]:
        return [part for pair in given.items() for part in pair]

    assert from_entry("1-1", entry(**fields)).type == "AgentSet"
    strange = {**fields, "x": "y"}
    strange.pop(missing)
    for strange_one in (
        entry(**{name: value for name, value in fields.items() if name != missing}),
        entry(**fields, x="y"),
        entry(**strange),
        entry(**{**fields, "v": "x"}),
    ):
        with pytest.raises(RecordDamaged, match="entry 1-1"):
            from_entry("1-1", strange_one)


def test_an_actor_is_strict_and_says_only_what_is_known():
    assert (
        Actor(id="a").model_dump_json(exclude_none=True) == '{"id":"a","kind":"person","auth":"none","via":"python"}'
    )
    for bad in ({"id": "a", "kind": "god"}, {"id": "a", "role": "x"}, {}):
        with pytest.raises(ValidationError):
            Actor.model_validate(bad)


def test_a_step_of_a_call_keeps_who_and_what_and_takes_a_cause():
    call = Call(call_id="c", actor=TESTER, arguments="a", cause="1-1", correlation="c-0")
    step = call.at("outcome", cause="2-2")
    assert (step.call_id, step.actor, step.arguments, step.correlation) == ("c", TESTER, "a", "c-0")
    assert (step.step, step.cause) == ("outcome", "2-2")
    assert call.at("next").cause == "1-1"


def test_the_digest_of_arguments_tells_calls_apart_and_is_the_same_for_the_same_call():
    given = [
        (),
        ("a",),
        ("a", "b"),
        ("ab",),
        (["a", "b"],),
        ({"a": 1},),
        ({"a": 2},),
        (None,),
        (1,),
        ("1",),
        (b"ab", 1),
    ]
    digests = [digest_of(*arguments) for arguments in given]
    assert len(set(digests)) == len(given)
    assert digests == [digest_of(*arguments) for arguments in given]
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


@pytest.mark.parametrize("argument", [b"\xff\xfe", "\ud800", float("nan"), {1, 2}, object])
def test_l9_the_digest_takes_whatever_a_caller_may_hand_in(argument):
    assert len(digest_of("deploy_app", argument)) == 16


@pytest.mark.parametrize("text", ["", "\0", "\x1f\x7f", '"\\', "\u2028", "ü€😀", "\uffff"])
def test_text_of_any_kind_survives_the_envelope(text):
    actor = Actor(id=text, claimed=text)
    call = Call(call_id=text, actor=actor, step=text, arguments=text, cause=text, correlation=text or None)
    raw = encode(call, actor.model_dump_json(exclude_none=True), body("AgentSet", kind=text), 1)
    told = from_entry("1-1", ["t", "AgentSet", "s", "site", "v", "1", "d", raw]).as_dict()
    assert [told[n] for n in ("call_id", "step", "arguments", "cause", "correlation")] == [text] * 5
    assert told["actor"]["id"] == told["actor"]["claimed"] == told["body"]["kind"] == text
