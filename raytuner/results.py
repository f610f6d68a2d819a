"""The reading side: a study's folder as results, tables and data frames. Needs neither Ray nor the user's code."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from raytuner.actions import Fork, Proposal, Resume, Start
from raytuner.cache import CACHE_BYTES
from raytuner.checkpoints import Checkpoint
from raytuner.events import Checkpointed, Drop, Ended, Failed, How, Loaded, Over, Proposed, Quarantine
from raytuner.held import Held
from raytuner.object_checkpoints import store_at
from raytuner.objective import AUTOMATIC, Objective
from raytuner.record.folder import Folder
from raytuner.record.journal import METRIC, REPORTS, Record, metric_column, read, text_of
from raytuner.record.segments import DamagedSegment
from raytuner.record.storage import Place
from raytuner.retry import merged
from raytuner.space import pack
from raytuner.trial import Config, Metrics, State, Why

if TYPE_CHECKING:
    import pandas as pd

_ALWAYS = ("trial_id", "state", "why", "parent", "member", "logdir")
"""The columns that every table of trials has, beside metrics and configuration."""

_SCOPES = ("last", "all", "avg", "last-5-avg", "last-10-avg")


class TrialFailed(Exception):
    """A trial's failure, as it was recorded; the message holds the training function's traceback."""


@dataclass(frozen=True)
class Result:
    """One trial: its configuration, its last report, its newest checkpoint, and its error if it failed.

    A fork starts from a checkpoint of its ``parent``; until it has reported, it stands as its parent stood there. In
    the place of which trials it came, ``chain`` says, the first of them first and itself last: together they are one
    ``member`` of a population, with the first one's number ("": it was to take another's place, and found nothing to
    begin from). ``schedule``: from which step on its weights were trained with which configuration, its own last.
    ``remedy``: what ``on_oom`` changed of its configuration, so that it fitted into memory.
    """

    trial_id: str
    config: Config
    metrics: Metrics
    state: State
    why: str
    checkpoint: Checkpoint | None
    best_checkpoints: Sequence[tuple[Checkpoint, Metrics]]
    error: TrialFailed | None
    path: str
    parent: str | None = None
    member: str = ""
    chain: Sequence[str] = ()
    schedule: Sequence[tuple[int, Config]] = ()
    remedy: Config = field(default_factory=dict)
    _reports: pa.Table = field(repr=False, compare=False, default=None)

    @property
    def metrics_dataframe(self) -> pd.DataFrame:
        """This member's reports, a row each: those of each trial in the order of steps. (A trial that replaced none
        and was not replaced is a member by itself.)"""
        trials = pa.array([int(trial) for trial in self.chain], pa.int64())
        table = self._reports.filter(pc.is_in(self._reports["trial"], trials))
        frame: pd.DataFrame = table.sort_by([("trial", "ascending"), ("step", "ascending")]).to_pandas()
        return frame

    def __repr__(self) -> str:
        said = {name: value for name, value in self.metrics.items() if name not in AUTOMATIC}
        step = self.metrics.get("training_iteration")
        where = self.state.value if step is None else f"{self.state.value} at step {step}"
        return f"Result(trial {self.trial_id}, {where}, metrics={_brief(said)}, config={_brief(dict(self.config))})"


class ResultGrid(Sequence[Result]):
    """A study's results, in the order in which they were started: one for each trial that was not replaced.

    Where a fork came in the place of another trial, as under Population Based Training, it stands for all of its
    ``chain``: so there are as many results as the population has members, ``num_samples``. `trials` has each trial.
    """

    def __init__(self, path: str | Path | Place) -> None:
        self._folder = Folder(path)
        what = self._folder.read()
        self._metric: str | None = what["metric"]
        self._mode: str | None = what["mode"]
        self._record = read(self._folder.root)
        try:
            self._all = _results(self._folder, self._record)
        except (LookupError, TypeError, ValueError) as error:
            raise DamagedSegment(f"{self._folder.root / 'journal'}: its rows make no study ({error!r})") from error
        self._results = _members(self._all)

    @property
    def trials(self) -> Sequence[Result]:
        """Every trial, the replaced ones and forks that found no source among them, in the order of their numbers."""
        return self._all

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | Sequence[Result]:
        return self._results[index]

    def __repr__(self) -> str:
        return f"ResultGrid({str(self._folder.root)!r}: {len(self)} trials, {self.num_errors} failed)"

    @property
    def experiment_path(self) -> str:
        """The study's folder."""
        return str(self._folder.root)

    @property
    def errors(self) -> list[TrialFailed]:
        """The failures of failed trials."""
        return [result.error for result in self if result.error is not None]

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    @property
    def num_terminated(self) -> int:
        """How many trials are over without having failed."""
        return sum(result.state in (State.DONE, State.STOPPED) for result in self)

    def get_best_result(
        self,
        metric: str | None = None,
        mode: str | None = None,
        scope: str = "last",
        filter_nan_and_inf: bool = True,
    ) -> Result:
        """The best trial by a metric (the study's own unless named); of equally good ones the first.

        ``scope``: which of a trial's reports count: ``last``, the best of ``all``, the average (``avg``), or that of
        the last few (``last-5-avg``, ``last-10-avg``); of those that hold the metric, even as NaN.
        Of a population's members the last trial counts, whose weights there are; with ``all`` each of its trials does,
        and the one that is returned is the one that said it.
        ``filter_nan_and_inf``: a trial whose score is not finite is never the best. Without it infinity counts, and
        NaN is worse than any number. Raises ValueError if there is no such metric, RuntimeError if no trial has a
        score.
        """
        objective = self._asked_for(metric, mode)
        if scope not in _SCOPES:
            raise ValueError(f"scope must be one of {', '.join(_SCOPES)}, got {scope!r}")
        scores = self._scores(objective, scope, filter_nan_and_inf)
        if scope != "all":
            scores = {trial: scores[trial] for trial in map(int, (each.trial_id for each in self)) if trial in scores}
        if not scores:
            raise RuntimeError(
                f"no trial has {'a finite' if filter_nan_and_inf else 'any'} value of {objective.metric!r}; "
                f"{self.num_errors} of {len(self)} trials failed"
            )
        return self._by_trial[min(sorted(scores), key=lambda trial: _worse(scores[trial], objective.mode))]

    def get_dataframe(self, filter_metric: str | None = None, filter_mode: str | None = None) -> pd.DataFrame:
        """A row per trial: its last report, or its best one by ``filter_metric``; its configuration as ``config/…``.

        Reports whose ``filter_metric`` is no number are passed over; a trial without any other has no metrics.
        """
        reports = self._record.reports
        if filter_metric is None:
            rows = {result.trial_id: result.metrics for result in self}
        else:
            objective = self._asked_for(filter_metric, filter_mode)
            rows = _best_rows(reports, objective)
        frame: pd.DataFrame = self._trials(self, rows).to_pandas()
        return frame

    def to_arrow(self, table: str = "trials") -> pa.Table:
        """The study as an Arrow table.

        ``trials``: a row per trial with state, configuration (``config/…``) and last metrics; ``parent`` is the trial
        it was forked from, ``member`` the population's member it is a part of. ``reports``: a row per
        report; of a step that was reported twice, because a trial was set back, the first. ``decisions``: a row per
        configuration that the searcher proposed: where it came from (``origin``: random, model, given, …), and of a
        model what it expected of it: mean and deviation of the metric at a ``rung``, the acquisition (see
        `raytuner.explanation`); ``note`` is all that the searcher said, as JSON.
        """
        match table:
            case "decisions":
                return _decisions(self._record, self._mode)
            case "trials":
                return self._trials(self._all, {result.trial_id: result.metrics for result in self._all})
            case "reports":
                return self._record.reports
            case _:
                raise ValueError(f"table must be 'trials', 'reports' or 'decisions', got {table!r}")

    @cached_property
    def _by_trial(self) -> dict[int, Result]:
        return {int(result.trial_id): result for result in self._all}

    def _asked_for(self, metric: str | None, mode: str | None) -> Objective:
        metric, mode = metric or self._metric, mode or self._mode
        if metric is None:
            raise ValueError("metric must be named: the study has none of its own")
        if mode is None:
            raise ValueError(f"mode must be 'min' or 'max' for metric {metric!r}: the study has none of its own")
        objective = Objective(metric, mode)
        reports = self._record.reports
        if reports.num_rows and metric_column(reports, metric) is None:
            found = [name.removeprefix(METRIC) for name in reports.column_names if name not in REPORTS.names]
            names = ", ".join(sorted(found, key=lambda name: name in AUTOMATIC))
            raise ValueError(f"metric {metric!r} was never reported; reported were: {names}")
        return objective

    def _scores(self, objective: Objective, scope: str, finite: bool) -> dict[int, float]:
        values: dict[int, list[float]] = {}
        reports = self._record.reports.sort_by("step")
        column = metric_column(reports, objective.metric or "")
        if column is None:
            return {}
        for trial, value in zip(reports["trial"].to_pylist(), column.to_pylist(), strict=True):
            if isinstance(value, (int, float)):
                values.setdefault(trial, []).append(value)
        scores: dict[int, float] = {}
        for trial, of in values.items():
            match scope:
                case "last":
                    scores[trial] = of[-1]
                case "all":
                    usable = [value for value in of if math.isfinite(value)] if finite else []
                    scores[trial] = min(usable or of, key=lambda value: _worse(value, objective.mode))
                case "avg":
                    scores[trial] = sum(of) / len(of)
                case _:
                    last = int(scope.split("-")[1])
                    scores[trial] = sum(of[-last:]) / len(of[-last:])
        return {trial: score for trial, score in scores.items() if math.isfinite(score) or not finite}

    def _trials(self, results: Sequence[Result], metrics: Mapping[str, Metrics]) -> pa.Table:
        rows = []
        for result in results:
            row: dict[str, Any] = {"trial_id": result.trial_id}
            row |= {name: value for name, value in metrics.get(result.trial_id, {}).items() if name != "trial_id"}
            row |= {"state": result.state.value, "why": result.why, "parent": result.parent}
            row |= {"member": result.member or None, "logdir": result.path}
            rows.append(row | dict(_flat(result.config, "config/")) | dict(_flat(result.remedy, "remedy/")))
        names = dict.fromkeys(name for row in rows for name in row) or _ALWAYS
        return pa.table({name: _column([row.get(name) for row in rows], name in _ALWAYS) for name in names})


