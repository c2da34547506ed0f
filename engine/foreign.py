"""Text from outside, as it can be stored and shown."""

from __future__ import annotations

CUT = 500  # characters that are kept, where nothing else is said


def plain(text: str, most: int = CUT) -> str:
    """A foreign text: cut, and without what UTF-8 cannot say."""
    return text[:most].encode("utf-8", "backslashreplace").decode()
