"""What leaves the site as a copy of the record is on the record before it can be taken away."""

from __future__ import annotations

import hashlib
from typing import IO

from engine.actors import current_actor
from engine.faults import passing
from engine.ids import new_call_id
from engine.site import Site
from events.bodies.record import Exported
from events.envelope import Call


def leaves(site: Site, made: Exported) -> Exported:
    """Record a copy that is whole and has no name yet: who dies before it has one told too much, and not too little.

    Raises:
        LogUnavailable: it is not on the record; the copy is not to be given a name.
    """
    passing("copy-made")
    site.jobs.note(Call(call_id=new_call_id(), actor=current_actor()), [made])
    passing("copy-recorded")
    return made


def digest_of(file: IO[bytes]) -> str:
    """SHA-256 of what was written into a file so far, hex."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
