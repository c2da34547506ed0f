import threading
import time
import uuid

import pytest

from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, JobIdInvalid
from engine.ids import RESERVED, check_job_id, check_site_name, new_call_id

BAD = {
    "empty": "",
    "a path": "a/b",
    "an absolute path": "/etc/passwd",
    "a parent": "..",
    "a way out": "../../etc",
    "a backslash path": "a\\b",
    "a dot, which separates FQCNs": "site-1.job",
    "a leading dash, which commands take for an option": "-rf",
    "a leading underscore": "_x",
    "a space": "a b",
    "a newline at the end": "job\n",
    "a NUL": "job\0",
    "a letter that is not ASCII": "jöb",
    "a digit that is not ASCII": "job٣",
    "129 characters": "a" * 129,
}


@pytest.mark.parametrize("job_id", ["j", "0", "job-17", "A_b-C", "a" * 128, "6d04361d-e903-435c-91a1-c30059ef269d"])
def test_a_job_id_of_letters_digits_dashes_and_underscores_is_taken_as_it_is(job_id):
    assert check_job_id(job_id) == job_id


@pytest.mark.parametrize("job_id", BAD.values(), ids=BAD)
def test_a_job_id_that_is_none_is_refused_and_the_field_and_the_fix_are_named(job_id):
    with pytest.raises(JobIdInvalid, match="job_id") as caught:
        check_job_id(job_id)
    assert caught.value.context["field"] == "job_id"
    assert "letters, digits" in caught.value.fix


@pytest.mark.parametrize("name", [*sorted(RESERVED), "Startup", "LOCAL"])
def test_a_name_of_the_workspace_itself_is_refused(name):
    with pytest.raises(JobIdInvalid, match="reserved"):
        check_job_id(name)


@pytest.mark.parametrize("value", [None, 7, b"job", ["job"]])
def test_a_job_id_that_is_no_string_is_refused_like_the_reference_does_with_a_value_error(value):
    with pytest.raises(ValueError, match="job_id must be a string"):
        check_job_id(value)


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_a_site_name_obeys_the_same_rules(name):
    assert check_site_name("site-1") == "site-1"
    with pytest.raises(ArgumentInvalid, match=r"^ARGUMENT_INVALID: site ") as caught:
        check_site_name(name)
    assert caught.value.context["field"] == "site"


def test_a_site_name_that_is_no_string_is_a_type_error_too():
    with pytest.raises(ArgumentTypeInvalid, match="site must be a string, not NoneType"):
        check_site_name(None)


def test_a_call_id_is_a_uuid_of_version_7_that_carries_the_time():
    before = time.time_ns() // 1_000_000
    value = uuid.UUID(new_call_id())
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert before - 1 <= value.int >> 80 <= time.time_ns() // 1_000_000 + 1


def test_call_ids_ascend_even_when_the_clock_stands_still_or_steps_back(monkeypatch):
    now = iter([2_000_000_000_000_000_000] * 5000 + [1_000_000_000_000_000_000] * 5000)
    monkeypatch.setattr("engine.ids.time.time_ns", lambda: next(now))
    ids = [new_call_id() for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_call_ids_of_many_threads_differ():
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.extend(new_call_id() for _ in range(500))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 4000
