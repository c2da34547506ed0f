"""Live events, where this process has not seen yet what others have: nothing comes twice, and nobody is sent back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from engine.jobs import Jobs
from engine.site import Site
from engine.status.hub import Hub, Live, frame_of
from events.read import last_position, read
from events.vault import Vault
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


def test_what_a_job_said_is_not_shown_again_once_it_was_erased(tmp_path: Path) -> None:
    store = fake_store()
    store.vault = Vault(tmp_path)
    jobs = Jobs(store)
    hub = Hub(cast("Site", SimpleNamespace(jobs=jobs)))
    jobs.note(new_call(), [body("CallRefused", message="Mr Hatter")], "job-1")
    hub._take([Live(event, frame_of(event)) for event in read(store)])
    jobs.note(new_call(), [body("Erased", lives=1)], "job-1")
    late = [event for event in read(store) if event.type == "Erased"]

    async def watch(after: str) -> bytes:
        told = b""
        async for frame in hub.watch(after, lambda event: True, limit=2):
            told += frame
        return told

    assert b"Mr Hatter" in b"".join(one.sent() for one in hub._ring)
    hub._take([Live(event, frame_of(event)) for event in late])
    store.vault.destroy("job-1", 1)
    told = asyncio.run(watch(f"{late[0].ms}-0"))
    assert b"Mr Hatter" not in told
    assert b"[erased]" in told
