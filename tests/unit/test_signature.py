import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.errors import SignatureBad
from engine.signature import Folder, check_signature, requires_signed_jobs

SIG, CRT = ".__nvfl_sig.json", ".__nvfl_submitter.crt"


def new_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def certificate(key, issuer_key, *, name, org="", role="", issuer="root", ca=False, days=10, extra=()):
    """A certificate as the reference's provisioning makes them."""
    parts = [(NameOID.COMMON_NAME, name), (NameOID.ORGANIZATION_NAME, org), (NameOID.UNSTRUCTURED_NAME, role)]
    now = datetime.now(UTC)
    extensions = [
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False),
        (x509.SubjectAlternativeName([x509.DNSName(name or "x")]), False),
        *((extension, False) for extension in extra),
    ]
    if ca:
        extensions.append((x509.BasicConstraints(ca=True, path_length=None), True))
        extensions.append((usage(digital_signature=True, key_cert_sign=True, crl_sign=True), True))
    builder = x509.CertificateBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
        x509.Name([x509.NameAttribute(oid, value) for oid, value in parts if value]),
        key.public_key(),
        x509.random_serial_number(),
        now - timedelta(days=20),
        now + timedelta(days=days),
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def usage(**uses):
    names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement"
    names += " key_cert_sign crl_sign encipher_only decipher_only"
    return x509.KeyUsage(**{name: name in uses for name in names.split()})


def sign_folder(folder, key, pem):
    """Sign a folder and all below it, as the reference's submitting tool does."""
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
    signatures = {}
    for path in sorted(folder.iterdir()):
        if path.name in {SIG, CRT}:
            continue
        content = path.name.encode() if path.is_dir() else path.read_bytes()
        signatures[path.name] = base64.b64encode(key.sign(content, pss, hashes.SHA256())).decode()
        if path.is_dir():
            sign_folder(path, key, pem)
    (folder / SIG).write_text(json.dumps(signatures))
    (folder / CRT).write_bytes(pem)


def pem(*certificates):
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


ROOT_KEY, KEY, OTHER_KEY = new_key(), new_key(), new_key()
ROOT = certificate(ROOT_KEY, ROOT_KEY, name="root", ca=True)
SUBMITTER = certificate(KEY, ROOT_KEY, name="ann@x.org", org="x", role="lead")


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "site" / "startup").mkdir(parents=True)
    (tmp_path / "site" / "startup" / "rootCA.pem").write_bytes(pem(ROOT))
    return tmp_path / "site"


@pytest.fixture
def app(tmp_path):
    for name in ("config/config_fed_client.json", "custom/deep/net.py", "run.sh"):
        (tmp_path / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / name).write_text(name)
    return tmp_path / "app"


@pytest.fixture
def signed(app):
    sign_folder(app, KEY, pem(SUBMITTER))
    return app


def refused(workspace, app):
    with pytest.raises(SignatureBad) as caught:
        check_signature(workspace, "hello", Folder(app))
    assert caught.value.fix
    return caught.value


def test_a_signed_app_verifies_and_its_signer_is_told_once(workspace, signed):
    assert check_signature(workspace, "hello", Folder(signed)) == [{"name": "ann@x.org", "org": "x", "role": "lead"}]


def test_files_in_memory_will_do(workspace, signed):
    assert check_signature(workspace, "hello", dict(Folder(signed)))


def test_the_names_without_a_dot_are_read_as_well(workspace, signed):
    for path in list(signed.rglob(".__nvfl*")):
        path.rename(path.with_name(path.name.removeprefix(".")))
    assert check_signature(workspace, "hello", Folder(signed))


def test_each_folder_may_have_a_signer_of_its_own(workspace, signed):
    other = certificate(OTHER_KEY, ROOT_KEY, name="bob", org="y")
    sign_folder(signed / "config", OTHER_KEY, pem(other))
    signers = check_signature(workspace, "hello", Folder(signed))
    assert [signer["name"] for signer in signers] == ["ann@x.org", "bob"]
    assert signers[1] == {"name": "bob", "org": "y", "role": ""}


def test_a_chain_with_an_intermediate_ca_verifies_where_the_app_brings_it(workspace, app):
    middle_key = new_key()
    middle = certificate(middle_key, ROOT_KEY, name="middle", ca=True)
    leaf = certificate(KEY, middle_key, name="ann", issuer="middle")
    sign_folder(app, KEY, pem(leaf, middle))
    assert check_signature(workspace, "hello", Folder(app))[0]["name"] == "ann"
    sign_folder(app, KEY, pem(leaf))
    refused(workspace, app)