def _results(folder: Folder, record: Record) -> list[Result]:
    """Fold a study's rows into its trials."""
    configs: dict[int, tuple[Config, int | None]] = {}
    chains: dict[int, tuple[int, ...]] = {}
    nobodies: set[int] = set()
    begun: dict[int, tuple[int, int]] = {}  # forks: trial and step of the checkpoint that they began from
    schedules: dict[int, tuple[tuple[int, Config], ...]] = {}
    remedies: dict[int, Config] = {}
    over: dict[int, Over] = {}
    paused: set[int] = set()
    rungs: dict[int, int] = {}
    checkpoints: dict[int, dict[int, Metrics]] = {}
    digests: dict[tuple[int, int], str] = {}
    for row in record.rows:
        match row:
            case Proposed(trial=trial, answer=Proposal(config=config)):
                configs[trial], schedules[trial] = (config, None), ((0, config),)
            case Start(trial, until, config):
                rungs[trial], chains[trial] = until, (trial,)
                if config is not None:
                    configs[trial], schedules[trial] = (config, None), ((0, config),)
            case Fork(trial, source, config, until, replaces):
                configs[trial], rungs[trial] = (config, source), until
                chains[trial] = (*(() if replaces is None else chains[replaces]), trial)
            case Loaded(trial=trial, source=source, step=step) if source != trial and trial not in begun:
                begun[trial] = source, step
                before = [(since, config) for since, config in schedules[source] if since < step]
                schedules[trial] = (*before, (step, configs[trial][0]))
            case Failed(trial=trial, remedy=remedy) if remedy:
                remedies[trial] = merged(remedies.get(trial, {}), remedy)
            case Over(trial, why=why):
                over[trial] = row
                if why is Why.NO_SOURCE and len(chains[trial]) > 1:  # it took nobody's place
                    chains[trial] = (trial,)
                    nobodies.add(trial)
            case Ended(trial=trial, how=How.REACHED, level=level) if level >= rungs[trial]:  # else it goes on at once
                paused.add(trial)
            case Resume(trial, until):
                rungs[trial] = until
                paused.discard(trial)
                over.pop(trial, None)  # in an extended study
            case Checkpointed(trial=trial, step=step, metrics=metrics, digest=digest):
                checkpoints.setdefault(trial, {})[step] = metrics
                digests.setdefault((trial, step), digest)  # the first of a step counts
            case Drop(trial, step) | Quarantine(trial, step):
                checkpoints.get(trial, {}).pop(step, None)
                digests.pop((trial, step), None)
            case _:
                pass
    last = _last_rows(record.reports)
    last |= _rows_of(record.reports, {trial: at for trial, at in begun.items() if trial not in last})
    store = store_at(folder.checkpoints, folder.here.expanduser() / "cache", CACHE_BYTES)
    there = store.all() if checkpoints else set()
    results = []
    for trial in sorted(configs):
        config, parent = configs[trial]
        end = over.get(trial)
        kept = [
            (store.published(trial, step, digests.get((trial, step), "")), metrics)
            for step, metrics in sorted(checkpoints.get(trial, {}).items())
            if (trial, step) in there
        ]
        failed = end is not None and end.state is State.FAILED
        results.append(
            Result(
                trial_id=str(trial),
                config=config,
                metrics=_with_rays_own(
                    last.get(trial, {}), end is not None, max(checkpoints.get(trial, {}), default=None)
                ),
                state=end.state if end else State.PAUSED if trial in paused else State.RUNNING,
                why=end.why.value if end else "",
                checkpoint=kept[-1][0] if kept else None,
                best_checkpoints=kept,
                error=TrialFailed(end.message or end.why.value) if end and failed else None,
                path=str(folder.checkpoints / f"{trial:06d}"),
                parent=None if parent is None else str(parent),
                member="" if trial in nobodies else str(chains[trial][0]),
                chain=tuple(map(str, chains[trial])),
                schedule=schedules.get(trial, ()),
                remedy=remedies.get(trial, {}),
                _reports=record.reports,
            )
        )
    return results


