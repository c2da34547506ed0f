"""A story names what came of another job, and what came of it elsewhere."""

from __future__ import annotations

from dataclasses import replace

from engine.jobs import Jobs
from engine.why import consequences, story
from events.read import at, read, read_job
from tests.histories import body
from tests.support import fake_store, new_call


def test_a_cause_in_another_job_is_told_and_so_is_what_came_of_it() -> None:
    store = fake_store()
    jobs = Jobs(store)
    jobs.transact(new_call(), "one", lambda state: [body("DeployRequested", reason="to be first")])
    first = next(read_job(store, "one"))
    call = replace(new_call(), cause=first.position)
    jobs.transact(call, "two", lambda state: [body("DeployRequested")])
    jobs.note(replace(new_call(), cause=first.position), [body("ShutdownRequested")])
    told = list(story(read_job(store, "two"), lambda position: next(iter(at(store, [position])), None)))
    assert "[job/one]" in told[0][1]
    assert "to be first" in told[0][1]
    assert told[0][1].endswith("What follows came of it.")
    assert told[1][2] == next(read_job(store, "two")).position
    mine = {event.position for event in read_job(store, "one")}
    elsewhere = [sentence for _, sentence, _ in consequences(read(store), mine, "job/one")]
    assert [sentence.partition("]")[0] for sentence in elsewhere] == ["[job/two", "[site"]
    assert not list(consequences(read(store), set(), "job/one"))
