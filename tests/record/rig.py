"""A site with a sealer, and what tests of the record do with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.archive import pack
from engine.calls.deploy import deploy
from engine.client_engine import ClientEngine
from engine.record.sources import site_source
from engine.record.verify import Verification
from engine.site import Site
from events.envelope import Actor
from tests.histories import body
from tests.support import SITE, in_state, make_app, new_call

ALICE = Actor(id="alice.liddell@ward-7.example", kind="person", auth="token", claimed="Doctor Liddell")
VERIFIER = Path(__file__).parents[2] / "engine" / "record" / "flightlog_verify.py"
SECRETS = ("alice.liddell", "Doctor Liddell", "tumour of Mr Hatter", "ward-7-notes")


@contextmanager
def sealing(site: Site, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A sealer process for a site."""
    process = begin(site, **settings)
    try:
        yield process
    finally:
        process.terminate()
        # It ended in order, or a test ended it.
        assert process.wait(30) in (0, -signal.SIGKILL), (site.workspace.flight / "sealer.log").read_text()[-3000:]


def begin(site: Site, **settings: Any) -> subprocess.Popen[bytes]:
    env = {**os.environ, **site.settings.environment(), "FLIGHTLOG_SEAL_EVERY": "0.05"}
    env |= {f"FLIGHTLOG_{name.upper()}": str(value) for name, value in settings.items()}
    with (site.workspace.flight / "sealer.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "workers", "sealer", "--workspace", str(site.workspace.root)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def run(engine: ClientEngine, job: str, folder: Path, command: str = "echo secret-output", **meta: Any) -> None:
    app = pack(make_app(folder / f"app-{job}", "sh", "-c", command))
    deploy(engine.core, "app", job, meta, SITE, app, timeout=30)
    engine.start_app(job, None)
    in_state(engine.site.jobs, job, "finished")


def verified(site: Site) -> Any:
    report = Verification(site_source(site)).run()
    assert report.problems == []
    return report


def feed(site: Site, number: int, size: int = 0) -> None:
    for index in range(number):
        told = body("CallRefused", message="x" * size) if size else body("CallRepeated")
        site.jobs.note(new_call(), [told], f"job-{index % 7}")


def born(site: Site, *jobs: str) -> None:
    for job in jobs:
        site.jobs.transact(new_call(), job, lambda state: [body("DeployRequested")])


def feed_site(site: Site, number: int) -> None:
    for _ in range(number):
        site.jobs.note(new_call(), [body("WorkRerung")])


def everything(site: Site) -> str:
    """All that lies in the record server, and in our folder: the log on disk, segments, seal, keys."""
    client, kept = site.jobs.store.client, []
    for key in client.scan_iter(count=1000):
        kept.append(str(key))
        kept.append(str(client.execute_command("DUMP", key, NEVER_DECODE=True)))
        kind = client.type(key)
        if kind == "stream":
            kept.append(str(client.xrange(key)))
        elif kind == "hash":
            kept.append(str(client.hgetall(key)))
    for path in site.workspace.flight.rglob("*"):
        if path.is_file() and not path.is_symlink() and "jobs" not in path.relative_to(site.workspace.flight).parts:
            kept.append(path.read_bytes().decode("utf-8", "replace"))
    return "\n".join(kept)


def standalone(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The one-file verifier, by itself."""
    return subprocess.run(
        [sys.executable, "-I", str(VERIFIER), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def parts(bundle: Path) -> dict[str, list[dict[str, Any]]]:
    """What the one-file verifier reads in a bundle."""
    with zipfile.ZipFile(bundle) as archive:
        names = ("proofs.jsonl", "events.jsonl")
        return {name: [json.loads(line) for line in archive.read(name).decode().splitlines()] for name in names}
