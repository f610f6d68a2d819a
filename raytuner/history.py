"""What earlier studies found, as rows: for a searcher's warm start. Readers of ours, tables, Optuna's and Ray Tune's.

    history = History.from_study("~/raytuner_results/last_year")
    print(history.fit_to(Space(param_space)))             # how much of it fits, and what does not
    TuneConfig(search_alg=BOHB(warm_start=[history]))

A `History` is a value: it goes into ``study.json`` row by row, so that a resumed study needs its sources no more.

    rungs   of a trial's reports those are kept that were its newest at steps T, T // 3, T // 9, …, and its last, where
            T is the last step that any trial of the source reached
    cap     of more than `MOST_ROWS` rows each trial's last; of more still the best half of `MOST_ROWS`, and as many of
            the others, evenly spaced in the order of values, failed ones last

`History.fit_to` maps rows to a space: by the parameters' names, nested ones joined by ``/``. A parameter that no row
has is unknown to the source. Rows are dropped, and counted, that lack what others have, or have a value from outside
its domain. What the space has not is passed over, constants among it; inside a branch of a choice constants tell which
branch it is.

No reader imports the library whose records it reads. Not here: the models (`raytuner.models.transfer`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from raytuner.objective import Objective
from raytuner.space import Axis, Choice, Domain, Numeric, Space, pack, plain, same, unpack
from raytuner.trial import Config, State

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from raytuner.results import ResultGrid

MOST_ROWS = 200
"""More rows of a source are not kept: the record holds them all, and a model takes their number to the third power."""

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Row:
    """What a trial had come to at a step. ``value``: lower is better; None: it failed."""

    trial: int
    step: int
    value: float | None
    config: Config


@dataclass(frozen=True)
class History:
    """An earlier study. ``name`` is for people. Made by one of the readers, or of rows of one's own."""

    name: str
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {self.name!r:.80}")
        rows = [row if isinstance(row, Row) else Row(**row) for row in self.rows]
        if not rows:
            raise ValueError(f"History {self.name!r} has no rows: its source holds no outcome of any trial")
        for row in rows:
            if type(row.step) is not int or row.step < 1:
                raise ValueError(f"step must be a whole number of at least 1, got {row.step!r} in {row!r:.160}")
            if row.value is not None and not (type(row.value) in (int, float) and math.isfinite(row.value)):
                raise ValueError(f"value must be a finite number, or None, got {row.value!r} in {row!r:.160}")
        object.__setattr__(self, "rows", _thinned(rows))

    def __repr__(self) -> str:
        return f"History({self.name!r}: {len(self.rows)} rows of {len({row.trial for row in self.rows})} trials)"

    # --------------------------------------------------------------------------------------------------- readers

    @classmethod
    def from_study(cls, study: str | Path | ResultGrid, metric: str | None = None, mode: str | None = None) -> Self:
        """A study of raytuner's: its folder, or its results. ``metric`` and ``mode``: the study's own unless named.

        Forks are left out: their values are not those of their configurations alone.
        """
        from raytuner.record.folder import Folder
        from raytuner.record.journal import metric_column
        from raytuner.results import ResultGrid

        grid = study if isinstance(study, ResultGrid) else ResultGrid(study)
        folder = Folder(grid.experiment_path)
        what = folder.read()
        objective = _objective(metric or what["metric"], mode or what["mode"])
        reports = grid.to_arrow("reports")
        column = metric_column(reports, objective.metric or "")
        if column is None:
            raise ValueError(f"metric {objective.metric!r} was never reported in {folder.root}")
        said: dict[int, dict[int, Any]] = {}
        for trial, step, value in zip(
            *(each.to_pylist() for each in (reports["trial"], reports["step"], column)), strict=True
        ):
            said.setdefault(trial, {})[step] = value
        trials = [
            _Told(int(each.trial_id), each.config, said.get(int(each.trial_id), {}), each.state is State.FAILED)
            for each in grid.trials
            if each.parent is None
        ]
        return cls(folder.name, tuple(_rows(trials, objective)))

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame | pa.Table,
        metric: str,
        mode: str = "min",
        step: str | None = None,
        params: Sequence[str] | None = None,
        name: str = "table",
    ) -> Self:
        """A data frame of pandas, or a table of Arrow, with a row for each trial, or (``step``) for each of its steps.

        ``params``: the columns that are parameters; None: those named ``config/…``, or if there are none all but
        ``metric``, ``step`` and ``trial_id``. Rows of one ``trial_id``, or without that of one configuration, are a
        trial. A missing value of the metric: the trial failed; of a parameter: it was not active.
        """
        source: Any = table
        arrow = hasattr(table, "to_pylist")
        found: list[dict[str, Any]] = source.to_pylist() if arrow else source.to_dict("records")
        columns: list[str] = list(source.column_names if arrow else source.columns)
        wanted = [metric, *([step] if step else []), *(params or [])]
        if missing := [each for each in wanted if each not in columns]:
            raise ValueError(f"the table has no column {', '.join(map(repr, missing))}; it has {', '.join(columns)}")
        if params is None:
            own = [each for each in columns if each.startswith("config/")]
            params = own or [each for each in columns if each not in (metric, step, "trial_id")]
        trials: dict[Any, _Told] = {}
        for row in found:
            values = {each: _cell(row[each]) for each in params}
            config = {each.removeprefix("config/"): v for each, v in values.items() if v is not _ABSENT}
            key = row["trial_id"] if "trial_id" in columns else json.dumps(pack(config), sort_keys=True)
            told = trials.setdefault(key, _Told(len(trials), _nested(config), {}, False))
            at = 1 if step is None else int(row[step])
            value = _cell(row[metric])
            told.said[at] = math.nan if value is _ABSENT else value
        return cls(name, tuple(_rows(list(trials.values()), _objective(metric, mode))))

    @classmethod
    def from_optuna(cls, study: Any, name: str | None = None) -> Self:
        """An ``optuna.Study`` of one objective: what is complete, pruned (what it had come to) and failed.

        Optuna's parameters have flat names: `renamed` gives them those of a nested space.
        """
        if len(study.directions) != 1:
            raise ValueError(f"the Optuna study has {len(study.directions)} objectives, expected one")
        objective = Objective("value", "max" if study.directions[0].name == "MAXIMIZE" else "min")
        past = [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED", "FAIL")]
        steps = [step for trial in past for step in trial.intermediate_values]
        first = 1 - min([1, *steps])  # its steps may begin at 0
        top = max([1, *(step + first for step in steps)])
        trials = []
        for trial in past:
            said = {step + first: value for step, value in trial.intermediate_values.items()}
            if trial.state.name == "COMPLETE":
                said[top] = trial.value
            elif trial.state.name == "PRUNED" and not said:
                continue
            trials.append(_Told(trial.number, _nested(dict(trial.params)), said, trial.state.name == "FAIL"))
        return cls(name or str(study.study_name), tuple(_rows(trials, objective)))

    @classmethod
    def from_ray(cls, path: str | Path, metric: str, mode: str = "min") -> Self:
        """A folder of Ray Tune's: each trial's ``params.json`` and ``result.json``, as its JSON logger writes them.

        A line that a crash left half-written is passed over, and so are trials without both files.
        """
        root = Path(path).expanduser()
        objective = _objective(metric, mode)
        trials: list[_Told] = []
        for folder in sorted(each.parent for each in root.glob("*/params.json")):
            try:
                config = json.loads((folder / "params.json").read_text(encoding="utf-8"))
                lines = (folder / "result.json").read_text(encoding="utf-8", errors="replace").splitlines()
            except (OSError, ValueError):
                continue
            said = {}
            for line in lines:
                try:
                    result = json.loads(line)
                    step = int(result["training_iteration"])
                except (ValueError, KeyError, TypeError):
                    continue
                if metric in (values := _flat(result)):
                    said[step] = values[metric]
            failed = (folder / "error.txt").exists()
            if said or failed:
                trials.append(_Told(len(trials), _nested(config), said, failed))
        if not trials:
            raise ValueError(f"no trial in {root} reported {metric!r}: expected folders with params.json, result.json")
        return cls(root.name, tuple(_rows(trials, objective)))

    def renamed(self, names: Mapping[str, str]) -> Self:
        """With parameters under other names, nested ones joined by ``/``: ``{"momentum": "optimizer/momentum"}``."""
        have = {name for row in self.rows for name in _flat(row.config)}
        if unknown := sorted(names.keys() - have):
            raise ValueError(f"no row has {', '.join(map(repr, unknown))}; there are {', '.join(sorted(have))}")
        rows = []
        for row in self.rows:
            config = {names.get(name, name): value for name, value in _flat(row.config).items()}
            rows.append(replace(row, config=_nested(config)))
        return replace(self, rows=tuple(rows))

    # ------------------------------------------------------------------------------------------------ in a record

    def to_json(self) -> Any:
        """Its rows as one line of JSON each."""
        rows = [
            json.dumps([row.trial, row.step, row.value, pack(row.config)], separators=(",", ":"), allow_nan=False)
            for row in self.rows
        ]
        return {"name": self.name, "rows": rows}

    @classmethod
    def from_json(cls, spelled: Mapping[str, Any]) -> Self:
        rows = []
        for line in spelled["rows"]:
            trial, step, value, config = json.loads(line)
            rows.append(Row(trial, step, value, unpack(config)))
        return cls(spelled["name"], tuple(rows))

    # ------------------------------------------------------------------------------------------------- in a space

    def fit_to(self, space: Space) -> Fitted:
        """What of it fits a space. The head of this file says how rows are mapped."""
        places = [_place(space, row.config) for row in self.rows]
        inside = [place for place in places if not place.outside]
        known = np.array([any(place.active[j] for place in inside) for j in range(space.dim)], dtype=np.bool_)
        kept, dropped = [], Counter[str]()
        for row, place in zip(self.rows, places, strict=True):
            lacking = [j for j in place.missing if known[j]]
            for j in place.outside:
                dropped[f"{space.params[j].name} is outside {_briefly(space, j)}"] += 1
            if not place.outside:
                dropped.update(f"{space.params[j].name} is missing" for j in lacking)
            if not place.outside and not lacking:
                kept.append((row, place))
        shape = (len(kept), space.dim)
        return Fitted(
            self.name,
            np.array([place.x for _, place in kept]).reshape(shape),
            np.array([place.active for _, place in kept], dtype=np.bool_).reshape(shape),
            np.array([row.step for row, _ in kept], dtype=np.int64),
            np.array([math.inf if row.value is None else row.value for row, _ in kept], dtype=np.float64),
            tuple(row.trial for row, _ in kept),
            known,
            len(self.rows),
            tuple(dict.fromkeys(param.name for param in space.params)),
            tuple(dict.fromkeys(param.name for param, on in zip(space.params, known, strict=True) if on)),
            dict(dropped),
        )


@dataclass(frozen=True, slots=True)
class Fitted:
    """The rows of a history that fit a space, as points; ``str`` of it says how many, and what became of the rest."""

    name: str
    points: NDArray[np.float64]  # (n, d), 0 where inactive or unknown
    active: NDArray[np.bool_]  # (n, d)
    steps: NDArray[np.int64]  # (n,)
    values: NDArray[np.float64]  # (n,), lower is better; inf: failed
    trials: tuple[int, ...]
    known: NDArray[np.bool_]  # (d,), which dimensions any row has a value of
    total: int
    params: tuple[str, ...]  # the space's names
    mapped: tuple[str, ...]  # those that the source knows
    dropped: Mapping[str, int]  # why, and how many rows

    def __len__(self) -> int:
        return len(self.values)

    def __str__(self) -> str:
        said = [f"{self.name}: {len(self)} of {self.total} rows fit"]
        if self.params:
            said.append(f"it knows {', '.join(self.mapped) or 'none of the parameters'}")
        if unknown := [name for name in self.params if name not in self.mapped]:
            said.append(f"not {', '.join(unknown)}")
        said += [f"{count} dropped, for {why}" for why, count in self.dropped.items()]
        return "; ".join(said)


# -------------------------------------------------------------------------------------------------- which are kept


@dataclass(frozen=True, slots=True)
class _Told:
    """A trial of a source: what it said at its steps, as the source has it."""

    trial: int
    config: Config
    said: dict[int, Any]
    failed: bool


def _rows(trials: Sequence[_Told], objective: Objective) -> Iterator[Row]:
    """Each trial at the rungs that it came to, and at its end."""
    top = max((step for told in trials for step in told.said), default=1)
    ladder = [top]
    while ladder[-1] // 3 >= 1:
        ladder.append(ladder[-1] // 3)
    for told in trials:
        config = plain(dict(told.config), "config", lambda value, _: repr(value))
        steps = sorted(told.said)
        if not steps or told.failed:
            if told.failed:
                yield Row(told.trial, max([1, *steps]), None, config)
            continue
        newest = {max(step for step in steps if step <= rung) for rung in ladder if rung >= steps[0]}
        for step in sorted(newest | {steps[-1]}):
            value = objective.read({objective.metric or "": told.said[step]}).value
            yield Row(told.trial, max(step, 1), value, config)


def _thinned(rows: Sequence[Row]) -> tuple[Row, ...]:
    """At most `MOST_ROWS`, in the order of trials and steps."""
    kept = sorted(rows, key=lambda row: (row.trial, row.step))
    if len(kept) > MOST_ROWS:
        kept = list({row.trial: row for row in kept}.values())
    if len(kept) > MOST_ROWS:
        order = sorted(kept, key=lambda row: (row.value is None, row.value or 0.0, row.trial))
        best, others = order[: MOST_ROWS // 2], order[MOST_ROWS // 2 :]
        count = MOST_ROWS - len(best)
        spread = [others[i * (len(others) - 1) // (count - 1)] for i in range(count)]
        kept = sorted(best + spread, key=lambda row: (row.trial, row.step))
    return tuple(kept)


def _objective(metric: str | None, mode: str | None) -> Objective:
    if metric is None or mode is None:
        raise ValueError("metric and mode must be given: the source has none of its own")
    return Objective(metric, mode)


def _cell(value: Any) -> Any:
    """A table's cell as a plain value; `_ABSENT` if it is empty."""
    value = value.item() if isinstance(value, np.generic) else value
    empty = value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ == "NAType"
    return _ABSENT if empty else value


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}/")
        else:
            found[prefix + name] = value
    return found


def _nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with names that ``/`` joins as dicts in dicts."""
    found: dict[str, Any] = {}
    for name, value in _flat(config).items():
        *path, last = [part for part in name.split("/") if part] or [name]
        holder = found
        for part in path:
            inner = holder.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{name!r} is inside of {part!r}, which has a value of its own: {inner!r:.80}")
            holder = inner
        holder[last] = value
    return found


# ------------------------------------------------------------------------------------------------------- where they fit


@dataclass(frozen=True, slots=True)
class _Place:
    """A configuration as far as it is a point: (d,) each, and which dimensions are not given, or not inside."""

    x: NDArray[np.float64]
    active: NDArray[np.bool_]
    missing: tuple[int, ...]
    outside: tuple[int, ...]


def _place(space: Space, config: Config) -> _Place:
    if space.contains(config):
        return _Place(*space.encode(config), (), ())
    values = space.flat(config)
    x, active = np.zeros(space.dim), np.zeros(space.dim, dtype=np.bool_)
    option_of: dict[int, int] = {}
    missing, outside = [], []
    for j, param in enumerate(space.params):  # a choice comes before what is inside its branches
        if param.condition is not None:
            of, branch = param.condition
            if of in missing:
                missing.append(j)
            if option_of.get(of) != branch:
                continue
        if isinstance(param.domain, Choice):
            fits = [_agreeing(option, param.name, values) for option in param.domain.options]
            best = max((fit for fit in fits if fit is not None), default=None)
            if best is None:
                outside.append(j)
            elif best == 0:
                missing.append(j)
            else:
                option_of[j] = fits.index(best)
                x[j], active[j] = param.domain.coordinate(option_of[j]), True
        elif (value := values.get(param.name, _ABSENT)) is _ABSENT:
            missing.append(j)
        elif (number := _number(param.domain, value)) is _ABSENT:
            outside.append(j)
        else:
            x[j], active[j] = min(max(param.domain.encode(number), 0.0), 1.0), True
    return _Place(x, active, tuple(missing), tuple(outside))


def _agreeing(option: Any, name: str, values: Mapping[str, Any]) -> int | None:
    """How many values agree with an option of a choice that stands at ``name``; None if one contradicts it.

    A branch takes numbers from outside their domains for its own, so that these are what is said to be wrong.
    """
    if isinstance(option, Mapping) and option:
        if name in values:
            return None
        found = [_agreeing(inner, f"{name}/{key}", values) for key, inner in option.items()]
        return None if None in found else sum(each for each in found if each is not None)
    if isinstance(option, Choice):
        within = [_agreeing(inner, name, values) for inner in option.options]
        return max((each for each in within if each is not None), default=None)
    if name not in values:
        return None if _any_below(name, values) else 0
    if isinstance(option, Numeric):
        return 1 if _is_number(values[name]) else None
    if isinstance(option, Domain):
        return 1
    try:
        return 1 if _alike(plain(option, name), values[name]) else None
    except TypeError:  # an object
        return None


def _any_below(name: str, values: Mapping[str, Any]) -> bool:
    return any(each.startswith(f"{name}/") for each in values)


def _number(domain: Axis, value: Any) -> Any:
    """A value of the domain, `_ABSENT` if it is none; tables make floats of integers."""
    if domain.contains(value):
        return value
    if isinstance(value, float) and value.is_integer() and domain.contains(int(value)):
        return int(value)
    return _ABSENT


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _alike(a: Any, b: Any) -> bool:
    return same(a, b) or (_is_number(a) and _is_number(b) and a == b) or (isinstance(a, tuple) and same(list(a), b))


def _briefly(space: Space, j: int) -> str:
    domain = space.params[j].domain
    return f"its {domain.categories} options" if isinstance(domain, Choice) else domain.describe()


def histories(given: Iterable[Any]) -> tuple[History, ...]:
    """What a searcher's ``warm_start`` is given, of a record as well."""
    if isinstance(given, History | str | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"warm_start must be a list of History, got {given!r:.80}")
    found = []
    for each in given:
        if isinstance(each, Mapping):
            spelled = each["rows"] and isinstance(each["rows"][0], str)
            each = History.from_json(each) if spelled else History(each["name"], tuple(each["rows"]))
        if not isinstance(each, History):
            raise TypeError(f"warm_start must be a list of History, got {each!r:.80} in it")
        found.append(each)
    return tuple(found)


def fitting(given: Sequence[History], space: Space) -> list[Fitted]:
    """Histories as points of a space. ValueError, saying why, if one of them does not fit at all."""
    fitted = [each.fit_to(space) for each in given]
    for each in fitted:
        if not len(each):
            raise ValueError(f"warm_start: nothing of it fits this space. {each}")
    return fitted
