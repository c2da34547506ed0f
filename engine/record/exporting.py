"""Exports: a history as CloudEvents (lossless, verifiable, importable) or as a table."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import zstandard

from engine.errors import ExportInvalid, JobUnknown, Unverifiable
from engine.files import new_file
from engine.ids import check_job_id
from engine.record.erasing import finish_left
from engine.record.findings import Source
from engine.record.leaving import leaves
from engine.record.proving import Prover
from engine.record.sealed import log_name
from engine.record.sealing import seal_now
from engine.record.sources import chain_of
from engine.record.witnessing import witness_keys
from engine.site import Site
from events.bodies.record import Exported
from events.envelope import Event
from events.errors import RecordDamaged
from events.note import Note, Verifier
from events.read import last_position, read, read_job
from events.seal import kept_notes
from events.segments import order
from events.subjects import job_of
from events.vault import ERASED, LOCKED, MARK, Vault

FORMAT = "flightlog-export/1"
BEGIN, KEY, END = "flightlog.export.begin", "flightlog.export.key", "flightlog.export.end"
Style = Literal["cloudevents", "csv"]
COLUMNS = (
    *("seq", "position", "time", "subject", "version", "type", "actor", "kind", "auth", "via", "claimed"),
    *("call_id", "step", "cause", "correlation", "body"),
)
MOST = 64 * 2**20  # bytes of a line
_POSITION = re.compile(r"\d{1,14}-\d{1,15}", re.ASCII)
ZSTD = b"\x28\xb5\x2f\xfd"


def cloudevent(event: Event, source: str, proof: list[str] | None = None) -> dict[str, Any]:
    """An event as CloudEvents 1.0: ``data`` is to be read, the tree is over ``flightlogdata``: what is stored."""
    whole = event.as_dict()
    made = {
        "specversion": "1.0",
        "id": event.position,
        "source": f"{source}/{whole['epoch']}",
        "type": f"flightlog.{event.type}",
        "subject": event.subject,
        "time": whole["time"],
        "datacontenttype": "application/json",
        "flightlogversion": event.version,
        "flightlogdata": event.raw,
    }
    if proof is not None:
        made["flightlogproof"] = " ".join(proof)
    kept = ("schema", "actor", "call_id", "step", "arguments", "cause", "correlation", "body")
    return {**made, "data": {name: whole[name] for name in kept}}


def export(
    site: Site, path: Path, *, style: Style = "cloudevents", job: str | None = None, since: int | None = None
) -> Exported:
    """Write a history, or a part of it, to a file; what was written, and recorded.

    Args:
        site: opened.
        path: the file, which must not be there; CloudEvents are packed with zstd unless it ends in ``.jsonl``.
        style: of the file.
        job: only this job's events.
        since: only events from this time on, ms.

    Raises:
        JobUnknown: there is no such job. Unverifiable: nothing of it is sealed. FileExistsError: the file is there.
    """
    store = site.jobs.store
    if job is not None and not site.jobs.load(check_job_id(job)).known:
        raise JobUnknown(f"job {job} is not on this site's record", "flightlog list shows the jobs of this site")
    seal_now(site)
    upto = last_position(store)
    events: Iterable[Event] = read_job(store, job) if job is not None else read(store, upto=upto)
    events = (e for e in events if order(e.position) <= order(upto) and (since is None or int(e.ms) >= since))
    events = _forgotten(site, events)
    tally = _Tally(job, since)
    whole = job is None and since is None
    lines = _rows(events, tally) if style == "csv" else _lines(site, events, tally, upto, whole=whole)
    with new_file(path) as file:
        digest = _write(file, lines, pack=style == "cloudevents" and path.suffix != ".jsonl")
        made = Exported(
            what=style,
            job=job,
            first=tally.first,
            last=tally.last,
            events=tally.events,
            sha256=digest,
            keys=tally.keys,
        )
        return leaves(site, file, made)


def _forgotten(site: Site, events: Iterable[Event]) -> Iterator[Event]:
    """Events of which nothing goes out that was recorded as erased."""
    seen: set[str | None] = {None}
    for event in events:
        job = job_of(event.subject)
        if job not in seen:
            seen.add(job)
            finish_left(site, str(job))
        yield event


@dataclass
class _Tally:
    job: str | None
    since: int | None
    first: int = 0
    last: int = 0
    events: int = 0
    keys: int = 0

    def see(self, event: Event) -> None:
        self.first = self.first or event.seq
        self.last = event.seq
        self.events += 1


def _lines(site: Site, events: Iterable[Event], tally: _Tally, upto: str, *, whole: bool) -> Iterator[str]:
    source, vault = f"/{log_name(site.workspace)}", site.jobs.store.vault
    prover = Prover(site)
    try:
        note = prover.last
        end = order(upto)[1]  # the sealer goes on meanwhile
        signed = [one for one in kept_notes(site.workspace.seal) if one.checkpoint.size <= end] if whole else [note]
        head = {
            "format": FORMAT,
            "site": site.name,
            "log": log_name(site.workspace),
            "whole": whole,
            "job": tally.job,
            "since": tally.since,
            "keys": chain_of(site.workspace),
            "witnesses": [str(key) for key in witness_keys(site.workspace)],
            "checkpoints": [str(one) for one in signed],
        }
        yield _line({"specversion": "1.0", "id": "begin", "source": source, "type": BEGIN, "data": head})
        told: set[str] = set()
        for event in events:
            job = job_of(event.subject)
            if job is not None and job not in told and vault is not None:
                told.add(job)
                keys, erased = vault.keys_of(job), vault.erased_of(job)
                tally.keys += len(keys)
                if keys or erased:
                    data = {"job": job, "keys": keys, "erased": erased}
                    yield _line(
                        {"specversion": "1.0", "id": f"key-{job}", "source": source, "type": KEY, "data": data}
                    )
            tally.see(event)
            prover.check(event)
            proof = prover.path(event.seq, note) if not whole and event.seq <= note.checkpoint.size else None
            yield _line(cloudevent(event, source, proof))
        told_all = {"events": tally.events, "first": tally.first, "last": tally.last}
        yield _line({"specversion": "1.0", "id": "end", "source": source, "type": END, "data": told_all})
    finally:
        prover.close()


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def _rows(events: Iterable[Event], tally: _Tally) -> Iterator[str]:
    buffer = io.StringIO()
    table = csv.writer(buffer)
    table.writerow(COLUMNS)
    for event in events:
        tally.see(event)
        whole = event.as_dict()
        actor = whole["actor"]
        row = {
            **{name: whole[name] for name in COLUMNS if name in whole},
            "seq": event.seq,
            "actor": actor["id"],
            "kind": actor["kind"],
            "auth": actor["auth"],
            "via": actor["via"],
            "claimed": actor.get("claimed") or "",
            "body": json.dumps(whole["body"], ensure_ascii=False),
        }
        table.writerow([_harmless(row[name]) for name in COLUMNS])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _harmless(value: Any) -> Any:
    """A spreadsheet takes a text that begins like a formula for one."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value


