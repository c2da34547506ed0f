"""From an app's config to its objects: executors by task, and components by id."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from engine.app_config import ComponentSpec, parse_config
from engine.archive import CONFIG
from engine.errors import BadConfig
from engine.job.executor import Executor


def load(app: Path) -> tuple[dict[str, Executor], dict[str, Any]]:
    """Executors by task name, and components by id, of the app in a folder.

    Raises:
        BadConfig: something cannot be imported or made; names it.
    """
    config = parse_config((app / CONFIG).read_bytes())
    components = {spec.id: make(spec) for spec in config.components}
    executors: dict[str, Executor] = {}
    for spec in config.executors:
        executor = make(spec)
        if not callable(getattr(executor, "execute", None)):
            raise BadConfig(
                f"{CONFIG}: {spec.where} names {spec.path}, which has no execute()", "derive it from Executor"
            )
        for task in spec.tasks:
            executors[task] = executor
    return executors, components


def make(spec: ComponentSpec) -> Any:
    """The object that a spec describes."""
    module, _, name = spec.path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # an app's module fails in any way it likes
        raise BadConfig(
            f"{CONFIG}: {spec.where} names {spec.path}, which does not import: {type(error).__name__}: {error}",
            "put its module into the app's custom/, or correct the path",
        ) from error
    try:
        return cls(**spec.args)
    except (Exception, SystemExit) as error:
        raise BadConfig(
            f"{CONFIG}: {spec.where}: {spec.path} cannot be made with its args: {type(error).__name__}: {error}",
            "correct its args",
        ) from error
