"""The page about streams: what it shows runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support import kill, processes_with

PAGE = Path(__file__).parents[2] / "docs" / "streams.md"


def test_the_producer_and_the_consumer_of_the_page_run_as_they_stand(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    env = {name: value for name, value in os.environ.items() if not name.startswith("FLIGHTLOG_")}
    env["FLIGHTLOG_RUNTIME_DIR"] = os.environ["FLIGHTLOG_RUNTIME_DIR"]
    try:
        said = subprocess.run(
            [sys.executable, "-P", "-c", "\n".join(blocks)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        for pid in processes_with(str(tmp_path)):
            kill(pid)
    assert said.returncode == 0, said.stderr
    assert sorted(said.stdout.splitlines()) == ["7 ['b', 'w'] from site-1", "OK None"]
