"""What all event bodies share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, JsonValue


@dataclass(frozen=True)
class PersonalMark:
    """Marks a field that names a person or holds free text: ``events.vault`` locks it away.

    ``plain`` names the keys of a JSON object that stay readable, since the engine decides by them.
    """

    plain: frozenset[str] = frozenset()


Personal = Annotated[str, PersonalMark()]
#: A job's metadata; what a start is compared with names no person.
PersonalJson = Annotated[
    dict[str, JsonValue],
    PersonalMark(frozenset(("job_id", "resource_spec", "launcher_spec", "scope", "study", "min_clients"))),
]


class Body(BaseModel):
    """The facts of one event.

    A body never holds payloads: sizes and digests stand for them. ``schema_version`` is raised
    when a field changes its meaning; ``lifecycle`` events count in the subject's revision,
    the others are notes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lifecycle: ClassVar[bool] = False
    schema_version: ClassVar[int] = 1

    @classmethod
    def name(cls) -> str:
        """The event type: the class's name."""
        return cls.__name__


class Lifecycle(Body):
    """A body that moves a job through its lifecycle."""

    lifecycle: ClassVar[bool] = True


@cache
def personal(body: type[BaseModel]) -> dict[str, PersonalMark]:
    """The personal fields of a model: name -> mark."""
    marks = {name: _mark((*info.metadata, info.annotation)) for name, info in body.model_fields.items()}
    return {name: mark for name, mark in marks.items() if mark is not None}


def _mark(parts: tuple[Any, ...]) -> PersonalMark | None:
    for part in parts:
        found = part if isinstance(part, PersonalMark) else _mark(get_args(part))
        if found is not None:
            return found
    return None
