"""The client that an engine speaks for: what it reads of one, and one of our own without a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


class FederatedClient(Protocol):
    """What ``ClientEngine`` reads of the client it is given (reference 1.1, 6.5).

    ``client_name``, ``components`` (id -> object) and, where there are such attributes, ``client_args``
    (``fqsn``, ``is_leaf``), ``secure_train``, ``communicator.heartbeat_done``, ``close()``, ``status``.
    """

    client_name: str
    components: dict[str, Any]


class Arguments(Protocol):
    """What it reads of ``args``: the folder of the site."""

    workspace: str


@dataclass
class LocalClient:
    """A client without a server: the site by itself."""

    client_name: str
    components: dict[str, Any] = field(default_factory=dict)
    client_args: dict[str, Any] = field(default_factory=dict)
    secure_train: bool = False
    status: int = 0


@dataclass
class LocalArguments:
    """Arguments of a local client."""

    workspace: str
