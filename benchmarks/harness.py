"""What the groups share: alternating blocks, a server in a temporary folder, the table, the files."""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from engine.server import EmbeddedServer
from engine.workspace import Workspace
from events.store import Store, connect

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE / "README.md"
TABLE_BEGIN, TABLE_END = "<!-- table: written by the last run -->", "<!-- end of table -->"
COLUMNS = ("what", "ours", "against", "ratio or figure", "goal", "met")
SITE = "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. ``met`` is None where there is no goal."""

    what: str
    ours: str
    against: str = ""
    figure: str = ""
    goal: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """The line's texts, in the order of COLUMNS."""
        met = "" if self.met is None else "yes" if self.met else "NO"
        return self.what, self.ours, self.against, self.figure, self.goal, met


@dataclass(slots=True)
class Result:
    """What a group measured: rows for people, samples for whoever doubts them."""

    group: str
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def keep(self, name: str, values: Iterable[float]) -> list[float]:
        """Keep samples, rounded to four digits; gives them back as they were."""
        kept = list(values)
        self.samples[name] = [float(f"{value:.4g}") for value in kept]
        return kept

    def add(self, row: Row) -> None:
        """Add a line."""
        self.rows.append(row)


# -- measuring -----------------------------------------------------------------------------


def alternating(blocks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each block in each round.

    All blocks run in every round, so that whatever slows the machine down slows all of them; each
    round begins with another one, so that none profits from its place.
    """
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    names = list(blocks)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            began = time.perf_counter()
            blocks[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratios(ours: Sequence[float], against: Sequence[float]) -> list[float]:
    """Ours by the other's, round by round."""
    return [a / b for a, b in zip(ours, against, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest sample at this share of the sorted ones."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """``median [min-max]``."""
    return f"{show(statistics.median(values))} [{show(min(values))}-{show(max(values))}]"


def per_second(value: float) -> str:
    """``12.3k`` for rates."""
    return f"{value / 1000:.0f}k" if value >= 100_000 else f"{value / 1000:.1f}k"


def millis(seconds: float) -> str:
    """Seconds as ms."""
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def two(value: float) -> str:
    """A ratio."""
    return f"{value:.2f}"


def kilo(value: float) -> str:
    """Bytes."""
    return f"{value / 1000:.1f} kB" if value >= 1000 else f"{value:.0f} B"


# -- what is measured on --------------------------------------------------------------------


@contextmanager
def scratch() -> Iterator[Path]:
    """A short-named folder with sockets and data; nothing of it, and no process of it, stays."""
    folder = Path(tempfile.mkdtemp(prefix="fl-bench-"))
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("FLIGHTLOG_")}
    os.environ["FLIGHTLOG_RUNTIME_DIR"] = str(folder / "run")
    try:
        yield folder
    finally:
        for pid in _processes_of(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        del os.environ["FLIGHTLOG_RUNTIME_DIR"]
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: Path) -> list[int]:
    """Pids that carry the folder in their command line or environment; ours does not."""
    marker, found = os.fsencode(folder), []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                about = Path(f"/proc/{name}")
                if marker in (about / "cmdline").read_bytes() + (about / "environ").read_bytes():
                    found.append(int(name))
    return found


@contextmanager
def record() -> Iterator[Callable[[str], Store]]:
    """A record server of our own; gives a maker of stores, all on one connection."""
    with scratch() as folder:
        server = EmbeddedServer(Workspace.prepare(folder / "site", SITE), "record")
        server.ensure()
        client = connect(server.url)
        try:
            yield lambda site: Store(client, site)
        finally:
            client.close()
            server.stop()


def machine(store: Store) -> dict[str, Any]:
    """What the numbers depend on; neither paths nor host names."""
    info = store.client.info("server")
    valkey = info.get("valkey_version")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "time": time.strftime("%H:%M UTC", time.gmtime()),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "server": f"valkey {valkey}" if valkey else f"redis {info['redis_version']}",
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


# -- telling ---------------------------------------------------------------------------------


def table(results: Sequence[Result]) -> Table:
    """All rows in one table."""
    shown = Table(title=Text("Flightlog: median [min-max] of blocks"), title_justify="left")
    for name in COLUMNS:
        shown.add_column(name, overflow="fold")
    for result in results:
        for row in result.rows:
            style = "bold red" if row.met is False else ""
            shown.add_row(*map(Text, (f"{result.group}: {row.what}", *row.cells()[1:])), style=style)
        shown.add_section()
    return shown


def write(result: Result) -> None:
    """Write a group's rows and samples to ``results/<date>-<group>.json``."""
    RESULTS.mkdir(exist_ok=True)
    value = {
        "group": result.group,
        "machine": result.machine,
        "rows": [dict(zip(COLUMNS, row.cells(), strict=True)) for row in result.rows],
        "samples": result.samples,
    }
    lines = ",\n".join(
        f'  "{key}": ' + (_lines(part) if isinstance(part, dict | list) else json.dumps(part))
        for key, part in value.items()
    )
    (RESULTS / f"{result.machine['date']}-{result.group}.json").write_text(f"{{\n{lines}\n}}\n")


def _lines(value: dict[str, Any] | list[Any]) -> str:
    """One item a line: short files, and diffs that can be read."""
    if isinstance(value, dict):
        parts, ends = [f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()], "{}"
    else:
        parts, ends = [json.dumps(item) for item in value], "[]"
    return f"{ends[0]}\n    " + ",\n    ".join(parts) + f"\n  {ends[1]}"


def write_readme(groups: Iterable[str]) -> None:
    """Put the newest results of every group into the README's table."""
    lines: list[str] = []
    for group in groups:
        files = sorted(RESULTS.glob(f"????-??-??-{group}.json"))
        if not files:
            continue
        value = json.loads(files[-1].read_text())
        about = value["machine"]
        lines += [
            "",
            f"**{group}**, {about['date']} {about['time']}, commit {about['commit'] or 'none'}; {about['cpu']}, "
            f"{about['cores']} cores, Linux {about['kernel']}, Python {about['python']}, {about['server']}, "
            f"load {about['load'][0]}",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|" + "---|" * len(COLUMNS),
        ]
        lines += ["| " + " | ".join(row[name] for name in COLUMNS) + " |" for row in value["rows"]]
    text = README.read_text()
    before, _, rest = text.partition(TABLE_BEGIN)
    _, _, after = rest.partition(TABLE_END)
    README.write_text(f"{before}{TABLE_BEGIN}\n" + "\n".join(lines) + f"\n\n{TABLE_END}{after}")
