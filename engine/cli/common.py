"""What every command takes, and how it reaches its site."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from engine.actors import acting_as, os_actor
from engine.cli.output import Format, tell
from engine.errors import ArgumentInvalid, HostError, SiteUnknown
from engine.exits import exit_code
from engine.jobs import Jobs
from engine.site import Site
from engine.workspace import Workspace, known_site
from events.errors import FlightlogError
from events.store import Store, connect

if TYPE_CHECKING:
    from engine.client_engine import ClientEngine

DEFAULT = Path("flightlog-site")


@dataclass(frozen=True)
class Where:
    """What the options say of the site, and how to print."""

    workspace: Path | None
    site: str | None
    record_url: str | None
    fabric_url: str | None
    how: Format
    command: str

    @property
    def folder(self) -> Path:
        """The workspace: named, or here, or the default below here."""
        if self.workspace is not None:
            return self.workspace
        here = Path.cwd()
        return here if known_site(here) else here / DEFAULT


_WHERE: ContextVar[Where] = ContextVar("flightlog_where")

_SITE = "Which site"
_COMMON: dict[str, tuple[Any, Any]] = {
    "workspace": (
        Annotated[
            Path | None,
            typer.Option(
                "--workspace",
                "-w",
                envvar="FLIGHTLOG_WORKSPACE",
                help="Folder of the site.",
                rich_help_panel=_SITE,
            ),
        ],
        None,
    ),
    "site": (
        Annotated[str | None, typer.Option(envvar="FLIGHTLOG_SITE", help="Name of the site.", rich_help_panel=_SITE)],
        None,
    ),
    "record_url": (
        Annotated[
            str | None,
            typer.Option(
                envvar="FLIGHTLOG_RECORD_URL",
                help="Server of the log; embedded if left out.",
                rich_help_panel=_SITE,
            ),
        ],
        None,
    ),
    "fabric_url": (
        Annotated[
            str | None,
            typer.Option(
                envvar="FLIGHTLOG_FABRIC_URL",
                help="Server of the queues; embedded if left out.",
                rich_help_panel=_SITE,
            ),
        ],
        None,
    ),
    "how": (
        Annotated[Format, typer.Option("--format", help="How to print.", rich_help_panel="Output")],
        Format.TABLE,
    ),
    "as_json": (
        Annotated[bool, typer.Option("--json", help="Short for --format json.", rich_help_panel="Output")],
        False,
    ),
}


def site_command(
    app: typer.Typer, panel: str, name: str | None = None, *, prints: bool = True
) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Register a command that also takes the options that say which site, and how to print.

    The command returns its exit code; Flightlog's errors become their words and their exit codes.
    One that prints nothing for programs (``prints``) has ``--format`` for itself.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        own = inspect.signature(function)
        asked = {key: option for key, option in _COMMON.items() if prints or key not in ("how", "as_json")}
        hints = get_type_hints(function, include_extras=True)

        @functools.wraps(function)
        def command(**given: Any) -> None:
            common = {key: given.pop(key) for key in asked}
            as_json = common.pop("as_json", False)
            common.setdefault("how", Format.TABLE)
            common["command"] = name or function.__name__
            where = Where(**common)
            if as_json:
                where = Where(**{**common, "how": Format.JSON})
            token = _WHERE.set(where)
            try:
                with acting_as(os_actor("cli"), reason=given.get("reason")):
                    code = function(**given)
            except FlightlogError as error:
                tell(error, where.how)
                code = exit_code(error)
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read us has gone: nothing more is to be said
                code = 0
            except OSError as error:
                tell(HostError(f"{error.strerror}: {error.filename or 'output'}", "look at that file, or its disk"))
                code = 1
            finally:
                _WHERE.reset(token)
            raise typer.Exit(code or 0)

        extra = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for key, (kind, default) in asked.items()
        ]
        mine = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in own.parameters.values()
        ]
        command.__signature__ = inspect.Signature(mine + extra)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in mine + extra}
        app.command(name, rich_help_panel=panel)(command)
        return command

    return register


def where() -> Where:
    """What the running command's options say."""
    return _WHERE.get()


def opened() -> Site:
    """The site that the options name."""
    chosen = where()
    return Site.open(workspace=chosen.folder, record_url=chosen.record_url, fabric_url=chosen.fabric_url)


@contextmanager
def reading() -> Iterator[tuple[Jobs, Workspace | None]]:
    """The site's record for looking at; by its workspace, or by URL and ``--site`` from elsewhere."""
    chosen = where()
    if chosen.record_url and chosen.site and not known_site(chosen.folder):
        client = connect(chosen.record_url)
        try:
            yield Jobs(Store(client, chosen.site)), None
        finally:
            client.close()
        return
    site = opened()
    try:
        yield site.jobs, site.workspace
    finally:
        site.close()


@contextmanager
def acting(*, create: bool = False, workers: int = 1) -> Iterator[ClientEngine]:
    """An engine for one command: a client of the site that is up, else the site itself for that while."""
    chosen = where()
    if not create and not known_site(chosen.folder):
        raise SiteUnknown(
            f"no site lives in {chosen.folder.resolve()}",
            f"flightlog up --site NAME --workspace {chosen.folder}, or name another --workspace",
        )
    name = chosen.site or (None if known_site(chosen.folder) else "site-1")
    from engine.client_engine import ClientEngine  # half of a second: for those alone that need it

    with ClientEngine.open(
        site=name,
        workspace=chosen.folder,
        record_url=chosen.record_url,
        fabric_url=chosen.fabric_url,
        workers=int(os.environ.get("FLIGHTLOG_WORKERS") or workers),
        purpose=f"flightlog {chosen.command}",
        goes_on=chosen.command in ("up", "run"),
    ) as engine:
        yield engine


def need(value: object, name: str, fix: str) -> None:
    """Refuse a command line that lacks something; exit code 2 is for these."""
    if not value:
        raise ArgumentInvalid(f"{name} is missing", fix, field=name)
