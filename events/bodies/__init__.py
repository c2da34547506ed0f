"""The vocabulary: every event type there is, as one discriminated union."""

from __future__ import annotations

from typing import Annotated, Union

from pydantic import Field, JsonValue, TypeAdapter

from events.bodies import app, job, messages, record, site, transfers
from events.bodies.base import Body


def _concrete(root: type[Body]) -> list[type[Body]]:
    found: list[type[Body]] = []
    for cls in root.__subclasses__():
        if "type" in cls.model_fields:
            found.append(cls)
        found.extend(_concrete(cls))
    return found


_ORDER = [module.__name__ for module in (job, app, messages, transfers, site, record)]
#: event type -> body class
BODIES: dict[str, type[Body]] = {
    cls.__name__: cls for cls in sorted(_concrete(Body), key=lambda c: _ORDER.index(c.__module__))
}

AnyBody = TypeAdapter[Body](
    Annotated[Union[tuple(BODIES.values())], Field(discriminator="type")],  # type: ignore[arg-type] # noqa: UP007
)


def parse_body(type_: str, facts: dict[str, JsonValue]) -> Body:
    """The typed body of a stored event.

    Raises:
        pydantic.ValidationError: the type is unknown, or a field is missing, unknown or wrong.
    """
    return AnyBody.validate_python({"type": type_, **facts})
