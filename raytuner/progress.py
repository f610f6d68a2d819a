"""What a person sees of a running study: one live block on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raytuner.events import Over
from raytuner.journal import Row, Said
from raytuner.study import Study
from raytuner.trial import END, State

_LINE_EVERY_S = 5.0
_DRAW_EVERY_S = 0.25
_COLOURS = {
    State.RUNNING: "cyan",
    State.PAUSED: "yellow",
    State.DONE: "green",
    State.STOPPED: "blue",
    State.FAILED: "red",
}


class Progress:
    """Listens to a driver (`raytuner.driver.Listener`) and shows trials by state, the best so far, and the rate.

    ``verbose`` 0: silent; 1: as above; 2: also each trial's end. ``total``: how many trials there will be, if known.
    """

    def __init__(
        self, name: str, study: Study, total: int | None, verbose: int, console: Console | None = None
    ) -> None:
        self._name = name
        self._study = study
        self._total = total
        self._verbose = verbose
        self._console = console or Console()
        self._live: Live | None = None
        self._begun = self._shown = time.monotonic()
        self._reports = 0
        self._over_before = 0

    def __enter__(self) -> Self:
        self._begun = self._shown = time.monotonic()
        self._over_before = self._over()
        if self._verbose and self._console.is_terminal:
            self._live = Live(self._block(), console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(self._block(), refresh=True)
            self._live.stop()
        elif self._verbose:
            self._console.print(self._line(), soft_wrap=True)

    def __call__(self, study: Study, rows: Sequence[Row], said: Sequence[Said]) -> None:
        """A turn was made durable."""
        self._reports += len(said)
        if self._verbose > 1:
            for row in rows:
                if isinstance(row, Over):
                    self._console.print(self._end_of(row), soft_wrap=True, highlight=False, markup=False)
        now = time.monotonic()
        if self._live and now - self._shown >= _DRAW_EVERY_S:
            self._shown = now
            self._live.update(self._block(), refresh=True)
        elif self._verbose and not self._live and now - self._shown >= _LINE_EVERY_S:
            self._shown = now
            self._console.print(self._line(), soft_wrap=True)

    def _end_of(self, over: Over) -> str:
        entry = self._study.ledger[over.trial]
        metric = self._study.objective.metric
        value = f", {metric} {_short(entry.metrics[metric])}" if metric and metric in entry.metrics else ""
        return f"trial {over.trial} {over.state.value} at step {entry.step}{value}: {over.why.value}"

    def _over(self) -> int:
        return sum(count for state, count in self._study.ledger.counts().items() if state.over)

    def _facts(self) -> dict[str, str]:
        elapsed = max(time.monotonic() - self._begun, 1e-9)
        over = self._over()
        return {
            "trials": f"{over} of {self._total} over" if self._total else f"{over} over",
            "rate": f"{(over - self._over_before) / elapsed:.1f} trials/s, {self._reports / elapsed:.1f} reports/s",
            "elapsed": f"{elapsed:.0f} s",
        }

    def _best(self) -> tuple[str, str] | None:
        if self._study.best is None or self._study.objective.metric is None:
            return None
        trial = self._study.best[1]
        entry = self._study.ledger[trial]
        raw = entry.metrics.get(self._study.objective.metric)
        value = f"{raw:.6g}" if isinstance(raw, (int, float)) else str(raw)
        return f"{self._study.objective.metric} {value} (trial {trial}, step {entry.step})", _short(entry.trial.config)

    def _line(self) -> str:
        facts, best = self._facts(), self._best()
        states = " ".join(f"{state.value.lower()} {n}" for state, n in self._study.ledger.counts().items() if n)
        parts = [f"{self._name}: {facts['trials']}", states, facts["rate"], facts["elapsed"]]
        return " | ".join([*(part for part in parts if part), *([f"best {best[0]}"] if best else [])])

    def _block(self) -> RenderableType:
        facts, best = self._facts(), self._best()
        states = Text()
        for state, number in self._study.ledger.counts().items():
            states.append(f"{state.value.lower()} ", style="dim")
            states.append(f"{number}   ", style=_COLOURS[state] if number else "dim")
        table = Table.grid(padding=(0, 2))
        table.add_row("trials", f"{facts['trials']}   {facts['rate']}   {facts['elapsed']}")
        table.add_row("state", states)
        if rungs := self._rungs():
            table.add_row("rungs", rungs)
        if best:
            table.add_row("best", Text(best[0], style="bold"))
            table.add_row("", Text(best[1], style="dim", overflow="ellipsis", no_wrap=True))
        return Group(Text(f"raytuner  {self._name}", style="bold"), table)

    def _rungs(self) -> str:
        """How many live trials stand at or run to each rung."""
        counts: dict[int, int] = {}
        for entry in self._study.ledger.live.values():
            counts[entry.until] = counts.get(entry.until, 0) + 1
        return "   ".join(f"to {until}: {n}" for until, n in sorted(counts.items()) if until < END)


def _short(config: object) -> str:
    if isinstance(config, float):
        return f"{config:.4g}"
    if isinstance(config, dict):
        return ", ".join(f"{name}={_short(value)}" for name, value in config.items())
    return str(config)
