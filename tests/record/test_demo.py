"""The demo's record: verified, carried away, replayed, opened as a page, by what the README says can be typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_readme import block, environment, place

__all__ = ["place"]


@pytest.mark.timeout(240)
def test_the_demo_ends_with_a_changed_copy_found_and_its_record_is_carried_away(place: Path) -> None:
    env = environment()
    env.pop("FLIGHTLOG_SEAL", None)
    flightlog = Path(sys.executable).parent / "flightlog"
    demo = subprocess.run(
        [str(flightlog), "demo", "--sites", "2", "--rounds", "2"],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert demo.returncode == 0, demo
    assert "WITNESSED site-1" in demo.stdout
    assert "cosigned by server" in demo.stdout
    named = r"DAMAGED changed\.jsonl.*\n +event (\d+): what is to be read of event \d+-(\d+) is not what is stored"
    found = re.search(named, demo.stdout)
    assert found, demo.stdout
    assert found[1] == found[2], "the event that was changed is the first that is named"
    assert "was cut" not in demo.stdout
    script = [line[2:].partition("  #")[0] for line in block("console", "flightlog import").splitlines()]
    told = subprocess.run(
        ["bash", "-ec", "\n".join(script)],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told
    assert told.stdout.count("WITNESSED: site-1") == 2
    assert re.search(r"^WITNESSED: \d+ events verify", told.stdout, re.MULTILINE), "the one-file verifier agrees"
    roots = re.findall(r"root ([0-9a-f]{64})", told.stdout)
    assert len(roots) == 1
    assert "breast-cancer" in (place / "bundle" / "index.html").read_text()
    assert "finished" in told.stdout
