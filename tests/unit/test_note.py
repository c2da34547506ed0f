"""Checkpoints: what was signed, by whom, and nothing else."""

from __future__ import annotations

import base64

import pytest

from events.note import COSIGNATURE, Checkpoint, Note, NoteInvalid, Signer, Verifier

CHECKPOINT = Checkpoint("flightlog/site-1/ab/1", 17, b"\7" * 32, "1795531521766-17")


def test_a_checkpoint_reads_back_as_it_was_written() -> None:
    signer = Signer.new("flightlog/site-1")
    note = Note.parse(str(Note(CHECKPOINT.text(), (signer.line(CHECKPOINT.text()),))))
    assert note.checkpoint == CHECKPOINT
    assert note.signed_by([signer.verifier]) == {"flightlog/site-1": 0}
    assert note.names() == ["flightlog/site-1"]


def test_a_cosignature_says_when() -> None:
    signer, witness = Signer.new("site"), Signer.new("witness", COSIGNATURE)
    text = CHECKPOINT.text()
    note = Note(text, (signer.line(text), witness.line(text, now=1_795_531_521)))
    assert note.signed_by([witness.verifier, signer.verifier]) == {"site": 0, "witness": 1_795_531_521}


@pytest.mark.parametrize("change", ["17", "site-1", "position"])
def test_another_text_is_not_what_was_signed(change: str) -> None:
    signer = Signer.new("site")
    line = signer.line(CHECKPOINT.text())
    assert Note(CHECKPOINT.text().replace(change, change + "0"), (line,)).signed_by([signer.verifier]) == {}


def test_another_key_of_the_same_name_has_not_signed() -> None:
    text = CHECKPOINT.text()
    note = Note(text, (Signer.new("site").line(text),))
    assert note.signed_by([Signer.new("site").verifier]) == {}


def test_keys_read_back() -> None:
    signer = Signer.new("site", COSIGNATURE)
    assert Verifier.parse(str(signer.verifier)) == signer.verifier
    assert Signer.parse(str(signer)).verifier == signer.verifier


@pytest.mark.parametrize("text", ["", "a", "a+b+c", "site+00000000+" + base64.b64encode(b"\1" * 33).decode(), "a+b"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(NoteInvalid):
        Verifier.parse(text)
    with pytest.raises(NoteInvalid):
        Signer.parse(text)


@pytest.mark.parametrize(
    "text", ["", "a\n", "a\n\nb\n", "\n\n\u2014 a b\n", "o\n1\n\n\u2014 a b\n", "o\nx\nAA==\n\n\u2014 a b\n"]
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteInvalid):
        assert Note.parse(text).checkpoint
