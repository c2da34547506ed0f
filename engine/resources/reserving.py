"""Reservations that expire and allocations that do not, each under a token (reference 9.2)."""

from __future__ import annotations

import copy
import logging
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from threading import Lock
from uuid import uuid4

from engine.context import FLContext
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, ResourcesLacking
from engine.resources.spec import Requirement, ResourceManagerSpec, Resources

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Hold:
    resources: Resources
    #: By the manager's clock; None for an allocation, which does not expire.
    expires: float | None


class ReservingResourceManager(ResourceManagerSpec):
    """A manager whose subclasses only choose; who holds what is kept here.

    What is free is always computed from what the site has and what is held, never counted up
    and down. So no sequence of calls can inflate or lose capacity.

    Args:
        expiration_period: seconds that a reservation lasts if nobody allocates or cancels it.
        clock: seconds that never go backwards.

    Raises:
        ArgumentTypeInvalid: the period is not a number.
        ArgumentInvalid: the period is not above 0.
    """

    def __init__(self, expiration_period: float = 30, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._period = checked_number("expiration_period", expiration_period)
        if self._period == 0:
            raise ArgumentInvalid("expiration_period must be above 0 seconds")
        self._clock = clock
        self._lock = Lock()
        self._holds: dict[str, _Hold] = {}

    @abstractmethod
    def choose(self, requirement: Requirement, held: Collection[Resources]) -> Resources | None:
        """What to give a job, of what is not held; None if that does not suffice.

        Args:
            requirement: what the job asks for; not empty.
            held: what other jobs hold.

        Raises:
            ArgumentInvalid: the requirement makes no sense.
        """

    @abstractmethod
    def left(self, held: Collection[Resources]) -> Resources:
        """What is not held.

        Raises:
            ArgumentInvalid: something in ``held`` is not what this manager gives.
        """

    def check_resources(self, resource_requirement: Requirement, fl_ctx: FLContext) -> tuple[bool, str]:
        """Reserve what is asked for, if the site has it now. See ``ResourceManagerSpec``.

        Raises:
            ArgumentTypeInvalid: the requirement is not a dict.
            ArgumentInvalid: the requirement makes no sense.
        """
        if not isinstance(resource_requirement, dict):
            kind = type(resource_requirement).__name__
            raise ArgumentTypeInvalid(f"resource_requirement must be a dict, not {kind}")
        with self._lock:
            chosen = self.choose(resource_requirement, self._held()) if resource_requirement else {}
            if chosen is None:
                return False, ""
            token = str(uuid4())
            self._holds[token] = _Hold(chosen, expires=self._clock() + self._period)
            return True, token

    def cancel_resources(self, resource_requirement: Requirement, token: str, fl_ctx: FLContext) -> None:
        """Give up a reservation. An allocation stays: only ``free_resources`` ends it."""
        with self._lock:
            hold = self._holds.get(token)
            if hold is not None and hold.expires is not None:
                del self._holds[token]
                return
        _log.debug("nothing to cancel: no such reservation")

    def allocate_resources(self, resource_requirement: Requirement, token: str, fl_ctx: FLContext) -> Resources:
        """Turn a reservation into an allocation: what was reserved, whatever is asked now.

        Raises:
            ResourcesLacking: no such reservation, or it expired or was allocated already
                (a ``RuntimeError``, as in reference 9.2).
        """
        with self._lock:
            self._expire()
            hold = self._holds.get(token)
            if hold is None or hold.expires is None:
                raise ResourcesLacking(
                    "No reserved resources for token", "check the resources again, then start the job"
                )
            if hold.resources:
                self._holds[token] = _Hold(hold.resources, expires=None)
            else:
                del self._holds[token]  # nobody frees nothing
            return copy.deepcopy(hold.resources)

    def free_resources(self, resources: Resources, token: str, fl_ctx: FLContext) -> None:
        """Take back all that the token holds; ``resources`` is not looked at.

        A token that holds nothing is no error, so a second call changes nothing. In the
        reference it would inflate the site's capacity (reference 9.2).
        """
        with self._lock:
            if self._holds.pop(token, None) is None:
                _log.debug("nothing to free: the token holds nothing")

    def report_resources(self, fl_ctx: FLContext) -> Resources:
        """What is neither reserved nor allocated now."""
        with self._lock:
            return self.left(self._held())

    def restore_resources(self, resources: Resources, token: str, fl_ctx: FLContext) -> None:
        """Note an allocation of an earlier engine, even if the site has become smaller since.

        The same token again replaces what it held.

        Raises:
            ArgumentTypeInvalid: the resources are not a dict that this manager gave.
            ArgumentInvalid: they hold a number that makes no sense.
        """
        if not isinstance(resources, dict):
            raise ArgumentTypeInvalid(f"resources must be a dict, not {type(resources).__name__}")
        if not resources:
            return
        hold = _Hold({str(key): copy.deepcopy(value) for key, value in resources.items()}, expires=None)
        with self._lock:
            self.left([hold.resources])  # what cannot be read fails here, not in every later call
            self._holds[token] = hold

    def _held(self) -> list[Resources]:
        self._expire()
        return [hold.resources for hold in self._holds.values()]

    def _expire(self) -> None:
        now = self._clock()
        self._holds = {
            token: hold for token, hold in self._holds.items() if hold.expires is None or now < hold.expires
        }


def checked_count(name: str, value: object) -> int:
    """``value``, if it is a whole number of 0 or more.

    Raises:
        ArgumentTypeInvalid: it is not an int.
        ArgumentInvalid: it is negative.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeInvalid(f"{name} must be an int, not {type(value).__name__}")
    if value < 0:
        raise ArgumentInvalid(f"{name} must be 0 or more, not {value}")
    return value


def checked_number(name: str, value: object) -> float:
    """``value``, if it is a finite number of 0 or more.

    Raises:
        ArgumentTypeInvalid: it is not a number.
        ArgumentInvalid: it is negative, infinite or not a number at all (NaN).
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeInvalid(f"{name} must be a number, not {type(value).__name__}")
    if not 0 <= value <= sys.float_info.max:
        raise ArgumentInvalid(f"{name} must be 0 or more and finite, not {value}")
    return value
