"""What is under way in one transfer, and how far each target is. No I/O and no clock: it is told the time."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from engine.shareable import Shareable
from engine.streaming.chunk import failure


@dataclass(slots=True)
class Flying:
    """An object that not every target has answered.

    Attributes:
        seq: its number, from 0.
        frames: field -> bytes, kept to be laid down again.
        size: bytes of its payload.
        timeout: seconds within which each target is to answer.
        sent: when it was handed over.
        rewrites: target -> times that it found it altered.
    """

    seq: int
    frames: dict[str, bytes]
    size: int
    timeout: float
    sent: float
    replies: dict[str, Shareable] = field(default_factory=dict)
    rewrites: Counter[str] = field(default_factory=Counter)

    @property
    def weight(self) -> int:
        """Bytes that it takes."""
        return sum(map(len, self.frames.values()))


@dataclass(slots=True)
class Target:
    """How far a target is.

    Attributes:
        moved: when it last took in an object.
        acknowledged: objects that it took in.
        left: bytes that were handed over for it.
        failed: the return code and words with which it was given up, or None.
    """

    name: str
    moved: float
    acknowledged: int = 0
    left: int = 0
    failed: tuple[str, str] | None = None


class Window:
    """The objects under way.

    Args:
        targets: FQCNs.
        objects: most that may be under way.
        stall: seconds without an acknowledged object after which a target is given up.
        now: the time, in seconds of any clock that only goes forward.
    """

    def __init__(self, targets: Sequence[str], objects: int, stall: float, now: float) -> None:
        self.targets = {name: Target(name, now) for name in targets}
        self.objects = objects
        self.stall = stall
        self.flying: OrderedDict[int, Flying] = OrderedDict()
        self.weight = 0
        #: Objects that were made, and bytes of their payload.
        self.made = 0
        self.bytes = 0
        #: Objects that every target has answered, and bytes of their payload.
        self.answered = 0
        self.answered_bytes = 0

    def room(self, most_bytes: int, *, one: bool) -> bool:
        """Whether another object may be made.

        Args:
            most_bytes: that may be under way; one object always may.
            one: the producer stops and waits.
        """
        if not self.flying:
            return True
        return not one and len(self.flying) < self.objects and self.weight < most_bytes

    @property
    def alive(self) -> list[str]:
        """Targets that were not given up."""
        return [name for name, target in self.targets.items() if target.failed is None]

    def add(self, flying: Flying) -> None:
        """An object is about to be handed over to those that were not given up."""
        self.flying[flying.seq] = flying
        self.weight += flying.weight
        self.made += 1
        self.bytes += flying.size
        for target in self.targets.values():
            if target.failed is None:
                target.left += flying.size
            else:
                flying.replies[target.name] = failure(*target.failed)

    def take(self, target: str, seq: int, reply: Shareable, now: float) -> bool:
        """A target's reply to an object; False where it is not waited for."""
        known, flying = self.targets.get(target), self.flying.get(seq)
        if known is None or known.failed or flying is None or target in flying.replies:
            return False
        flying.replies[target] = reply
        known.moved = now
        known.acknowledged += 1
        return True

    def fail(self, target: str, code: str, why: str) -> None:
        """Give a target up: it has failed for all that it has not answered, and all that comes."""
        known = self.targets[target]
        if known.failed is None:
            known.failed = (code, why)
            for flying in self.flying.values():
                flying.replies.setdefault(target, failure(code, why))

    def overdue(self, now: float) -> Iterator[tuple[str, str]]:
        """Targets that have taken too long, and what is said of each.

        An object's time begins when it was handed over, or when the target took in one before it.
        """
        for name in self.alive:
            first = self.first(name)
            if first is None:
                continue
            waited = now - max(first.sent, self.targets[name].moved)
            if waited > min(first.timeout, self.stall):
                what = "stalled" if self.stall <= first.timeout else "no reply"
                yield name, f"{what}: {waited:.1f} s for object {first.seq}"

    def first(self, target: str) -> Flying | None:
        """The first object that a target has not answered."""
        return next((f for f in self.flying.values() if target not in f.replies), None)

    def unanswered(self, target: str) -> list[Flying]:
        """All of them."""
        return [f for f in self.flying.values() if target not in f.replies]

    def complete(self) -> Iterator[Flying]:
        """Objects that everybody has answered, in order, each once."""
        while self.flying:
            first = next(iter(self.flying.values()))
            if len(first.replies) < len(self.targets):
                return
            del self.flying[first.seq]
            self.weight -= first.weight
            self.answered += 1
            self.answered_bytes += first.size
            yield first
