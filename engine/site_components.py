"""Components that a site's own ``local/resources.json`` names, as the reference's kits do.

``{"components": [{"id": "resource_manager", "path": "engine.resources.gpu.GPUResourceManager", "args": {...}}]}``
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from engine.errors import ArgumentInvalid


def load_components(workspace: Path) -> dict[str, Any]:
    """The site's components by id; none where there is no such file.

    Raises:
        ArgumentInvalid: names the entry that cannot be used, and why.
    """
    path = workspace / "local" / "resources.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArgumentInvalid(f"{path} cannot be read: {error}", "correct it", field=str(path)) from error
    entries = config.get("components", []) if isinstance(config, dict) else None
    if not isinstance(entries, list):
        raise ArgumentInvalid(f"{path}: 'components' is no list", "make it one", field="components")
    return {_id(path, entry): _build(path, entry) for entry in entries}


def _id(path: Path, entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not entry["id"]:
        raise ArgumentInvalid(f"{path}: a component has no id", "give it one", field="components[].id")
    return str(entry["id"])


def _build(path: Path, entry: dict[str, Any]) -> Any:
    name, args = entry.get("path") or entry.get("name"), entry.get("args") or {}
    try:
        module, _, attribute = str(name).rpartition(".")
        return getattr(importlib.import_module(module), attribute)(**args)
    except Exception as error:
        raise ArgumentInvalid(
            f"{path}: component {entry['id']!r} ({name}) cannot be made: {type(error).__name__}: {error}",
            "correct its path and args",
            field=f"components[{entry['id']!r}]",
        ) from error
