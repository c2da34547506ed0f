"""What Schemathesis cannot know: how the bytes of an app are sent."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.serializer("application/zip")
def as_bytes(ctx: Any, value: Any) -> Any:
    """The value as it is."""
    return value if isinstance(value, bytes) else str(value).encode()
