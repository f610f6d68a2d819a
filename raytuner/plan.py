"""Price a sweep before paying for it: the real study on a virtual clock, with made-up trials.

`simulate` runs study, scheduler and searcher as `Tuner.fit` would, against a learning curve (`raytuner.curves`), with
so many workers, and returns a `Forecast`: how long it takes, what it costs, what it finds. `Faults` has things go wrong
on the way. Nothing is written and no Ray is needed; ten thousand trials take some seconds.

What it does not know: the time that processes take to start, checkpoints to be saved and loaded, and the driver to
decide. Virtual seconds are those of training steps alone.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from raytuner.actions import Fork, Proposal, Resume, Start
from raytuner.budget import TimeBudget
from raytuner.config import RunConfig, TuneConfig
from raytuner.curves import Curve, Own, Recorded, Shape, chance, mixed, unit
from raytuner.driver import Driver
from raytuner.events import Decision, Ended, Event, Failed, Finish, How, Over, Proposed, Slots
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.objective import Objective
from raytuner.protocols import Executor
from raytuner.record.journal import Row
from raytuner.space import Space
from raytuner.stopper import Watch, is_rule
from raytuner.study import Study
from raytuner.trainable import Reserved, Trainable
from raytuner.trial import END, Config, Failure, Lease, Metrics, Reports, Slot, State, Trial
from raytuner.tuner import Tuner

Rate = float | Callable[[Trial, int, int], bool]
"""How likely something is at a step; or a function that says of a trial, a step and its failures so far whether it
happens."""


# ---------------------------------------------------------------------------------------------------- what goes wrong


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong in a simulated study, and how often. All of it is a function of ``seed`` and of what it hits.

    Args:
        trial_failure: how likely a step raises an error. `FailureConfig` says what comes of it.
        worker_loss: how likely a step loses its worker, which is gone for ``away_s`` seconds.
        slow_workers: the share of workers on which all takes ``slowness`` times longer; or a function of the worker's
            number, from 0, that says how many times.
        nan: how likely a report's metric is NaN.
        duplicate_reports: how likely a report arrives twice.
        late_reports: how likely an attempt that failed or was unwound is heard of once more, ``late_s`` seconds later.
        driver_deaths: how likely the driver dies in a turn of its loop, less than 1; or a function of the turn's number
            and of how often it died before. The next one goes on from the record. A death takes no virtual time:
            steps since the last checkpoint are made once more (`Forecast.repeated`), as if they took none.
    """

    trial_failure: Rate = 0.0
    worker_loss: Rate = 0.0
    away_s: float = 600.0
    slow_workers: float | Callable[[int], float] = 0.0
    slowness: float = 2.0
    nan: Rate = 0.0
    duplicate_reports: Rate = 0.0
    late_reports: Rate = 0.0
    late_s: float = 60.0
    driver_deaths: float | Callable[[int, int], bool] = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (*_AT_STEPS, "slow_workers", "driver_deaths"):
            given = getattr(self, name)
            most = "below 1" if name == "driver_deaths" else "to 1"
            if not callable(given) and not (_is_number(given) and (0 <= given < 1 or (given == 1 and most == "to 1"))):
                raise ValueError(f"{name} must be a number from 0 {most}, or a function; got {given!r}")
        for name in ("away_s", "slowness", "late_s"):
            _positive(name, getattr(self, name))
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {self.seed!r}")

    def at_steps(self, name: str) -> Callable[[Trial, int, int], bool] | None:
        """Whether a fault that hits steps happens at one; None: it never does."""
        rate: Rate = getattr(self, name)
        if callable(rate):
            return rate
        if not rate:
            return None
        states: dict[tuple[int, int], int] = {}
        kind = _AT_STEPS.index(name)

        def happens(trial: Trial, step: int, tries: int) -> bool:
            state = states.get((trial.id, tries))
            if state is None:
                states[trial.id, tries] = state = mixed(0, self.seed, kind, trial.id, tries)
            return unit(mixed(state, step)) < rate

        return happens

    def pace(self, worker: int) -> float:
        """How many times longer all takes on a worker."""
        if callable(self.slow_workers):
            return self.slow_workers(worker)
        return self.slowness if chance(self.seed, len(_AT_STEPS), worker) < self.slow_workers else 1.0

    def dies(self, turn: int, deaths: int) -> bool:
        """Whether the driver dies in a turn, having died so often before."""
        if callable(self.driver_deaths):
            return self.driver_deaths(turn, deaths)
        return bool(self.driver_deaths) and chance(self.seed, len(_AT_STEPS) + 1, turn, deaths) < self.driver_deaths


