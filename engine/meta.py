"""Job metadata: checked and copied once, digested, and compared at the start."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from engine.errors import ArgumentInvalid, ArgumentTypeInvalid

#: What a start may not change; the rest of the metadata (times, status) does.
DRIFT_KEYS = ("job_id", "resource_spec", "launcher_spec", "scope", "study")

MAX_BYTES = 2**20  # it travels in an event
_MAX_DEPTH = 64


def check_meta(meta: object, job_id: str) -> dict[str, Any]:
    """A copy of the metadata in plain JSON values; the caller's is left alone.

    Raises:
        ArgumentTypeInvalid: not a dict, or a value that JSON does not have.
        ArgumentInvalid: a number that JSON does not have, nested too deeply, over 1 MiB, or
            the ``job_id`` of another job. The message names the key.
    """
    if not isinstance(meta, dict):
        raise ArgumentTypeInvalid(
            f"job_meta must be a dict, not {type(meta).__name__}", "pass the job's metadata", field="job_meta"
        )
    plain: dict[str, Any] = _plain(meta, "job_meta", 0)
    if plain.get("job_id", job_id) != job_id:
        raise ArgumentInvalid(
            f"job_meta['job_id'] is {plain['job_id']!r}, but the job is {job_id!r}",
            "pass the metadata of that job, or leave job_id out of it",
            field="job_meta['job_id']",
        )
    try:
        size = len(json.dumps(plain, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:
        raise ArgumentInvalid(
            f"job_meta holds text that is not Unicode: {error.object[error.start : error.end]!r}",
            "send whole characters",
            field="job_meta",
        ) from error
    except ValueError as error:  # an integer with thousands of digits
        raise ArgumentInvalid(f"job_meta holds a number that is too long: {error}", field="job_meta") from error
    if size > MAX_BYTES:
        raise ArgumentInvalid(
            f"job_meta has {size} bytes as JSON, {MAX_BYTES} are allowed",
            "put large data into the app",
            field="job_meta",
        )
    return plain


def canonical(meta: Mapping[str, Any]) -> bytes:
    """The one JSON text of this metadata: sorted keys, no spaces, ASCII."""
    return json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(meta: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical text, 64 hex digits."""
    return hashlib.sha256(canonical(meta)).hexdigest()


def drift(deployed: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """The first of `DRIFT_KEYS` in which the two differ; a missing key is None."""
    return next((key for key in DRIFT_KEYS if deployed.get(key) != given.get(key)), None)


def _plain(value: Any, where: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ArgumentInvalid(f"{where} is nested too deeply", f"nest at most {_MAX_DEPTH} levels", field=where)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # enums of strings too: their text, not their name
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ArgumentInvalid(f"{where} is {value}, which JSON does not have", "use null", field=where)
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {_key(key, where): _plain(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
    raise ArgumentTypeInvalid(
        f"{where} is a {type(value).__name__}, which JSON does not have",
        "use strings, numbers, true, false, null, lists and objects",
        field=where,
    )


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise ArgumentTypeInvalid(f"{where} has the key {key!r}, which is not a string", "make it one", field=where)
    return str.__str__(key)
