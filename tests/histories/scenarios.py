"""Gathers what the suite's real sites have recorded: ``python -P -m tests.histories.scenarios FOLDER FILE.zst``.

``FOLDER`` is where tests have run (``pytest --basetemp FOLDER``). Each site there is one scenario: its history, and
what that comes to. Done once for a release, as all golden histories are.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import zstandard

from engine.site import Site
from events.envelope import Event
from events.errors import FlightlogError
from events.read import read
from tests.histories.replay import result

MOST = 400  # events of one scenario: what goes on longer repeats itself

#: A host's search path, which a message may name.
_PLACES = re.compile(r"\(/[^()]*:/[^()]*\)")


def sites(folder: Path) -> Iterator[Path]:
    """Workspaces that have a record, by name."""
    for path in sorted(folder.rglob(".flightlog")):
        if (path / "record").is_dir() and not any(part.endswith("current") for part in path.parts):
            yield path.parent


def history(workspace: Path) -> list[Event]:
    """What a site has recorded."""
    site = Site.open(workspace=workspace)
    try:
        return list(islice(read(site.jobs.store), MOST))
    finally:
        site.close()


def name_of(workspace: Path, folder: Path) -> str:
    """The test's name, and the site's folder where it is not the usual one."""
    *_, test, last = workspace.relative_to(folder).parts
    return re.sub(r"\d+$", "", test) + ("" if last == "ws" else f"/{last}")


def scenarios(folder: Path) -> Iterator[dict[str, Any]]:
    """Each history once: two of the same types, subjects and states are one."""
    seen: set[tuple[tuple[str, str], ...]] = set()
    names: dict[str, int] = {}
    for workspace in sites(folder):
        try:
            events = history(workspace)
        except FlightlogError as error:
            print(f"{workspace}: {error}", file=sys.stderr)
            continue
        shape = tuple((event.type, event.subject) for event in events)
        if events and shape not in seen:
            seen.add(shape)
            name = name_of(workspace, folder)
            number = names[name] = names.get(name, 0) + 1
            events = [replace(event, raw=_PLACES.sub("(...)", event.raw)) for event in events]
            yield {
                "name": f"{name}-{number}" if number > 1 else name,
                "events": [[e.position, e.type, e.subject, e.version, e.raw] for e in events],
                "expected": result(events),
            }


def main(arguments: list[str]) -> int:
    """Gather them."""
    folder, to = map(Path, arguments)
    if to.exists():
        print(f"{to} is there: golden histories are made once")
        return 1
    lines = "".join(json.dumps(one, sort_keys=True) + "\n" for one in scenarios(folder.resolve()))
    to.write_bytes(zstandard.ZstdCompressor(level=19, write_checksum=True).compress(lines.encode()))
    print(f"{lines.count(chr(10))} scenarios, {len(lines)} bytes, {to.stat().st_size} on disk")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