_AT_STEPS = ("trial_failure", "worker_loss", "nan", "duplicate_reports", "late_reports")


# ----------------------------------------------------------------------------------------------------- what comes out


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The best trial at some time: that of the best value at the highest rung that any has reached by then.

    ``value``: of the study's metric, as it was reported at ``step``, ``at_s`` seconds after the beginning.
    """

    at_s: float
    trial: int
    step: int
    value: float


@dataclass(frozen=True, repr=False)
class Forecast:
    """What a study would do. ``print`` shows it.

    ``workers``: how many there were, or fewer, if `TuneConfig` allows no more trials at a time. ``wall_s``: from its
    beginning to its end. ``busy_s``: seconds of slot time that trials took, failed attempts included. ``cost``: at the
    price that was given. ``trials``: how many were started, forks among them, of which ``full`` came to the end of
    their budget, ``stopped`` were stopped before, ``failed`` failed and ``unfinished`` were on their way when the study
    was over. ``steps``: made by all of them; ``repeated``: those of them that had been made before. ``checkpoints``:
    how many existed at the same time, at most. ``utilisation``: the share of the slots' time in which they were taken;
    ``utilisation_until_last_start``: the same up to the last start of a trial, at ``last_start_s``, after which they
    run empty one by one. ``complete``: whether the study came to its end; else ``reason`` says what ended it.
    ``deaths``: of the driver. ``incumbents``: who was the best, as time went by. ``configs``: by trial.
    ``decisions``: the starts, resumptions, forks and ends of trials, in order.
    """

    workers: int
    wall_s: float
    busy_s: float
    gpu_hours: float
    cost: float | None
    trials: int
    full: int
    stopped: int
    failed: int
    unfinished: int
    steps: int
    repeated: int
    checkpoints: int
    utilisation: float
    utilisation_until_last_start: float
    last_start_s: float
    deaths: int
    complete: bool
    reason: str
    metric: str | None
    incumbents: Sequence[Incumbent]
    configs: Mapping[int, Config]
    decisions: Sequence[Decision]

    @property
    def slot_hours(self) -> float:
        """`busy_s` in hours."""
        return self.busy_s / 3600

    @property
    def best(self) -> Incumbent | None:
        """The incumbent at the end; None if no trial reached a rung, or nothing is compared."""
        return self.incumbents[-1] if self.incumbents else None

    def incumbent_at(self, at_s: float) -> Incumbent | None:
        """Who was the best at a time."""
        place = bisect_right(self.incumbents, at_s, key=lambda each: each.at_s)
        return self.incumbents[place - 1] if place else None

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values; of the trials only the best."""
        left_out = ("incumbents", "configs", "decisions")
        figures = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in left_out}
        best = self.best
        figures["slot_hours"] = self.slot_hours
        figures["best"] = best and {
            "at_s": best.at_s,
            "trial": best.trial,
            "step": best.step,
            "value": best.value,
            "config": self.configs[best.trial],
        }
        return figures

    def figures(self) -> dict[str, str]:
        """What there is to know, for people: names and figures with units."""
        found = {"wall time": duration(self.wall_s), "slot-hours": _number(self.slot_hours)}
        if self.gpu_hours:
            found["GPU-hours"] = _number(self.gpu_hours)
        if self.cost is not None:
            found["cost"] = _number(self.cost)
        found["trials"] = f"{self.trials:,}"
        found["to full budget"] = f"{self.full:,}"
        found["stopped early"] = f"{self.stopped:,}"
        found["failed"] = f"{self.failed:,}"
        if self.unfinished:
            found["unfinished"] = f"{self.unfinished:,}"
        found["steps"] = f"{self.steps:,}"
        if self.repeated:
            found["repeated steps"] = f"{self.repeated:,}"
        if self.deaths:
            found["driver deaths"] = f"{self.deaths:,}"
        found["checkpoints, at most"] = f"{self.checkpoints:,}"
        found["slots taken"] = f"{self.utilisation:.1%}"
        found["until the last start"] = f"{self.utilisation_until_last_start:.1%}"
        found["last start after"] = duration(self.last_start_s)
        if self.best is not None:
            found[f"best {self.metric}"] = f"{self.best.value:.6g}"
            found["found after"] = duration(self.best.at_s)
        return found

    def __str__(self) -> str:
        lines = [("workers", f"{self.workers:,}"), *self.figures().items()]
        if self.best is not None:
            lines.append(("its trial, step", f"{self.best.trial}, {self.best.step}"))
            lines.append(("its config", repr(dict(self.configs[self.best.trial]))))
        if not self.complete:
            lines.append(("ended early", self.reason))
        return "\n".join(f"{name:<21} {text}" for name, text in lines)

    def __repr__(self) -> str:
        best = "" if self.best is None else f", best {self.metric} {self.best.value:.6g}"
        return (
            f"Forecast({self.workers:,} workers, {self.trials:,} trials: {duration(self.wall_s)}, "
            f"{_number(self.slot_hours)} slot-hours{best})"
        )


