"""For a site that does not share out resources: every job may start (reference 9.3)."""

from __future__ import annotations

from uuid import uuid4

from engine.context import FLContext
from engine.resources.spec import Requirement, ResourceConsumerSpec, ResourceManagerSpec, Resources


class PassthroughResourceManager(ResourceManagerSpec):
    """Says yes to everything, gives nothing and keeps nothing."""

    def check_resources(self, resource_requirement: Requirement, fl_ctx: FLContext) -> tuple[bool, str]:
        """True and a fresh token, always."""
        return True, str(uuid4())

    def cancel_resources(self, resource_requirement: Requirement, token: str, fl_ctx: FLContext) -> None:
        """Do nothing: nothing is reserved."""

    def allocate_resources(self, resource_requirement: Requirement, token: str, fl_ctx: FLContext) -> Resources:
        """``{}``, whatever is asked for."""
        return {}

    def free_resources(self, resources: Resources, token: str, fl_ctx: FLContext) -> None:
        """Do nothing: nothing is held."""

    def report_resources(self, fl_ctx: FLContext) -> Resources:
        """``{}``."""
        return {}

    def restore_resources(self, resources: Resources, token: str, fl_ctx: FLContext) -> None:
        """Do nothing: nothing is held."""


class PassthroughResourceConsumer(ResourceConsumerSpec):
    """Tells an app nothing: it sees what the host has."""

    def consume(self, resources: Resources) -> dict[str, str]:
        """``{}``, whatever was given."""
        return {}
