"""What the benchmarks share: where they ran, how fast this disk and this pyarrow are, and how a table looks."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

console = Console(width=132, highlight=False)

_TURN_BYTES = 2_000  # about what one turn of the driver's loop writes to a file


def print_place(folder: Path, packages: Sequence[str]) -> None:
    """Versions, cores and load: a figure means nothing without them."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # run from a checkout that is not installed
            found.append(f"{package} (not installed)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    console.print(", ".join(found))
    console.print(f"{platform.system()} {platform.machine()}, {cores} cores, {load()}; files in {folder}")


def load() -> str:
    """How many processes wanted a core in the last minute: on a busy machine every figure is a lower bound."""
    return f"load {os.getloadavg()[0]:.1f}"


class Disk:
    """Small appends to a growing file, each made durable: what any journal must wait for.

    On a disk that others use too this changes by the second: measure it between what it is compared with.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "fsyncs", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        self.took_s: list[float] = []

    def sync(self) -> float:
        """One append; how many seconds it took."""
        begun = time.perf_counter()
        os.write(self._file, b"x" * _TURN_BYTES)
        os.fsync(self._file)
        self.took_s.append(time.perf_counter() - begun)
        return self.took_s[-1]

    def sync_for(self, seconds: float) -> float:
        """Appends one after the other for so long; how many there were per second."""
        first, begun = len(self.took_s), time.perf_counter()
        while time.perf_counter() - begun < seconds:
            self.sync()
        return (len(self.took_s) - first) / (time.perf_counter() - begun)


def middle(samples: Sequence[float]) -> str:
    """What was measured several times: the median, and the least and most."""
    found = number(statistics.median(samples))
    return found if len(samples) == 1 else f"{found} ({number(min(samples))} to {number(max(samples))})"


def number(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.2g}"


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %"


def table(title: str, *columns: str) -> Table:
    """An empty table whose first column is text and whose others are figures."""
    made = Table(
        title=title, title_justify="left", title_style="bold", header_style="", box=SIMPLE_HEAD, pad_edge=False
    )
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place == 0 else "right", no_wrap=place == 0)
    return made


Rows = Sequence[Sequence[str]]
"""A table: its heads, and below them rows whose first entry is text."""


def print_rows(title: str, rows: Rows) -> None:
    made = table(title, *rows[0])
    for row in rows[1:]:
        made.add_row(*row)
    console.print(made)


def markdown(rows: Rows) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| --- |" + " ---: |" * (len(rows[0]) - 1))
    return "\n".join(lines)


def write(path: Path, parts: Mapping[str, str]) -> None:
    """Put each part between its markers, ``<!-- name -->`` and ``<!-- /name -->``."""
    text = path.read_text(encoding="utf-8")
    for name, part in parts.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert pattern.search(text), f"{path} has no place for {name}"
        text = pattern.sub(lambda found, part=part: f"{found[1]}\n{part}\n\n{found[2]}", text)
    path.write_text(text, encoding="utf-8")