def duration(seconds: float) -> str:
    """Seconds for people: ``3.2 h``."""
    for unit_s, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:,.1f} {name}"
    return f"{seconds:.1f} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


# --------------------------------------------------------------------------------------------------------- the door


def simulate(
    param_space: Mapping[str, Any] | Space,
    *,
    curve: str | Curve | Callable[[Config, int], Metrics],
    workers: int,
    tune_config: TuneConfig | None = None,
    run_config: RunConfig | None = None,
    steps: int | None = None,
    seconds_per_step: float | Callable[[Config], float] | None = None,
    gpus_per_trial: float = 1.0,
    price: float | None = None,
    saves: bool = True,
    faults: Faults | None = None,
    skip: bool = True,
) -> Forecast:
    """Run a study on a virtual clock and say what it takes and finds.

    Args:
        param_space, tune_config, run_config: as for `Tuner`; of ``run_config`` only ``stop``, ``failure_config`` and
            ``checkpoint_config`` matter. Without a ``seed`` it is 0.
        curve: what trials report: the name of a shape (`raytuner.curves.SHAPES`), a `Shape`, a `Recorded` study, or a
            function ``(config, step) -> metrics``.
        workers: how many trials can run at the same time.
        steps: after which training ends by itself: the full budget. By default the scheduler's ``max_t``, the stop
            rule's ``training_iteration``, or the last step of a recorded study.
        seconds_per_step: a number, or a function of the configuration; by default what was recorded, else 1.
        gpus_per_trial: of each trial, for `Forecast.gpu_hours`.
        price: of a GPU for an hour, for `Forecast.cost`.
        saves: whether trials save where `should_checkpoint` says so: at the ends of leases, and at each
            ``checkpoint_frequency``-th step; ``checkpoint_interval_s`` is passed over, and each counts as one byte.
        faults: what goes wrong on the way.
        skip: False makes every report, even those that change nothing: slower, with the same result.
    """
    tuner = Tuner(
        Reserved(_MadeUp, Slot(gpu=_positive("gpus_per_trial", gpus_per_trial, zero=True))),
        param_space=param_space,
        tune_config=tune_config,
        run_config=run_config,
    )
    for name, value, kind in (("saves", saves, bool), ("skip", skip, bool), ("faults", faults or Faults(), Faults)):
        if not isinstance(value, kind):
            wanted = "True or False" if kind is bool else f"a raytuner.{kind.__name__}"
            raise ValueError(f"{name} must be {wanted}, got {value!r:.80}")
    if type(workers) is not int or workers < 1:
        raise ValueError(f"workers must be a whole number of at least 1, got {workers!r}")
    if price is not None and _positive("price", price, zero=True) and not gpus_per_trial:
        raise ValueError(f"price is {price!r} for a GPU-hour, but gpus_per_trial is 0: say how many GPUs a trial has")
    length = _length(tuner, curve, steps)
    load = _workload(tuner, _curve(tuner, curve, length), length, seconds_per_step, saves, faults or Faults())
    most = tuner._config.max_concurrent_trials
    return _Play(tuner, load, workers if most is None else min(workers, most), faults or Faults(), skip).run(price)


