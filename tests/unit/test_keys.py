from __future__ import annotations

import base64
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.cell.keys import KeyRing, is_name
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, HostError, KeyUnknown
from engine.workspace import Workspace


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "startup", "site-1")


@pytest.fixture
def server(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "elsewhere", "server")


def again(ring: KeyRing) -> KeyRing:
    """The same keys, as another process sees them."""
    return KeyRing(ring.folder.parent, ring.name)


def renewed(ring: KeyRing) -> dict[str, str]:
    """Public keys of somebody else by the same name."""
    return KeyRing(ring.folder.parent / "renewed", ring.name).public()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- our own ------------------------------------------------------------------------------------


def test_nothing_is_made_before_it_is_asked_for(ring: KeyRing) -> None:
    assert not ring.folder.exists()
    with pytest.raises(KeyUnknown):
        ring.peer("server")
    assert not ring.folder.exists()


def test_own_keys_are_made_once_and_stay(ring: KeyRing) -> None:
    public = ring.public()
    before = (ring.folder / "own.json").read_bytes()
    assert ring.public() == again(ring).public() == public
    assert (ring.folder / "own.json").read_bytes() == before


def test_public_is_text_that_json_can_carry_and_has_no_private_key(ring: KeyRing) -> None:
    public = ring.public()
    assert list(public) == ["name", "x25519", "ed25519", "fingerprint"]
    assert public["name"] == "site-1"
    assert len(base64.b64decode(public["x25519"])) == len(base64.b64decode(public["ed25519"])) == 32
    assert len(public["fingerprint"].split("-")) == 8
    own = ring.own()
    private = own.sealing.private_bytes_raw(), own.signing.private_bytes_raw()
    for secret in (base64.b64encode(raw).decode() for raw in private):
        assert secret in (ring.folder / "own.json").read_text()
        assert secret not in json.dumps(public)
        assert secret not in repr(own)


def test_own_keys_are_for_this_user_only_whatever_the_umask(ring: KeyRing) -> None:
    before = os.umask(0)
    try:
        ring.public()
    finally:
        os.umask(before)
    assert mode(ring.folder / "own.json") == 0o600
    assert mode(ring.folder) == 0o700
    assert sorted(path.name for path in ring.folder.iterdir()) == ["lock", "own.json"]


RUN = """
import sys, pathlib
from engine.cell.keys import KeyRing
sys.stdin.readline()
print(KeyRing(pathlib.Path(sys.argv[1]), "site-1").public()["fingerprint"])
"""


def test_processes_that_make_keys_at_the_same_time_get_the_same_ones(ring: KeyRing) -> None:
    command = [sys.executable, "-P", "-c", RUN, str(ring.folder.parent)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=os.getcwd())
        for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = {process.communicate(timeout=30)[0].strip() for process in started}
    assert told == {ring.public()["fingerprint"]}


def test_threads_that_make_keys_at_the_same_time_get_the_same_ones(ring: KeyRing) -> None:
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda n: (ring if n % 2 else again(ring)).public()["fingerprint"], range(16)))
    assert set(told) == {again(ring).public()["fingerprint"]}


def test_two_sites_have_different_keys(ring: KeyRing, server: KeyRing) -> None:
    mine, theirs = ring.public(), server.public()
    assert all(mine[field] != theirs[field] for field in mine)


def test_the_fingerprint_depends_on_name_and_both_keys(ring: KeyRing, tmp_path: Path) -> None:
    ring.public()
    private = json.loads((ring.folder / "own.json").read_text())
    seen = {ring.public()["fingerprint"]}
    other = base64.b64encode(bytes(range(32))).decode()
    for number, changed in enumerate(({"name": "site-2"}, {"x25519_private": other}, {"ed25519_private": other})):
        folder = tmp_path / str(number)
        (folder / "keys").mkdir(parents=True)
        (folder / "keys" / "own.json").write_text(json.dumps(private | changed))
        seen.add(KeyRing(folder, (private | changed)["name"]).public()["fingerprint"])
    assert len(seen) == 4


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b'{"name": "site-1"}', b"\xff", b"[" * 50_000, b'{"name": 3}']
)
def test_own_keys_that_cannot_be_read_are_an_error_and_never_replaced(ring: KeyRing, content: bytes) -> None:
    path = ring.folder / "own.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(HostError, match=r"own\.json cannot be read") as caught:
        ring.public()
    assert "backup" in caught.value.fix
    assert path.read_bytes() == content


