"""``python -P -m engine.job --grant FD``: one run of a job, launched by a keeper."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from engine.constants import ExitCode
from engine.job.grant import Grant
from engine.job.process import JobProcess


def main(argv: list[str] | None = None) -> int:
    """Run the job that the grant names."""
    parser = argparse.ArgumentParser(prog="python -P -m engine.job", description=__doc__)
    parser.add_argument("--grant", type=int, required=True, help="descriptor on which the launcher left the grant")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        grant = Grant.read(args.grant)
    except (OSError, ValueError, TypeError) as error:
        print(
            f"there is no grant on descriptor {args.grant} ({error}): a job is launched by its site", file=sys.stderr
        )
        return 2
    process = JobProcess(grant)
    try:
        code = process.run()
    except Exception:
        logging.getLogger("flightlog.job").exception("the job ends")
        code = process.ends_with(ExitCode.EXCEPTION)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # a thread of the app's own is not waited for


if __name__ == "__main__":
    sys.exit(main())