class _MadeUp(Trainable):
    """Stands where a user's trainable would."""

    def step(self) -> Mapping[str, Any]:
        raise AssertionError("simulated trials run no code")


def settings_of(recorded: Recorded) -> tuple[TuneConfig, RunConfig, float]:
    """The settings of a study that was run, and how many GPUs its trials had (1, if that was a function)."""
    from raytuner.record.folder import Folder

    what = Folder(recorded.path).read()["resources"]
    with Folder(recorded.path).interpreted():
        slot = Slot(gpu=1.0) if "function" in what else Slot(**what)
    space: Any = recorded.space
    tuner = Tuner.restore(recorded.path, Reserved(_MadeUp, slot), param_space=space)
    return tuner._config, tuner._run, slot.gpu


def _length(tuner: Tuner, curve: object, steps: int | None) -> int:
    """The step after which training ends by itself."""
    if steps is not None:
        if type(steps) is not int or steps < 1:
            raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
        return steps
    if isinstance(curve, Recorded | Shape):
        return curve.steps
    scheduler, stop = tuner._scheduler, tuner._run.stop
    known = [stop.get("training_iteration")] if isinstance(stop, Mapping) else []
    if getattr(scheduler, "time_attr", "training_iteration") == "training_iteration":
        known += [getattr(policy, "max_t", None) for policy in (scheduler, getattr(scheduler, "scheduler", None))]
    most = min((number for number in known if number is not None), default=END)
    if not 1 <= most < END:
        raise ValueError(f"steps must be given: {type(scheduler).__name__} does not say how many a trial makes")
    return math.ceil(most)


def _curve(tuner: Tuner, curve: str | Curve | Callable[[Config, int], Metrics], length: int) -> Curve:
    objective = tuner._objective
    if isinstance(curve, str):
        metric, mode = objective.metric or "loss", objective.mode
        return Shape(curve, tuner._space, length, metric=metric, mode=mode, seed=tuner._config.seed or 0)
    if (
        isinstance(curve, Shape)
        and objective.metric
        and (curve.metric, curve.mode) != (objective.metric, objective.mode)
    ):
        raise ValueError(
            f"metric is {objective.metric!r} ({objective.mode}), but the curve's is {curve.metric!r} ({curve.mode})"
        )
    if not callable(curve):
        if not callable(getattr(curve, "at", None)):
            raise ValueError(
                "curve must be the name of a shape, a Shape, a Recorded study, or a function (config, step) -> "
                f"metrics; got {curve!r:.80}"
            )
        return curve
    return Own(curve)


def _seconds(given: float | Callable[[Config], float]) -> Callable[[Trial, int], float]:
    """How long a step takes, where all steps of a trial take as long."""
    if not callable(given):
        always = _positive("seconds_per_step", given)
        return lambda trial, step: always
    known: dict[int, float] = {}

    def seconds(trial: Trial, step: int) -> float:
        if trial.id not in known:
            known[trial.id] = _positive("seconds_per_step(config)", given(trial.config))
        return known[trial.id]

    return seconds


# --------------------------------------------------------------------------------------------------- made-up trials