def _decisions(record: Record, mode: str | None) -> pa.Table:
    """What the searcher proposed, and what it expected."""
    sign = -1.0 if mode == "max" else 1.0  # searchers are told that lower is better
    rows = [
        (str(row.trial), row.at, row.answer)
        for row in record.rows
        if isinstance(row, Proposed) and isinstance(row.answer, Proposal)
    ]
    notes = [answer.note for _, _, answer in rows]
    means = [note.get("mean") for note in notes]
    return pa.table(
        {
            "trial_id": pa.array([trial for trial, _, _ in rows], pa.string()),
            "at": pa.array([at for _, at, _ in rows], pa.float64()),
            "origin": pa.array([note.get("origin") for note in notes], pa.string()),
            "surrogate": pa.array([note.get("surrogate") for note in notes], pa.string()),
            "rung": pa.array([note.get("rung") for note in notes], pa.int64()),
            "mean": pa.array([None if mean is None else sign * mean for mean in means], pa.float64()),
            "deviation": pa.array([note.get("deviation") for note in notes], pa.float64()),
            "acquisition": pa.array([note.get("acquisition", note.get("log_ratio")) for note in notes], pa.float64()),
            "config": pa.array([json.dumps(pack(dict(answer.config))) for _, _, answer in rows], pa.string()),
            "note": pa.array([json.dumps(pack(dict(note))) for note in notes], pa.string()),
        }
    )


