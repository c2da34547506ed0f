"""Closing the work of messages: many outcomes in one append, each at most once."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from engine.jobs import Note
from engine.site import Site
from events.append import WorkRefused
from events.store import translated

FIELDS = ("job", "position", "correlation", "target", "reply", "reply_key", "opened", "token", "transport")


def fields_of(site: Site, ids: Sequence[str]) -> list[dict[str, str] | None]:
    """What is kept of the open work of messages; None where it is closed."""
    return look_at(site, ids)[0]


def look_at(site: Site, ids: Sequence[str]) -> tuple[list[dict[str, str] | None], int]:
    """The same, and the time in ms by the record's clock, in one round trip."""
    keys = site.jobs.store.keys
    with translated():
        pipe = site.jobs.store.client.pipeline(transaction=False)
        for message in ids:
            pipe.hmget(keys.work(f"aux_{message}"), FIELDS)
        pipe.time()
        *answers, (seconds, micros) = pipe.execute()
    fields = [
        {name: value or "" for name, value in zip(FIELDS, answer, strict=True)} if answer[1] else None
        for answer in answers
    ]
    return fields, int(seconds) * 1000 + int(micros) // 1000


def close_all(
    site: Site, outcomes: Sequence[Any], *, role: str, known: Mapping[str, dict[str, str]] | None = None
) -> int:
    """Record outcomes of messages; those that have one already are left out. How many were recorded."""
    if not outcomes:
        return 0
    fields = known or {}
    missing = [o.id for o in outcomes if o.id not in fields]
    if missing:
        found = zip(missing, fields_of(site, missing), strict=True)
        fields = {**fields, **{message: one for message, one in found if one is not None}}
    notes = [_note(outcome, fields[outcome.id]) for outcome in outcomes if outcome.id in fields]
    return _record(site, notes, role)


def _record(site: Site, notes: Sequence[Note], role: str) -> int:
    if not notes:
        return 0
    try:
        site.jobs.note_all(site.system_call("outcome", call_id=f"{role}-{secrets.token_hex(12)}", role=role), notes)
    except WorkRefused:
        if len(notes) == 1:
            return 0  # another has recorded its outcome
        return sum(_record(site, [note], role) for note in notes)
    return len(notes)


def _note(outcome: Any, fields: Mapping[str, str]) -> Note:
    return Note(outcome, fields["job"], fields["position"], fields["correlation"])