def test_damaged_own_keys_are_not_shown_in_the_error(ring: KeyRing) -> None:
    ring.public()
    path = ring.folder / "own.json"
    secret = json.loads(path.read_text())["ed25519_private"]
    path.write_text(path.read_text().replace(secret, f"é{secret}"))
    with pytest.raises(HostError) as caught:
        again(ring).public()
    assert secret[:8] not in str(caught.value) + repr(caught.value.__cause__)


def test_keys_of_another_site_are_not_taken_for_ones_own(ring: KeyRing) -> None:
    ring.public()
    with pytest.raises(HostError, match="has the keys of site-1, not of site-2"):
        KeyRing(ring.folder.parent, "site-2").public()


def test_a_folder_that_cannot_be_written_is_said_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "keys").symlink_to(tmp_path / "nowhere")
    with pytest.raises(HostError, match=r"cannot be kept in .*/keys: "):
        KeyRing(tmp_path, "site-1").public()


def test_own_keys_that_may_not_be_read_are_said_with_the_systems_words(ring: KeyRing) -> None:
    ring.folder.mkdir(parents=True)
    (ring.folder / "own.json").symlink_to("elsewhere")
    with pytest.raises(HostError, match=r"own\.json cannot be read: Too many levels of symbolic links") as caught:
        ring.public()
    assert "rights" in caught.value.fix


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a.b", "-a", "a b", "a\n", "é", "a" * 129, "a\0", None, 3])
def test_a_name_that_cannot_be_one_has_no_keys(name: Any, ring: KeyRing, tmp_path: Path) -> None:
    assert not is_name(name)
    with pytest.raises(ArgumentInvalid, match="name"):
        KeyRing(tmp_path, name)
    with pytest.raises(KeyUnknown):
        ring.peer(name)


# --- peers --------------------------------------------------------------------------------------


def test_a_peer_that_is_trusted_is_known_also_to_other_processes_at_once(ring: KeyRing, server: KeyRing) -> None:
    other = again(ring)
    for _ in range(2):
        with pytest.raises(KeyUnknown):
            other.peer("server")
    ring.trust(server.public())
    for knows in (ring, other, again(ring)):
        peer = knows.peer("server")
        assert peer.name == "server"
        assert peer.fingerprint == server.public()["fingerprint"]
        assert peer.ed25519.public_bytes_raw() == server.own().peer.ed25519.public_bytes_raw()
        assert peer.x25519.public_bytes_raw() == server.own().peer.x25519.public_bytes_raw()


def test_what_another_process_replaces_or_removes_counts_at_once(ring: KeyRing, server: KeyRing) -> None:
    other = again(ring)
    ring.trust(server.public())
    other.peer("server")
    new = renewed(server)
    ring.trust(new, replace=True)
    assert other.peer("server").fingerprint == new["fingerprint"]
    (ring.folder / "peers" / "server.json").unlink()
    for knows in (ring, other):
        with pytest.raises(KeyUnknown):
            knows.peer("server")


