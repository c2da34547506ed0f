"""What the site's owner allows: privacy scopes and code that apps bring along (BYOC).

The files are the reference's: ``local/privacy.json`` and ``local/authorization.json`` (or the
startup kit's ``authorization.json.default``). A file that cannot be understood allows nothing.
Reference 3.1, steps 1, 5, 7 and 9.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from engine.archive import Contents
from engine.errors import ByocDenied, ScopeDenied
from engine.signature import subject

_AUTHORIZATION = ("authorization.json", "authorization.json.default")
#: Launcher -> the options by which a job chooses the code that runs.
_CODE_OPTIONS = {
    "docker": ("image", "python_path", "entrypoint"),
    "k8s": ("image", "python_path"),
    "slurm": ("image", "python_path", "additional_node_command"),
}
_LAUNCHERS = {"process", *_CODE_OPTIONS}


class _Malformed(Exception):
    """What is wrong with a policy file."""


def check_scope(workspace: Path, meta: Mapping[str, Any]) -> None:
    """Refuse a job whose privacy scope the site has not defined.

    Without a ``local/privacy.json``, or without scopes in it, every scope is allowed; a job
    without a scope gets the default one, which then must exist.

    Raises:
        ScopeDenied: with the reference's text.
    """
    scope = meta.get("scope") or ""
    try:
        policy = _load(workspace / "local" / "privacy.json")
        if policy is None:
            return
        scopes = [_object(entry, "scopes[]").get("name") for entry in policy.get("scopes") or []]
        if not all(isinstance(name, str) and name for name in scopes):
            raise _Malformed("each of the scopes must have a name")
        fix = f"use one of {scopes}, or have the site define it in local/privacy.json"
        allowed = not scopes or (scope or policy.get("default_scope")) in scopes
    except (_Malformed, TypeError) as error:
        allowed, fix = False, f"correct local/privacy.json: {error}"
    if not allowed:
        raise ScopeDenied(f"privacy scope '{scope}' is not allowed", fix, field="job_meta['scope']", scope=scope)


def check_byoc(
    workspace: Path,
    *,
    site: str,
    submitters: Sequence[Mapping[str, str]],
    contents: Contents,
    meta: Mapping[str, Any],
) -> None:
    """Refuse an app that brings code if any of its submitters has no right to.

    Args:
        workspace: the site's folder. Without an authorization file, every app may.
        site: the site's name, for the part of the metadata that concerns it.
        submitters: `submitters_of` the job.
        contents: what the archive holds.
        meta: the job's metadata.

    Raises:
        ByocDenied: with the reference's text; the fix names the submitter and the file.
    """
    code = brought_code(site=site, contents=contents, meta=meta)
    if code is None:
        return
    path = next((p for name in _AUTHORIZATION if (p := workspace / "local" / name).exists()), None)
    if path is None:
        return
    for submitter in submitters:
        role, name = submitter.get("role", ""), submitter.get("name", "")
        fix = f"send the app without {code}, or have the site grant role {role!r} the right byoc in {path}"
        try:
            policy = _load(path)
            allowed = policy is not None and _may(policy, "byoc", submitter, site_org(workspace))
        except _Malformed as error:
            allowed, fix = False, f"correct {path}: {error}"
        if not allowed:
            raise ByocDenied("BYOC not permitted", fix, code=code, submitter=name, role=role)


def submitters_of(meta: Mapping[str, Any], signers: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Who answers for the app: those who signed it, else whom the metadata claims.

    Args:
        meta: the job's metadata, with ``submitter_name``, ``submitter_org``, ``submitter_role``.
        signers: what `engine.signature.check_signature` returned.
    """
    if signers:
        return [dict(signer) for signer in signers]
    return [{part: str(meta.get(f"submitter_{part}") or "") for part in ("name", "org", "role")}]


