"""What a person sees of a running study: one live block on a terminal, a plain line now and then elsewhere.

`Progress` listens to a driver (`raytuner.driver.Listener`) and is called at each of its turns, thousands of times a
second. What it shows beyond the ledger's counts is therefore kept up row by row (`_Tally`): a turn costs nothing but
its rows, and no drawing looks at more than the trials that hold a slot and the few it shows. All text of the user's
passes `_clean`: neither markup nor control characters reach the terminal.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raytuner.actions import Fork, Proposal
from raytuner.events import Decision, Ended, Event, Failed, Opened, Over, Proposed, Retry, StopAsked
from raytuner.ledger import Entry
from raytuner.study import Study
from raytuner.trial import END, Reports, Slot, State

_DRAW_EVERY_S = 0.25
_LINE_EVERY_S = 5.0
_LINE_EVERY_AT_LAST_S = 60.0  # after an hour: a log of days should not be mostly this
_TRIALS_SHOWN = 10
_FAILURES_SHOWN = 5
_RUNGS_SHOWN = 12
_LABEL = 10  # characters
_BAR = 30  # characters
_WINDOW_S = 60.0
_FEW = 30  # a rate is that of the last minute, or of so many trials (reports) if they took longer
_ENOUGH = 3  # trials that must be over before time left is estimated
_LONGEST_VALUE = 60  # characters
_LONGEST_LINE = 4000  # characters
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_COLOURS = {
    State.RUNNING: "cyan",
    State.PAUSED: "yellow",
    State.DONE: "green",
    State.STOPPED: "blue",
    State.FAILED: "red",
}


class Progress:
    """Shows trials by state and rung, rate, time left, spend, the best so far, and the trials that are live.

    To be entered when the driver has replayed the study: rates and times are those of what happens from then on.

    Args:
        total: how many trials there will be, if known.
        verbose: 0 silent; 1 as above; 2 also each trial's end; 3 also its start, and each failure and retry.
        slot: what each trial reserves (None: not known, or not the same for all).
        limit_s: seconds left of a time budget (None: there is none).
        clock: seconds, from anywhere.
    """

    def __init__(
        self,
        name: str,
        study: Study,
        total: int | None,
        verbose: int,
        console: Console | None = None,
        *,
        slot: Slot | None = None,
        limit_s: Callable[[], float | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = _cut(name, _LONGEST_VALUE)
        self._study = study
        self._total = total
        self._verbose = verbose
        self._console = console or Console()
        self._slot = slot
        self._limit_s = limit_s
        self._clock = clock
        self._live: Live | None = None
        self._told: list[str] = []  # lines to be printed above the live block when it is next drawn
        self._begin()

    def _begin(self) -> None:
        """Take the study as it stands; nothing was shown yet."""
        now = self._clock()
        self._begun = now
        self._next = now + (_DRAW_EVERY_S if self._live else _LINE_EVERY_S)
        self._tally = _Tally(self._study, now)
        self._overs = _Rate(now, self._over())
        self._reports = _Rate(now, 0)
        self._failure_shown: Over | None = None

    def __enter__(self) -> Self:
        console = self._console
        if self._verbose and console.is_terminal and console.is_interactive and not console.options.ascii_only:
            self._live = Live(console=console, auto_refresh=False)
        self._begin()
        if self._live:
            self._live.start()
            self._live.update(self._block(self._begun), refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now, finished = self._clock(), self._study.finished
        ending = f"broken off by {kind.__name__}" if kind else finished.reason if finished else "not over"
        if finished and not finished.complete:
            ending = f"ended early: {ending}"
        if self._live:
            self._tell(self._told)
            self._live.update(self._block(now, ending))
            self._live.stop()
        elif self._verbose:
            failed = [f"{self._name}: failed: {failure}" for failure in self._failures()]
            self._tell([*failed, self._plain(now, ending)])

    def __call__(self, study: Study, rows: Sequence[Event | Decision], reports: Sequence[Reports]) -> None:
        """A turn was made durable, or time went by."""
        if not self._verbose:
            return
        now = self._clock()
        if rows or reports:
            self._tally.hear(rows, reports, now)
            if self._verbose > 1:
                self._told += self._tales(rows)
        if self._told and not self._live:
            self._tell(self._told)
            self._told.clear()
        if now >= self._next:
            self._show(now)

    # ------------------------------------------------------------------------------------------------ when to show

    def _show(self, now: float) -> None:
        self._overs.mark(now, self._over())
        self._reports.mark(now, self._tally.reports)
        if self._live:
            self._next = now + _DRAW_EVERY_S
            self._tell(self._told)
            self._told.clear()
            self._live.update(self._block(now), refresh=True)
        else:
            self._next = now + max(_LINE_EVERY_S, min(_LINE_EVERY_AT_LAST_S, (now - self._begun) / 60))
            self._tell([self._plain(now)])

    def _tell(self, lines: Sequence[str]) -> None:
        """Print lines as they are; those of a terminal go above its live block."""
        if not lines:
            return
        text = "\n".join(map(_clean, lines))
        if self._console.options.ascii_only:
            text = text.encode(self._console.encoding, "backslashreplace").decode(self._console.encoding)
        self._console.print(Text(text), soft_wrap=True)

    def _tales(self, rows: Sequence[Event | Decision]) -> list[str]:
        """What is told of a turn at verbose 2 and 3, a line each."""
        tales = []
        for row in rows:
            match row:
                case Over():
                    tales.append(self._end_of(row))
                case _ if self._verbose < 3:
                    pass
                case Proposed(answer=Proposal(config)):
                    tales.append(f"trial {row.trial} starts: {_config(config)}")
                case Fork():
                    tales.append(f"trial {row.trial} starts from trial {row.source}: {_config(row.config)}")
                case Failed():
                    tales.append(f"trial {row.trial} failed in attempt {row.attempt}: {_last_line(row.message)}")
                case Retry(trial, checkpoint):
                    where = "the beginning" if checkpoint is None else f"its checkpoint of step {checkpoint}"
                    tales.append(f"trial {trial} runs again from {where}")
                case _:
                    pass
        return tales

    def _end_of(self, over: Over) -> str:
        entry = self._study.ledger[over.trial]
        metric = self._study.objective.metric
        value = f", {self._metric} {_value(entry.metrics[metric])}" if metric and metric in entry.metrics else ""
        message = f": {_last_line(over.message)}" if over.message else ""
        return f"trial {over.trial} {over.state.value} at step {entry.step}{value}: {over.why.value}{message}"

    # ------------------------------------------------------------------------------------------------ what to show

    def _plain(self, now: float, ending: str | None = None) -> str:
        """The plain line. ``ending``: why the study is over, once it is."""
        states = " ".join(f"{state.value.lower()} {n}" for state, n in self._study.ledger.counts().items() if n)
        parts = [
            f"{self._name}: {self._trials()}",
            states,
            "; ".join(self._rungs()),
            self._rate(now, ending is not None),
            self._time(now, ending),
            f"spent {self._spend(now)}",
        ]
        if best := self._best():
            parts.append(f"best {best[0]}")
        failure = self._tally.last_failure
        if failure is not self._failure_shown and ending is None:
            self._failure_shown = failure
            parts.append(f"failed: {_failure(failure)}" if failure else "")
        return " | ".join(part for part in parts if part)

    def _block(self, now: float, ending: str | None = None) -> RenderableType:
        """The live block, each thing on a line of its own; once the study is over (``ending``), without live trials."""
        size = self._console.size
        lines: list[RenderableType] = [
            _text(f"raytuner  {self._name}", "bold"),
            _fact("trials", self._bar().append(self._trials())),
            _fact("state", self._states()),
            _fact("time", self._time(now, ending)),
            _fact("rate", self._rate(now, ending is not None)),
            _fact("spent", self._spend(now)),
        ]
        if rungs := "   ".join(self._rungs()):
            if _LABEL + len(rungs) > size.width:
                rungs = "   ".join(["running+waiting to", *self._rungs(short=True)])
            lines.append(_fact("rungs", rungs))
        if best := self._best():
            lines += [_fact("best", _text(best[0], "bold")), _fact("", _text(best[1], "dim"))]
        if ending is not None:
            failures = enumerate(self._failures())
            return Group(*lines, *(_fact("" if n else "failed", _text(failure, "red")) for n, failure in failures))
        if self._tally.last_failure:
            lines.append(_fact("failed", _text(_failure(self._tally.last_failure), "red")))
        room = size.height - 1
        # A quarter of the terminal is left to what else is printed; two lines are the table's head and the "more".
        return Group(*lines[:room], *self._table(min(_TRIALS_SHOWN, room * 3 // 4 - len(lines) - 2), now))

    def _over(self) -> int:
        """Trials that are over; of a population's members those whose last trial is."""
        return sum(count for state, count in self._study.ledger.counts().items() if state.over) - self._study.forked

    def _trials(self) -> str:
        return f"{self._over()} of {self._total} over" if self._total else f"{self._over()} over"

    def _bar(self) -> Text:
        if not self._total:
            return Text()
        filled = min(_BAR, _BAR * self._over() // self._total)
        return Text.assemble(("━" * filled, "green"), ("─" * (_BAR - filled), "dim"), "  ")

    def _states(self) -> Text:
        return Text("   ").join(
            Text.assemble((f"{state.value.lower()} ", "dim"), (str(number), _COLOURS[state] if number else "dim"))
            for state, number in self._study.ledger.counts().items()
        )

    def _time(self, now: float, ending: str | None) -> str:
        if ending is None:
            stopping = self._tally.stopping
            ending = f"left: {self._left(now)}" if stopping is None else f"stopping: {stopping}"
        return f"{_duration(now - self._begun)}, {ending}"

    def _left(self, now: float) -> str:
        estimate, limit = self._estimate(now), self._limit_s() if self._limit_s else None
        if limit is not None and (estimate is None or limit < estimate):
            return f"at most {_duration(max(limit, 0.0))} (time budget)"
        if estimate is None:
            return "?"
        grain = 1 if estimate < 60 else 10 if estimate < 600 else 60  # seconds
        return f"about {_duration(round(estimate / grain) * grain)}"

    def _estimate(self, now: float) -> float | None:
        """Seconds until all trials are over, at the rate of late; None while there is too little to go by."""
        left = (self._total or 0) - self._over()
        counts = self._study.ledger.counts()
        if left <= 0 or self._overs.seen(self._over()) < min(_ENOUGH, left):
            return None
        if counts[State.STOPPED] and not counts[State.DONE]:
            return None  # the first to go are stopped early: what is left takes longer than they did
        rate = self._overs.lately(now, self._over())
        return left / rate if rate else None

    def _rate(self, now: float, ended: bool) -> str:
        per_s = _Rate.overall if ended else _Rate.lately
        trials, reports = per_s(self._overs, now, self._over()), per_s(self._reports, now, self._tally.reports)
        return f"{_often(trials, 'trials')}, {_often(reports, 'reports')}"

    def _spend(self, now: float) -> str:
        hours = self._tally.spend_s(now) / 3600
        amounts = {"slot-h": 1.0}
        if self._slot:
            amounts |= {"CPU-h": self._slot.cpu, "GPU-h": self._slot.gpu}
        return ", ".join(f"{_hours(hours * amount)} {unit}" for unit, amount in amounts.items() if amount)

    def _rungs(self, short: bool = False) -> list[str]:
        """How many trials run to each rung, and how many wait at it; of very many rungs, the highest."""
        rungs: dict[int, dict[State, int]] = {}
        for (until, state), number in self._tally.rungs.items():
            if until < END:
                rungs.setdefault(until, {})[state] = number
        found = []
        for until, by in sorted(rungs.items())[-_RUNGS_SHOWN:]:
            running, waiting = by.get(State.RUNNING, 0), by.get(State.PAUSED, 0)
            words = [f"{running} running"] * bool(running) + [f"{waiting} waiting"] * bool(waiting)
            found.append(f"{until}: {running}+{waiting}" if short else f"to {until}: {', '.join(words)}")
        return found

    @property
    def _metric(self) -> str:
        return _cut(self._study.objective.metric or "", _LONGEST_VALUE)

    def _best(self) -> tuple[str, str] | None:
        """The best so far, and its configuration."""
        metric = self._study.objective.metric
        if self._study.best is None or metric is None:
            return None
        entry = self._study.ledger[self._study.best[1]]
        value = _value(entry.metrics.get(metric))
        return f"{self._metric} {value} (trial {entry.trial.id}, step {entry.step})", _config(entry.trial.config)

    def _failures(self) -> list[str]:
        """The first trials that failed for good, and how many more did."""
        found = [_failure(over) for over in self._tally.failures]
        more = self._study.ledger.counts()[State.FAILED] - len(found)
        return [*found, f"and {more} more" if found else f"{more} in earlier runs"] if more else found

    def _table(self, rows: int, now: float) -> Iterator[RenderableType]:
        """Live trials: those that run, longest first, then as many that wait as there is room for."""
        live, running = self._study.ledger.live, self._tally.running
        if rows <= 0 or not live:
            return
        waiting = (entry for entry in live.values() if entry.state is State.PAUSED)
        shown = list(islice(running.values(), rows))
        if len(live) > len(running):
            shown += islice(waiting, rows - len(shown))
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, expand=True, header_style="dim")
        table.add_column("trial", justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("step → until", justify="right", no_wrap=True)
        if self._study.objective.metric is not None:
            table.add_column(_text(self._metric), justify="right", no_wrap=True, max_width=14)
        table.add_column("seconds", justify="right", no_wrap=True)
        table.add_column("configuration", no_wrap=True, overflow="ellipsis", ratio=1)
        for entry in shown:
            table.add_row(*self._cells(entry, now))
        yield table
        if len(live) > len(shown):
            yield _text(f"and {len(live) - len(shown)} more live trials", "dim")

    def _cells(self, entry: Entry, now: float) -> Iterator[Text]:
        trial, metric = entry.trial.id, self._study.objective.metric
        level, value = self._tally.heard.get(trial, (entry.level, entry.metrics.get(metric) if metric else None))
        queued = entry.state is State.RUNNING and not self._study.expects(trial, entry.attempt)
        yield Text(str(trial))
        yield Text("queued" if queued else entry.state.value.lower(), "dim" if queued else _COLOURS[entry.state])
        waiting = entry.state is State.PAUSED  # at `until`
        yield Text(_level(level) if waiting or entry.until == END else f"{_level(level)} → {entry.until}")
        if metric is not None:
            yield _text("" if value is None else _value(value))
        yield Text(f"{entry.spent + self._tally.lease_s(entry, now):.1f}")
        yield _text(_config(entry.trial.config, leaves=True), "dim")


class _Tally:
    """What is shown and not in the ledger, or not to be had from it without a look at every trial.

    ``running``: the trials in that state, longest first. ``rungs``: how many live trials are at which ``until`` in
    which state. ``heard``: level and value of each live trial's last report. ``failures``: the first there were.
    """

    def __init__(self, study: Study, now: float) -> None:
        self._study = study
        self.reports = 0
        self.failures: list[Over] = []
        self.last_failure: Over | None = None
        self.stopping: str | None = None
        self._at, self._seen = 0.0, now  # the study's time at the last event, and ours
        self._opened = 0.0
        self.running: dict[int, Entry] = {}
        self.rungs: Counter[tuple[int, State]] = Counter()
        self.heard: dict[int, tuple[float, Any]] = {}
        self._places: dict[int, tuple[int, State]] = {}
        # A study that is resumed has a past that nobody will tell: this once, every trial is looked at.
        self._spent_s = sum(entry.spent for entry in study.ledger.values())
        for trial in study.ledger.live:
            self._place(trial)

    def hear(self, rows: Sequence[Event | Decision], reports: Sequence[Reports], now: float) -> None:
        """A turn, after which the ledger stands as it does."""
        for row in rows:
            match row:
                case Ended() | Failed():
                    self._spent_s += row.spent
                case Over(state=State.FAILED):
                    self.last_failure = row
                    if len(self.failures) < _FAILURES_SHOWN:
                        self.failures.append(row)
                case StopAsked():
                    self.stopping = row.reason
                case Opened():
                    self._opened = row.at
                case _:
                    pass
            trial: int | None = getattr(row, "trial", None)
            if trial is not None:
                self._place(trial)
            at: float | None = getattr(row, "at", None)  # events have a time, decisions none
            if at is not None:
                self._at, self._seen = at, now
        for said in reports:
            self._hear(said)

    def _place(self, trial: int) -> None:
        """Note where a trial is now, whatever happened to it."""
        entry = self._study.ledger.live.get(trial)
        place = (entry.until, entry.state) if entry else None
        was = self._places.get(trial)
        if place == was:
            return
        if was:
            self.rungs[was] -= 1
            if not self.rungs[was]:
                del self.rungs[was]
            del self._places[trial]
            self.running.pop(trial, None)
        if entry and place:
            self.rungs[place] += 1
            self._places[trial] = place
            if entry.state is State.RUNNING:
                self.running[trial] = entry
        else:
            self.heard.pop(trial, None)

    def _hear(self, said: Reports) -> None:
        trial, metric = said.trial, self._study.objective.metric
        self.reports += len(said.steps)
        if trial not in self._places:  # it is over, and its code has not heard of that yet
            return
        values = said.metrics.get(metric) if metric is not None else None
        value = values[-1] if values else None
        if value is None and metric is not None:  # not in every report: the last that there was
            known = self.heard[trial][1] if trial in self.heard else None
            earlier = [known, said.constants.get(metric), *(values or ())]
            value = next((value for value in reversed(earlier) if value is not None), None)
        self.heard[trial] = said.levels[-1], value

    def spend_s(self, now: float) -> float:
        """Seconds of slot time that all trials took, in all drivers' lives."""
        return self._spent_s + sum(self.lease_s(entry, now) for entry in self.running.values())

    def lease_s(self, entry: Entry, now: float) -> float:
        """Seconds that a trial has held a slot in this lease, in this driver's life."""
        if entry.since is None or not self._study.expects(entry.trial.id, entry.attempt):
            return 0.0
        return max(0.0, self._at + now - self._seen - max(entry.since, self._opened))


class _Rate:
    """How often something happens, from marks of how often it had.

    Marks are at least a second apart and made only where the count rose; so there are at most `_FEW` of them that are
    older than `_WINDOW_S`.
    """

    def __init__(self, now: float, count: int) -> None:
        self._begin = (now, count)
        self._marks = deque([self._begin])

    def mark(self, now: float, count: int) -> None:
        marks = self._marks
        if count > marks[-1][1] and now - marks[-1][0] >= 1.0:
            marks.append((now, count))
        while len(marks) > 1 and now - marks[1][0] >= _WINDOW_S and count - marks[1][1] >= _FEW:
            marks.popleft()

    def seen(self, count: int) -> int:
        """How often it has happened in the time that `lately` looks at."""
        return count - self._marks[0][1]

    def lately(self, now: float, count: int) -> float:
        """Times per second, of late."""
        return _per_s(self._marks[0], now, count)

    def overall(self, now: float, count: int) -> float:
        """Times per second, since the beginning."""
        return _per_s(self._begin, now, count)


def _per_s(since: tuple[float, int], now: float, count: int) -> float:
    return (count - since[1]) / (now - since[0]) if now > since[0] else 0.0


# ------------------------------------------------------------------------------------------------------- into words


def _text(text: str, style: str = "") -> Text:
    """One line, cut where the terminal ends."""
    return Text(_clean(text), style, no_wrap=True, overflow="ellipsis")


def _line(*parts: Text) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _fact(label: str, value: str | Text) -> Text:
    return _line(Text(label.ljust(_LABEL), "dim"), _text(value) if isinstance(value, str) else value)


def _clean(text: str) -> str:
    """One line of printable characters: nothing in it steers a terminal."""
    text = _cut(text, _LONGEST_LINE)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _config(config: Mapping[str, Any], leaves: bool = False) -> str:
    """A configuration on one line. ``leaves``: without the names of what a nested value stands in."""
    names = ((name.rpartition("/")[2] if leaves else name, value) for name, value in _flat(config, ""))
    return ", ".join(f"{name}={_value(value, 4)}" for name, value in names)


def _flat(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _value(value: object, digits: int = 6) -> str:
    """A value of a metric or a configuration, short."""
    match value:
        case float():
            return f"{value:.{digits}g}"
        case str():
            return _cut(value, _LONGEST_VALUE)
        case list() | tuple():
            shown = ", ".join(_value(each, digits) for each in value[:_LONGEST_VALUE])
            return _cut(f"[{shown}]", _LONGEST_VALUE)
    try:
        return _cut(repr(value), _LONGEST_VALUE)
    except Exception:  # it is the user's object, or an int of too many digits: no reason to end a study
        return f"<{type(value).__name__}>"


def _level(level: float) -> str:
    return str(int(level)) if float(level).is_integer() else f"{level:.4g}"


def _failure(over: Over) -> str:
    return f"trial {over.trial}: {_last_line(over.message) or over.why.value}"


def _last_line(message: str) -> str:
    """What a traceback comes down to."""
    return message.rstrip().rpartition("\n")[2].strip()


def _duration(seconds: float) -> str:
    """``42 s``, ``4 min 12 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds >= 100 * 86400:
        return "over 99 d"
    whole = int(seconds)
    for (unit, length), (finer, part) in pairwise(_UNITS):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {finer}" if rest else "")
    return f"{whole} s"


def _often(per_s: float, what: str) -> str:
    """A rate, in the unit in which it is at least one."""
    for unit, length in (("s", 1), ("min", 60)):
        if per_s * length >= 1 or not per_s:
            return f"{per_s * length:,.1f} {what}/{unit}"
    return f"{per_s * 3600:,.1f} {what}/h"


def _hours(hours: float) -> str:
    if 0 < hours < 0.01:
        return "<0.01"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2f}" if hours < 10 else f"{hours:.1f}"
