from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cell import sealing
from engine.cell.keys import KeyRing
from engine.cell.sealing import OVERHEAD, VERSION, owner, seal, unseal
from engine.errors import KeyUnknown, SealBroken

CONTEXT = b"id-1 site-1.job-7 server task get_task"
PLAIN = b"the weights of the model"


class Federation:
    """Three parties who know each other."""

    def __init__(self, folder: Path) -> None:
        self.site = KeyRing(folder / "site-1", "site-1")
        self.other = KeyRing(folder / "site-2", "site-2")
        self.server = KeyRing(folder / "server", "server")
        rings = (self.site, self.other, self.server)
        for ring in rings:
            for peer in rings:
                if peer is not ring:
                    ring.trust(peer.public())


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def own_fed(tmp_path: Path) -> Federation:
    """One whose keys a test may change."""
    return Federation(tmp_path)


def broken(sealed: bytes, ring: KeyRing, sender: str = "site-1.job-7", context: bytes = CONTEXT) -> str:
    with pytest.raises(SealBroken) as caught:
        unseal(sealed, ring, sender, context)
    return caught.value.what


@given(plain=st.binary(max_size=300), context=st.binary(max_size=80))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_sealed_is_opened_by_the_receiver(fed: Federation, plain: bytes, context: bytes) -> None:
    sealed = seal(plain, fed.site, "server", context)
    assert type(sealed) is bytes
    assert len(sealed) == len(plain) + OVERHEAD
    opened = unseal(sealed, fed.server, "site-1", context)
    assert type(opened) is bytes
    assert opened == plain


def test_a_large_message_and_any_buffer_of_bytes_can_be_sealed_and_opened(fed: Federation) -> None:
    plain = os.urandom(3 * 2**20)
    for holder in (bytes, bytearray, memoryview):
        sealed = seal(holder(plain), fed.site, "server", CONTEXT)
        assert unseal(holder(sealed), fed.server, "site-1", CONTEXT) == plain


def test_a_cell_uses_the_keys_of_its_site(fed: Federation) -> None:
    assert [owner(name) for name in ("site-1", "site-1.job-7", "server.job-7.x", "")] == [
        "site-1",
        "site-1",
        "server",
        "",
    ]
    sealed = seal(PLAIN, fed.server, "site-1.job-7", CONTEXT)
    for sender in ("server", "server.job-7"):
        assert unseal(sealed, fed.site, sender, CONTEXT) == PLAIN


def test_a_site_may_seal_for_a_cell_of_its_own(fed: Federation) -> None:
    sealed = seal(PLAIN, fed.site, "site-1.job-7", CONTEXT)
    assert unseal(sealed, fed.site, "site-1", CONTEXT) == PLAIN


def test_whoever_carries_it_sees_neither_content_nor_context_nor_names(fed: Federation) -> None:
    sealed = seal(PLAIN * 10, fed.site, "server", CONTEXT)
    assert sealed[0] == VERSION == 1
    for secret in (PLAIN, CONTEXT, b"site-1", b"server"):
        assert secret not in sealed


def test_the_same_message_is_never_sealed_the_same_way(fed: Federation) -> None:
    first, second = (seal(PLAIN, fed.site, "server", CONTEXT) for _ in range(2))
    assert first[1:33] != second[1:33]  # ephemeral key
    assert first[33:45] != second[33:45]  # nonce
    assert first[OVERHEAD - 16 :] != second[OVERHEAD - 16 :]


def test_a_change_of_any_bit_is_noticed(fed: Federation) -> None:
    sealed = bytearray(seal(b"abc", fed.site, "server", CONTEXT))
    for place in range(len(sealed)):
        for bit in (1, 128):
            sealed[place] ^= bit
            broken(bytes(sealed), fed.server)
            sealed[place] ^= bit
    assert unseal(sealed, fed.server, "site-1", CONTEXT) == b"abc"


def test_a_message_that_is_cut_or_goes_on_is_refused(fed: Federation) -> None:
    sealed = seal(PLAIN, fed.site, "server", CONTEXT)
    for end in range(len(sealed)):
        broken(sealed[:end], fed.server)
        broken(sealed[end + 1 :], fed.server)
    broken(sealed + b"\0", fed.server)
    assert "cut off" in broken(b"", fed.server)


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_nobody_sealed_are_refused(fed: Federation, data: bytes) -> None:
    broken(data, fed.server)
    broken(bytes([VERSION]) + data, fed.server)


def test_another_version_is_named(fed: Federation) -> None:
    sealed = seal(PLAIN, fed.site, "server", CONTEXT)
    assert "version 2, and this side opens 1" in broken(b"\x02" + sealed[1:], fed.server)


def test_another_context_is_refused(fed: Federation) -> None:
    sealed = seal(PLAIN, fed.site, "server", CONTEXT)
    for context in (b"", CONTEXT[:-1], CONTEXT + b"\0", b"x" + CONTEXT, CONTEXT.upper()):
        broken(sealed, fed.server, context=context)


def test_only_the_receiver_opens_it(fed: Federation) -> None:
    sealed = seal(PLAIN, fed.site, "server", CONTEXT)
    broken(sealed, fed.other)
    broken(sealed, fed.site)