def brought_code(*, site: str, contents: Contents, meta: Mapping[str, Any]) -> str | None:
    """What makes this app one that brings its own code, or None.

    A ``custom`` folder, a ``command`` (it chooses what runs, as a container's entrypoint does), executors or
    components (a path names any class of any module), or options for a container or cluster launcher.
    """
    if contents.custom:
        return "the folder custom/"
    for key in ("command", "executors", "components"):
        if key in _keys(contents.config):
            return f"the {key} in its config"
    for launcher, options in _CODE_OPTIONS.items():
        spec = _launcher_spec(meta, site, launcher)
        for option in options:
            # Chosen even if null, as in the reference; it makes one exception.
            if option in spec and (option != "additional_node_command" or spec[option] is not None):
                return f"the launcher_spec option {launcher}.{option}"
    return None


def _keys(config: bytes | None) -> set[str]:
    """Keys of the config, as whoever runs it reads them; none where it cannot be read, which is refused elsewhere."""
    try:
        found = json.loads((config or b"{}").decode())
    except (ValueError, RecursionError):
        return set()
    return set(found) if isinstance(found, dict) else set()


def site_org(workspace: Path) -> str:
    """The site's organisation, from ``startup/client.crt``; "" where that cannot be told."""
    try:
        certificate = x509.load_pem_x509_certificate((workspace / "startup" / "client.crt").read_bytes())
    except (OSError, ValueError):
        return ""
    return subject(certificate, NameOID.ORGANIZATION_NAME)


def _launcher_spec(meta: Mapping[str, Any], site: str, launcher: str) -> Mapping[str, Any]:
    """The job's options for a launcher: its defaults, overridden by those for this site.

    Where there are none, older jobs have them below ``resource_spec``.
    """
    specs = _mapping(meta.get("launcher_spec"))
    default = _mapping(_mapping(specs.get("default")).get(launcher))
    own = _mapping(specs.get(site)).get(launcher)
    if default or own is not None:
        return {**default, **_mapping(own)}
    older = _mapping(_mapping(meta.get("resource_spec")).get(site))
    return _mapping(older.get(launcher)) if _LAUNCHERS & set(older) else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# --- the authorization file: permissions -> role -> right -> conditions -------------------


def _may(policy: Mapping[str, Any], right: str, person: Mapping[str, str], org: str) -> bool:
    """Whether the policy gives the person the right; no rule for the role or right: no."""
    if policy.get("format_version") != "1.0":
        raise _Malformed("format_version must be '1.0'")
    roles = {_norm(role): rights for role, rights in _object(policy.get("permissions"), "permissions").items()}
    rights = roles.get(_norm(person.get("role", "")))
    if isinstance(rights, dict):
        rights = {_norm(name): conditions for name, conditions in rights.items()}.get(right)
    if rights is None:
        return False
    allowed: list[bool] = []
    blocked: list[bool] = []
    for condition in _conditions(rights):
        words = condition.split()
        negated = len(words) == 2 and words[0] == "not"
        (blocked if negated else allowed).append(_holds(words[-1] if negated else condition, person, org))
    return not any(blocked) and (any(allowed) or not allowed)


def _conditions(value: Any) -> Iterator[str]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str) for item in values):
        raise _Malformed(f"{value!r} is neither a condition nor a list of them")
    return map(_norm, values)


def _holds(condition: str, person: Mapping[str, str], org: str) -> bool:
    if condition in {"any", "all"}:
        return True
    if condition in {"none", "no"}:
        return False
    kind, _, target = condition.partition(":")
    kind, target = kind.strip(), target.strip()
    if not target or ":" in target or kind not in {"o", "org", "n", "name"}:
        raise _Malformed(f"{condition!r} is not a condition")
    if target == "submitter":
        return True  # at a deploy, the one who asks is the submitter
    if kind in {"n", "name"}:
        return _norm(person.get("name", "")) == target
    wanted = _norm(org) if target == "site" else target
    # A site or person without an organisation is in nobody's.
    return bool(wanted) and _norm(person.get("org", "")) == wanted


def _norm(text: str) -> str:
    return " ".join(text.lower().split())


def _load(path: Path) -> dict[str, Any] | None:
    try:
        return _object(json.loads(path.read_bytes()), "the file")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _Malformed(str(error)) from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Malformed(f"{what} must be an object")
    return value
