"""Live events, where this process has not seen yet what others have: nothing comes twice, and nobody is sent back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

from engine.jobs import Jobs
from engine.site import Site
from engine.status.hub import Hub
from events.read import last_position
from tests.histories import body
from tests.support import fake_store, new_call


def frames(after: str | None) -> bytes:
    """What a watcher is told in its first moments by a hub that has not looked at the log yet."""
    store = fake_store()
    jobs = Jobs(store)
    for _ in range(5):
        jobs.note(new_call(), [body("AgentSet")])
    hub = Hub(cast("Site", SimpleNamespace(jobs=jobs)))

    async def watch() -> bytes:
        start = await hub.now() if after is None else after or last_position(store)
        told = b""
        try:
            async with asyncio.timeout(0.3):
                async for frame in hub.watch(start, lambda event: True):
                    told += frame
        except TimeoutError:
            return told
        return told

    return asyncio.run(watch())


def test_who_goes_on_from_the_end_of_the_log_is_neither_sent_back_nor_told_it_again() -> None:
    assert frames(after="") == b"retry: 1000\n\n"


def test_who_watches_from_now_on_is_not_told_what_was() -> None:
    assert frames(after=None) == b"retry: 1000\n\n"


def test_who_comes_with_a_position_that_the_log_has_not_is_told_so_and_goes_on_from_now() -> None:
    told = frames(after="99999999999999-99")
    assert told == b"retry: 1000\n\nevent: reset\ndata: {}\n\n"
