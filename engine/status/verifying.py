"""Verification for the page *Audit*, as a process of its own: what was found, as JSON; who began it records that."""

from __future__ import annotations

import json
import sys

from engine.record.sources import site_source
from engine.record.verify import Verification
from engine.settings import settings
from engine.site import Site
from events.errors import FlightlogError


def main() -> int:
    """Verify the site that the environment names."""
    try:
        site = Site.open(workspace=settings().workspace)
        try:
            report = Verification(site_source(site)).run()
        finally:
            site.close()
    except FlightlogError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(report.as_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