def _write(file: IO[bytes], lines: Iterable[str], *, pack: bool) -> str:
    digest = hashlib.sha256()

    class Out:
        """Counts what goes into the file, as it goes."""

        def write(self, data: bytes) -> int:
            digest.update(data)
            return file.write(data)

    out: Any = Out()
    if pack:
        with zstandard.ZstdCompressor(level=9, write_checksum=True).stream_writer(out, closefd=False) as packed:
            for line in lines:
                packed.write(line.encode("utf-8", "replace"))
    else:
        for line in lines:
            out.write(line.encode("utf-8", "replace"))
    return digest.hexdigest()


# -- reading one back --------------------------------------------------------------------------


class ExportFile:
    """An export, to be read: its head at once, its events once.

    Args:
        path: of the file.

    Raises:
        ExportInvalid: it is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: dict[str, str] = {}
        self.erased: list[str] = []
        with self._opened() as lines:
            first = self._parsed(next(lines, ""))
        data = first.get("data")
        if first.get("type") != BEGIN or not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ExportInvalid(
                f"{path} does not begin as an export of Flightlog's does", "flightlog export writes one"
            )
        self.head: dict[str, Any] = first["data"]
        wanted = {"site": str, "log": str, "whole": bool, "keys": list, "witnesses": list, "checkpoints": list}
        for name, kind in wanted.items():
            found: Any = self.head.get(name)
            if not isinstance(found, kind) or (
                isinstance(found, list) and not all(isinstance(one, str) for one in found)
            ):
                raise ExportInvalid(f"{path}: {name} is missing in its head, or no {kind.__name__} of texts")

    @property
    def log(self) -> str:
        """What its checkpoints call the log."""
        return str(self.head["log"])

    def events(self) -> Iterator[Event]:
        """Its events, as they were stored; keys that come with them are gathered in ``keys``; see ``proofs``."""
        for event, _ in self.proofs():
            event.vault = None
            yield event

    def _key(self, value: dict[str, Any], vault: Vault) -> None:
        try:
            keys, erased = dict(value["data"]["keys"]), list(value["data"].get("erased", ()))
            vault.adopt(keys, erased)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ExportInvalid(f"{self.path} has keys that are none: {error}", "have it made again") from error
        self.keys |= keys
        self.erased += erased

    def _ends(self, value: dict[str, Any], count: int) -> None:
        says = value["data"].get("events") if isinstance(value.get("data"), dict) else None
        if says != count:
            raise ExportInvalid(f"{self.path} has {count} events, and says that it has {says}", "have it made again")

    def proofs(self) -> Iterator[tuple[Event, list[str] | None]]:
        """Its events, to be read, each with the proof that a part of a history brings.

        Raises:
            ExportInvalid: it is cut off. RecordDamaged: what is shown is not what is stored.
        """
        count = 0
        with tempfile.TemporaryDirectory(prefix="flightlog-") as folder:
            vault = Vault(Path(folder))
            for value in self._values():
                if value["type"] == KEY:
                    self._key(value, vault)
                    continue
                if value["type"] == END:
                    self._ends(value, count)
                    return
                count += 1
                event = _event(value, self.path)
                event.vault = vault
                if not _reads_as(value, event):
                    raise RecordDamaged(f"what is to be read of event {event.position} is not what is stored of it")
                proof = value.get("flightlogproof")
                yield event, proof.split() if isinstance(proof, str) else None
        raise ExportInvalid(f"{self.path} is cut off after {count} events", "have it made again")

    def source(self, *, anchor: Verifier | None = None, extra: Iterable[Note] = ()) -> Source:
        """To be verified."""
        try:
            return Source(
                events=self.events(),
                notes=[*(Note.parse(text) for text in self.head["checkpoints"]), *extra],
                chain=list(self.head["keys"]),
                witnesses=[Verifier.parse(text) for text in self.head["witnesses"]],
                anchor=anchor,
                log=self.log,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unverifiable(f"the head of {self.path} cannot be read: {error}") from error

    def _values(self) -> Iterator[dict[str, Any]]:
        with self._opened() as lines:
            next(lines)
            for line in lines:
                yield self._parsed(line)

    def _parsed(self, line: str) -> dict[str, Any]:
        if len(line) >= MOST:
            raise ExportInvalid(
                f"{self.path} has a line of {MOST} bytes and more: it is no export", "have it made again"
            )
        try:
            value = json.loads(line)
            if isinstance(value, dict) and isinstance(value["type"], str):
                return value
        except (ValueError, KeyError, RecursionError):
            pass  # told below, for whatever it is instead
        raise ExportInvalid(f"{self.path} has a line that is no CloudEvent: {line[:60]!r}", "have it made again")

    @contextmanager
    def _opened(self) -> Iterator[Iterator[str]]:
        with self.path.open("rb") as file:
            packed = file.read(4) == ZSTD
            file.seek(0)
            raw: Any = zstandard.ZstdDecompressor().stream_reader(file) if packed else file
            try:
                yield _decoded(io.BufferedReader(raw) if packed else file)
            except (zstandard.ZstdError, UnicodeDecodeError) as error:
                raise ExportInvalid(f"{self.path} cannot be unpacked: {error}", "have it made again") from error


def _event(value: dict[str, Any], path: Path) -> Event:
    try:
        if not _POSITION.fullmatch(value["id"]) or type(value["flightlogversion"]) is not int:
            raise ValueError("its id is no position, or its version no number")
        if not isinstance(json.loads(value["flightlogdata"]), dict):
            raise TypeError("its data is no object")
        return Event(
            value["id"],
            str(value["type"]).removeprefix("flightlog."),
            str(value["subject"]),
            value["flightlogversion"],
            value["flightlogdata"],
        )
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ExportInvalid(f"{path} has a line that is no event: {error}", "have it made again") from error


def _reads_as(value: dict[str, Any], event: Event) -> bool:
    """Whether what a line shows is what the event says: nobody reads the stored bytes."""
    source = str(value.get("source")).rpartition("/")[0]
    try:
        told, event.vault, vault = cloudevent(event, source), None, event.vault
        stored = cloudevent(event, source)
        event.vault = vault
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return True  # it is no event of ours at all, which verification says better
    return all(_same(value.get(name), told[name], stored[name]) for name in ("source", "time", "data"))


def _same(shown: Any, told: Any, stored: Any) -> bool:
    """Field by field; where the key of a locked one is gone or not in the file, there is nothing to compare with."""
    if isinstance(stored, dict) and isinstance(shown, dict):
        return shown.keys() == stored.keys() and all(_same(shown[n], told[n], stored[n]) for n in stored)
    if isinstance(stored, list) and isinstance(shown, list):
        return len(shown) == len(stored) and all(map(_same, shown, told, stored))
    if isinstance(stored, str) and MARK in stored and (ERASED in str(told) or LOCKED in str(told)):
        return isinstance(shown, str) or shown is None
    return bool(shown == told)


def _decoded(file: IO[bytes]) -> Iterator[str]:
    while line := file.readline(MOST):
        yield line.decode()
