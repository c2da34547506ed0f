"""Asking the site's own API, over its unix socket: what read models answer, a command need not read the log for."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlencode

from engine.errors import from_code
from engine.overview import page_of
from engine.status.sockets import SOCKET, UnixConnection
from engine.workspace import Workspace

PATIENCE = 30.0  # seconds


def ask(workspace: Workspace, path: str, **given: Any) -> dict[str, Any] | None:
    """The API's answer; None where nobody serves it.

    Raises:
        FlightlogError: what it refuses, in its words.
    """
    if page_of(workspace) is None:
        return None
    connection = UnixConnection(workspace.flight / SOCKET, PATIENCE)
    query = urlencode([(name, value) for name, value in given.items() if value is not None], doseq=True)
    try:
        connection.request("GET", f"{path}?{query}" if query else path)
        answer = connection.getresponse()
        value: dict[str, Any] = json.loads(answer.read())
    except (OSError, ValueError, http.client.HTTPException):
        return None  # it ended between our look and our question: whoever asks looks at the log itself
    finally:
        connection.close()
    if answer.status >= 400:
        raise from_code(str(value.get("code")), str(value.get("detail")), str(value.get("fix") or ""))
    return value
