"""What an app runs: the part of ``config/config_fed_client.json`` that the engine reads.

An app names a ``command``, or ``executors``: then its process is ours (``engine.job``), and runs tasks through
them. The reference's configs have more keys (filters, ...); those belong to the app and are left alone.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.archive import CONFIG as PATH
from engine.errors import BadConfig, CommandNotFound

#: Variables of the engine's own; the keeper finds an attempt's processes by them.
ENV_PREFIX = "FLIGHTLOG_"

StartedBy = Literal["launcher", "notify"]

#: How an app with executors is run; its grant comes on the descriptor that is named.
JOB_COMMAND = ("python", "-P", "-m", "engine.job", "--grant", "3")

_EXAMPLE = 'a list of strings, for instance "command": ["python", "train.py"]'


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentSpec:
    """An object that an app wants made: a class by its path, and its arguments.

    Attributes:
        where: the key that names it, for messages.
        path: module and class, joined by a dot.
        args: keyword arguments.
        id: of a component.
        tasks: of an executor.
    """

    where: str
    path: str
    args: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """How to run an app.

    Attributes:
        command: the program and its arguments.
        started_by: what makes the app a running one: its launch, or its own report of
            STARTED (`notify_job_status`).
        env: variables to set, over those of the engine.
        grace: seconds between the polite signal and the kill; None: the site's own.
        executors: who runs which tasks; empty for an app with a command of its own.
        components: what else the job's process is to make.
    """

    command: tuple[str, ...]
    started_by: StartedBy = "launcher"
    env: dict[str, str] = field(default_factory=dict)
    grace: float | None = None
    executors: tuple[ComponentSpec, ...] = ()
    components: tuple[ComponentSpec, ...] = ()


def parse_config(raw: bytes | None) -> AppConfig:
    """Read the config of an app.

    Args:
        raw: the bytes of the file; None where the app has none.

    Raises:
        BadConfig: missing, not UTF-8, not JSON, or a key that is not as expected; names it.
    """
    if raw is None:
        raise BadConfig(f"{PATH} is missing from the app", f"add it with {_EXAMPLE}", key=None)
    config = _load(raw)
    if "command" not in config and "executors" in config:
        _no_filters(config)
        return AppConfig(
            command=JOB_COMMAND,
            started_by="notify",
            env=_env(config.get("env", {})),
            grace=_grace(config.get("grace")),
            executors=_executors(config["executors"]),
            components=_components(config.get("components", [])),
        )
    return AppConfig(
        command=_command(config),
        started_by=_started_by(config.get("started_by", "launcher")),
        env=_env(config.get("env", {})),
        grace=_grace(config.get("grace")),
    )


def find_command(command: Sequence[str], names: Iterable[str], path: str) -> None:
    """Make sure that there is a program to run.

    Args:
        command: the program and its arguments.
        names: the files that the app brings along, relative to its folder.
        path: where to look for a bare name, like ``$PATH``.

    Raises:
        CommandNotFound: neither an executable with an absolute path, nor a file of the app
            (a relative path with a slash), nor a program on ``path``.
    """
    program = command[0]
    if program.startswith("/"):
        found = os.path.isfile(program) and os.access(program, os.X_OK)
        where = "on this host, as a file that may be executed"
    elif "/" in program:
        found = posixpath.normpath(program) in set(names)
        where = "in the app"
    else:
        found = shutil.which(program, path=path) is not None
        where = f"on the PATH ({path})"
    if not found:
        raise CommandNotFound(
            f"{PATH}: 'command' names {program!r}, which does not exist {where}",
            "install it on this host, ship it in the app, or correct the first word of 'command'",
            key="command",
            program=program,
        )


def _load(raw: bytes) -> dict[str, Any]:
    try:
        config = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise BadConfig(f"{PATH} is not UTF-8 (byte {error.start})", "save it as UTF-8", key=None) from error
    except json.JSONDecodeError as error:
        raise BadConfig(
            f"{PATH} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}",
            "correct that line",
            key=None,
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long to read
        raise BadConfig(f"{PATH} is not JSON that can be read: {error}", "simplify it", key=None) from error
    if not isinstance(config, dict):
        raise _bad(None, f"holds a {_kind(config)}", f"an object with {_EXAMPLE}")
    return config


def _command(config: dict[str, Any]) -> tuple[str, ...]:
    if "command" not in config:
        raise _bad("command", "is missing, so there is nothing to run", _EXAMPLE)
    command = config["command"]
    if not isinstance(command, list):
        raise _bad("command", f"is a {_kind(command)}", _EXAMPLE)
    if not command:
        raise _bad("command", "is empty, so there is nothing to run", _EXAMPLE)
    for index, word in enumerate(command):
        if not _is_text(word) or not word:
            raise _bad(f"command[{index}]", f"is {word!r}", "a string that is not empty, without NUL")
    return tuple(command)


_EXECUTOR = 'a list like "executors": [{"tasks": ["train"], "executor": {"path": "trainer.Trainer", "args": {}}}]'


def _executors(value: Any) -> tuple[ComponentSpec, ...]:
    if not isinstance(value, list):
        raise _bad("executors", f"is a {_kind(value)}", _EXECUTOR)
    if not value:
        raise _bad("executors", "is empty, so there is nothing to run", _EXECUTOR)
    found: list[ComponentSpec] = []
    known: set[str] = set()
    for index, each in enumerate(value):
        where = f"executors[{index}]"
        if not isinstance(each, dict):
            raise _bad(where, f"is a {_kind(each)}", _EXECUTOR)
        tasks = each.get("tasks")
        if not isinstance(tasks, list) or not tasks or not all(_is_text(t) and 0 < len(t) <= 200 for t in tasks):
            raise _bad(f"{where}.tasks", f"is {tasks!r}", "a list of the names of tasks")
        if again := known.intersection(tasks):
            raise _bad(f"{where}.tasks", f"names {min(again)!r} a second time", "one executor for each task")
        known.update(tasks)
        found.append(_spec(f"{where}.executor", each.get("executor"), tasks=tuple(tasks)))
    return tuple(found)


def _no_filters(config: dict[str, Any]) -> None:
    """Filters are there to keep something from leaving: what would not be applied is refused, not passed over."""
    for key in ("task_data_filters", "task_result_filters"):
        if config.get(key):
            raise _bad(key, "is not applied here", "empty, and do in the executor what they are to do")


def _components(value: Any) -> tuple[ComponentSpec, ...]:
    example = 'a list like "components": [{"id": "data", "path": "data.SiteData", "args": {}}]'
    if not isinstance(value, list):
        raise _bad("components", f"is a {_kind(value)}", example)
    found: list[ComponentSpec] = []
    for index, each in enumerate(value):
        name = each.get("id") if isinstance(each, dict) else None
        if not _is_text(name) or not name:
            raise _bad(f"components[{index}].id", f"is {name!r}", example)
        if any(spec.id == name for spec in found):
            raise _bad(f"components[{index}].id", f"is {name!r} a second time", "an id of its own")
        found.append(_spec(f"components[{index}]", each, id=name))
    return tuple(found)


def _spec(where: str, value: Any, **more: Any) -> ComponentSpec:
    example = 'an object like {"path": "trainer.Trainer", "args": {}}'
    if not isinstance(value, dict):
        raise _bad(where, f"is a {_kind(value)}", example)
    path, args = value.get("path"), value.get("args", {})
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise _bad(f"{where}.path", f"is {path!r}", "a module and a class, joined by a dot")
    if not isinstance(args, dict):
        raise _bad(f"{where}.args", f"is a {_kind(args)}", "an object of keyword arguments")
    return ComponentSpec(where=where, path=path, args=args, **more)


def _started_by(value: Any) -> StartedBy:
    if value == "launcher":
        return "launcher"
    if value == "notify":
        return "notify"
    raise _bad("started_by", f"is {value!r}", '"launcher" or "notify"')


def _env(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _bad("env", f"is a {_kind(value)}", "an object of strings")
    for name, text in value.items():
        if not _is_text(name) or not name or "=" in name:
            raise _bad("env", f"has the name {name!r}", "names that are not empty, without = and NUL")
        if name.startswith(ENV_PREFIX):
            raise _bad(
                f"env.{name}",
                "is a name of the engine's own",
                f"a name that does not begin with {ENV_PREFIX}",
            )
        if not _is_text(text):
            raise _bad(f"env.{name}", f"is {text!r}", "a string without NUL")
    return dict(value)


def _grace(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise _bad("grace", f"is {value!r}", "a number of seconds, 0 or more")
    return float(value)


def _is_text(value: Any) -> bool:
    """Whether a process can be given it."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a character
        return False
    return True


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _bad(key: str | None, what: str, expected: str) -> BadConfig:
    subject = f"{PATH}: {key!r}" if key else PATH
    return BadConfig(f"{subject} {what}", f"make it {expected}", key=key)
