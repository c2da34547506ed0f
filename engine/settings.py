"""Settings of a site: arguments first, then ``FLIGHTLOG_*`` from the environment, then these defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.connection import parse_url

from engine.errors import ArgumentInvalid
from events.bodies.app import Network


class Settings(BaseSettings):
    """What a site runs with. Times are seconds."""

    model_config = SettingsConfigDict(env_prefix="FLIGHTLOG_", extra="ignore", frozen=True)

    site: str = Field(default="", description="the site's name; a workspace remembers its own")
    workspace: Path = Field(default=Path("flightlog-site"), description="folder of the site")
    record_url: str = Field(default="", description="server of the log; empty: an embedded one")
    fabric_url: str = Field(default="", description="server of RQ and messages; empty: embedded")
    workers: int = Field(default=5, description="worker processes of the pool")
    pool: Literal["own", "elsewhere"] = Field(
        default="own", description="own: the engine supervises a pool; elsewhere: it runs by itself"
    )
    durability: Literal["everysec", "always"] = Field(default="everysec", description="fsync of the embedded record")
    deploy_timeout: float = Field(default=8, gt=0, description="how long deploy_app waits (the server waits 10)")
    start_timeout: float = Field(default=15, gt=0, description="how long start_app waits (the server waits 20)")
    abort_timeout: float = Field(default=1.5, ge=0, description="how long abort_app waits (the server waits 2)")
    delete_timeout: float = Field(default=8, gt=0, description="how long delete_run waits")
    network: Network = Field(
        default="open", description="of apps; none: nothing but a loopback of its own. A start can only tighten it"
    )
    grace: float = Field(default=10, ge=0, description="between the polite signal and the kill")
    lease: float = Field(default=15, gt=0, description="a claim that is not renewed lapses after this")
    claim_deadline: float = Field(default=60, gt=0, description="work that nobody claims expires after this")
    started_deadline: float = Field(
        default=60, gt=0, description="an app that is to say that it has started, and does not, is aborted"
    )
    finishing_deadline: float = Field(
        default=60, gt=0, description="an app that said it is over, and whose process stays, is aborted"
    )
    reconcile_every: float = Field(default=5, gt=0, description="between looks for work that needs a bell")
    worker_ttl: int = Field(default=20, ge=16, description="a worker's heartbeat; RQ waits 15 less for a job")
    task_timeout: int = Field(default=120, gt=0, description="one task, before RQ ends it")
    attempts: int = Field(default=3, ge=1, description="claims of one piece of work")
    cell_wait: float = Field(default=5, ge=0, description="how long a send waits for the engine to get its cell")
    job_query_timeout: float = Field(default=5, gt=0, description="how long a question to a job's process waits")
    forget_deadline: float = Field(
        default=60, gt=0, description="a message that expects no answer is to be in its inbox within this"
    )
    payload_max: int = Field(default=16 * 2**20, gt=0, description="bytes of one message")
    inbox_max: int = Field(
        default=10_000, gt=0, description="messages that wait in one inbox; further ones are refused"
    )
    lane_lease: float = Field(default=5, gt=0, description="a worker that stalls over a lane loses it after this")
    lane_turn: float = Field(default=0.05, gt=0, description="a lane makes way for the others after this")
    lane_linger: float = Field(
        default=0.003, ge=0, description="an empty lane is watched this long before it is left"
    )
    stream_window: int = Field(
        default=16, ge=1, le=1024, description="objects of one stream that may be on their way at once"
    )
    stream_window_bytes: int = Field(
        default=16 * 2**20, gt=0, description="bytes that all streams of a process may have on their way at once"
    )
    stream_stall: float = Field(
        default=60, gt=0, description="seconds without an acknowledged object, after which a target is given up"
    )
    stream_logs: Literal["off", "errors", "live"] = Field(
        default="off",
        description="what the server is sent of jobs' logs: nothing, errors at the end, or all as it grows too",
    )
    federation: str = Field(default="", description="address of the server to join; empty: the site is by itself")
    usage_every: float = Field(
        default=3, gt=0, description="between two looks at what an app's processes use; rarer as it gets older"
    )
    api: Literal["on", "off"] = Field(default="on", description="whether `flightlog up` serves the status API")
    api_host: str = Field(default="127.0.0.1", description="address that the status API listens on")
    api_port: int = Field(
        default=8787, ge=0, le=65_535, description="its port; 0: any free one. Not given, and taken: the next"
    )
    api_hosts: str = Field(
        default="", description="further names under which it is asked for, with commas between; others are refused"
    )
    api_anonymous: Literal["viewer", "none"] = Field(
        default="viewer", description="what a caller from this host may do without a token; from elsewhere: nothing"
    )
    api_body_max: int = Field(default=256 * 2**20, gt=0, description="bytes of an app that comes in through the API")
    seal: Literal["on", "off"] = Field(default="on", description="whether `flightlog up` seals the log")
    seal_every: float = Field(default=1, gt=0, description="between two looks for what is to be sealed")
    signer: str = Field(
        default="",
        description="unix socket of the signer that holds the site's key, as another user; empty: the site",
    )
    keep: int = Field(
        default=100_000, ge=100, description="events that stay in Redis; older ones, once sealed, are on disk only"
    )
    segment: int = Field(default=5_000, ge=10, description="events of one file of history")
    witness: str = Field(default="", description="addresses of witnesses, with commas between")
    witness_every: float = Field(default=300, gt=0, description="between two checkpoints that a witness is sent")
    record_memory: int = Field(
        default=0, ge=0, description="bytes that the embedded record may use; 0: what the host has"
    )
    room_warn: float = Field(default=0.8, gt=0, le=1, description="part of memory or disk from which on it is said")
    room_full: float = Field(
        default=0.9, gt=0, le=1, description="part from which on new work is refused; the rest is for outcomes"
    )
    retention: float = Field(
        default=0, ge=0, description="days after its end for which a job may not be erased; 0: none"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="how processes write their own logs")
    launcher: Literal["pool", "elsewhere"] = Field(
        default="pool", description="who launches apps: any pool, or only one that was started as the launcher"
    )
    zip_files: int = Field(default=10_000, gt=0, description="entries of an app's archive")
    zip_bytes: int = Field(default=512 * 2**20, gt=0, description="unpacked bytes of an app")
    zip_ratio: int = Field(default=200, gt=0, description="unpacked bytes per packed byte")

    @field_validator("record_url", "fabric_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if url:
            parse_url(url)  # type: ignore[no-untyped-call] # its ValueError says what is wrong
        return url

    def environment(self) -> dict[str, str]:
        """The same settings as variables, for a process that we start: a URL may hold a password."""
        return {f"FLIGHTLOG_{name.upper()}": str(value) for name, value in self.model_dump().items()}


def settings(**given: Any) -> Settings:
    """Settings from arguments (None: not given), the environment and the defaults.

    Raises:
        ArgumentInvalid: names the field, its value and what is expected.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        # A URL may hold a password, so it is not said again.
        given_value = "not a URL" if name.endswith("_url") else repr(first["input"])
        raise ArgumentInvalid(
            f"{name} is {given_value}: {first['msg'].lower()}",
            f"set {name}, or FLIGHTLOG_{name.upper()}, to what is expected",
            field=name,
        ) from error
