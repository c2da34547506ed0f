"""A bare FastAPI route beside ours, in a process of its own: ``python -P -m benchmarks.bare URL PREFIX``.

It answers with the fields of a job's projection, one ``HGETALL``, and knows nothing of who asks, versions, attempts
or what may be asked next. It says its port, and ends with its input.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
from typing import cast

import redis
import redis.asyncio
import uvicorn
from fastapi import FastAPI


def build(url: str, prefix: str) -> FastAPI:
    """The application: the same answer from an ``async def`` route, and from a plain one in the thread pool."""
    app = FastAPI(openapi_url=None)
    waiting = redis.asyncio.Redis.from_url(url, decode_responses=True, protocol=2, driver_info=None)
    blocking = redis.Redis.from_url(url, decode_responses=True, protocol=2, driver_info=None)

    @app.get("/async/{job}")
    async def job_async(job: str) -> dict[str, str]:
        return cast("dict[str, str]", await waiting.hgetall(f"{prefix}{job}"))

    @app.get("/sync/{job}")
    def job_sync(job: str) -> dict[str, str]:
        return cast("dict[str, str]", blocking.hgetall(f"{prefix}{job}"))

    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m benchmarks.bare", description=__doc__)
    parser.add_argument("url", help="of the record server")
    parser.add_argument("prefix", help="of the keys of projections")
    args = parser.parse_args()
    app = build(args.url, args.prefix)
    server = uvicorn.Server(
        uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, access_log=False, lifespan="off")
    )
    listening = socket.create_server(("127.0.0.1", 0))

    def end_with_input() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=end_with_input, daemon=True).start()
    print(listening.getsockname()[1], flush=True)
    server.run(sockets=[listening])


if __name__ == "__main__":
    main()