TAMPERING = {
    "a file was changed": lambda app: (app / "run.sh").write_text("evil"),
    "a deep file was changed": lambda app: (app / "custom/deep/net.py").write_text("evil"),
    "a file was added": lambda app: (app / "custom/extra.py").write_text("evil"),
    "a folder was added": lambda app: ((app / "new").mkdir(), (app / "new/x.py").write_text("evil")),
    "a file was renamed": lambda app: (app / "run.sh").rename(app / "start.sh"),
    "a folder was renamed": lambda app: (app / "custom").rename(app / "local"),
    "a folder lost its signature": lambda app: (app / "custom" / SIG).unlink(),
    "a folder lost its certificate": lambda app: (app / "custom/deep" / CRT).unlink(),
    "a signature file is not JSON": lambda app: (app / "custom" / SIG).write_text("{"),
    "a signature file is a list": lambda app: (app / "custom" / SIG).write_text("[]"),
    "a signature is not base64": lambda app: (app / SIG).write_text('{"run.sh": "*", "config": "", "custom": ""}'),
    "a signature is a number": lambda app: (app / SIG).write_text('{"run.sh": 1, "config": 1, "custom": 1}'),
    "the certificate is rubbish": lambda app: (app / CRT).write_text("rubbish"),
    "a second, bare signature file was added": lambda app: (app / "__nvfl_sig.json").write_text("{}"),
    "a file is a link": lambda app: ((app / "run.sh").unlink(), (app / "run.sh").symlink_to("/etc/hostname")),
}


@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING)
def test_an_app_does_not_pass_if(tamper, workspace, signed):
    tamper(signed)
    error = refused(workspace, signed)
    assert error.what == "app hello does not pass signature verification"
    assert error.context["reason"]


def foreign():
    return certificate(KEY, OTHER_KEY, name="ann@x.org", org="x", role="lead")


CERTIFICATES = {
    "was issued by somebody else": foreign,
    "has expired": lambda: certificate(KEY, ROOT_KEY, name="ann", days=-1),
    "is a CA's": lambda: certificate(KEY, ROOT_KEY, name="ann", ca=True),
    "is a server's": lambda: certificate(
        KEY, ROOT_KEY, name="ann", extra=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])]
    ),
    "is not for signatures": lambda: certificate(KEY, ROOT_KEY, name="ann", extra=[usage(key_encipherment=True)]),
    "has a key of another kind": lambda: certificate(ec.generate_private_key(ec.SECP256R1()), ROOT_KEY, name="ann"),
    "has another key": lambda: certificate(OTHER_KEY, ROOT_KEY, name="ann"),
}


@pytest.mark.parametrize("make", CERTIFICATES.values(), ids=CERTIFICATES)
def test_an_app_does_not_pass_if_the_submitters_certificate(make, workspace, app):
    sign_folder(app, KEY, pem(make()))
    assert refused(workspace, app).what == "app hello does not pass signature verification"


def test_a_certificate_for_clients_passes(workspace, app):
    extra = [
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        usage(digital_signature=True),
    ]
    sign_folder(app, KEY, pem(certificate(KEY, ROOT_KEY, name="ann", extra=extra)))
    assert check_signature(workspace, "hello", Folder(app))


def test_a_signer_without_a_name_is_refused(workspace, app):
    sign_folder(app, KEY, pem(certificate(KEY, ROOT_KEY, name="", org="x")))
    assert refused(workspace, app).what == ("app hello: signature verified but no signer identity could be extracted")


# --- whether a signature is required ---------------------------------------------------------


def configure(workspace, text):
    (workspace / "startup" / "fed_client.json").write_text(text)


def test_a_root_ca_makes_signatures_a_must(workspace, app):
    assert refused(workspace, app).what == "unsigned job rejected - signed deploy is required"
    (workspace / "startup" / "rootCA.pem").unlink()
    assert check_signature(workspace, "hello", Folder(app)) == []


def test_the_site_can_say_that_signatures_are_not_required_but_a_bad_one_is_refused_still(workspace, signed):
    configure(workspace, '{"require_signed_jobs": false}')
    assert not requires_signed_jobs(workspace)
    assert check_signature(workspace, "hello", Folder(signed))
    assert check_signature(workspace, "hello", {"run.sh": b""}) == []
    (signed / "run.sh").write_text("evil")
    refused(workspace, signed)


def test_a_required_signature_cannot_be_verified_without_a_root_ca(workspace, signed):
    configure(workspace, '{"require_signed_jobs": true}')
    (workspace / "startup" / "rootCA.pem").unlink()
    assert refused(workspace, signed).what == "signature verification is required but rootCA.pem is missing"


def test_a_signed_app_without_a_root_ca_does_not_pass_even_where_no_signature_is_required(workspace, signed):
    (workspace / "startup" / "rootCA.pem").unlink()
    assert refused(workspace, signed).what == "app hello does not pass signature verification"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"require_signed_jobs": "no"}', '{"require_signed_jobs": null}', "\xff"]
)
def test_a_malformed_fed_client_json_fails_closed(workspace, app, text):
    (workspace / "startup" / "rootCA.pem").unlink()
    configure(workspace, text)
    assert requires_signed_jobs(workspace)
    assert refused(workspace, app).what == "unsigned job rejected - signed deploy is required"


def test_a_fed_client_json_that_does_not_say_leaves_it_to_the_root_ca(workspace):
    configure(workspace, '{"servers": []}')
    assert requires_signed_jobs(workspace)
    (workspace / "startup" / "rootCA.pem").unlink()
    assert not requires_signed_jobs(workspace)


def test_a_malformed_root_ca_fails_closed(workspace, signed):
    (workspace / "startup" / "rootCA.pem").write_text("rubbish")
    refused(workspace, signed)
