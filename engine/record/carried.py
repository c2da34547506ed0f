"""Verification of what was carried away: an export, whole or in part, by what is in it alone."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from engine.errors import Unverifiable
from engine.record.exporting import ExportFile
from engine.record.findings import Report, Source
from engine.record.verify import Verification
from events.errors import RecordDamaged
from events.merkle import included
from events.note import Note, Verifier
from events.seal import leaf_of
from events.subjects import job_subject


def verify_export(
    file: ExportFile,
    anchor: Verifier | None = None,
    trusted: Sequence[Verifier | None] = (),
    extra: Sequence[Note] = (),
) -> Report:
    """Verify a file of ``flightlog export``.

    Args:
        file: whole, or a part of a history.
        anchor: the site's key, where it is known from elsewhere.
        trusted: keys of witnesses; none: those that the file names.
        extra: checkpoints that were kept elsewhere.

    Raises:
        ExportInvalid: it is none. Unverifiable: it names nothing to verify it by.
    """
    source = file.source(anchor=anchor, extra=extra)
    if trusted:
        source.witnesses = [one for one in trusted if one is not None]
    if source.notes and not source.chain:
        raise Unverifiable("the file names no key of the site", "it has been changed, or name one that you know")
    if file.head["whole"]:
        return Verification(source).run()
    return _verify_part(file, source)


def _verify_part(file: ExportFile, source: Source) -> Report:
    """A part of a history: each event by its own proof, up to the checkpoint that came with it."""
    if not source.notes:
        raise Unverifiable("the file has no checkpoint", "have it made again")
    signed, *others = source.notes
    check = Verification(source)
    report, point, keys = check.report, signed.checkpoint, check.keys()
    report.first = 0
    if point.origin.rpartition("/")[0] != file.log:
        check.bad(0, "", f"its checkpoint is of another log: {point.origin[:80]}")
    if not signed.signed_by([key for key in keys if key.name == file.log]):
        check.bad(0, "", "its checkpoint is not signed with a key of the site")
    for other in others:
        if other.checkpoint.size == point.size and other.checkpoint.root != point.root:
            check.bad(0, "", "its checkpoint is not the one that you have of this size")
    versions: dict[str, int] = {}
    job, since = file.head.get("job"), file.head.get("since")
    try:
        for event, proof in file.proofs():
            before = versions.get(event.subject, event.version - 1 if since is not None or job is None else 0)
            gap = job is None and report.last not in (0, event.seq - 1)
            if event.seq <= report.last or gap or event.version != before + 1:
                check.bad(event.seq, event.position, f"one is missing before it, or it comes twice: {event.subject}")
            if job is not None and event.subject != job_subject(str(job)):
                check.bad(
                    event.seq, event.position, f"it is of {event.subject[:60]}, and the file says {job!r}"[:200]
                )
            versions[event.subject] = event.version
            report.first = report.first or event.seq
            report.last, report.events = event.seq, report.events + 1
            if event.seq > point.size:
                continue  # not signed yet when the file was made
            steps = [_bytes(step) for step in proof or []]
            if proof is None or not included(leaf_of(event), event.seq - 1, point.size, steps, point.root):
                check.bad(event.seq, event.position, "it is not in the log that was signed, or was changed")
            else:
                report.signed = event.seq
    except RecordDamaged as error:
        check.bad(report.last + 1, "", error.what)
    report.checkpoints = 1
    if by := check.vouching(signed):
        report.witnessed, report.witnessed_by = report.signed, by
    beside = [other.checkpoint.size for other in others if other.checkpoint.size != point.size]
    if beside and not report.problems:
        raise Unverifiable(
            f"your checkpoint is over {beside[0]} events, the file's over {point.size}: "
            "a part cannot be compared with it",
            "have the whole exported",
        )
    return report


def _bytes(step: str) -> bytes:
    try:
        return base64.b64decode(step, validate=True)
    except ValueError:
        return b""  # no hash: nothing is proven by it
