"""``python -P -m engine.healthy PART``: whether a part of a site does its work; for health checks, which ask often.

Parts: ``engine``, ``launcher``, ``workers``, ``api``, or ``site`` for one that is all of them; ``signer`` for whoever
holds a site's key, at the socket that FLIGHTLOG_SIGNER names.
"""

from __future__ import annotations

import argparse
import http.client
import sys
from pathlib import Path
from urllib.parse import urlsplit

import redis

from engine.files import read_json
from engine.overview import caretaker_seen, workers
from engine.owner import owner_of
from engine.settings import settings
from engine.site import Site
from engine.status.sockets import UnixConnection
from engine.workspace import Workspace, host_name
from events.errors import FlightlogError

PATIENCE = 5.0  # seconds


def engine_up(workspace: Workspace) -> str:
    """What is wrong with the engine; empty: nothing."""
    owner = owner_of(workspace)
    return "" if owner is not None and owner["purpose"] in ("up", "unknown") else "nobody has the site up"


def launcher_up(workspace: Workspace) -> str:
    """What is wrong with whoever looks after the apps."""
    seen = caretaker_seen(workspace)
    return "" if seen.startswith("looked") else f"caretaker: {seen}"


def workers_up(workspace: Workspace) -> str:
    """What is wrong with the workers of this host."""
    site = Site.open(workspace=workspace.root, join=False)
    try:
        here = [worker for worker in workers(site) if worker["host"] == host_name()]
    finally:
        site.close()
    return "" if here else f"no worker of {host_name()} is there"


def api_up(workspace: Workspace) -> str:
    """What is wrong with the API, or with what it says of the site."""
    known = read_json(workspace.flight / "api.json")
    if known is None:
        return "nobody serves the API"
    url = urlsplit(known["url"])
    connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=PATIENCE)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except OSError as error:
        return f"the API does not answer: {error}"
    finally:
        connection.close()
    return "" if answer.status == 200 else f"not ready: {text[:500]}"


def signer_up(path: Path) -> str:
    """What is wrong with a signer."""
    connection = UnixConnection(path, PATIENCE)
    try:
        connection.request("GET", "/livez")
        return "" if connection.getresponse().status == 200 else "it is no signer"
    except (OSError, http.client.HTTPException) as error:
        return f"the signer at {path} does not answer: {error}"
    finally:
        connection.close()


PARTS = {
    "engine": (engine_up,),
    "launcher": (launcher_up,),
    "workers": (workers_up,),
    "api": (api_up,),
    "site": (engine_up, launcher_up, workers_up, api_up),
}


def main(argv: list[str] | None = None) -> int:
    """0: it does; 1: it does not, and what is wrong."""
    parser = argparse.ArgumentParser(prog="python -P -m engine.healthy", description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "signer"])
    args = parser.parse_args(argv)
    try:
        if args.part == "signer":
            checks = [signer_up(Path(settings().signer))]
        else:
            workspace = Workspace.find(settings().workspace)
            checks = [check(workspace) for check in PARTS[args.part]]
        wrong = [text for text in checks if text]
    except (FlightlogError, redis.RedisError) as error:
        wrong = [str(error)]
    print("; ".join(wrong) or "healthy")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
