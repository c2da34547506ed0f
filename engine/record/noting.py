"""What was done with the record is on the record, whether there is much room left or not."""

from __future__ import annotations

from engine.actors import current_actor
from engine.ids import new_call_id
from engine.site import Site
from events.append import Ops
from events.bodies.base import Body
from events.envelope import Actor, Call


def note(site: Site, body: Body, actor: Actor | None = None) -> str:
    """Record it, of whoever acts now or of somebody else; the position."""
    ops = Ops()
    ops.urgent = True
    call = Call(call_id=new_call_id(), actor=actor or current_actor())
    return site.jobs.note(call, [body], ops=ops).positions[0]
