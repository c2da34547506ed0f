"""``python -P -m benchmarks [group ...]``: measure, print one table, write the samples to ``results/``."""

from __future__ import annotations

import argparse
import sys
import time

from rich.console import Console

from benchmarks import append, calls, evidence, harness, messages, pages, replay, site, status, streams

GROUPS = {
    "append": append.run,
    "replay": replay.run,
    "calls": calls.run,
    "messages": messages.run,
    "streams": streams.run,
    "site": site.run,
    "status": status.run,
    "pages": pages.run,
    "record": evidence.run,
}


def main(argv: list[str] | None = None) -> int:
    """Run some groups or all; always 0, since a goal missed on a busy machine proves little."""
    parser = argparse.ArgumentParser(prog="python -P -m benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="group", help=f"of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--no-write", action="store_true", help="print only; leave results/ and README.md alone")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.groups) - set(GROUPS))
    if unknown:
        parser.error(f"no group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    notes = Console(stderr=True)
    results = []
    for name, run in GROUPS.items():
        if args.groups and name not in args.groups:
            continue
        began = time.monotonic()
        results.append(run(notes))
        notes.print(f"{name}: {time.monotonic() - began:.0f} s")
    Console().print(harness.table(results))
    if not args.no_write:
        for result in results:
            harness.write(result)
        harness.write_readme(GROUPS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
