"""Orders that were given while the record was away: fsynced files that enter the log before anything else."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger("flightlog.spool")


class Spool:
    """A folder of JSON files, read in the order in which they were written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, value: dict[str, Any]) -> Path:
        """Keep an order; it is on disk when this returns. ``name`` sorts by time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.json"
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(value, file, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return path

    def waiting(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """What waits, oldest first; a file is removed by whoever has recorded it."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield path, json.loads(path.read_text("utf-8"))
            except FileNotFoundError:
                continue  # another process recorded it a moment ago
            except ValueError:
                log.error("%s cannot be read; it stays for people to look at", path)
