"""What the engine asks of a site's resource manager and consumer (reference 9.1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from engine.context import FLContext

#: What a job asks for, as its metadata has it for this site.
Requirement = Mapping[str, Any]

#: What a job was given. JSON values only: the log keeps it, and gives it back unchanged.
Resources = dict[str, Any]


class ResourceManagerSpec(ABC):
    """Shares out what the site has. Calls come from several threads.

    The life of a token: ``check_resources`` reserves for a while; ``cancel_resources`` ends
    that, or ``allocate_resources`` makes it last until ``free_resources``.
    """

    @abstractmethod
    def check_resources(self, resource_requirement: Requirement, fl_ctx: FLContext) -> tuple[bool, str]:
        """Reserve what is asked for, if the site has it now.

        Returns:
            True and the token of the reservation, or False and ``""``.
        """

    @abstractmethod
    def cancel_resources(self, resource_requirement: Requirement, token: str, fl_ctx: FLContext) -> None:
        """Give up a reservation. Nothing happens if there is none, or no longer."""

    @abstractmethod
    def allocate_resources(self, resource_requirement: Requirement, token: str, fl_ctx: FLContext) -> Resources:
        """Turn a reservation into an allocation.

        Returns:
            What the job may use; empty if it needs nothing, and then nothing is to be freed.

        Raises:
            RuntimeError: there is no such reservation, or no longer.
        """

    @abstractmethod
    def free_resources(self, resources: Resources, token: str, fl_ctx: FLContext) -> None:
        """Take an allocation back. Once is enough, and twice is once."""

    @abstractmethod
    def report_resources(self, fl_ctx: FLContext) -> Resources:
        """What is neither reserved nor allocated now."""

    @abstractmethod
    def restore_resources(self, resources: Resources, token: str, fl_ctx: FLContext) -> None:
        """Note an allocation of an earlier engine, when the site opens and its job still lives.

        Not in the reference, whose managers forget what orphans use (reference 9.4 c).
        """


class ResourceConsumerSpec(ABC):
    """Tells an app what it was given."""

    @abstractmethod
    def consume(self, resources: Resources) -> dict[str, str]:
        """The environment variables that make the app use these resources, and no others.

        The reference sets them in the engine's own environment instead, where two starts
        overwrite each other's (reference 9.3).

        Args:
            resources: what ``allocate_resources`` gave.

        Raises:
            RuntimeError: the host does not have the resources at this moment.
        """
