"""``python -P -m engine.status``: the API's process. Settings come from ``FLIGHTLOG_*``."""

from __future__ import annotations

import argparse
import logging
import sys

from engine.logs import set_up
from engine.site import Site
from events.errors import FlightlogError


def main(argv: list[str] | None = None) -> int:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="python -P -m engine.status", description=__doc__)
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--exactly", action="store_true", help="only the port of the settings, not one of the next")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    args = parser.parse_args(argv)
    set_up(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        from engine.status.server import serve

        return serve(Site.open(workspace=args.workspace), until_eof=args.until_eof, exactly=args.exactly)
    except FlightlogError as error:
        print(error, file=sys.stderr)
        return 6


if __name__ == "__main__":
    sys.exit(main())
