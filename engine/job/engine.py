"""What a job's components and executors find as the engine in their context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.aux.dispatch import AuxHandler
from engine.aux.runner import AuxRunner
from engine.component import FLComponent, dispatch
from engine.constants import FLContextKey, ProcessType, ReservedKey
from engine.context import FLContext, FLContextManager
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid
from engine.shareable import Shareable
from engine.streaming.incoming import Callback
from engine.streaming.spec import ConsumerFactory, ObjectProducer, StreamContext
from engine.streaming.streams import Streams


class JobEngine:
    """The engine of one run of a job.

    Args:
        site: the site's name.
        job: the job's id.
        workspace: the site's folder.
        components: by id.
        server: address of the server.
    """

    def __init__(self, site: str, job: str, workspace: str, components: dict[str, Any], server: str) -> None:
        self.site = site
        self.job_id = job
        self.server = server
        self.components = components
        self.aux: AuxRunner | None = None
        self.streams: Streams | None = None
        self._handlers = [one for one in components.values() if isinstance(one, FLComponent)]
        self._contexts = FLContextManager(
            engine=self,
            identity_name=site,
            job_id=job,
            public_stickers={ReservedKey.FQSN: site, ReservedKey.IS_LEAF: True},
            private_stickers={
                FLContextKey.WORKSPACE_ROOT: workspace,
                FLContextKey.PROCESS_TYPE: ProcessType.CLIENT_JOB,
            },
        )

    def new_context(self) -> FLContext:
        """A context with the job's sticky properties."""
        return self._contexts.new_context()

    def get_client_name(self) -> str:
        """The site's name."""
        return self.site

    def get_component(self, component_id: str) -> Any:
        """A component of the app by its id, or None."""
        return self.components.get(component_id)

    def add_component(self, component_id: str, component: object) -> None:
        """Add a component; an FLComponent is told of events from now on.

        Raises:
            ArgumentTypeInvalid: the id is no string. ArgumentInvalid: the id is taken.
        """
        if not isinstance(component_id, str):
            raise ArgumentTypeInvalid(f"component id must be str but got {type(component_id).__name__}")
        if component_id in self.components:
            raise ArgumentInvalid(f"duplicate component id {component_id[:80]}", "use another id")
        self.components[component_id] = component
        self.hear(component)

    def hear(self, component: object) -> None:
        """Have a component told of events."""
        if isinstance(component, FLComponent) and all(component is not one for one in self._handlers):
            self._handlers.append(component)

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Tell all components, in order, on this thread."""
        dispatch(event_type, list(self._handlers), fl_ctx)

    def register_aux_message_handler(self, topic: str, message_handle_func: AuxHandler) -> None:
        """Have a function answer aux requests on a topic; see ``ClientEngine``."""
        self._runner().register(topic, message_handle_func)

    def send_aux_request(
        self,
        topic: str,
        request: Shareable,
        timeout: float,
        fl_ctx: FLContext,
        optional: bool = False,
        secure: bool = False,
    ) -> Shareable:
        """Send a request to the server and wait for its reply; see ``ClientEngine``."""
        return self._runner().send(topic, request, timeout, fl_ctx, optional=optional, secure=secure)

    def fire_and_forget_aux_request(
        self, topic: str, request: Shareable, fl_ctx: FLContext, optional: bool = False, secure: bool = False
    ) -> Shareable:
        """Send a message to the server that expects no answer; see ``ClientEngine``."""
        method = "fire_and_forget_aux_request"
        return self._runner().send(topic, request, 0.0, fl_ctx, optional=optional, secure=secure, method=method)

    def stream_objects(
        self,
        channel: str,
        topic: str,
        stream_ctx: StreamContext | dict[str, Any] | None,
        targets: Sequence[str],
        producer: ObjectProducer,
        fl_ctx: FLContext,
        optional: bool = False,
        secure: bool = False,
    ) -> tuple[str, Any]:
        """Stream a producer's objects to targets; see ``ClientEngine``."""
        return self._streams().stream(
            channel, topic, stream_ctx, targets, producer, fl_ctx, optional=optional, secure=secure
        )

    def register_stream_processing(
        self,
        channel: str,
        topic: str,
        factory: ConsumerFactory,
        stream_done_cb: Callback | None = None,
        consumed_cb: Callback | None = None,
        **cb_kwargs: Any,
    ) -> None:
        """Have a factory's consumers take in streams; see ``ClientEngine``."""
        self._streams().register(channel, topic, factory, stream_done_cb, consumed_cb, **cb_kwargs)

    def shutdown_streamer(self) -> None:
        """End all streams that go out, and take on no more."""
        self._streams().shutdown()

    def _streams(self) -> Streams:
        if self.streams is None:
            raise ArgumentInvalid("the job's cell is not there yet", "stream from START_RUN on")
        return self.streams

    def _runner(self) -> AuxRunner:
        if self.aux is None:
            raise ArgumentInvalid("the job's cell is not there yet", "send from START_RUN on")
        return self.aux
