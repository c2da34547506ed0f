"""The network of an app: what the site says, and what a caller asks for, who may only tighten it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import get_args

from engine.errors import ArgumentInvalid
from events.bodies.app import Network

_ASKED: ContextVar[Network | None] = ContextVar("flightlog_network", default=None)


@contextmanager
def on_network(choice: Network | None) -> Iterator[None]:
    """Within the block, starts of this thread ask for this network.

    Args:
        choice: ``none``: a network namespace of its own, with nothing but a loopback. None: as the site says.
    """
    was = _ASKED.set(choice)
    try:
        yield
    finally:
        _ASKED.reset(was)


def asked_network() -> Network | None:
    """What ``on_network`` says; None: nobody asked."""
    return _ASKED.get()


def tighter(one: Network, other: Network) -> Network:
    """The less of two networks."""
    return "none" if "none" in (one, other) else "open"


def chosen(site: Network, asked: Network | None) -> Network:
    """The network of a start.

    Args:
        site: the site's setting.
        asked: the caller's wish.

    Raises:
        ArgumentInvalid: there is no such network, or the site's setting is tighter.
    """
    if asked is None:
        return site
    if asked not in get_args(Network):
        raise ArgumentInvalid(f"network is {asked!r}", "open, or none", field="network")
    if tighter(site, asked) != asked:
        raise ArgumentInvalid(
            f"network is {asked!r}, and the site's setting is {site!r}, which a start can only tighten",
            f"leave it out; to open the network, bring the site up with FLIGHTLOG_NETWORK={asked}",
            field="network",
        )
    return asked
