"""What all event bodies share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, JsonValue


@dataclass(frozen=True)
class PersonalMark:
    """Marks a field that names a person or holds free text, so that it can be forgotten one day."""


Personal = Annotated[str, PersonalMark()]
PersonalJson = Annotated[dict[str, JsonValue], PersonalMark()]


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
