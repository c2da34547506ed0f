"""Signed apps: the reference's signature files, verified against the site's root CA.

Each folder of a signed app has a file ``.__nvfl_sig.json`` (name -> base64 of an RSA-PSS/SHA-256
signature: over the bytes of each file in the folder, over the name of each folder in it) and
the submitter's certificate ``.__nvfl_submitter.crt`` (PEM, with any intermediate ones after it).
Reference 3.1 step 5, 3.2.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store, VerificationError

from engine.archive import SIGNATURES
from engine.errors import SignatureBad

#: Signature file -> certificate file beside it; the first that a folder has counts.
_PAIRS = {name: name.replace("sig.json", "submitter.crt") for name in SIGNATURES}
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)


class Folder(Mapping[str, bytes]):
    """The files of a folder, by relative path; each is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        path = self._folder / name
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(fd, "rb") as source:
            return source.read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def requires_signed_jobs(workspace: Path) -> bool:
    """Whether the site takes signed apps only.

    What ``require_signed_jobs`` in ``startup/fed_client.json`` says, if it is a boolean; a
    file or value that cannot be read means yes; else whether there is a root CA.
    """
    try:
        config = json.loads((workspace / "startup" / "fed_client.json").read_bytes())
        value = config.get("require_signed_jobs", ...)
    except FileNotFoundError:
        value = ...
    except (OSError, ValueError, RecursionError, AttributeError):
        return True
    if value is ...:
        return _root_ca(workspace).exists()
    return value is not False


def check_signature(workspace: Path, app_name: str, files: Mapping[str, bytes]) -> list[dict[str, str]]:
    """Verify an app's signature as far as the site asks for one.

    Args:
        workspace: the site's folder, with ``startup/`` in it.
        app_name: for messages.
        files: the app's files by relative path (a dict, or `Folder`).

    Returns:
        Who signed: ``name``, ``org`` and ``role`` from the certificates' subjects, each
        signer once. Empty for an unsigned app at a site that takes them.

    Raises:
        SignatureBad: unsigned though a signature is required, no root CA to verify against,
            a signature that does not verify, or a signer without a name.
    """
    required = requires_signed_jobs(workspace)
    if not any(name in files for name in SIGNATURES):
        if required:
            raise SignatureBad(
                "unsigned job rejected - signed deploy is required",
                "submit the job with a startup kit, which signs it",
                app=app_name,
            )
        return []
    root_ca = _root_ca(workspace)
    if required and not root_ca.exists():
        raise SignatureBad(
            "signature verification is required but rootCA.pem is missing",
            f"put the project's root certificate at {root_ca}",
            app=app_name,
        )
    try:
        signers = _verify(x509.load_pem_x509_certificate(root_ca.read_bytes()), files)
    except Exception as error:  # malformed in any way (PEM, ASN.1, JSON, base64): not verified
        raise SignatureBad(
            f"app {app_name} does not pass signature verification",
            "have it signed by a submitter whose certificate the root CA in startup/ issued",
            app=app_name,
            reason=str(error) or type(error).__name__,
        ) from error
    if not all(signer["name"] for signer in signers):
        raise SignatureBad(
            f"app {app_name}: signature verified but no signer identity could be extracted",
            "sign it with a certificate that has a common name",
            app=app_name,
        )
    return signers


class _Unverified(Exception):
    """Why a signature does not hold."""


def _root_ca(workspace: Path) -> Path:
    return workspace / "startup" / "rootCA.pem"


def _verify(root_ca: x509.Certificate, files: Mapping[str, bytes]) -> list[dict[str, str]]:
    signers: dict[bytes, tuple[rsa.RSAPublicKey, dict[str, str]]] = {}
    for folder, (names, folders) in _folders(files).items():
        sig_name = next((name for name in _PAIRS if name in names), None)
        if sig_name is None or _PAIRS[sig_name] not in names:
            raise _Unverified(f"the folder {folder or '.'!r} is not signed")
        pem = files[folder + _PAIRS[sig_name]]
        if pem not in signers:
            signers[pem] = _signer(root_ca, pem)
        signatures = json.loads(files[folder + sig_name])
        for name in sorted(folders | names - {sig_name, _PAIRS[sig_name]}):
            content = name.encode() if name in folders else files[folder + name]
            try:
                signature = base64.b64decode(signatures[name], validate=True)
                signers[pem][0].verify(signature, content, _PSS, hashes.SHA256())
            except KeyError:
                raise _Unverified(f"{folder + name!r} has no signature") from None
            except InvalidSignature:
                raise _Unverified(f"{folder + name!r} is not what was signed") from None
    unique = {tuple(signer.values()): signer for _, signer in signers.values()}
    return list(unique.values())


def _folders(files: Mapping[str, bytes]) -> dict[str, tuple[set[str], set[str]]]:
    """Folder ("" or "a/b/") -> the names of the files and of the folders in it."""
    tree: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
    for path in files:
        *parents, name = path.split("/")
        for depth, part in enumerate(parents):
            tree.setdefault("".join(f"{p}/" for p in parents[:depth]), (set(), set()))[1].add(part)
        tree.setdefault("".join(f"{p}/" for p in parents), (set(), set()))[0].add(name)
    return tree


def _signer(root_ca: x509.Certificate, pem: bytes) -> tuple[rsa.RSAPublicKey, dict[str, str]]:
    """The key and the identity of a submitter whose chain ends at the root CA, today."""
    leaf, *between = x509.load_pem_x509_certificates(pem)
    verifier = (
        PolicyBuilder()
        .store(Store([root_ca]))
        .time(datetime.now(UTC))
        .extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ExtensionPolicy.permit_all())
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, between)
    except VerificationError as error:
        raise _Unverified(f"the submitter's certificate does not hold: {error}") from error
    _check_usage(leaf)
    key = leaf.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise _Unverified("the submitter's key is not an RSA key")
    return key, {
        "name": subject(leaf, NameOID.COMMON_NAME),
        "org": subject(leaf, NameOID.ORGANIZATION_NAME),
        "role": subject(leaf, NameOID.UNSTRUCTURED_NAME),
    }


def _check_usage(leaf: x509.Certificate) -> None:
    """A person's certificate: no CA, and where it names its uses, one that signs for a client.

    The reference's older kits name none; then every use is allowed.
    """
    for extension in leaf.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise _Unverified("the submitter's certificate is a CA's")
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            raise _Unverified("the submitter's certificate is not for signatures")
        if isinstance(value, x509.ExtendedKeyUsage) and not {
            ExtendedKeyUsageOID.CLIENT_AUTH,
            ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
        } & set(value):
            raise _Unverified("the submitter's certificate is not for clients")


def subject(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    """An attribute of a certificate's subject, "" where it has none."""
    attributes = certificate.subject.get_attributes_for_oid(oid)
    return str(attributes[0].value) if attributes else ""
