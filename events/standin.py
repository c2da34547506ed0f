"""Stand-ins for what only the append script can know: the time and the position of an event."""

from __future__ import annotations


class StandIn(str):
    r"""``\x01m<i>[+<ms>]`` or ``\x01p<i>``: milliseconds or position of the i-th event of an append.

    A type of its own, so that no text from outside can pass as one.
    """

    __slots__ = ()

    def filled(self, ms: str, first: int) -> str:
        """What it stands for, once the script has answered with the time and the first sequence."""
        index, _, plus = self[2:].partition("+")
        if self[1] == "p":
            return f"{ms}-{first + int(index)}"
        return str(int(ms) + int(plus or 0))


def ms_of(index: int, plus: int = 0) -> StandIn:
    """Stands for the milliseconds of the ``index``-th event of an append, ``plus`` some."""
    return StandIn(f"\x01m{index}+{plus}" if plus else f"\x01m{index}")


def position_of(index: int) -> StandIn:
    """Stands for the position of the ``index``-th event of an append."""
    return StandIn(f"\x01p{index}")


def escaped(value: str) -> str:
    """A value as the script takes it: literal text that looks like a stand-in is marked as text."""
    if isinstance(value, StandIn) or not value.startswith("\x01"):
        return value
    return "\x01=" + value
