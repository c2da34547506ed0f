"""What a person sees of it: the rounds as they come, who did how well, and what left each site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table

from engine.cli.output import out, text

if TYPE_CHECKING:
    from baselines import Baselines
    from fedavg import Round
    from models import Model


class LiveRounds:
    """A table that grows by a row per round.

    ``with LiveRounds(10, baselines.accuracy) as live: FedAvg(10, live.add).run(job)``

    Where no person looks on, at a pipe or a file, it is printed once, at the end.

    Args:
        rounds: how many there will be.
        evaluate: gives the accuracy of weights on the held-out rows.
        console: where it goes.
    """

    def __init__(self, rounds: int, evaluate: Callable[[dict[str, Any]], float], console: Console = out) -> None:
        self._total, self._evaluate, self._console = rounds, evaluate, console
        self._rows: list[tuple[str, ...]] = []
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()
        if self._rows:
            self._console.print(self._table(self._rows))

    def add(self, row: Round, weights: dict[str, Any]) -> None:
        """Show a round. Made to be FedAvg's ``on_round``."""
        failed = ", ".join(f"{site}: {code}" for site, code in row.failed.items())
        told = f"{len(row.answered)} of {len(row.answered) + len(row.failed)}"
        self._rows.append(
            (
                f"{row.number}/{self._total}",
                told + (f", [yellow]{text(failed)}[/]" if failed else ""),
                f"{row.loss:.3f}",
                _percent(row.accuracy),
                _percent(self._evaluate(weights)),
                f"{row.seconds:.2f}",
            )
        )
        room = max(1, self._console.height - 4)  # what does not fit on the screen cannot be drawn again
        self._live.update(self._table(self._rows[-room:]), refresh=True)

    def _table(self, rows: Sequence[tuple[str, ...]]) -> Table:
        table = _table("ROUND", "ANSWERED", ">LOSS", ">AT THE SITES", ">HELD OUT", ">SECONDS")
        for row in rows:
            table.add_row(*row)
        return table


def results(compared: Baselines, federated: float, console: Console = out) -> None:
    """Each site alone, the federation, and all rows in one place.

    Args:
        compared: what ``baselines`` gave.
        federated: the accuracy of the federation's weights, measured like the others.
        console: where it goes.
    """
    rows = sum(site.samples for site in compared.alone)
    malignant = sum(site.samples * site.malignant for site in compared.alone) / rows
    table = _table("TRAINED", ">ROWS", ">MALIGNANT", ">ACCURACY")
    for site in compared.alone:
        table.add_row(f"{text(site.site)} alone", str(site.samples), f"{site.malignant:.0%}", _percent(site.accuracy))
    table.add_row("[bold]federated[/]", str(rows), f"{malignant:.0%}", f"[bold]{_percent(federated)}[/]")
    table.add_row("all in one place", str(rows), f"{malignant:.0%}", _percent(compared.centralised))
    console.print(table)
    console.print(f"Accuracy: on {compared.held_out} held-out rows, which no site has.")


def streamed(kept: Iterable[Model], folder: str, console: Console = out) -> None:
    """The models that came as streams.

    Args:
        kept: of all sites.
        folder: where they are.
        console: where it goes.
    """
    table = _table("SITE", ">ARRAYS", ">NUMBERS", "FILE")
    for model in sorted(kept):
        table.add_row(text(model.site), str(model.arrays), str(model.numbers), text(f"{folder}/{model.path.name}"))
    console.print(table)


def sent(by_site: Mapping[str, Sequence[Mapping[str, Any]]], console: Console = out) -> None:
    """What left each site.

    Args:
        by_site: the site's name, and its rows of ``target``, ``topic``, ``job``, ``messages`` and ``bytes``.
        console: where it goes.
    """
    table = _table("SITE", "TO", "TOPIC", "JOB", ">MESSAGES", ">BYTES")
    for site, rows in by_site.items():
        for row in rows:
            words = (site, row["target"], row["topic"], row["job"])
            table.add_row(*map(text, words), str(row["messages"]), decimal(row["bytes"]))
        messages, size = (sum(row[name] for row in rows) for name in ("messages", "bytes"))
        table.add_row(text(site), "[bold]in all[/]", "", "", f"[bold]{messages}[/]", f"[bold]{decimal(size)}[/]")
    console.print(table)


def _percent(part: float) -> str:
    return f"{part:.1%}"


def _table(*columns: str) -> Table:
    """A table; a column with ``>`` before its name is one of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if number else "left", no_wrap=number)
    return table
