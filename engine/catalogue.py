"""The pages of ``docs/`` that are made from the code: lifecycle, events, errors, settings.

``python -P -m engine.catalogue DIR`` writes them, ``--check DIR`` says which of them are out of date.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from engine.errors import all_errors
from engine.exits import EXIT_CODES, MEANING
from engine.lifecycle import (
    AT_REST,
    BUSY,
    CLIENT_STATUS,
    COMMANDS,
    EVENTS,
    EXECUTORS,
    GUARDS,
    LIVE,
    NOTED,
    REPEAT,
    WORK,
    State,
    compiled_commands,
)
from engine.machine import diagram
from engine.settings import Settings
from events.bodies import BODIES
from events.bodies.base import Body, personal
from events.errors import FlightlogError

MADE_BY = (
    "*Generated from the code by `python -P -m engine.catalogue docs` (`make docs`). Change the code, not this page.*"
)

#: Envelope of every event, as ``Event.as_dict`` names it.
ENVELOPE = {
    "position": "`<ms>-<seq>`: milliseconds by the record's clock, never backwards, and the site's gapless sequence",
    "epoch": "raised whenever the log ends earlier than was seen before",
    "subject": "`job/<id>`, or `site`",
    "version": "number of the event within its subject, gapless from 1",
    "type": "one of the types below",
    "schema": "version of the type's fields",
    "time": "RFC 3339, UTC, from the position",
    "actor": "who: `id`, `kind`, `auth`, `via`; `claimed` is what somebody only says of himself",
    "call_id": "UUIDv7 of the call that brought the event, or a name that the site's own duties use again",
    "step": "which append of that call",
    "arguments": "keyed digest of what was asked; the key is the workspace's",
    "cause": "position of the event that brought this one; null for a first one",
    "correlation": "call id of the first call in the chain",
    "body": "the fields below",
}


# -- text --------------------------------------------------------------------------------------


def _page(title: str, parts: Iterable[str]) -> str:
    return "\n".join([MADE_BY, "", f"# {title}", "", *parts]).rstrip() + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
    yield ""


def _code(text: object) -> str:
    return f"`{text}`"


def _markdown(docstring: str | None) -> str:
    """A docstring's prose as Markdown, without its ``Args:`` and ``Raises:``."""
    text = inspect.cleandoc(docstring or "").replace("``", "`")
    for heading in ("\nArgs:", "\nRaises:", "\nReturns:"):
        text = text.partition(heading)[0].rstrip()
    return text


# -- lifecycle ---------------------------------------------------------------------------------


def lifecycle_page() -> str:
    """The diagram, both tables, the work and the client status."""
    parts = [
        "A job's state is a fold of its events. Both tables are `engine/lifecycle.py`; the diagram is drawn "
        "by the state machine that is made from it.",
        "",
        "```mermaid",
        *(line.rstrip() for line in diagram().splitlines()),
        "```",
        "",
    ]
    groups = (
        ("at rest, nothing happens by itself", AT_REST),
        ("live, there is an app or there is about to be", LIVE),
        ("busy, somebody has the run folder in hand", BUSY),
    )
    parts += [f"- **{name}**: {', '.join(map(_code, states))}" for name, states in groups]
    parts += [
        "",
        "## What may be asked when",
        "",
        "Each cell is the event that is recorded, or the [code](errors/README.md) of the refusal. *Repeated*: it is "
        "under way already, so only that it was asked again is recorded (though a user's abort goes over "
        "one by a heartbeat or a deadline). *Noted*: recorded, and the state stays.",
        "",
    ]
    answers = compiled_commands()
    parts += _table(
        ["state", *map(_code, COMMANDS)],
        ([_code(state.value), *(_answer(answers[c][state.value]) for c in COMMANDS)] for state in State),
    )
    parts += [
        "## Where each event leads",
        "",
        "What is not listed cannot come: neither the live path nor a replay accepts it. Events that are not "
        "here are notes, and leave the state as it is.",
        "",
    ]
    parts += _table(
        ["event", "in", "leads to", "only if", "work"],
        (
            [
                _code(event),
                ", ".join(_code(s.value) for s in sources),
                _code(to.value) if to else "the same",
                GUARDS.get(event, ""),
                _work_of(event),
            ]
            for event, rows in EVENTS.items()
            for sources, to in rows
        ),
    )
    parts += [
        "## Work",
        "",
        "An intent opens work, its outcome closes it where it is open, and until then the job says what it "
        "waits for.",
        "",
    ]
    parts += _table(
        ["work", "opened by", "closed by", "done by", "if nobody does it"],
        (
            [_code(kind), _events_with(f"+{kind}"), _events_with(f"-{kind}"), who, otherwise]
            for kind, (who, otherwise) in EXECUTORS.items()
        ),
    )
    parts += [
        "## Client status",
        "",
        "The words that `get_engine_status` shows, and what they stand for.",
        "",
    ]
    parts += _table(
        ["state", "client status"],
        (
            [_code(s.value), CLIENT_STATUS.get(s, "the furthest of starting, started, stopped that was seen")]
            for s in State
        ),
    )
    return _page("A job's life", parts)


