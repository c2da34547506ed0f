"""Fixtures of the tests of the record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.site import Site
from tests.support import SITE


@pytest.fixture
def site(workspace: Path) -> Iterator[Site]:
    """A site with servers, and without an engine."""
    made = Site.open(create=True, site=SITE, workspace=workspace)
    yield made
    made.close()
