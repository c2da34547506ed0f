"""The signing key with a user of its own: a real process that cannot be read, and signs one history only."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.doctor import examine
from engine.record.backup import backup, restored, unpack
from engine.record.custody import Custody, user_name
from engine.record.ledger import asking
from engine.record.sealed import log_name, sealed
from engine.record.sealing import seal_now, sealer_of
from engine.site import Site
from events.errors import HistoryBroken, RecordDamaged
from events.note import Checkpoint, Verifier
from events.read import count, read
from events.seal import kept_notes, latest
from events.signing import Keys
from tests.record.rig import born, feed, sealing, verified
from tests.support import SITE, kill, new_call, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

HOLDER, STRANGER = 64_001, 64_002  # users that this host need not know
#: The command as another user. What is imported before is read as whoever runs the tests: a checkout may be theirs.
AS_ANOTHER = """
import os, sys
import engine.cli.signing, uvicorn.loops.auto, uvicorn.lifespan.off, uvicorn.protocols.websockets.auto
os.setgroups([]); os.setgid({uid}); os.setuid({uid}); os.chdir("/")
sys.argv = ["flightlog", *{words!r}]
engine.cli.main()
"""


def as_user(uid: int, *words: str) -> list[str]:
    return [sys.executable, "-P", "-c", AS_ANOTHER.format(uid=uid, words=list(words))]


def flightlog(*words: str, workspace: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command, as whoever runs the tests."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "engine.cli", *words],
        env={**os.environ, "FLIGHTLOG_WORKSPACE": str(workspace), **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Holder:
    """A signer's process, as a user of its own."""

    def __init__(self, folder: Path, *users: str) -> None:
        self.folder = folder / "signer"
        self.socket = folder / "signer.sock"
        self._users = users
        self._log = folder / "log"

    def start(self) -> None:
        words = [word for user in self._users for word in ("--for", user)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                as_user(HOLDER, "signer", "--folder", str(self.folder), "--socket", str(self.socket), *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(lambda: "FLIGHTLOG_SIGNER=" in self._log.read_text() and self.socket.exists(), 20, "no signer")

    def kill(self) -> None:
        kill(self.process.pid)
        self.process.wait()
        self._log.write_text("")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def accept(self, origin: str) -> None:
        words = as_user(HOLDER, "signer", "--folder", str(self.folder), "--accept", origin)
        subprocess.run(words, check=True, capture_output=True, timeout=30)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the signer's user owns, and others can come to."""
    folder = Path(tempfile.mkdtemp(prefix="fl-signer-"))
    os.chown(folder, HOLDER, HOLDER)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def holder(place: Path) -> Iterator[Holder]:
    made = Holder(place, "root")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def site(workspace: Path, holder: Holder) -> Iterator[Site]:
    """A site whose key is the holder's."""
    made = Site.open(create=True, site=SITE, workspace=workspace, signer=str(holder.socket))
    born(made, *(f"job-{n}" for n in range(7)))
    yield made
    made.close()


def test_the_key_is_of_another_user_and_nowhere_in_the_workspace(site: Site, holder: Holder) -> None:
    with sealing(site):
        until(lambda: sealed(site.workspace)["sealed"] >= 7)
        until(lambda: sealed(site.workspace)["signer"] == user_name(HOLDER))
        found = {one.what: one for one in examine(site.workspace.root)}
        assert (found["signing key"].verdict, found["signing key"].found) == ("ok", f"held by {user_name(HOLDER)}")
    assert verified(site).verdict == "SITE-SIGNED"
    key = holder.folder / "key"
    facts = key.stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o600, HOLDER)
    secret = key.read_text().split()[-1].encode()
    assert not any(secret in path.read_bytes() for path in site.workspace.root.rglob("*") if path.is_file())
    told = subprocess.run(
        [sys.executable, "-P", "-c", f"import os; os.setuid({STRANGER}); open({str(key)!r})"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PermissionError" in told.stderr


def test_only_the_sites_user_has_anything_signed(place: Path, workspace: Path) -> None:
    holder = Holder(place, pwd.getpwuid(os.getuid()).pw_name)
    holder.start()
    try:
        ask = f"import os; os.setuid({STRANGER})\n" + (
            "from engine.status.sockets import UnixConnection; from pathlib import Path\n"
            f"c = UnixConnection(Path({str(holder.socket)!r}), 5); c.request('POST', '/rotate?log=a/b/c')\n"
            "a = c.getresponse(); print(a.status, a.read().decode())"
        )
        ask = f"import engine.status.sockets, http.client\n{ask}"
        told = subprocess.run([sys.executable, "-P", "-c", ask], capture_output=True, text=True, check=True)
        assert told.stdout.startswith("403")
        assert f"uid:{STRANGER} may not" in told.stdout
        for name in ("", "a/b/c", "flightlog/site 1/ab", "flightlog/site-1"):
            with pytest.raises(HistoryBroken, match="names no log"):
                Custody(holder.socket, name).chain()
        assert not (holder.folder / "key").exists()
        custody = Custody(holder.socket, "flightlog/site-1/ab")
        assert len(custody.chain()) == 1
        with pytest.raises(HistoryBroken, match="a site has a signer of its own"):
            Custody(holder.socket, "flightlog/site-2/cd").chain()
    finally:
        holder.stop()


def test_who_is_the_site_cannot_have_another_history_signed(site: Site, holder: Holder) -> None:
    feed(site, 30)
    seal_now(site)
    before = latest(site.workspace.seal)
    assert before is not None
    # All that the site's user can do: another log, and a seal that knows nothing of the first.
    store = site.jobs.store
    fields = store.client.xrange(store.keys.log)
    for position, _ in fields[5:9]:
        store.client.xdel(store.keys.log, position)
    kept = Keys(site.workspace.seal).chain()
    for name in ("tree", "checkpoint", "notes"):
        path = site.workspace.seal / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    sealer = sealer_of(site)
    custody = sealer.keys.custodian
    assert isinstance(custody, Custody)
    try:
        sealer.begin()
        with pytest.raises(RecordDamaged, match="is missing"):
            sealer.step()
        forged = Checkpoint(before.checkpoint.origin, before.checkpoint.size, b"\1" * 32, before.checkpoint.position)
        with pytest.raises(HistoryBroken, match="another history"):
            sealer.keys.sign(log_name(site.workspace), forged, lambda since: [])
        longer = Checkpoint(before.checkpoint.origin, before.checkpoint.size + 9, b"\1" * 32)
        with pytest.raises(HistoryBroken, match="another history"):
            sealer.keys.sign(log_name(site.workspace), longer, lambda since: [b"\2" * 32])
        shorter = Checkpoint(before.checkpoint.origin, 3, b"\1" * 32)
        with pytest.raises(HistoryBroken, match="has signed"):
            sealer.keys.sign(log_name(site.workspace), shorter, lambda since: [])
        more = f"{shorter.origin}\n{before.checkpoint.size}\nAAAA\nand this, too\n"
        for text in (before.text + "and this, too\n", more, before.text.replace("\n", "\r\n"), "\n"):
            with pytest.raises(HistoryBroken, match="this is no checkpoint"):
                custody._done(*custody._ask("POST", "/sign", asking(0, [], text)))
        other = Checkpoint(f"{log_name(site.workspace)}/9", 3, b"\1" * 32)
        with pytest.raises(HistoryBroken, match="flightlog signer --accept"):
            sealer.keys.sign(log_name(site.workspace), other, lambda since: [])
    finally:
        sealer.close()
    assert Keys(site.workspace.seal).chain() == kept


def test_l7_sealer_and_signer_are_killed_again_and_again_and_sign_one_history(site: Site, holder: Holder) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    signed: dict[int, bytes] = {}
    for turn in range(4):
        before = latest(site.workspace.seal)
        with sealing(site, segment=200, keep=300) as sealer:
            feed(site, 1)
            until(lambda was=before: latest(site.workspace.seal) != was, 60, "it signs nothing")  # it is at work
            for _ in range(8):
                feed(site, 25)
                time.sleep(dice.random() / 20)
            kill((sealer if turn % 2 else holder.process).pid)
            if turn % 2 == 0:
                feed(site, 5)
                until(lambda: "does not answer" in (sealed(site.workspace)["broken"] or ""), 15, "it says nothing")
                holder.kill()
                holder.start()
        for note in kept_notes(site.workspace.seal):
            known = signed.setdefault(note.checkpoint.size, note.checkpoint.root)
            assert known == note.checkpoint.root, f"seed {seed}"
    seal_now(site)
    report = verified(site)
    assert (report.verdict, report.last) == ("SITE-SIGNED", count(site.jobs.store)), f"seed {seed}"


def test_a_crash_between_the_signature_and_the_checkpoint_is_gone_on_from(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_now(site)
    feed(site, 5)
    with monkeypatch.context() as patch:

        def dies(path: Path, text: str) -> None:
            raise KeyboardInterrupt

        patch.setattr("events.seal.write", dies)
        with pytest.raises(KeyboardInterrupt):
            seal_now(site)
    feed(site, 5)
    assert seal_now(site) == count(site.jobs.store)
    assert verified(site).verdict == "SITE-SIGNED"


def test_a_site_hands_its_key_over_and_what_it_signed_stays_valid(workspace: Path, holder: Holder) -> None:
    site = Site.open(create=True, site=SITE, workspace=workspace)
    try:
        born(site, *(f"job-{n}" for n in range(7)))
        seal_now(site)
        first = Keys(site.workspace.seal).verifiers()[0]
    finally:
        site.close()
    env = {"FLIGHTLOG_SIGNER": str(holder.socket)}
    told = flightlog("rotate-key", workspace=workspace, env=env)
    assert told.returncode == 0, told.stderr
    assert not (workspace / ".flightlog" / "seal" / "key").exists()
    second = Verifier.parse((holder.folder / "signers").read_text().split()[0])
    assert Keys(workspace / ".flightlog" / "seal").verifiers() == [first, second]
    assert flightlog("rotate-key", workspace=workspace, env=env).returncode == 0  # the signer's own now
    third = Verifier.parse((holder.folder / "signers").read_text().splitlines()[-1].split()[0])
    assert Keys(workspace / ".flightlog" / "seal").verifiers() == [first, second, third]
    anchored = flightlog("verify", "--key", str(first), workspace=workspace, env=env)
    assert anchored.returncode == 0, anchored.stdout + anchored.stderr
    with_none = flightlog("rotate-key", workspace=workspace)
    assert with_none.returncode != 0
    assert "FLIGHTLOG_SIGNER" in with_none.stderr
    made = Site.open(workspace=workspace)
    try:
        rotations = [event.body for event in read(made.jobs.store) if event.type == "KeyRotated"]
        assert [one["new"] for one in rotations] == [str(second), str(third)]
    finally:
        made.close()


def test_a_site_that_is_restored_goes_on_once_the_keys_holder_accepts_its_epoch(
    site: Site, holder: Holder, tmp_path: Path
) -> None:
    seal_now(site)
    backup(site, tmp_path / "b.tar.zst")
    feed(site, 20)
    seal_now(site)
    last = latest(site.workspace.seal)
    head = unpack(tmp_path / "b.tar.zst", tmp_path / "back")
    back = Site.open(finishing=True, workspace=tmp_path / "back", signer=str(holder.socket))
    try:
        restored(back, new_call(), head, "a drill", last)
        with pytest.raises(HistoryBroken, match="flightlog signer --accept"):
            seal_now(back)
        holder.accept(f"{log_name(back.workspace)}/2")
        seal_now(back)
        report = verified(back)
        assert report.verdict == "SITE-SIGNED"
        assert len(report.losses) == 1
    finally:
        back.close()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("signer", "--for", "nobody-of-this-name"), "--for"),
        (("signer", "--accept", "that-one"), "--accept"),
        (("witness", "--accept", "a/b/c"), "--accept"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_name(words: tuple[str, ...], field: str, tmp_path: Path) -> None:
    told = flightlog(*words, "--folder", str(tmp_path / "there"), workspace=tmp_path)
    assert told.returncode == 2
    assert field in told.stderr


def test_what_lies_where_the_socket_is_to_be_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("dear aunt")
    told = flightlog(
        "signer", "--folder", str(tmp_path / "there"), "--socket", str(tmp_path / "letters"), workspace=tmp_path
    )
    assert told.returncode != 0
    assert "no socket" in told.stderr
    assert (tmp_path / "letters").read_text() == "dear aunt"


@pytest.mark.parametrize("kind", ["signer", "witness"])
def test_two_on_one_folder_are_one_too_many(kind: str, tmp_path: Path) -> None:
    words = [sys.executable, "-P", "-m", "engine.cli", kind, "--folder", str(tmp_path / "there")]
    more = ["--port", "0"] if kind == "witness" else []
    first = subprocess.Popen([*words, *more], stderr=subprocess.PIPE, text=True)
    try:
        assert first.stderr is not None
        first.stderr.readline()
        second = subprocess.run([*words, *more], capture_output=True, text=True, timeout=30, check=False)
        assert second.returncode != 0
        assert f"another {kind} serves" in second.stderr
    finally:
        first.terminate()
        first.communicate(timeout=10)
