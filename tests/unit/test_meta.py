import enum

import pytest

from engine.errors import ArgumentInvalid, ArgumentTypeInvalid
from engine.meta import DRIFT_KEYS, canonical, check_meta, digest, drift


class Key(str, enum.Enum):  # noqa: UP042 - as the reference has it
    JOB_ID = "job_id"


def test_good_metadata_is_copied_and_the_callers_is_left_alone():
    given = {"job_id": "j1", "resource_spec": {"site-1": {"gpus": [1, (2, 3)]}}, "scope": None}
    copy = check_meta(given, "j1")
    assert copy == {"job_id": "j1", "resource_spec": {"site-1": {"gpus": [1, [2, 3]]}}, "scope": None}
    given["resource_spec"]["site-1"]["gpus"].append(9)
    assert copy["resource_spec"]["site-1"]["gpus"] == [1, [2, 3]]


def test_keys_and_values_that_are_enums_of_strings_become_strings():
    copy = check_meta({Key.JOB_ID: "j1", "x": Key.JOB_ID}, "j1")
    assert copy == {"job_id": "j1", "x": "job_id"}
    assert {type(text) for pair in copy.items() for text in pair} == {str}


def test_job_id_may_be_left_out():
    assert check_meta({}, "j1") == {}


def deep():
    value: dict = {}
    for _ in range(1000):
        value = {"a": value}
    return value


BAD = {
    "no dict": (None, "job_meta must be a dict, not NoneType"),
    "another job's": ({"job_id": "j2"}, "job_meta['job_id'] is 'j2', but the job is 'j1'"),
    "a job id of null": ({"job_id": None}, "job_meta['job_id'] is None"),
    "a set": ({"a": {"b": {1}}}, "job_meta['a']['b'] is a set"),
    "bytes": ({"a": [0, b"x"]}, "job_meta['a'][1] is a bytes"),
    "a key that is a number": ({"a": {1: 2}}, "job_meta['a'] has the key 1"),
    "not a number": ({"a": float("nan")}, "job_meta['a'] is nan"),
    "infinity": ({"a": float("-inf")}, "job_meta['a'] is -inf"),
    "a very long number": ({"a": 10**5000}, "job_meta holds a number that is too long"),
    "too deep": (deep(), "is nested too deeply"),
    "too large": ({"a": "x" * 2**20}, "bytes as JSON"),
}


@pytest.mark.parametrize(("meta", "what"), BAD.values(), ids=BAD)
def test_metadata_is_refused_with_the_field_named_if_it_is_or_holds(meta, what):
    with pytest.raises(ArgumentInvalid, match="job_meta") as caught:
        check_meta(meta, "j1")
    assert what in caught.value.what
    assert caught.value.context["field"].startswith("job_meta")


def test_a_wrong_type_is_a_type_error_too():
    with pytest.raises(ArgumentTypeInvalid):
        check_meta([], "j1")


def test_the_canonical_text_does_not_depend_on_the_order_of_keys():
    assert canonical({"b": 1, "a": {"d": "é", "c": []}}) == b'{"a":{"c":[],"d":"\\u00e9"},"b":1}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len(digest({})) == 64


@pytest.mark.parametrize("key", DRIFT_KEYS)
def test_drift_names_the_first_key_that_differs(key):
    assert drift({key: "x"}, {key: "y"}) == key
    assert drift({key: "x"}, {}) == key
    assert drift({key: None}, {}) is None


def test_drift_looks_at_nothing_else():
    assert drift({"submit_time": 1, "scope": "a"}, {"submit_time": 2, "scope": "a"}) is None
    assert drift({"scope": "a", "study": "b"}, {"scope": "x", "study": "y"}) == "scope"
