"""What leaves the site as a copy of the record is on the record before it can be taken away."""

from __future__ import annotations

import hashlib
from io import BufferedRandom

from engine.faults import passing
from engine.files import sync
from engine.record.noting import note
from engine.site import Site
from events.bodies.record import Exported


def leaves(site: Site, file: BufferedRandom | None, made: Exported) -> Exported:
    """Record a copy that is whole and has no name yet: who dies before it has one told too much, and not too little.

    Args:
        site: opened.
        file: the copy; None where it is printed.
        made: what it is.

    Raises:
        LogUnavailable: it is not on the record; the copy is not to be given a name.
    """
    if file is not None:
        sync(file)
    passing("copy-made")
    note(site, made)
    passing("copy-recorded")
    return made


def digest_of(file: BufferedRandom) -> str:
    """SHA-256 of what was written into a file so far, hex."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