def _answer(answer: str) -> str:
    if answer == REPEAT:
        return "*repeated*"
    if answer == NOTED:
        return "*noted*"
    if answer.startswith("-"):
        return f"[{answer[1:]}](errors/{answer[1:]}.md)"
    return _code(answer)


def _work_of(event: str) -> str:
    effects = WORK.get(event, "").split()
    said = []
    for sign, verb in (("-", "closes"), ("+", "opens")):
        kinds = [_code(effect[1:]) for effect in effects if effect[0] == sign]
        if kinds:
            said.append(f"{verb} {', '.join(kinds)}")
    return "; ".join(said)


def _events_with(effect: str) -> str:
    return ", ".join(_code(event) for event, effects in WORK.items() if effect in effects.split())


# -- events ------------------------------------------------------------------------------------


def events_page() -> str:
    """Every event type with its fields."""
    parts = [
        "Everything that happens on a site is one of these. A *lifecycle* event moves a job and counts in "
        "its revision; a *note* counts in its version only. A field marked personal names a person or "
        "holds free text. Payloads are never in an event: digests and sizes stand for them.",
        "",
        "## Envelope",
        "",
        *_table(["field", "what it is"], ([_code(name), text] for name, text in ENVELOPE.items())),
    ]
    module = ""
    for name, body in BODIES.items():
        if body.__module__ != module:
            module = body.__module__
            title = module.rpartition(".")[2]
            parts += [f"## {title.capitalize()}", "", _markdown(import_module(module).__doc__), ""]
        parts += _event(name, body)
    return _page("Events", parts)


def _event(name: str, body: type[Body]) -> Iterator[str]:
    kind = "Lifecycle event" if body.lifecycle else "Note"
    facts = "; ".join(filter(None, (f"{kind}, schema {body.schema_version}", _work_of(name))))
    yield from (f"### {name}", "", _markdown(body.__doc__), "", f"*{facts}.*", "")
    fields = {key: info for key, info in body.model_fields.items() if key != "type"}
    if fields:
        yield from _table(
            ["field", "type", "personal", "what it is"],
            (
                [_code(key), _code(_type(info)), "yes" if key in personal(body) else "", info.description or ""]
                for key, info in fields.items()
            ),
        )


def _type(info: FieldInfo) -> str:
    bounds = [
        f" {sign} {getattr(mark, name)}"
        for mark in info.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if hasattr(mark, name)
    ]
    return _name(info.annotation) + ",".join(bounds)


def _name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _name(arguments[0])
    if origin is Literal:
        return " or ".join(f'"{value}"' for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(argument) for argument in arguments)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_name, arguments))}]"
    if annotation is type(None):
        return "null"
    name = getattr(annotation, "__name__", str(annotation))
    return {"JsonValue": "JSON"}.get(name, str(name))


# -- errors ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ErrorEntry:
    """One error as its page shows it.

    Attributes:
        code: stable, for programs.
        http: status of the API.
        retry: whether calling again helps.
        text: what happened, then what to do.
        types: built-in types that it is too, so that callers of the reference catch it.
    """

    code: str
    http: int
    retry: str
    text: str
    types: tuple[str, ...] = ()


def error_entries() -> dict[str, ErrorEntry]:
    """Every error of the three packages, by code."""
    for module in ("events.append", "engine.fold"):
        import_module(module)  # defines errors of its own
    found = {cls.code: _entry(cls) for cls in all_errors() if _room(cls) in ("events", "engine")}
    found |= {entry.code: entry for entry in _written_in("workers")}
    return dict(sorted(found.items()))


def _room(cls: type[FlightlogError]) -> str:
    return cls.__module__.partition(".")[0]