def _members(results: Sequence[Result]) -> list[Result]:
    """The trials that stand for a population's members, in the order of these; other trials each for itself."""
    last: dict[str, Result] = {}
    for result in results:
        if result.member:
            last[result.member] = result
    return list(last.values())


def _rows_of(reports: pa.Table, wanted: Mapping[int, tuple[int, int]]) -> dict[int, Metrics]:
    """For each trial the report that another one made at a step, where there is that."""
    if not wanted:
        return {}
    rows = {
        at: row for row, at in enumerate(zip(reports["trial"].to_pylist(), reports["step"].to_pylist(), strict=True))
    }
    return _metrics(reports, {trial: rows[at] for trial, at in wanted.items() if at in rows})


def _with_rays_own(metrics: Metrics, done: bool, checkpoint: int | None) -> Metrics:
    """A trial's last report with those of Ray's automatic metrics that follow from others, and are not stored."""
    if not metrics:
        return metrics
    derived: dict[str, Any] = {"done": done}
    with suppress(ValueError, OverflowError, OSError, TypeError):  # no time at all
        if (at := metrics.get("timestamp")) is not None:
            derived["date"] = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(at))
    if checkpoint is not None:
        derived["checkpoint_dir_name"] = f"{checkpoint:06d}"
    return {**metrics, **{name: value for name, value in derived.items() if name not in metrics}}