def test_a_peer_is_read_once(ring: KeyRing, server: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    ring.trust(server.public())
    first = ring.peer("server")
    monkeypatch.setattr("engine.cell.keys.read_plain", None)
    assert ring.peer("server") is first


def test_the_file_of_a_peer_is_what_it_shows(ring: KeyRing, server: KeyRing) -> None:
    ring.trust(server.public())
    assert json.loads((ring.folder / "peers" / "server.json").read_text()) == server.public()


def test_who_is_not_known_is_named_with_the_command_that_helps(ring: KeyRing) -> None:
    with pytest.raises(KeyUnknown) as caught:
        ring.peer("site-9")
    error = caught.value
    assert (error.code, error.http, error.retry) == ("KEY_UNKNOWN", 403, "no")
    assert "site-9" in error.what
    assert "flightlog keys trust FILE" in error.fix
    assert error.context == {"peer": "site-9"}


def test_a_name_with_a_path_in_it_reaches_no_file(ring: KeyRing, server: KeyRing) -> None:
    ring.trust(server.public())
    (ring.folder / "server.json").write_text(json.dumps(server.public()))
    with pytest.raises(KeyUnknown):
        ring.peer("../server")


def test_the_same_keys_again_change_nothing(ring: KeyRing, server: KeyRing) -> None:
    ring.trust(server.public())
    path = ring.folder / "peers" / "server.json"
    before = path.stat()
    ring.trust(server.public())
    ring.trust({**server.public(), "comment": "further fields do not matter"}, replace=True)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_other_keys_of_a_known_peer_are_refused_unless_they_are_to_replace(ring: KeyRing, server: KeyRing) -> None:
    ring.trust(server.public())
    new = renewed(server)
    with pytest.raises(ArgumentInvalid) as caught:
        ring.trust(new)
    assert server.public()["fingerprint"] in caught.value.what
    assert new["fingerprint"] in caught.value.what
    assert "--replace" in caught.value.fix
    assert ring.peer("server").fingerprint == server.public()["fingerprint"]
    ring.trust(new, replace=True)
    assert ring.peer("server").fingerprint == new["fingerprint"]


def test_a_file_of_a_peer_that_cannot_be_read_is_replaced_only_where_that_is_said(
    ring: KeyRing, server: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    ring.trust(server.public())
    path = ring.folder / "peers" / "server.json"
    for content in ("", "{", "[]", "{}", json.dumps(ring.public()), "[" * 50_000):
        path.write_text(content)
        with caplog.at_level(logging.ERROR), pytest.raises(KeyUnknown, match=r"server\.json cannot be read"):
            ring.peer("server")
        with pytest.raises(ArgumentInvalid, match="unreadable"):
            ring.trust(server.public())
        assert path.read_text() == content
        ring.trust(server.public(), replace=True)
        assert ring.peer("server").fingerprint == server.public()["fingerprint"]


def test_a_link_or_a_pipe_in_place_of_a_peers_file_is_not_followed(ring: KeyRing, server: KeyRing) -> None:
    folder = ring.folder / "peers"
    folder.mkdir(parents=True)
    (folder / "target").write_text(json.dumps(server.public()))
    (folder / "server.json").symlink_to(folder / "target")
    os.mkfifo(folder / "site-3.json")
    for name in ("server", "site-3"):
        with pytest.raises(KeyUnknown, match="cannot be read"):
            ring.peer(name)


def test_under_our_own_name_there_are_our_own_keys_and_no_others(ring: KeyRing) -> None:
    assert ring.peer("site-1").fingerprint == ring.public()["fingerprint"]
    assert ring.trust(ring.public()).name == "site-1"
    for replace in (False, True):
        with pytest.raises(ArgumentInvalid, match="this site"):
            ring.trust(renewed(ring), replace=replace)
    assert not (ring.folder / "peers").exists()


def changed(**fields: Any) -> Callable[[dict[str, str]], Any]:
    return lambda public: {**public, **fields}


def without(field: str) -> Callable[[dict[str, str]], Any]:
    return lambda public: {k: v for k, v in public.items() if k != field}


OTHER_X = base64.b64encode(X25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
OTHER_ED = base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda public: None, "mapping"),
        (lambda public: list(public.items()), "mapping"),
        (lambda public: json.dumps(public), "mapping"),
        (lambda public: {}, "name"),
        *((without(field), field) for field in ("name", "x25519", "ed25519", "fingerprint")),
        *((changed(**{field: None}), field) for field in ("name", "x25519", "ed25519", "fingerprint")),
        (changed(name="../../startup/x"), "name"),
        (changed(name=""), "name"),
        (changed(name="site-2.job"), "name"),
        (changed(name="site-2"), "fingerprint"),
        (changed(x25519=OTHER_X), "fingerprint"),
        (changed(ed25519=OTHER_ED), "fingerprint"),
        (changed(fingerprint=""), "fingerprint"),
        (changed(fingerprint="0000-" * 7 + "0000"), "fingerprint"),
        (changed(x25519="AAAA"), "x25519"),
        (changed(x25519="é"), "x25519"),
        (changed(x25519="!" + OTHER_X), "x25519"),
        (changed(x25519=base64.b64encode(bytes(33)).decode()), "x25519"),
        (changed(x25519=base64.b64encode(bytes(32)).decode()), "x25519"),
        (changed(x25519=base64.b64encode(b"\x01" + bytes(31)).decode()), "x25519"),
        (changed(ed25519=""), "ed25519"),
        (changed(ed25519=OTHER_ED + OTHER_ED), "ed25519"),
    ],
)
def test_malformed_public_keys_are_refused_and_change_nothing(
    ring: KeyRing, server: KeyRing, change: Callable[[dict[str, str]], Any], said: str
) -> None:
    for replace in (False, True):
        with pytest.raises(ArgumentInvalid, match=said):
            ring.trust(change(server.public()), replace=replace)
    assert not ring.folder.exists()


