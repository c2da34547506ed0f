import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from engine.archive import Contents
from engine.deploy_checks import brought_code, check_byoc, check_scope, site_org, submitters_of
from engine.errors import ByocDenied, ScopeDenied

PLAIN = Contents(names=("a",), size=1, custom=False, signed=False, config=b"{}")
CUSTOM = Contents(names=("custom/a",), size=1, custom=True, signed=False, config=b"{}")
ANN = {"name": "ann@x.org", "org": "x", "role": "lead"}


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "startup").mkdir()
    return tmp_path


def be_of(workspace, org):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "s"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, org)]
    )
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    (workspace / "startup/client.crt").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


# --- scopes ------------------------------------------------------------------------------


def privacy(workspace, value):
    (workspace / "local/privacy.json").write_text(value if isinstance(value, str) else json.dumps(value))


SCOPES = {
    "scopes": [{"name": "public", "task_result_filters": []}, {"name": "private"}],
    "default_scope": "public",
}


def test_without_a_privacy_file_or_scopes_in_it_every_scope_is_allowed(workspace):
    check_scope(workspace, {"scope": "anything"})
    check_scope(workspace, {})
    privacy(workspace, {"components": []})
    check_scope(workspace, {"scope": "anything"})


def test_a_scope_that_the_site_defines_is_allowed_and_no_scope_means_the_default(workspace):
    privacy(workspace, SCOPES)
    for meta in ({"scope": "private"}, {"scope": ""}, {"scope": None}, {}):
        check_scope(workspace, meta)


@pytest.mark.parametrize("scope", ["secret", "Public", ["public"], 7])
def test_another_scope_is_denied_in_the_references_words(workspace, scope):
    privacy(workspace, SCOPES)
    with pytest.raises(ScopeDenied) as caught:
        check_scope(workspace, {"scope": scope})
    assert caught.value.what == f"privacy scope '{scope}' is not allowed"
    assert "local/privacy.json" in caught.value.fix


def test_no_scope_is_denied_where_there_is_no_default(workspace):
    privacy(workspace, {"scopes": SCOPES["scopes"]})
    with pytest.raises(ScopeDenied, match="privacy scope '' is not allowed"):
        check_scope(workspace, {})


@pytest.mark.parametrize("text", ["{", "[]", '{"scopes": {"a": 1}}', '{"scopes": [{}]}', '{"scopes": 7}'])
def test_a_malformed_privacy_file_allows_nothing(workspace, text):
    privacy(workspace, text)
    for meta in ({"scope": "a"}, {}):
        with pytest.raises(ScopeDenied) as caught:
            check_scope(workspace, meta)
        assert "correct local/privacy.json" in caught.value.fix


# --- what is code of the app's own -------------------------------------------------------


def test_a_custom_folder_is(workspace):
    assert brought_code(site="s", contents=CUSTOM, meta={}) == "the folder custom/"
    assert brought_code(site="s", contents=PLAIN, meta={}) is None


@pytest.mark.parametrize(
    ("launcher", "option"),
    [
        ("docker", "image"),
        ("docker", "python_path"),
        ("docker", "entrypoint"),
        ("k8s", "image"),
        ("k8s", "python_path"),
        ("slurm", "image"),
        ("slurm", "python_path"),
        ("slurm", "additional_node_command"),
    ],
)
@pytest.mark.parametrize("place", ["site", "default", "older"])
def test_launcher_options_that_choose_the_code_are(launcher, option, place):
    spec = {launcher: {option: "x"}}
    meta = {
        "site": {"launcher_spec": {"s": spec}},
        "default": {"launcher_spec": {"default": spec, "s": {launcher: {"num_of_gpus": 1}}}},
        "older": {"resource_spec": {"s": spec}},
    }[place]
    assert brought_code(site="s", contents=PLAIN, meta=meta) == f"the launcher_spec option {launcher}.{option}"


@pytest.mark.parametrize(
    "meta",
    [
        {"launcher_spec": {"other": {"docker": {"image": "x"}}}},
        {"launcher_spec": {"s": {"docker": {"shm_size": "1g"}, "process": {"image": "x"}}}},
        {"launcher_spec": {"s": {"slurm": {"additional_node_command": None}}}},
        {"launcher_spec": {"s": {"docker": {}}}, "resource_spec": {"s": {"docker": {"image": "x"}}}},
        {"resource_spec": {"s": {"num_of_gpus": 1}}},
        {"launcher_spec": None, "resource_spec": None},
        {"launcher_spec": ["s"], "resource_spec": {"s": 4}},
    ],
)
def test_other_options_and_those_for_others_are_not(meta):
    assert brought_code(site="s", contents=PLAIN, meta=meta) is None


# --- who may bring it --------------------------------------------------------------------


def authorize(workspace, lead=None, **more):
    permissions = {} if lead is None else {"lead": lead}
    policy = {"format_version": "1.0", "permissions": {**permissions, **more}}
    (workspace / "local/authorization.json").write_text(json.dumps(policy))