def _last_rows(reports: pa.Table) -> dict[int, Metrics]:
    """Each trial's last report."""
    highest: dict[int, tuple[int, int]] = {}
    for row, (trial, step) in enumerate(zip(reports["trial"].to_pylist(), reports["step"].to_pylist(), strict=True)):
        if trial not in highest or step > highest[trial][0]:
            highest[trial] = step, row
    return _metrics(reports, {trial: row for trial, (_, row) in highest.items()})


def _best_rows(reports: pa.Table, objective: Objective) -> dict[str, Metrics]:
    """Each trial's best report, of equally good ones the first."""
    best: dict[int, tuple[float, int]] = {}
    column = metric_column(reports, objective.metric or "")
    values = column.to_pylist() if column is not None else [None] * reports.num_rows
    for row, (trial, value) in enumerate(zip(reports["trial"].to_pylist(), values, strict=True)):
        if not isinstance(value, (int, float)) or math.isnan(value):
            continue
        if trial not in best or objective.better(value, best[trial][0]):
            best[trial] = value, row
    found = _metrics(reports, {trial: row for trial, (_, row) in best.items()})
    return {str(trial): metrics for trial, metrics in found.items()}


def _metrics(reports: pa.Table, rows: Mapping[int, int]) -> dict[int, Metrics]:
    """The metrics of one row for each trial."""
    names = {name: name.removeprefix(METRIC) for name in reports.column_names if name not in REPORTS.names}
    found = reports.select(list(names)).take(pa.array(rows.values(), pa.int64())).to_pylist()
    return {
        trial: {names[name]: value for name, value in row.items() if value is not None}
        for trial, row in zip(rows, found, strict=True)
    }


def _worse(value: float, mode: str) -> tuple[bool, float]:
    """What to sort by so that the best comes first and NaN last."""
    if math.isnan(value):
        return True, 0.0
    return False, -value if mode == "max" else value


def _brief(values: Mapping[str, Any]) -> str:
    text = repr(values)
    return text if len(text) <= 160 else f"{text[:155]} ...}}"


def _flat(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, repr(value) if isinstance(value, Held) else value


def _column(values: list[Any], text: bool) -> pa.Array:
    """Values as a column: typed where they agree, text where a choice mixes kinds."""
    try:
        return pa.array(values, pa.string() if text else None)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        return pa.array([None if value is None else text_of(value) for value in values])
