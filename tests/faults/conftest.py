"""The rig as a fixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.rig import Rig


@pytest.fixture
def rig(workspace: Path, tmp_path: Path) -> Iterator[Rig]:
    """A site that is up in a process of its own once ``start`` is called."""
    made = Rig(workspace, tmp_path)
    yield made
    made.stop()