def test_a_message_that_is_said_to_be_from_another_is_refused(fed: Federation) -> None:
    sealed = seal(PLAIN, fed.site, "server", CONTEXT)
    for sender in ("site-2", "site-2.job-7", "server"):
        broken(sealed, fed.server, sender=sender)


def test_a_message_does_not_come_back_as_an_answer(fed: Federation) -> None:
    broken(seal(PLAIN, fed.site, "server", CONTEXT), fed.site, sender="server")


def test_nobody_puts_their_own_signature_onto_the_message_of_another(fed: Federation) -> None:
    """A thief who cannot read a message might still want to be taken for its author."""
    sealed = seal(PLAIN, fed.site, "server", CONTEXT)
    point, nonce, ciphertext = sealed[1:33], sealed[33:45], sealed[109:]
    thief = fed.other.own()
    about = sealing._about(thief.peer, fed.other.peer("server"), CONTEXT, point)
    signature = thief.signing.sign(sealing._signed(about, nonce, ciphertext))
    stolen = sealed[:45] + signature + ciphertext
    assert "was not sealed" in broken(stolen, fed.server, sender="site-2")


def test_a_signed_message_with_a_point_that_gives_the_secret_away_is_refused(fed: Federation) -> None:
    own, to = fed.site.own(), fed.site.peer("server")
    point, nonce = bytes(32), bytes(12)
    signature = own.signing.sign(sealing._signed(sealing._about(own.peer, to, CONTEXT, point), nonce, bytes(16)))
    assert "was not sealed" in broken(b"\x01" + point + nonce + signature + bytes(16), fed.server)


def test_nothing_is_deciphered_before_the_signature_holds(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = bytearray(seal(PLAIN, fed.site, "server", CONTEXT))
    sealed[-1] ^= 1
    monkeypatch.setattr(sealing, "AESGCM", None)
    monkeypatch.setattr(X25519PrivateKey, "exchange", None, raising=False)
    broken(bytes(sealed), fed.server)


def test_parts_of_the_context_and_the_names_cannot_be_shifted(tmp_path: Path) -> None:
    a, ab = KeyRing(tmp_path / "a", "a"), KeyRing(tmp_path / "ab", "ab")
    point = bytes(32)
    seen = {sealing._about(x, y, c, point) for x in (a.own().peer,) for y in (ab.own().peer,) for c in (b"", b"b")}
    seen |= {sealing._about(ab.own().peer, a.own().peer, c, point) for c in (b"", b"b")}
    assert len(seen) == 4


def test_a_receiver_or_sender_without_a_key_is_named_with_the_command_that_helps(fed: Federation) -> None:
    with pytest.raises(KeyUnknown, match="site-9") as caught:
        seal(PLAIN, fed.site, "site-9.job-7", CONTEXT)
    assert "flightlog keys trust FILE" in caught.value.fix
    sealed = seal(PLAIN, fed.site, "server", CONTEXT)
    for stranger in ("site-9", "../site-1", "", "."):
        with pytest.raises(KeyUnknown):
            unseal(sealed, fed.server, stranger, CONTEXT)


def test_the_error_is_the_catalogues_and_names_the_sender_and_the_trusted_fingerprint(fed: Federation) -> None:
    sealed = seal(PLAIN, fed.site, "server", CONTEXT)
    with pytest.raises(SealBroken) as caught:
        unseal(sealed, fed.server, "site-1", b"other")
    error = caught.value
    assert (error.code, error.http, error.retry) == ("SEAL_BROKEN", 403, "no")
    assert "'site-1'" in error.what
    assert fed.site.public()["fingerprint"] in error.what
    assert error.context == {"sender": "site-1"}


def test_a_sender_with_new_keys_is_refused_until_they_are_trusted_and_then_without_a_restart(
    own_fed: Federation, tmp_path: Path
) -> None:
    shutil.rmtree(own_fed.site.folder)
    renewed = KeyRing(own_fed.site.folder.parent, "site-1")
    renewed.trust(own_fed.server.public())
    sealed = seal(PLAIN, renewed, "server", CONTEXT)
    broken(sealed, own_fed.server)
    KeyRing(own_fed.server.folder.parent, "server").trust(renewed.public(), replace=True)
    assert unseal(sealed, own_fed.server, "site-1", CONTEXT) == PLAIN


def test_a_peer_that_is_trusted_by_another_process_is_noticed_without_a_restart(tmp_path: Path) -> None:
    site, server = KeyRing(tmp_path / "a", "site-1"), KeyRing(tmp_path / "b", "server")
    with pytest.raises(KeyUnknown):
        seal(PLAIN, site, "server", CONTEXT)
    KeyRing(tmp_path / "a", "site-1").trust(server.public())
    sealed = seal(PLAIN, site, "server", CONTEXT)
    with pytest.raises(KeyUnknown):
        unseal(sealed, server, "site-1", CONTEXT)
    KeyRing(tmp_path / "b", "server").trust(site.public())
    assert unseal(sealed, server, "site-1", CONTEXT) == PLAIN
