"""Is this server one that keeps a log? Asked once per connection, before the first write."""

from __future__ import annotations

import redis

from events.errors import ServerUnsafe

MINIMUM = (7, 0)


def check_server(client: redis.Redis) -> None:
    """Refuse a record server that is too old, could evict keys, or has no append-only file.

    Only INFO is asked: hosted servers forbid CONFIG.

    Raises:
        ServerUnsafe: with the setting to change.
    """
    info = client.info()
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM:
        raise ServerUnsafe(f"the record server is version {version}", "use Redis 7.0 or newer, or Valkey 8 or newer")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise ServerUnsafe(
            f"the record server evicts keys when memory is short (maxmemory-policy is {policy})",
            "CONFIG SET maxmemory-policy noeviction, and the same in its configuration file",
            setting="maxmemory-policy",
        )
    if not int(info.get("aof_enabled", 0)):
        raise ServerUnsafe(
            "the record server has no append-only file, so a restart would lose the log (appendonly is no)",
            "CONFIG SET appendonly yes, and the same in its configuration file",
            setting="appendonly",
        )
    if info.get("role") == "slave":
        raise ServerUnsafe(
            "the record server is a replica and cannot be written to", "name the primary in record_url"
        )