def test_what_is_no_mapping_is_a_type_error_too(ring: KeyRing) -> None:
    with pytest.raises(ArgumentTypeInvalid):
        ring.trust(3)  # type: ignore[arg-type]


def test_private_keys_given_by_mistake_are_not_taken(ring: KeyRing, server: KeyRing) -> None:
    server.public()
    private = json.loads((server.folder / "own.json").read_text())
    with pytest.raises(ArgumentInvalid, match="private"):
        ring.trust(private)
    with pytest.raises(ArgumentInvalid, match="private"):
        ring.trust({**server.public(), **private})


# --- the command line ---------------------------------------------------------------------------


def flightlog(workspace: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("FLIGHTLOG_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "engine.cli", "keys", *words],
        env={**env, "FLIGHTLOG_WORKSPACE": str(workspace)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_keys_are_shown_at_one_site_and_trusted_at_another(tmp_path: Path) -> None:
    places = [Workspace.prepare(tmp_path / name, name) for name in ("site-1", "site-2")]
    shown = flightlog(places[1].root, "show")
    assert (shown.returncode, shown.stderr) == (0, "")
    public = json.loads(shown.stdout)
    assert public == KeyRing(places[1].root / "startup", "site-2").public()
    assert [
        json.loads(line) for line in flightlog(places[1].root, "show", "--format", "jsonl").stdout.splitlines()
    ] == [public]
    file = tmp_path / "site-2.json"
    file.write_text(shown.stdout)
    told = flightlog(places[0].root, "trust", str(file))
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == f"site-2 is trusted, fingerprint {public['fingerprint']}.\n"
    ring = KeyRing(places[0].root / "startup", "site-1")
    assert ring.peer("site-2").fingerprint == public["fingerprint"]

    new = renewed(KeyRing(places[1].root / "startup", "site-2"))
    file.write_text(json.dumps(new))
    told = flightlog(places[0].root, "trust", str(file), "--json")
    assert told.returncode == 2
    assert json.loads(told.stderr)["error"] == "ARGUMENT_INVALID"
    assert ring.peer("site-2").fingerprint == public["fingerprint"]
    told = flightlog(places[0].root, "trust", str(file), "--replace", "--json")
    assert json.loads(told.stdout) == {"name": "site-2", "fingerprint": new["fingerprint"]}
    assert ring.peer("site-2").fingerprint == new["fingerprint"]


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [(None, 1, "HOST_ERROR"), ("{", 2, "is not JSON"), ("[]", 2, "mapping"), ("\x00", 2, "is not JSON")],
)
def test_a_file_that_holds_no_keys_is_refused(tmp_path: Path, content: str | None, code: int, said: str) -> None:
    workspace = Workspace.prepare(tmp_path / "ws", "site-1")
    if content is not None:
        (tmp_path / "file").write_text(content)
    told = flightlog(workspace.root, "trust", str(tmp_path / "file"))
    assert (told.returncode, told.stdout) == (code, "")
    assert said in told.stderr


def test_keys_belong_to_a_site(tmp_path: Path) -> None:
    told = flightlog(tmp_path / "nowhere", "show")
    assert told.returncode == 5
    assert "SITE_UNKNOWN" in told.stderr
    assert not (tmp_path / "nowhere").exists()


def test_the_commands_are_listed(tmp_path: Path) -> None:
    told = flightlog(tmp_path, "--help")
    assert told.returncode == 0
    assert "show" in told.stdout
    assert "trust" in told.stdout