def _workload(
    tuner: Tuner,
    curve: Curve,
    length: int,
    seconds_per_step: float | Callable[[Config], float] | None,
    saves: bool,
    faults: Faults,
) -> Workload:
    every = tuner._run.checkpoint_config.checkpoint_frequency
    stop = dict(tuner._run.stop) if isinstance(tuner._run.stop, Mapping) else {}
    stops = math.ceil(stop.pop("training_iteration", END))
    time_attr: str = getattr(tuner._scheduler, "time_attr", "training_iteration")
    as_recorded = curve.seconds if seconds_per_step is None and isinstance(curve, Recorded) else None
    seconds = as_recorded or _seconds(1.0 if seconds_per_step is None else seconds_per_step)
    said: Callable[[Trial, int], Metrics] = curve.at
    nan = faults.at_steps("nan")
    if _TOTAL in (*stop, time_attr):
        said = _with_total(said, _since_step_1(seconds, even=as_recorded is None))
    if nan is not None:
        said = _with_nan(said, tuner._objective.metric, nan)
    return Workload(
        curve=said,
        seconds=seconds,
        even=as_recorded is None,
        length=length,
        stops=stops,
        saves=(lambda trial, step: step % every == 0) if saves and every else None,
        saves_at_end=saves,
        fault=_fault(faults),
        ends=_ends(tuner._objective, stop, sound=getattr(curve, "sound", False) and nan is None),
        level=None if time_attr == "training_iteration" else _level(time_attr),
        pace=faults.pace,
        away_s=faults.away_s if faults.worker_loss else 0.0,
        twice=faults.at_steps("duplicate_reports"),
        late=faults.at_steps("late_reports"),
        late_s=faults.late_s,
    )


_TOTAL = "time_total_s"


def _since_step_1(seconds: Callable[[Trial, int], float], even: bool) -> Callable[[Trial, int], float]:
    """How long a trial has trained at the end of a step, on workers that are not slow."""
    sums: dict[int, list[float]] = {}

    def total(trial: Trial, step: int) -> float:
        if even:
            return step * seconds(trial, 1)
        known = sums.setdefault(trial.id, [0.0])
        while len(known) <= step:
            known.append(known[-1] + seconds(trial, len(known)))
        return known[step]

    return total


def _with_total(
    curve: Callable[[Trial, int], Metrics], total: Callable[[Trial, int], float]
) -> Callable[[Trial, int], Metrics]:
    return lambda trial, step: {_TOTAL: total(trial, step), **curve(trial, step)}


def _level(time_attr: str) -> Callable[[Trial, int, Metrics], float]:
    def level(trial: Trial, step: int, metrics: Metrics) -> float:
        value = metrics.get(time_attr)
        if not _is_number(value):
            raise ValueError(f"{time_attr!r} is the scheduler's time_attr, but the curve says {dict(metrics)!r:.120}")
        return float(metrics[time_attr])

    return level


def _with_nan(
    curve: Callable[[Trial, int], Metrics], metric: str | None, nan: Callable[[Trial, int, int], bool]
) -> Callable[[Trial, int], Metrics]:
    def holed(trial: Trial, step: int) -> Metrics:
        said = curve(trial, step)
        return {**said, metric: math.nan} if metric is not None and nan(trial, step, 0) else said

    return holed


def _fault(faults: Faults) -> Callable[[Trial, int, int], Failure | None] | None:
    raises, lost = faults.at_steps("trial_failure"), faults.at_steps("worker_loss")
    if raises is None and lost is None:
        return None

    def fault(trial: Trial, step: int, tries: int) -> Failure | None:
        if lost is not None and lost(trial, step, tries):
            return Failure.LOST
        return Failure.ERROR if raises is not None and raises(trial, step, tries) else None

    return fault