def _entry(cls: type[FlightlogError]) -> ErrorEntry:
    family = [cls, *(sub for sub in cls.__subclasses__() if "code" not in vars(sub))]
    builtins = {
        base.__name__: None
        for member in family
        for base in member.__mro__
        if base.__module__ == "builtins" and base not in (Exception, BaseException, object)
    }
    return ErrorEntry(
        code=cls.code, http=cls.http, retry=cls.retry, text=_markdown(cls.__doc__), types=tuple(builtins)
    )


def _written_in(package: str) -> Iterator[ErrorEntry]:
    """Errors of a package that this one must not import: read from its source."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ClassDef):
                    yield from _written(node)


def _written(node: ast.ClassDef) -> Iterator[ErrorEntry]:
    for line in node.body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) in (
            "code, http, retry",
            "(code, http, retry)",
        ):
            code, http, retry = ast.literal_eval(line.value)
            yield ErrorEntry(code=code, http=http, retry=retry, text=_markdown(ast.get_docstring(node)))


def errors_page() -> str:
    """Every error code, and where its page is."""
    parts = [
        "Every error has a code that stays. Python, the command line, the API and the log show the same one, with "
        "what to try and, where the refusal was recorded, the event. A running API has these pages too, under "
        "`/errors/CODE`: the `type` of a problem leads there.",
        "",
        "*Retry*: `yes`, the same call may succeed in a moment; `later`, once the job has moved on; `no`, "
        "only another call will; `see record`, it was recorded, so look before you repeat it.",
        "",
        *_table(
            ["code", "HTTP", "retry", "exit code"],
            (
                [f"[{e.code}]({e.code}.md)", str(e.http), e.retry, str(int(EXIT_CODES[e.code]))]
                for e in error_entries().values()
            ),
        ),
        "## Exit codes of the command line",
        "",
        *_table(["exit code", "meaning"], ([str(int(code)), text] for code, text in MEANING.items())),
    ]
    return _page("Errors", parts)


def error_page(entry: ErrorEntry) -> str:
    """What one code means, and what to do."""
    facts = f"HTTP {entry.http}, retry: {entry.retry}, exit code {int(EXIT_CODES[entry.code])}"
    if entry.types:
        facts += ". In Python it is also a " + " or ".join(map(_code, entry.types))
    return _page(entry.code, [entry.text, "", f"*{facts}.*", "", "[All codes](README.md)"])


# -- settings ----------------------------------------------------------------------------------


def settings_page() -> str:
    """Every setting with its default."""
    prefix = Settings.model_config.get("env_prefix", "")
    parts = [
        "An argument of `ClientEngine.open(...)` or of a command goes over the environment, and that over "
        "the default. Times are seconds, sizes are bytes.",
        "",
        *_table(
            ["environment", "argument", "type", "default", "what it is"],
            (
                [
                    _code(f"{prefix}{name.upper()}"),
                    _code(name),
                    _code(_type(info)),
                    _default(info),
                    info.description or "",
                ]
                for name, info in Settings.model_fields.items()
            ),
        ),
        "One more variable has no argument: `FLIGHTLOG_RUNTIME_DIR`, the folder of the embedded servers' "
        "sockets. Without it: `$XDG_RUNTIME_DIR/flightlog`, or a private folder in the system's folder for "
        "temporary files.",
    ]
    return _page("Settings", parts)


def _default(info: FieldInfo) -> str:
    value = info.default
    if value is PydanticUndefined:
        return "required"
    return _code(value) if str(value) else ""


# -- command -----------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """Path within ``docs/`` -> what stands there."""
    return {
        "lifecycle.md": lifecycle_page(),
        "events.md": events_page(),
        "settings.md": settings_page(),
        "errors/README.md": errors_page(),
        **{f"errors/{entry.code}.md": error_page(entry) for entry in error_entries().values()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or compare them with what is there; the exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m engine.catalogue", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a page differs")
    parser.add_argument("folder", metavar="DIR", type=Path)
    args = parser.parse_args(argv)
    differing = 0
    made = pages()
    for path in sorted((args.folder / "errors").glob("*.md")):
        if f"errors/{path.name}" not in made:
            print(f"{path} is of a code that is no more: remove it", file=sys.stderr)
            differing = 1
    for name, text in made.items():
        path = args.folder / name
        if path.exists() and path.read_text("utf-8") == text:
            continue
        if args.check:
            print(f"{path} differs from the code: make docs writes it anew", file=sys.stderr)
            differing = 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            print(path)
    return differing


if __name__ == "__main__":
    sys.exit(main())
