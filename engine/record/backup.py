"""Backups: the whole record in one file, and a site from it, which says what it does not have any more."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

import zstandard

from engine.errors import ExportInvalid, Unverifiable
from engine.files import new_file, write_json
from engine.ids import check_site_name
from engine.rebuild import rebuild_site
from engine.record.importing import check_empty
from engine.record.leaving import digest_of, leaves
from engine.site import Site
from engine.workspace import UNFINISHED, Workspace
from events.bodies.base import Body
from events.bodies.record import BackupRestored, Exported, HistoryLost
from events.envelope import Call
from events.epochs import open_epoch, put_events
from events.errors import RecordDamaged
from events.merkle import Tree
from events.note import Note
from events.read import read, read_back
from events.seal import latest, leaf_of
from events.segments import Archive, line_of, order

FORMAT = "flightlog-backup/1"
#: What goes into a backup beside the log: our own bookkeeping, and the site's configuration.
PARTS = (".flightlog/seal", ".flightlog/keys", ".flightlog/tokens.json", "startup", "local")
#: Hashes that are made again from the log, and locks.
LEFT_OUT = ("tree", "lock", "key.lock", "state.json")
TAIL = "tail.tsv"


def backup(site: Site, path: Path) -> Exported:
    """Write a backup while the site works; what is in it, and recorded.

    It holds the site's private key and the keys of personal fields: keep it as you keep those.
    Apps, run folders and output are not in it.

    Raises:
        FileExistsError: the file is there. Unverifiable: there is no record yet.
    """
    store, root = site.jobs.store, site.workspace.root
    # Segments first, then what comes after them: the log only grows, so nothing is missing in between.
    on_disk = Archive(site.workspace.segments)
    end = on_disk.last_position
    listed = [one for name in PARTS for one in _files(root / name)]
    # What was signed comes before what it is over: a backup holds no checkpoint over events that are not in it.
    parts = {one: None if one.suffix == ".zst" else _bytes(one) for one in listed}
    # One at least: what is appended next follows from the log's end in Redis.
    tail = list(read(store, after=end)) or list(islice(read_back(store), 1))
    if not tail:
        raise Unverifiable("there is nothing on the record yet", "back it up when there is")
    last = tail[-1].seq
    head = {
        "format": FORMAT,
        "site": site.name,
        "id": site.workspace.id,
        "taken": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "last": last,
        "archived": tail[0].seq - 1,
    }
    with new_file(path) as file:
        with (
            zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(file, closefd=False) as packed,
            tarfile.open(fileobj=packed, mode="w|") as tar,
        ):
            _add(tar, "backup.json", json.dumps(head).encode())
            _add(tar, TAIL, b"".join(line_of(event) for event in tail))
            for part, early in parts.items():
                data = _bytes(part) if part.suffix == ".zst" else early
                if data is not None:
                    _add(tar, str(part.relative_to(root)), data)
        made = Exported(what="backup", first=1, last=last, events=last, sha256=digest_of(file))
        return leaves(site, file, made)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        for one in sorted(path.rglob("*")):
            inside = one.relative_to(path).parts
            if one.is_file() and not one.is_symlink() and inside[0] not in LEFT_OUT and inside[-1][0] != ".":
                yield one


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None  # it went meanwhile


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
    tar.addfile(info, io.BytesIO(data))


def _check_sealed(site: Site) -> None:
    """Raise ``RecordDamaged`` where a log does not begin with what its last checkpoint is over."""
    note = latest(site.workspace.seal)
    if note is None:
        return
    tree, events = Tree(), islice(read(site.jobs.store), note.checkpoint.size)
    while batch := list(islice(events, 1000)):
        tree.append([leaf_of(event) for event in batch])
    if tree.root() != note.checkpoint.root:
        raise RecordDamaged("the backup's log is not what its own seal is over", "take another one")


def unpack(path: Path, root: Path) -> dict[str, Any]:
    """Put a backup's files into a new workspace; its head.

    Raises:
        ExportInvalid: it is none, or is cut off.
    """
    head: dict[str, Any] = {}
    try:
        with (
            path.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file) as unpacked,
            tarfile.open(fileobj=unpacked, mode="r|") as tar,
        ):
            for member in tar:
                data = _content(tar.extractfile(member))
                if not head:
                    head = json.loads(data)
                    if head.get("format") != FORMAT:
                        raise ExportInvalid(f"{path} is no backup of Flightlog's")
                    _check_head(head)
                    workspace = Workspace.prepare(root, check_site_name(head["site"]))
                    # It is the same log, and witnesses know it by this.
                    write_json(workspace.flight / "site.json", {"site": head["site"], "id": head["id"]})
                    write_json(workspace.flight / UNFINISHED, {"what": f"the backup {path}"})
                    continue
                if member.name == TAIL:
                    target = workspace.flight / TAIL
                else:
                    target = (root / member.name).resolve()
                    if not any(target.is_relative_to(root.resolve() / part) for part in PARTS):
                        raise ExportInvalid(f"{path} holds {member.name!r}, which does not belong into a backup")
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                target.write_bytes(data)
                target.chmod(0o600)
    except (tarfile.TarError, zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportInvalid(f"{path} cannot be unpacked: {error}", "it is cut off, or no backup") from error
    if not head:
        raise ExportInvalid(f"{path} is empty", "flightlog backup FILE writes one")
    if not (workspace.flight / TAIL).exists():
        raise ExportInvalid(f"{path} has no {TAIL}: the end of the log is not in it", "take another one")
    return head


def _check_head(head: dict[str, Any]) -> None:
    """Raise ``ValueError`` for a head that none of ours is."""
    for name, kind in {"taken": str, "last": int, "archived": int, "id": str}.items():
        if type(head.get(name)) is not kind:
            raise ValueError(f"its head has no {name}")
    if not re.fullmatch(r"[0-9a-zA-Z]{1,64}", head["id"]) or not 0 <= head["archived"] < head["last"]:
        raise ValueError("its head names no log, or no end")


def _content(file: IO[bytes] | None) -> bytes:
    return file.read() if file is not None else b""


def restored(site: Site, call: Call, head: dict[str, Any], reason: str, known: Note | None) -> list[Body]:
    """Load what ``unpack`` left, and open an epoch that says what is missing; the events that say so.

    Args:
        site: opened in the new workspace.
        call: whose.
        head: of the backup.
        reason: why it was restored.
        known: the last checkpoint that anybody has of this log: a witness's, say.

    Raises:
        SiteNotEmpty, RecordDamaged: the site has a history, or the backup has a gap.
    """
    check_empty(site)
    with site.workspace.taking_in(f"the backup of {head['taken']}"):
        return _put(site, call, head, reason, known)


def _put(site: Site, call: Call, head: dict[str, Any], reason: str, known: Note | None) -> list[Body]:
    store, tail = site.jobs.store, site.workspace.flight / TAIL
    expected = head["archived"]
    try:
        with tail.open(encoding="utf-8", newline="\n") as lines:
            while batch := list(islice(lines, 1000)):
                events = []
                for line in batch:
                    position, kind, subject, version, d = line.rstrip("\n").split("\t")
                    expected += 1
                    if order(position)[1] != expected:
                        raise RecordDamaged(f"the backup has no event {expected}", "take another one")
                    events.append((position, kind, subject, int(version), d))
                put_events(store, events)
    except ValueError as error:
        raise RecordDamaged(f"the backup's event {expected} is none: {error}", "take another one") from error
    if expected != head["last"]:
        raise RecordDamaged(f"the backup ends with event {expected}, and says {head['last']}", "take another one")
    tail.unlink()
    _check_sealed(site)
    rebuild_site(store)
    told: list[Body] = [BackupRestored(taken=head["taken"], last=head["last"], reason=reason)]
    if known is not None and known.checkpoint.size > head["last"]:
        lost = HistoryLost(first=head["last"] + 1, last=known.checkpoint.size, note=str(known), reason=reason)
        told.insert(0, lost)
    open_epoch(store, call, told)
    return told