def _ends(
    objective: Objective, stop: Mapping[str, float], sound: bool
) -> Callable[[Trial, Metrics, bool], Literal[How.STOPPED] | Failure | None] | None:
    """What a report does to its trial, as in `raytuner.session`; None: nothing ever."""
    if sound and not stop:
        return None

    def ends(trial: Trial, metrics: Metrics, first: bool) -> Literal[How.STOPPED] | Failure | None:
        failure = None if sound else objective.read(metrics).failure
        if failure is Failure.NOT_FINITE and not objective.patient:
            return failure
        if failure is Failure.NO_METRIC and first:
            return failure
        reached = any(_is_number(metrics.get(name)) and metrics[name] >= most for name, most in stop.items())
        return How.STOPPED if reached else None

    return ends


# ------------------------------------------------------------------------------------------------------- the study


class _Died(BaseException):
    """The driver is dead."""


class _Memory:
    """A record that is kept for as long as the simulation lasts (`raytuner.driver.Recorder`); drivers may die of it."""

    def __init__(self, faults: Faults) -> None:
        self.kept: list[Row] = []
        self.deaths = 0
        self._faults = faults
        self._turns = 0
        self._steps: dict[int, int] = {}

    def rows(self) -> Iterable[Row]:
        return list(self.kept)

    def last_steps(self) -> dict[int, int]:
        return dict(self._steps)

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        dies = False
        if rows:  # turns without any are not counted: there are fewer of them if reports are skipped
            self._turns += 1
            dies = self._faults.dies(self._turns, self.deaths)
        if dies and (self._turns + self.deaths) % 2:  # before it was written, or after
            raise _Died
        self.kept += rows
        for said in reports:
            self._steps[said.trial] = said.steps[-1]
        if dies:
            raise _Died


class _Until:
    """An executor that also wakes when a time budget is used up."""

    def __init__(self, executor: Executor, left_s: Callable[[], float]) -> None:
        self._executor = executor
        self._left_s = left_s

    def run(self, lease: Lease) -> None:
        self._executor.run(lease)

    def unwind(self, trial: int, attempt: int) -> None:
        self._executor.unwind(trial, attempt)

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        return self._executor.wait(self._left_s() or None)

    def close(self, at_once: bool = False) -> None:
        self._executor.close(at_once)


class _Play:
    """One simulation of a study: all lives of its driver."""

    def __init__(self, tuner: Tuner, load: Workload, slots: int, faults: Faults, skip: bool) -> None:
        self._tuner = tuner
        self._seed = tuner._config.seed or 0
        self._load = load
        self._slots = slots
        self._skip = skip and load.twice is None
        self._world = World()
        self._memory = _Memory(faults)
        self._incumbents: list[Incumbent] = []
        self._best: tuple[float, int] | None = None

    def run(self, price: float | None) -> Forecast:
        while True:
            try:
                finish = self._live()
                break
            except _Died:
                self._memory.deaths += 1
        return self._forecast(finish, price)

    def _live(self) -> Finish:
        """One driver's life."""
        tuner, study = self._tuner, self._tuner._study(self._seed, as_it_began=False)
        simulation = Simulation(self._world, self._load, self._slots, skip=self._skip and not study.every_report)
        budget = None if tuner._config.budget_s is None else TimeBudget(tuner._config.budget_s)
        driver = Driver(
            study,
            tuner._search.build(tuner._space, self._seed),
            self._memory,
            self._world,
            simulation,
            [self._note],
            Watch(next(tuner._stop_rules)) if is_rule(tuner._run.stop) else None,
            budget,
        )
        try:
            outside = simulation if budget is None else _Until(simulation, lambda: budget.left_s(simulation.now()))
            finish = driver.run(outside)
            self._note(study, self._memory.kept, ())  # the driver before may have died of its last turn
            return finish
        finally:
            simulation.close()

    def _note(self, study: Study, rows: Sequence[Row], said: Sequence[Reports]) -> None:
        """Hear of each turn: is there a new best?"""
        metric = study.objective.metric
        if study.best == self._best or study.best is None or metric is None:
            return
        self._best = study.best
        entry = study.ledger[study.best[1]]
        at = next(row.at for row in reversed(rows) if isinstance(row, Event))
        self._incumbents.append(Incumbent(at, entry.trial.id, entry.step, entry.metrics[metric]))

    def _forecast(self, finish: Finish, price: float | None) -> Forecast:
        rows, world = self._memory.kept, self._world
        slot = self._tuner._slot
        assert isinstance(slot, Slot)
        book = _Book(rows)
        leases = [lease for lease, _ in world.leases]
        busy = book.busy(leases, book.now)
        states = Counter(row.state for row in rows if isinstance(row, Over))
        gpu_hours = busy * slot.gpu / 3600
        return Forecast(
            workers=self._slots,
            wall_s=book.now,
            busy_s=busy,
            gpu_hours=gpu_hours,
            cost=None if price is None else gpu_hours * price,
            trials=len(book.configs),
            full=states[State.DONE],
            stopped=states[State.STOPPED],
            failed=states[State.FAILED],
            unfinished=len(book.configs) - states.total(),
            steps=world.steps,
            repeated=world.repeated,
            checkpoints=world.peak,
            utilisation=_share(busy, book.offered(book.now)),
            utilisation_until_last_start=_share(book.busy(leases, book.last_start), book.offered(book.last_start)),
            last_start_s=book.last_start,
            deaths=self._memory.deaths,
            complete=finish.complete,
            reason=finish.reason,
            metric=self._tuner._objective.metric,
            incumbents=tuple(self._incumbents),
            configs=book.configs,
            decisions=tuple(row for row in rows if isinstance(row, Start | Resume | Fork | Over)),
        )


