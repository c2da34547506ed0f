"""A workspace whose disk is full, end to end: the record lies elsewhere, so that it can tell (L9)."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.archive import pack
from engine.errors import DiskFull
from engine.server import EmbeddedServer
from engine.workspace import Workspace
from events.store import connect
from tests.support import SITE, check_record, kill, make_app, opened, processes_with, ready, types_of, zip_of

MB = 2**20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)], check=True)
    yield folder
    for _ in range(50):
        left = processes_with(str(folder))
        if not left:
            break
        for pid in left:
            kill(pid)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_L9_a_deploy_that_finds_the_disk_full_says_so_and_the_old_app_stays(
    small: Path, tmp_path: Path, real_server: EmbeddedServer
) -> None:
    noise = random.Random(1)
    fabric = EmbeddedServer(Workspace.prepare(tmp_path / "fabric", "fabric"), "fabric")
    fabric.ensure()
    urls = {"record_url": real_server.url, "fabric_url": fabric.url}
    try:
        record = connect(real_server.url)
        record.flushdb()
        record.close()
        with opened(small / "ws", **urls) as engine:
            ready(engine)
            assert engine.deploy_app("small", "job", {}, SITE, zip_of(tmp_path / "a", "true")) == ""
            receipt = engine.site.workspace.receipt("job")
            # It fits as an archive, and not once it is unpacked beside it.
            big = make_app(tmp_path / "big", "true")
            (big / "data.bin").write_bytes(noise.randbytes(5 * MB))
            with pytest.raises(DiskFull, match="free some"):
                engine.deploy_app("big", "job", {}, SITE, pack(big))
            assert engine.site.jobs.load("job").state.state == "deployed"
            assert engine.site.workspace.receipt("job") == receipt
            assert not list(engine.site.workspace.staging.iterdir())
            # It does not even fit as an archive: refused before the intent.
            (big / "more.bin").write_bytes(noise.randbytes(5 * MB))
            with pytest.raises(DiskFull, match="free some"):
                engine.deploy_app("big", "other", {}, SITE, pack(big))
            assert not engine.site.jobs.load("other").known
            assert types_of(engine.site.jobs.store, "job").count("DeployFailed") == 1
            assert engine.start_app("job", {}) == "Start the client app..."
            check_record(engine.site.jobs.store)
    finally:
        fabric.stop()
