"""One site, opened: settings, workspace, servers and record, as engines, workers and commands need them."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from typing import Any

from engine.actors import system_actor
from engine.blobs import Blobs
from engine.ids import new_call_id
from engine.jobs import Jobs
from engine.owner import servers_of
from engine.ring import Bells
from engine.server import Servers
from engine.settings import Settings, settings
from engine.workspace import Workspace, host_name
from events.envelope import Call
from events.segments import Archive
from events.spool import Spool
from events.store import Store, connect
from events.vault import Vault


@dataclass(kw_only=True)
class Site:
    """What every process of a site works with."""

    settings: Settings
    workspace: Workspace
    servers: Servers
    jobs: Jobs
    bells: Bells
    blobs: Blobs
    spool: Spool
    token: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def name(self) -> str:
        """The site's name."""
        return self.workspace.site

    @classmethod
    def open(cls, *, create: bool = False, join: bool = True, finishing: bool = False, **given: Any) -> Site:
        """Open the site in a workspace.

        Args:
            create: make the workspace where it is missing; else it must be there.
            join: become a user of the servers, and start them where they do not run.
            finishing: go on with a restore that was begun here; nobody else may open what is half there.
            given: settings; None counts as not given.

        Raises:
            SiteUnknown, ArgumentInvalid: the workspace or a setting.
            EngineDown, ServerUnsafe: the servers.
            RecordDamaged: its history was never taken in whole.
        """
        chosen = settings(**given)
        if create:
            workspace = Workspace.prepare(chosen.workspace, chosen.site)
        else:
            workspace = Workspace.find(chosen.workspace)
        if not finishing:
            workspace.check_finished()
        # A command from another shell finds the servers of whoever has the site up.
        known = servers_of(workspace)
        record_url, fabric_url = (getattr(chosen, name) or known[name] for name in ("record_url", "fabric_url"))
        servers = Servers(workspace, record_url, fabric_url, chosen.durability, chosen.record_memory)
        if join:
            servers.join()
        vault = Vault(workspace.keys)
        store = Store(
            connect(servers.record_url), workspace.site, vault=vault, archive=Archive(workspace.segments, vault)
        )
        return cls(
            settings=chosen,
            workspace=workspace,
            servers=servers,
            jobs=Jobs(store),
            bells=Bells(
                servers.fabric_url, workspace.site, chosen.task_timeout, launcher=chosen.launcher == "elsewhere"
            ),
            blobs=Blobs(workspace.root),
            spool=Spool(workspace.spool),
        )

    def follower_store(self) -> Store:
        """A store with a connection of its own for blocking reads."""
        store, client = self.jobs.store, connect(self.servers.record_url, blocking=True)
        return Store(client, self.name, vault=store.vault, archive=Archive(self.workspace.segments, store.vault))

    def as_stored(self, store: Store) -> Store:
        """The same log as it is stored, on disk too: personal fields stay tokens."""
        return Store(store.client, self.name, archive=Archive(self.workspace.segments))

    def system_call(
        self,
        step: str,
        *,
        call_id: str | None = None,
        cause: str | None = None,
        correlation: str | None = None,
        role: str = "site",
    ) -> Call:
        """A call by the site itself."""
        return Call(
            call_id=call_id or new_call_id(),
            actor=system_actor(role),
            step=step,
            cause=cause,
            correlation=correlation,
        )

    @property
    def process(self) -> str:
        """This process, as claims name it: host:pid:start ticks."""
        from engine.orders import start_ticks

        return f"{host_name()}:{os.getpid()}:{start_ticks(os.getpid())}"

    def close(self) -> None:
        """Leave the servers; the last user stops them."""
        self.jobs.store.client.close()
        self.bells.client.close()
        self.servers.leave()
