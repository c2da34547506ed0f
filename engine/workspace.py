"""The site's folder: where everything lies, by name.

The layout is the reference's (3.3), and ``.flightlog/`` of ours

::

    <workspace>/startup/ local/            as the reference has them
    <workspace>/<job>/                     run folder: app_<site>/ meta.json fl_app.txt log.txt
    <workspace>/.flightlog/site.json       the site's name, and a random id
        jobs/<job>/lock  abort  <attempt>/{spec,identity,exit}.json lock log.txt keeper.log
        keys/                              a key per job, for its personal fields (events.vault)
        seal/                              key, checkpoint, tree/ and segments/ of the log (workers.sealer)
        blobs/ staging/ trash/ spool/ record/ fabric/
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from engine.errors import ArgumentInvalid, SiteUnknown
from engine.files import locked, read_json, write_json
from engine.ids import check_job_id, check_site_name
from events.errors import RecordDamaged

UNFINISHED = "unfinished.json"


class Workspace:
    """Paths of one site's folder."""

    def __init__(self, root: Path | str, site: str) -> None:
        self.root = Path(root).resolve()
        self.site = site
        self.flight = self.root / ".flightlog"
        self.blobs = self.flight / "blobs"
        self.staging = self.flight / "staging"
        self.trash = self.flight / "trash"
        self.spool = self.flight / "spool"
        self.jobs = self.flight / "jobs"
        self.keys = self.flight / "keys"
        self.seal = self.flight / "seal"
        self.segments = self.seal / "segments"

    @classmethod
    def prepare(cls, root: Path | str, site: str = "") -> Workspace:
        """The workspace in ``root``, made where it is missing. A workspace belongs to one site for ever.

        Raises:
            ArgumentInvalid: no site is named, or another one lives there.
            SiteUnknown: ``root`` is no folder and cannot be made into one.
        """
        path = Path(root).resolve()
        known = known_site(path)
        if known and site and site != known:
            raise ArgumentInvalid(
                f"site is {site!r}, but the workspace {path} belongs to {known!r}",
                f"leave --site out, or give {site!r} a workspace of its own",
                field="site",
            )
        name = check_site_name(known or site)
        try:
            for folder in (path / "startup", path / "local", path / ".flightlog"):
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            (path / ".flightlog").chmod(0o700)
        except OSError as error:
            raise SiteUnknown(
                f"workspace {path} cannot be made: {error.strerror}", "name a folder you own"
            ) from error
        workspace = cls(path, name)
        for folder in (workspace.blobs, workspace.staging, workspace.trash, workspace.spool, workspace.jobs):
            folder.mkdir(exist_ok=True)
        if not known:
            write_json(workspace.flight / "site.json", {"site": name, "id": secrets.token_hex(8)})
        return workspace

    @classmethod
    def find(cls, root: Path | str) -> Workspace:
        """The workspace in ``root``; raises ``SiteUnknown`` where there is none."""
        site = known_site(Path(root).resolve())
        if not site:
            raise SiteUnknown(
                f"no site lives in {Path(root).resolve()}",
                f"flightlog up --site NAME --workspace {root}, or name another --workspace",
            )
        return cls.prepare(root)

    @contextmanager
    def taking_in(self, what: str) -> Iterator[None]:
        """A history is put into this workspace: until that is done, nobody works with it."""
        write_json(self.flight / UNFINISHED, {"what": what})
        yield
        (self.flight / UNFINISHED).unlink()

    def check_finished(self) -> None:
        """Raise ``RecordDamaged`` where a history was put in here, and that was never finished."""
        path = self.flight / UNFINISHED
        if path.exists():
            what = (read_json(path) or {}).get("what", "a history")
            raise RecordDamaged(
                f"{what} was not taken in to its end: what is in {self.root} is a part of it",
                f"remove {self.root}, and do it again",
            )

    @property
    def id(self) -> str:
        """A random name that goes with the folder."""
        return str((read_json(self.flight / "site.json") or {}).get("id", "none"))

    def run(self, job_id: str) -> Path:
        """A job's run folder; raises ``JobIdInvalid``."""
        return self.root / check_job_id(job_id)

    def app(self, job_id: str) -> Path:
        """The folder of a job's app."""
        return self.run(job_id) / f"app_{self.site}"

    def job(self, job_id: str) -> Path:
        """What we keep about a job."""
        return self.jobs / check_job_id(job_id)

    def attempt(self, job_id: str, attempt: int) -> Path:
        """What we and the keeper keep about one attempt."""
        return self.job(job_id) / str(attempt)

    def lock(self, job_id: str, timeout: float | None = None) -> AbstractContextManager[None]:
        """The job's lock: whoever changes its folders or looks at its processes holds it for that moment."""
        return locked(self.job(job_id) / "lock", timeout=timeout)

    def receipt(self, job_id: str) -> dict[str, Any] | None:
        """What the deploy that stands in the run folder left: work, position, sha256, files, bytes."""
        return read_json(self.run(job_id) / ".receipt.json")


def known_site(path: Path) -> str:
    """The name of the site that lives in a folder; empty where none does. Raises ``RecordDamaged``."""
    file = path / ".flightlog" / "site.json"
    try:
        if not file.exists():
            return ""
    except NotADirectoryError:
        return ""
    info = read_json(file) or {}
    if not (isinstance(info.get("site"), str) and isinstance(info.get("id"), str)):
        raise RecordDamaged(
            f"{file} cannot be read: it says which site this is, and by what name its log is known",
            "put it back from a backup, with the site and the id that its checkpoints name: flightlog/SITE/ID",
        )
    return str(info["site"])


def host_name() -> str:
    """This host, as events name it."""
    return os.uname().nodename
