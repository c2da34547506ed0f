"""What there is to verify: a site's log with its seal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.errors import Unverifiable
from engine.record.findings import Source
from engine.record.sealed import log_name
from engine.record.witnessing import witness_keys
from engine.site import Site
from engine.workspace import Workspace
from events.bodies.record import HistoryLost
from events.envelope import Event
from events.merkle import Tree
from events.note import Note, Verifier
from events.read import read, read_twice
from events.seal import kept_notes
from events.signing import Keys
from events.store import Store

ORIGINS = "origins"


def chain_of(workspace: Workspace) -> list[str]:
    """Public keys of a site, and of the sites whose history it took in."""
    path = workspace.seal / ORIGINS
    return [*(path.read_text().splitlines() if path.exists() else []), *Keys(workspace.seal).chain()]


def _with_indexes(store: Store) -> Iterator[Event]:
    """The whole log, and then what it is found by."""
    yield from read_twice(store)
    if store.archive is not None:
        store.archive.check_indexes()


def site_source(
    site: Site,
    *,
    first: int = 1,
    last: int | None = None,
    extra: Sequence[Note] = (),
    anchor: Verifier | None = None,
) -> Source:
    """A site's own log, from a sequence on, with all that was signed of it.

    Args:
        site: opened.
        first: sequence.
        last: sequence; None: the end.
        extra: checkpoints that were kept elsewhere.
        anchor: key of the site that is known from elsewhere.

    Raises:
        Unverifiable: the checkpoints cannot be read.
    """
    store, folder = site.jobs.store, site.workspace.seal
    tree = Tree(folder / "tree", readonly=True) if (folder / "tree" / "0").exists() else None
    after = "0-0"
    before, cuts = _around(store, first) if first > 1 or last is not None else (None, {})
    if first > 1:
        if before is None:
            raise Unverifiable(f"the log has no event {first - 1}", "flightlog status says how far it goes")
        if tree is None or tree.size < first - 1:
            raise Unverifiable("what comes before was never sealed", "leave --from out, and verify the whole")
        after = before.position
    notes = kept_notes(folder)
    log = log_name(site.workspace)
    if not Keys(folder).chain() and any(note.checkpoint.origin.rpartition("/")[0] == log for note in notes):
        signers = folder / "signers"
        raise Unverifiable(f"the site's public keys are not in {signers}", "put that file back from a backup")
    return Source(
        events=read_twice(store, after=after) if first > 1 else _with_indexes(store),
        notes=[*notes, *extra],
        chain=chain_of(site.workspace),
        witnesses=witness_keys(site.workspace),
        tree=tree,
        anchor=anchor,
        log=log,
        cuts=cuts,
    )


def _around(store: Store, first: int) -> tuple[Event | None, dict[int, int]]:
    """The event before a sequence; and what each epoch that began after a loss kept of the log."""
    before, cuts = None, {}
    for event in read(store):
        if event.seq == first - 1:
            before = event
        if event.type == HistoryLost.name():
            cuts[int(event.stored()["epoch"])] = int(event.body["first"]) - 1
    return before, cuts
