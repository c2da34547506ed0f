"""The site's components in an engine: their contexts, and the events that they are told of, on the record."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from engine.client import FederatedClient
from engine.component import FLComponent, dispatch
from engine.constants import FLContextKey, ProcessType, ReservedKey
from engine.context import FLContext, FLContextManager
from engine.core import Core
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid
from engine.files import read_json
from events.bodies.base import Body
from events.bodies.site import ComponentAdded, FLEventFired, FLHandlerFailed
from events.errors import LogUnavailable


class Components:
    """The components of a client, in the order in which they are told of events.

    Args:
        core: the engine's.
        client: its ``components`` are the ones; those that are added go there too.
        engine: what contexts give as the engine.
    """

    def __init__(self, core: Core, client: FederatedClient, engine: object) -> None:
        self._core = core
        self._client = client
        self._lock = threading.Lock()
        self.handlers = [c for c in client.components.values() if isinstance(c, FLComponent)]
        args = getattr(client, "client_args", None) or {}
        self.contexts = FLContextManager(
            engine=engine,
            identity_name=client.client_name,
            job_id="",
            public_stickers={
                ReservedKey.FQSN: args.get("fqsn", client.client_name),
                ReservedKey.IS_LEAF: args.get("is_leaf", True),
            },
            private_stickers={
                FLContextKey.FED_CLIENT: client,
                FLContextKey.SECURE_MODE: getattr(client, "secure_train", False),
                FLContextKey.WORKSPACE_ROOT: str(core.site.workspace.root),
                FLContextKey.PROCESS_TYPE: ProcessType.CLIENT_PARENT,
            },
        )

    def context(self) -> FLContext:
        """A context with the site's sticky properties."""
        return self.contexts.new_context()

    def job_context(self, job_id: str, job_meta: Mapping[str, Any] | None = None) -> FLContext:
        """A context about a job; its metadata is the deployed one where none is given."""
        context = self.context()
        meta = job_meta or read_json(self._core.site.workspace.run(job_id) / "meta.json") or {}
        for key, value in (
            (FLContextKey.JOB_META, dict(meta)),
            (FLContextKey.CURRENT_JOB_ID, job_id),
            (FLContextKey.CLIENT_NAME, self._client.client_name),
        ):
            context.set_prop(key, value, private=True, sticky=False)
        return context

    def fire(self, event_type: str, context: FLContext, job: str | None = None) -> None:
        """Tell all components, in order, on this thread; what a handler raises is logged and recorded."""
        with self._lock:
            handlers = list(self.handlers)
        failures = dispatch(event_type, handlers, context)
        bodies: list[Body] = [FLEventFired(event=str(event_type), job=job, handlers=len(handlers))]
        bodies += [
            FLHandlerFailed(event=str(event_type), handler=name, error=f"{type(e).__name__}: {e}"[:500])
            for name, e in failures
        ]
        try:
            self._core.site.jobs.note(self._core.call("fire_event", event_type).at("fired"), bodies)
        except LogUnavailable:
            self._core.read("fire_event", str(event_type))  # kept in memory until the record is back

    def add(self, component_id: str, component: object) -> None:
        """Add a component; an FLComponent is told of events from now on.

        Raises:
            ArgumentTypeInvalid: the id is no string. ArgumentInvalid: the id is taken.
        """
        call = self._core.call("add_component", component_id)
        with self._lock:
            self._core.guarded(call, "add_component", None, lambda: self._check(component_id))
            added = ComponentAdded(component_id=component_id, kind=kind_of(component))
            self._core.site.jobs.note(call, [added])
            self._client.components[component_id] = component
            if isinstance(component, FLComponent):
                self.handlers.append(component)

    def _check(self, component_id: object) -> None:
        if not isinstance(component_id, str):
            raise ArgumentTypeInvalid(
                f"component id must be str but got {type(component_id).__name__}",
                "give a string",
                field="component_id",
            )
        if component_id in self._client.components:
            raise ArgumentInvalid(
                f"duplicate component id {component_id[:80]}", "use another id", field="component_id"
            )

    def find(self, component_id: str) -> Any:
        """A component by its id, or None."""
        return self._client.components.get(component_id)

    def id_of(self, component: object | None) -> str | None:
        """The id of a component; its class where it has none here."""
        if component is None:
            return None
        known = self._client.components.items()
        return next((name for name, one in known if one is component), kind_of(component))


def kind_of(thing: object) -> str:
    """A thing's class, with its module."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
