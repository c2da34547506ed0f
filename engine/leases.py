"""A role of a site that one process at a time has, by a lease on the record's time."""

from __future__ import annotations

import time

from engine.orders import is_gone
from engine.site import Site
from events.store import translated

_TAKE = """
local is = redis.call('GET', KEYS[1])
if is == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return ARGV[1] end
if is and is ~= ARGV[3] then return is end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""


class Lease:
    """One role.

    Args:
        site: whose.
        name: of the role.
        seconds: that it lasts without being renewed. On the host of a holder that is dead it ends at once.
    """

    def __init__(self, site: Site, name: str, seconds: float) -> None:
        self.site = site
        self.name = name
        self.seconds = seconds
        self._renew_at = 0.0

    def hold(self) -> bool:
        """Have the role, or go on having it; cheap where it was renewed a moment ago."""
        now = time.monotonic()
        if now < self._renew_at:
            return True
        holder = self._take("")
        if holder != self.site.process and _is_dead(holder):
            holder = self._take(holder)
        held = holder == self.site.process
        self._renew_at = now + self.seconds / 3 if held else 0.0
        return held

    def _take(self, instead_of: str) -> str:
        store = self.site.jobs.store
        with translated():
            return str(
                store.client.eval(
                    _TAKE,
                    1,
                    store.keys.lease(self.name),
                    self.site.process,
                    str(int(self.seconds * 1000)),
                    instead_of,
                )
            )


def _is_dead(holder: str) -> bool:
    """Whether a holder, host:pid:start ticks, was a process of this host and is gone."""
    host, _, rest = holder.partition(":")
    pid, _, ticks = rest.partition(":")
    return pid.isdigit() and ticks.isdigit() and is_gone(host, int(pid), int(ticks))