def check(workspace, *submitters, contents=CUSTOM, meta=None):
    check_byoc(workspace, site="s", submitters=submitters or [ANN], contents=contents, meta=meta or {})


def test_without_an_authorization_file_everybody_may(workspace):
    check(workspace)


ALLOWING = [
    "any",
    "all",
    "o:site",
    "o:x",
    "org:X",
    "n:ann@x.org",
    "name: ANN@x.org",
    "o:submitter",
    "n:submitter",
]
ALLOWING_LISTS = [["none", "o:site"], ["any", "not o:y"], "not o:y", ["not n:bob", "not o:z"]]


@pytest.mark.parametrize("conditions", ALLOWING + ALLOWING_LISTS, ids=str)
def test_the_policy_allows_by(workspace, conditions):
    be_of(workspace, "X")
    authorize(workspace, {"byoc": conditions})
    check(workspace)
    authorize(workspace, conditions)  # for all rights
    check(workspace)


DENYING = [
    "none",
    "no",
    "o:y",
    "n:bob",
    ["none", "o:y"],
    "not o:x",
    ["any", "not n:ann@x.org"],
    "not any",
    "not o:site",
]


@pytest.mark.parametrize("conditions", DENYING, ids=str)
def test_the_policy_denies_by(workspace, conditions):
    be_of(workspace, "x")
    authorize(workspace, {"byoc": conditions})
    with pytest.raises(ByocDenied) as caught:
        check(workspace)
    assert caught.value.what == "BYOC not permitted"
    assert "authorization.json" in caught.value.fix
    assert "custom/" in caught.value.fix
    check(workspace, contents=PLAIN)


def test_who_has_no_rule_may_not(workspace):
    authorize(workspace, {"submit_job": "any"}, project_admin="any")
    for person in (ANN, {**ANN, "role": "super"}, {"name": "", "org": "", "role": ""}):
        with pytest.raises(ByocDenied):
            check(workspace, person)
    check(workspace, {**ANN, "role": "Project_Admin"})


def test_a_site_or_person_without_an_organisation_is_in_nobodys(workspace):
    authorize(workspace, "o:site")
    for person in ({**ANN, "org": ""}, ANN):
        with pytest.raises(ByocDenied):
            check(workspace, person)
    (workspace / "startup/client.crt").write_text("rubbish")
    assert site_org(workspace) == ""


def test_every_signer_needs_the_right(workspace):
    authorize(workspace, {"byoc": "any"}, member={"view": "any"})
    check(workspace, ANN, ANN)
    with pytest.raises(ByocDenied) as caught:
        check(workspace, ANN, {"name": "bob", "org": "x", "role": "member"})
    assert caught.value.context["submitter"] == "bob"


def test_launcher_options_need_the_right_as_well(workspace):
    authorize(workspace, {"byoc": "none"})
    with pytest.raises(ByocDenied, match="BYOC not permitted"):
        check(workspace, contents=PLAIN, meta={"launcher_spec": {"s": {"docker": {"image": "evil"}}}})


def test_the_startup_kits_default_counts_where_the_site_wrote_none(workspace):
    authorize(workspace, {"byoc": "none"})
    file = workspace / "local/authorization.json"
    file.rename(workspace / "local/authorization.json.default")
    with pytest.raises(ByocDenied):
        check(workspace)
    authorize(workspace, {"byoc": "any"})
    check(workspace)


MALFORMED = [
    "{",
    "[]",
    "{}",
    '{"permissions": {"lead": "any"}}',
    '{"format_version": "1.0"}',
    '{"format_version": "1.0", "permissions": ["lead"]}',
    '{"format_version": "1.0", "permissions": {"lead": {"byoc": "perhaps"}}}',
    '{"format_version": "1.0", "permissions": {"lead": {"byoc": ["any", "x:y"]}}}',
    '{"format_version": "1.0", "permissions": {"lead": {"byoc": []}}}',
    '{"format_version": "1.0", "permissions": {"lead": {"byoc": true}}}',
    '{"format_version": "1.0", "permissions": {"lead": 7}}',
]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_authorization_file_allows_nothing(workspace, text):
    (workspace / "local/authorization.json").write_text(text)
    with pytest.raises(ByocDenied) as caught:
        check(workspace)
    assert caught.value.what == "BYOC not permitted"
    assert "correct" in caught.value.fix


def test_signers_answer_for_the_app_instead_of_whom_the_metadata_claims():
    meta = {"submitter_name": "root", "submitter_org": "y", "submitter_role": "project_admin"}
    assert submitters_of(meta, [ANN]) == [ANN]
    assert submitters_of(meta, []) == [{"name": "root", "org": "y", "role": "project_admin"}]
    assert submitters_of({}, []) == [{"name": "", "org": "", "role": ""}]