class _Book:
    """Sums up a record. A trial holds a slot from when its lease was first begun, or from the end of its last one if
    that is later, to the lease's end, or its own; a driver's death in between changes nothing."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.configs: dict[int, Config] = {}
        self.now = self.last_start = 0.0
        self._slots: list[tuple[float, int]] = []  # since when there were so many
        self._ends: list[Ended | Failed] = []
        self._over: dict[int, float] = {}
        at = 0.0
        for row in rows:
            if isinstance(row, Event):
                at = row.at
                self.now = max(self.now, at)
            match row:
                case Slots():
                    self._slots.append((at, row.slots))
                case Ended() | Failed():
                    self._ends.append(row)
                case Over():
                    self._over[row.trial] = at
                case Proposed(trial=trial, answer=Proposal(config)) | Fork(trial=trial, config=config):
                    self.configs[trial], self.last_start = config, at
                case Start(trial, _, config) if config is not None:
                    self.configs[trial], self.last_start = config, at
                case _:
                    pass

    def offered(self, until: float) -> float:
        """Seconds of slot time that there were up to then."""
        changes = sorted(self._slots, key=lambda each: each[0])
        ends = [*(at for at, _ in changes[1:]), math.inf]
        return sum(slots * max(min(end, until) - at, 0.0) for (at, slots), end in zip(changes, ends, strict=True))

    def busy(self, leases: Iterable[Lease], until: float) -> float:
        """Seconds of slot time that trials took up to then."""
        since = {(lease.trial.id, lease.attempt): lease.since for lease in leases}
        last = dict(since.keys())  # of each trial the last lease
        held = [(end.trial, end.attempt, end.at) for end in self._ends]
        ended = {(trial, attempt) for trial, attempt, _ in held}
        # Where the driver died between stopping a trial in mid-lease and hearing of its end, there is only the former.
        held += [(*each, self._over[each[0]]) for each in last.items() if each[0] in self._over and each not in ended]
        before: dict[int, float] = {}
        seconds = 0.0
        for trial, attempt, at in held:
            begun = max(since[trial, attempt], before.get(trial, 0.0))
            before[trial] = at
            seconds += max(min(at, until) - begun, 0.0)
        return seconds


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(name: str, value: Any, zero: bool = False) -> float:
    if not _is_number(value) or not (0 < value < math.inf or (zero and value == 0)):
        raise ValueError(f"{name} must be a number {'of at least' if zero else 'above'} 0, got {value!r:.80}")
    return float(value)
