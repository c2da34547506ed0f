"""``python -P -m workers pool|worker|sealer``: the pool with its parent's duties, one more worker, or the sealer.

Settings come from ``FLIGHTLOG_*``.
"""

from __future__ import annotations

import argparse
import logging
import sys

from engine.logs import set_up
from engine.site import Site
from events.errors import FlightlogError


def main(argv: list[str] | None = None) -> int:
    """Run one of them until it is told to end."""
    parser = argparse.ArgumentParser(prog="python -P -m workers", description=__doc__)
    parser.add_argument("what", choices=("pool", "worker", "sealer"))
    parser.add_argument("--workspace", required=True)
    parser.add_argument(
        "--queue", choices=("work", "io", "launch"), default="work", help="worker: deploys and launches, or messages"
    )
    parser.add_argument("--parent", type=int, help="worker: end when this process is our parent no more")
    parser.add_argument("--burst", action="store_true", help="worker: end when the queue is empty")
    parser.add_argument("--until-eof", action="store_true", help="pool, sealer: end when standard input does")
    parser.add_argument("--launcher", action="store_true", help="pool: launch apps and look after them, no more")
    args = parser.parse_args(argv)
    set_up(logging.INFO)
    logging.getLogger("rq").setLevel(logging.WARNING)
    try:
        site = Site.open(
            workspace=args.workspace,
        )
        if args.what == "worker":
            from workers.worker import run_worker

            return run_worker(site, args.queue, burst=args.burst, parent=args.parent)
        if args.what == "sealer":
            from workers.sealer import run_sealer

            return run_sealer(site, until_eof=args.until_eof)
        from workers.pool import Pool

        return Pool(site, until_eof=args.until_eof, launcher=args.launcher).run()
    except FlightlogError as error:
        print(error, file=sys.stderr)
        return 6


if __name__ == "__main__":
    sys.exit(main())
