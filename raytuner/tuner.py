"""The public face, in Ray's names and shapes: ``Tuner(train, param_space=…, tune_config=…, run_config=…).fit()``.

A study lives in ``<storage_path>/<name>``, on a disk or in an object store. Running the same script again goes on where
that study stands, and returns its results at once when it is over. Another space, metric, searcher or scheduler under
the same name is refused.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raytuner.budget import TimeBudget
from raytuner.cache import CACHE_BYTES
from raytuner.callback import Callback, checked_callbacks
from raytuner.checkpoints import CheckpointConfig, Janitor
from raytuner.extension import EXTENDABLE, Extension, check_possible, extended, longer
from raytuner.interrupts import Interrupts
from raytuner.object_checkpoints import store_at
from raytuner.objective import Objective
from raytuner.protocols import SchedulingPolicy, SearchAlgorithm
from raytuner.record.folder import Folder, NoStudy
from raytuner.record.lock import Hold, take
from raytuner.record.patience import PATIENCE_S, Patience, PatientJournal, StorageError
from raytuner.record.provenance import changes, code, versions
from raytuner.record.storage import Place
from raytuner.retry import Remedies, Retries
from raytuner.schedulers import (
    SCHEDULERS,
    AsyncHyperBandScheduler,
    FIFOScheduler,
    PopulationBasedTrainingReplay,
    ResourceChangingScheduler,
)
from raytuner.schedulers.explore import built, completed
from raytuner.searchers import SEARCHERS, GridSearch, RandomSearch, SobolSearch
from raytuner.searchers.given_points import GivenPoints, Point
from raytuner.session import Rules
from raytuner.space import Constraint, Space, checked_constraints, code_name, pack, unpack
from raytuner.spelling import current, make, spell
from raytuner.stopper import StopRule, Watch, is_rule
from raytuner.trainable import Bound, Reserved, check, name_of, qualified_name
from raytuner.trial import Config, Failure, Slot
from raytuner.work import Work

if TYPE_CHECKING:
    from raytuner.delivery import Deliveries
    from raytuner.events import Extended, Finish
    from raytuner.executors.inline import Inline
    from raytuner.executors.ray_actors import RayActors
    from raytuner.explanation import Explanation
    from raytuner.results import ResultGrid
    from raytuner.study import Study

_log = logging.getLogger(__name__)
_STORAGE = "~/raytuner_results"
_TICK_S = 0.2  # how often the loop looks at the clock and for Ctrl-C, when nothing happens
_DEAF = (GridSearch, RandomSearch, SobolSearch)  # searchers that make nothing of what trials report
EXECUTORS = ("ray", "inline")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How to search.

    ``metric``, ``mode`` (``"min"`` or ``"max"``): what to optimise; may stand in the scheduler instead.
    ``num_samples``: how many trials are started (with `grid_search`: how often the grid is run through; -1: until the
    searcher has nothing more). ``search_alg``: by default the grid if the space has one, else random.
    ``scheduler``: by default every trial runs to its end. ``max_concurrent_trials``: at most so many at a time (None:
    as many as the cluster holds). ``time_budget_s``: seconds, or a timedelta, after which the study ends and can be
    resumed with a larger budget; a driver's death does not start it anew. ``seed``: of every random choice; drawn and
    recorded if not given. ``chdir_to_trial_dir``: each trial has a working directory of its own.

    ``constraints`` (not in Ray): functions of a configuration, as trials get it, that say whether it may be tried; only
    such are. ``default_config`` (not in Ray): what is thought best, or a part of it: a prior (`raytuner.prior`) of
    ``default_confidence``, between 0 and 1, for each parameter without one of its own; the random and the grid searcher
    do not look at priors. ``points_to_evaluate``: configurations, or parts of such, for the first trials. They count
    among ``num_samples`` (but come on top of a grid); what they lack is drawn. ``evaluated_rewards``: for each of them
    the metric's value, where it is known; it is not run, but told to the searcher. None: it is run.
    """

    metric: str | None = None
    mode: str | None = None
    num_samples: int = 1
    search_alg: SearchAlgorithm | None = None
    scheduler: SchedulingPolicy | None = None
    max_concurrent_trials: int | None = None
    time_budget_s: float | timedelta | None = None
    seed: int | None = None
    chdir_to_trial_dir: bool = True
    constraints: Sequence[Constraint] = ()
    default_config: Mapping[str, Any] | None = None
    default_confidence: float = 0.5
    points_to_evaluate: Sequence[Mapping[str, Any]] | None = None
    evaluated_rewards: Sequence[float | None] | None = None

    def __post_init__(self) -> None:
        checked_constraints(self.constraints)
        _check_points(self.points_to_evaluate, self.evaluated_rewards)
        if self.metric is not None:
            Objective(self.metric)
        if self.mode not in (None, "min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {self.mode!r}")
        _whole("num_samples", self.num_samples, least=1, or_else=-1)
        _whole("max_concurrent_trials", self.max_concurrent_trials, least=1, or_else=None)
        _whole("seed", self.seed, least=0, or_else=None)
        if self.time_budget_s is not None:
            _seconds("time_budget_s", self.budget_s)
        _bool("chdir_to_trial_dir", self.chdir_to_trial_dir)
        _has_build("search_alg", self.search_alg, SEARCHERS)
        _has_build("scheduler", self.scheduler, SCHEDULERS)

    @property
    def budget_s(self) -> float | None:
        """`time_budget_s` in seconds."""
        budget = self.time_budget_s
        return budget.total_seconds() if isinstance(budget, timedelta) else budget


@dataclass(frozen=True, kw_only=True)
class FailureConfig:
    """What to do with failing trials.

    ``max_failures``: restarts from the newest checkpoint (-1: always). ``fail_fast``: the first trial that fails for
    good ends the study, which can be resumed; ``"raise"``: and `Tuner.fit` raises its error. ``on_nan``: a metric that
    is no finite number fails its trial at once (``"fail"``), or only where it is to be compared, at a rung or at the
    trial's end (``"ignore"``).

    Not in Ray (`raytuner.retry` has a table of what fails how): ``heartbeat_timeout_s``: a trial that reports nothing
    for so many seconds hangs; where it stands goes into its error, its process is ended, and it runs again, once
    (None: it may take as long as it likes). ``max_same_failures``: if the first so many trials all fail, in the same
    way, the study ends early and can be resumed once the bug is mended (None: it never does). ``on_oom``: a function
    ``(config, error, times) -> dict | None`` that is asked, in the driver, when a GPU's or the machine's memory was too
    small for a trial: what it returns is changed of the configuration that the trial runs with from then on, e.g.
    ``{"batch_size": config["batch_size"] // 2}``, or more memory, where resources are a function of the configuration;
    None: the trial cannot be helped. Searchers go on seeing the configuration they proposed.
    """

    max_failures: int = 0
    fail_fast: bool | str = False
    on_nan: str = "fail"
    heartbeat_timeout_s: float | None = None
    max_same_failures: int | None = 5
    on_oom: Callable[[dict[str, Any], str, int], Mapping[str, Any] | None] | None = None

    def __post_init__(self) -> None:
        Retries(self.max_failures, max_same=self.max_same_failures)
        if self.heartbeat_timeout_s is not None:
            _seconds("heartbeat_timeout_s", self.heartbeat_timeout_s)
        if self.on_oom is not None and not callable(self.on_oom):
            raise TypeError(f"on_oom must be a function (config, error, times), got {self.on_oom!r:.80}")
        if self.fail_fast != "raise" and not isinstance(self.fail_fast, bool):
            raise ValueError(f"fail_fast must be True, False or 'raise', got {self.fail_fast!r}")
        if self.on_nan not in ("fail", "ignore"):
            raise ValueError(f"on_nan must be 'fail' or 'ignore', got {self.on_nan!r}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how to run.

    ``name``: of the study and its folder (default: the function's name and the time). ``storage_path``: the folder of
    the study's folder (default ``~/raytuner_results``): a path, or the URI of a place in an object store, such as
    ``s3://bucket/sweeps``; credentials come from the environment or the store's own chain, never from the URI.
    ``stop``: when a trial ends before the scheduler ends it: a dict of metric names and the value at or above which it
    does, e.g. ``{"training_iteration": 27}``; a function ``(trial_id, result) -> bool``; or a `Stopper`. ``verbose``: 0
    silent, 1 progress, 2 also each trial's end, 3 also each trial's start. ``log_to_file``: what trials print goes to
    ``artifacts/<trial>/stdout`` and ``stderr`` too (True), to one file of this name (a string), or to two (a pair).
    ``runtime_env``: Ray's, for the trials' processes. ``stop_grace_s``: how many seconds a trial that was told to stop
    has for the step it is in and for returning; after that its process is killed. ``storage_patience_s`` (not in Ray):
    for how many seconds a storage that is full, closed to us or does not answer is tried again, before the study ends
    early and can be resumed. ``checkpoint_cache_gib`` (not in Ray): of checkpoints in an object store, how many GiB
    each machine keeps of a study, so that a trial that goes on where it was need not fetch its own.

    ``callbacks``: `Callback`s, ours or Ray's, that hear how the study goes, each in a thread of its own, beside the
    study and never in its way; see `raytuner.callback`, and `raytuner.logger` for loggers. ``callback_deadline_s`` (not
    in Ray): how many seconds they have at the end for what they have not yet heard; the rest is told when the study is
    run or resumed again, or by ``raytuner sync``.
    """

    name: str | None = None
    storage_path: str | Path | Place | None = None
    stop: Mapping[str, float] | StopRule | None = None
    failure_config: FailureConfig = field(default_factory=FailureConfig)
    checkpoint_config: CheckpointConfig = field(default_factory=CheckpointConfig)
    verbose: int = 1
    log_to_file: bool | str | tuple[str, str] = False
    runtime_env: Mapping[str, Any] | None = None
    stop_grace_s: float = 10.0
    storage_patience_s: float = PATIENCE_S
    checkpoint_cache_gib: float = CACHE_BYTES / 2**30
    callbacks: Sequence[Callback] | None = None
    callback_deadline_s: float = 10.0

    def __post_init__(self) -> None:
        for name, kind in (("failure_config", FailureConfig), ("checkpoint_config", CheckpointConfig)):
            given = getattr(self, name)
            if given is None:  # Ray's default
                object.__setattr__(self, name, kind())
            elif not isinstance(given, kind):
                raise TypeError(f"{name} must be a raytuner.{kind.__name__}, got {given!r:.80}")
        if self.name is not None and (not self.name or Path(self.name).name != self.name or self.name in (".", "..")):
            raise ValueError(f"name must be a plain folder name, got {self.name!r}")
        if self.stop is not None and not isinstance(self.stop, Mapping) and not is_rule(self.stop):
            raise TypeError(
                "stop must be a dict of metric names and values, a function (trial_id, result) -> bool, or a Stopper; "
                f"got {self.stop!r:.80}"
            )
        for name, most in self.stop.items() if isinstance(self.stop, Mapping) else ():
            if not isinstance(name, str) or isinstance(most, bool) or not isinstance(most, (int, float)):
                raise ValueError(f"stop must hold metric names and numbers, got {name!r}: {most!r}")
        if self.storage_path is not None:
            Place.of(self.storage_path)
        _whole("verbose", self.verbose, least=0, or_else=0)
        _seconds("stop_grace_s", self.stop_grace_s)
        _seconds("storage_patience_s", self.storage_patience_s)
        cache: object = self.checkpoint_cache_gib
        if isinstance(cache, bool) or not isinstance(cache, (int, float)) or not 0 <= cache < math.inf:
            raise ValueError(f"checkpoint_cache_gib must be a number of GiB from 0 on, got {cache!r}")
        checked_callbacks(self.callbacks)
        _seconds("callback_deadline_s", self.callback_deadline_s)
        if self.runtime_env is not None and not isinstance(self.runtime_env, Mapping):
            raise TypeError(f"runtime_env must be a dict such as {{'env_vars': {{…}}}}, got {self.runtime_env!r:.80}")
        _ = self.log_files

    @property
    def log_files(self) -> tuple[str | None, str | None]:
        """The names of the files for what trials print to stdout and stderr; None: none."""
        match self.log_to_file:
            case False:
                return None, None
            case True:
                return "stdout", "stderr"
            case str(name) if _is_file_name(name):
                return name, name
            case (str(out), str(err)) if _is_file_name(out) and _is_file_name(err):
                return out, err
        raise ValueError(
            f"log_to_file must be True, False, a file's name or a pair of such, got {self.log_to_file!r:.80}"
        )


class Tuner:
    """Tunes a training function, or a class, over a space of configurations.

    ``executor``: ``"ray"``, or ``"inline"`` to run trials one at a time in this process, for a debugger.
    """

    def __init__(
        self,
        trainable: Callable[..., Any] | type | Bound | Reserved,
        *,
        param_space: Mapping[str, Any] | Space | None = None,
        tune_config: TuneConfig | None = None,
        run_config: RunConfig | None = None,
        executor: str = "ray",
    ) -> None:
        check(trainable)
        for name, given, kind in (("tune_config", tune_config, TuneConfig), ("run_config", run_config, RunConfig)):
            if given is not None and not isinstance(given, kind):
                raise TypeError(f"{name} must be a raytuner.{kind.__name__}, got {given!r:.80}")
        reserved = trainable if isinstance(trainable, Reserved) else Reserved(trainable, Slot())
        bound = reserved.train if isinstance(reserved.train, Bound) else Bound(reserved.train, {})
        if executor not in EXECUTORS:
            raise ValueError(f"executor must be one of {', '.join(map(repr, EXECUTORS))}, got {executor!r}")
        self._inline = executor == "inline"
        self._train = bound.trainable
        self._slot = reserved.slot
        self._run = run_config or RunConfig()
        config = tune_config or TuneConfig()
        self._scheduler = config.scheduler or FIFOScheduler()
        if param_space is None or isinstance(param_space, Mapping):
            param_space = completed(param_space or {}, getattr(self._scheduler, "mutations", {}))
        if not isinstance(param_space, Space):
            param_space = Space(param_space)
        self._space = param_space.given(config.constraints, config.default_config, config.default_confidence)
        self._space.check_feasible()
        self._work = Work(self._train, bound.parameters, self._space.objects)
        self._searcher = config.search_alg or (GridSearch() if self._space.has_grid else RandomSearch())
        changing = self._scheduler if isinstance(self._scheduler, ResourceChangingScheduler) else None
        policy = changing.base_scheduler if changing else self._scheduler
        self._objective = _objective(config, policy, self._run.failure_config.on_nan == "ignore")
        if self._objective.metric is None and not isinstance(self._searcher, _DEAF):
            raise ValueError(f"metric must be given: {type(self._searcher).__name__} cannot search without one")
        if self._objective.metric is None and not isinstance(policy, FIFOScheduler | PopulationBasedTrainingReplay):
            raise ValueError(f"metric must be given: {type(policy).__name__} cannot compare trials without one")
        most = config.max_concurrent_trials
        self._allocation = changing.allocation(self._slot, most, self._objective.metric) if changing else None
        if config.num_samples == -1 and completed({}, getattr(self._scheduler, "mutations", {})):
            raise ValueError("num_samples must be the size of the population, got -1")
        if self._run.checkpoint_config.checkpoint_at_end and not isinstance(self._train, type):
            raise ValueError("checkpoint_at_end is for class trainables; a function reports its last checkpoint itself")
        self._config = config
        self._stop_rules = _lives_of(self._run.stop) if is_rule(self._run.stop) else iter(())
        points = _points(config, self._space, self._objective)
        self._given = sum(point.value is None for point in points)
        self._on_grid = isinstance(self._searcher, GridSearch) and self._space.has_grid
        if not self._on_grid and 0 <= config.num_samples < self._given:
            raise ValueError(
                f"num_samples is {config.num_samples}, but points_to_evaluate has {self._given} points to run"
            )
        self._search = GivenPoints(self._searcher, points, _top(self._scheduler)) if points else self._searcher
        self._search.build(self._space, 0)  # a searcher that cannot search this space says so now
        storage = Place.of(self._run.storage_path or _STORAGE)
        name = self._run.name or f"{name_of(self._train)}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
        self._folder = Folder(storage / name)
        if self._run.callbacks and storage.local is None:
            raise ValueError(f"callbacks hear of studies on a disk, not yet of those in object stores: {storage}")
        self._changes: dict[str, Any] = {}  # by which it is to be extended
        self._known: dict[str, Any] | None = None  # what the study in the folder is, once that was looked at

    def _extend(self) -> None:
        """Have the study in the folder go on beyond what was planned; refuse what it cannot be extended by."""
        was, described = self._recorded(), self._describe()
        self._changes = {name: described[name] for name in EXTENDABLE if described[name] != was[name]}
        given = bool(self._config.points_to_evaluate)
        check_possible(was, self._changes, self._scheduler, isinstance(self._searcher, GridSearch), given)

    @property
    def _pending(self) -> dict[str, Any]:
        """By what the study is to be extended that it was not yet."""
        if not self._changes:
            return {}
        recorded = self._recorded()
        return {name: value for name, value in self._changes.items() if recorded[name] != value}

    def fit(self) -> ResultGrid:
        """Run the study, or what is left of it, and return its results.

        The first Ctrl-C (or SIGTERM) saves what runs, says how to go on and leaves with SystemExit(130, or 143); the
        second leaves at once. Nothing that was recorded is lost either way.

        Raises `raytuner.StudyInUse` if another process runs it; ValueError if another study has its name, or if the
        cluster can never give what a trial reserves; TypeError if a trial's code cannot be sent to its process;
        `raytuner.StorageError` if the storage failed for longer than ``storage_patience_s``: nothing that was recorded
        is lost, and the study goes on from there once the storage answers.
        """
        from raytuner.record.journal import is_complete
        from raytuner.results import ResultGrid

        with take(self._folder.root) as hold:
            self._known = None
            seed = self._known_seed()
            if seed is None or self._pending or not is_complete(self._folder.root):
                self._live(seed, hold)
            elif self._run.callbacks:
                self._tell_the_rest()
        return ResultGrid(self._folder.root)

    def _live(self, seed: int | None, hold: Hold) -> None:
        """One driver's life. The trials' processes warm up while the study is prepared."""
        callbacks = self._deliveries()
        executor = self._start()
        interrupts = Interrupts()
        finish = None
        try:
            with interrupts:
                if seed is None:
                    hold.check()  # it took a while to get here
                    seed = self._begin()
                else:
                    self._tell_what_changed()
                finish = self._drive(executor, seed, hold, lambda: interrupts.asked, callbacks)
                executor.close()
                self._wait_for(callbacks, interrupts)
        except StorageError as error:
            callbacks.close(0)
            executor.close()
            self._tell_how_to_go_on(f"The study ended early: {error}.")
            raise
        except KeyboardInterrupt:
            callbacks.close(0)
            executor.close(at_once=True)
            if finish is None or not finish.complete:
                self._tell_how_to_go_on("Left at once.")
            raise SystemExit(interrupts.status or 130) from None
        except BaseException:
            executor.close(at_once=True)
            callbacks.close(self._run.callback_deadline_s)
            raise
        if finish.complete:
            return
        self._tell_how_to_go_on(f"The study ended early: {finish.reason}.")
        if interrupts.asked is not None:
            raise SystemExit(interrupts.status)
        if finish.reason.startswith(Failure.STORAGE.value):
            raise StorageError(finish.reason)
        if self._run.failure_config.fail_fast == "raise":
            self._raise_failure()

    def _start(self) -> RayActors | Inline:
        """The executor. A Ctrl-C waits until it is there: one that interrupts Ray's start can crash the process."""
        interrupts = Interrupts()
        try:
            with interrupts:
                executor = self._executor()
        except KeyboardInterrupt:
            raise SystemExit(interrupts.status or 130) from None
        if interrupts.asked is not None:
            executor.close(at_once=True)
            self._tell_how_to_go_on(f"{interrupts.asked} before any trial ran.")
            raise SystemExit(interrupts.status)
        return executor

    def _deliveries(self) -> Deliveries:
        """What tells the callbacks."""
        from raytuner.delivery import Deliveries

        setup = {
            "stop": self._run.stop,
            "num_samples": self._config.num_samples,
            "total_num_samples": self._trials,
            "time_budget_s": self._config.budget_s,
        }
        return Deliveries(self._run.callbacks or (), self._folder, name_of(self._train), setup)

    def _wait_for(self, callbacks: Deliveries, interrupts: Interrupts) -> None:
        """Give the callbacks their time; a Ctrl-C that is not yet obeyed calls it off."""
        obeyed = interrupts.asked
        callbacks.close(self._run.callback_deadline_s, lambda: interrupts.asked != obeyed)

    def _tell_the_rest(self) -> None:
        """Tell the callbacks what they have not yet heard of a study that is over."""
        from raytuner.delivery import durable_end, local_root

        callbacks, interrupts = self._deliveries(), Interrupts()
        try:
            with interrupts:
                callbacks.wake(durable_end(local_root(self._folder)))
                self._wait_for(callbacks, interrupts)
        finally:
            callbacks.close(0)

    def _drive(
        self,
        executor: RayActors | Inline,
        seed: int,
        hold: Hold,
        asked: Callable[[], str | None],
        callbacks: Deliveries,
    ) -> Finish:
        from raytuner.driver import Driver, Listener
        from raytuner.executors.inline import Inline
        from raytuner.progress import Progress
        from raytuner.record.journal import Journal

        study = self._study(seed)
        clock = _Clock()
        budget = None if self._config.budget_s is None else TimeBudget(self._config.budget_s)
        progress = Progress(
            self._folder.name,
            study,
            self._trials,
            self._run.verbose,
            slot=self._slot if isinstance(self._slot, Slot) and self._allocation is None else None,
            limit_s=None if budget is None else lambda: budget.left_s(clock.now()),
        )

        def patience_s() -> float:
            return 0.0 if asked() else self._run.storage_patience_s

        with (
            closing(Journal(self._folder.root, hold)) as journal,
            closing(self._janitor(Patience(patience_s))) as shelf,
        ):
            listeners: list[Listener] = [progress] if self._run.verbose else []
            if self._run.callbacks:
                listeners.append(lambda *turn: callbacks.wake(journal.turn))
            driver = Driver(
                study,
                self._search.build(self._space, seed),
                PatientJournal(journal, Patience(patience_s), self._folder.root / "journal"),
                shelf,
                clock,
                listeners,
                Watch(next(self._stop_rules)) if is_rule(self._run.stop) else None,
                budget,
                None if (on_oom := self._run.failure_config.on_oom) is None else Remedies(on_oom),
                self._extension(clock.now()),
            )

            hold.check()  # what a driver that lost the study would sweep away may be another's

            def drive() -> Finish:
                return driver.run(executor, _TICK_S, asked)

            with progress:
                return executor.serve(drive) if isinstance(executor, Inline) else drive()

    def _janitor(self, patience: Patience) -> Janitor:
        keeps = self._run.checkpoint_config
        store = store_at(self._folder.checkpoints, self._folder.here.expanduser() / "cache", self._cache_bytes)
        return Janitor(store, patience, bool(keeps.quota_count or keeps.quota_bytes))

    @property
    def _cache_bytes(self) -> int:
        return int(self._run.checkpoint_cache_gib * 2**30)

    def _executor(self) -> RayActors | Inline:
        at_end = self._run.checkpoint_config.checkpoint_at_end
        rules = Rules(
            self._folder.checkpoints,
            dict(self._run.stop) if isinstance(self._run.stop, Mapping) else {},
            getattr(self._scheduler, "time_attr", "training_iteration"),
            self._run.checkpoint_config.checkpoint_frequency,
            self._run.stop_grace_s,
            self._objective,
            isinstance(self._train, type) if at_end is None else at_end,  # as in Ray
            self._config.chdir_to_trial_dir,
            *self._run.log_files,
            self._run.failure_config.heartbeat_timeout_s,
            slot=self._slot if isinstance(self._slot, Slot) else Slot(),
            patience_s=self._run.storage_patience_s,
            here=self._folder.here,
            cache_bytes=self._cache_bytes,
            checkpoint_interval_s=self._run.checkpoint_config.checkpoint_interval_s,
        )
        if self._inline:
            from raytuner.executors.inline import Inline

            if self._allocation is not None:
                _log.warning("trials run in this process and reserve nothing: ResourceChangingScheduler has no effect")
            return Inline(self._work, rules)
        from raytuner.cluster.local import connect
        from raytuner.executors.ray_actors import RayActors

        self._work.check_portable()
        connect()
        orderless = isinstance(self._searcher, _DEAF) and isinstance(self._scheduler, FIFOScheduler)
        return RayActors(
            self._work,
            rules,
            self._slot,
            self._config.max_concurrent_trials,
            ahead=orderless and not is_rule(self._run.stop),
            runtime_env=self._run.runtime_env,
            resizes=self._allocation is not None,
        )

    def _tell_how_to_go_on(self, what: str) -> None:
        """Say, unless silent, how to resume the study."""
        if not self._run.verbose:
            return
        if not self._folder.exists():
            print(what, flush=True)
            return
        lines = [f"{what} Nothing that was recorded is lost. To go on:"]
        if self._run.name is not None and Path(sys.argv[0]).is_file():
            lines.append(f"  {shlex.join(sys.orig_argv)}")
            lines.append("or, from Python:")
        train = name_of(self._train)
        train = train if isinstance(self._slot, Slot) else f"with_resources({train}, …)"
        arguments = [repr(str(self._folder.root)), train]
        arguments += ["param_space=…"] if self._space.objects else []
        arguments += ["constraints=…"] if self._space.constraints else []
        arguments += ["run_config=RunConfig(stop=…)"] if is_rule(self._run.stop) else []
        lines.append(f"  Tuner.restore({', '.join(arguments)}).fit()")
        print("\n".join(lines), flush=True)

    def _raise_failure(self) -> None:
        from raytuner.results import ResultGrid

        for error in ResultGrid(self._folder.root).errors:
            raise error

    def explain(self, config: Mapping[str, Any]) -> Explanation | None:
        """What the searcher of the study in the folder thinks of a configuration, knowing what was recorded so far.

        Nothing is run or written. None while its model knows too little. Values are the metric's.
        TypeError if it has no model, ValueError if there is no study yet or the configuration is not in the space.
        """
        from raytuner.explanation import remembered
        from raytuner.record.journal import read

        seed = self._known_seed()
        if seed is None:
            raise ValueError(f"there is no study in {self._folder.root}: nothing is known yet")
        searcher = remembered(read(self._folder.root).rows, self._study(seed), self._search.build(self._space, seed))
        explain = getattr(searcher, "explain", None)
        if explain is None:
            raise TypeError(f"search_alg {type(self._searcher).__name__} has no model that could explain anything")
        found: Explanation | None = explain(self._space.partial(config, "config"))
        return found if found is None or self._objective.mode == "min" else found.in_sign(-1.0)

    def get_results(self) -> ResultGrid:
        """The results so far, without running anything."""
        from raytuner.results import ResultGrid

        return ResultGrid(self._folder.root)

    @classmethod
    def can_restore(cls, path: str | Path | Place) -> bool:
        """Whether there is a study in this folder."""
        try:
            Folder(path).read()
        except NoStudy:
            return False
        return True

    @classmethod
    def restore(
        cls,
        path: str | Path | Place,
        trainable: Callable[..., Any] | type | Bound | Reserved,
        *,
        param_space: Mapping[str, Any] | Space | None = None,
        tune_config: TuneConfig | None = None,
        run_config: RunConfig | None = None,
        constraints: Sequence[Constraint] | None = None,
        extend: Extension | None = None,
        executor: str = "ray",
    ) -> Tuner:
        """The study in a folder, to `fit` what is left of it, or more than that if it is to ``extend``.

        Its space and settings are read from the folder. ``param_space`` is needed again where it holds functions or
        objects, ``constraints`` where there are any, ``tune_config`` where the searcher or the scheduler is not one of
        raytuner's, the stop rule in ``run_config`` where it is code, ``with_resources`` where resources are a function.
        What `RunConfig` says of where the study is, how it retries and what it keeps is the study's own; the rest is as
        given here.
        """
        from raytuner.record.journal import extensions

        folder = Folder(path)
        what = extended(folder.read(), extensions(folder.root))
        if extend is not None:
            if param_space is not None and extend.param_space is not None:
                raise ValueError("param_space is given twice: what replaces it belongs into extend")
            param_space = extend.param_space if extend.param_space is not None else param_space
        run = run_config or RunConfig()
        stop: Any = what["stop"]
        if isinstance(stop.get("function"), str):  # a metric of this name has a number
            if not is_rule(run.stop):
                raise ValueError(f"run_config=RunConfig(stop=…) must be given again: the study's is {stop['function']}")
            stop = run.stop
        if extend is not None and extend.stop is not None:
            stop = dict(extend.stop)
        if (remedy := what["failure_config"].get("on_oom")) and run.failure_config.on_oom is None:
            raise ValueError(
                f"run_config=RunConfig(failure_config=FailureConfig(on_oom=…)) must be given again: {remedy}"
            )
        with folder.interpreted():
            run = replace(
                run,
                name=folder.name,
                storage_path=folder.root.parent,
                stop=stop,
                failure_config=_failure_config(what["failure_config"], run.failure_config),
                checkpoint_config=CheckpointConfig(**what["checkpoint_config"]),
            )
        if (config := tune_config) is None:
            searcher = _rebuild("search_alg", what["search_alg"], SEARCHERS, folder)
            scheduler = _rebuild("scheduler", what["scheduler"], SCHEDULERS, folder)
            with folder.interpreted():
                config = TuneConfig(
                    metric=what["metric"],
                    mode=what["mode"],
                    num_samples=what["num_samples"],
                    search_alg=searcher,
                    scheduler=scheduler,
                    max_concurrent_trials=what["max_concurrent_trials"],
                    time_budget_s=what.get("time_budget_s"),
                    seed=what["seed"],
                    chdir_to_trial_dir=what.get("chdir_to_trial_dir", True),
                    **_read_search(what),
                )
        if constraints is not None:
            config = replace(config, constraints=constraints)
        if extend is not None:
            config = replace(
                config,
                num_samples=extend.num_samples or config.num_samples,
                scheduler=config.scheduler if extend.max_t is None else longer(config.scheduler, extend.max_t),
            )
        known = isinstance(param_space, Space) and param_space.constraints
        if (names := what.get("constraints")) and not known and not config.constraints:
            raise ValueError(f"constraints=… must be given again: the study's are {', '.join(names)}")
        if not isinstance(trainable, Reserved):
            if "function" in what["resources"]:
                name = what["resources"]["function"]
                raise ValueError(f"with_resources(trainable, …) must be given again: the study's resources are {name}")
            with folder.interpreted():
                trainable = Reserved(trainable, Slot(**what["resources"]))
        space: Mapping[str, Any] | Space | None = param_space
        if space is None:
            with folder.interpreted():
                names = list(map(str, _objects(what["space"])))
                space = None if names else Space.from_json(what["space"])
            if names:
                raise ValueError(f"param_space must be given again: the study's holds objects, at {', '.join(names)}")
        tuner = cls(trainable, param_space=space, tune_config=config, run_config=run, executor=executor)
        if extend is not None:
            tuner._extend()
        return tuner

    # ------------------------------------------------------------------------------------------------- its parts

    @property
    def _trials(self) -> int | None:
        """How many trials will be started, if that is known."""
        return self._trials_of(self._config.num_samples)

    def _trials_of(self, num_samples: int) -> int | None:
        if num_samples == -1:
            return None
        return num_samples * len(self._space.grid_points) + self._given if self._on_grid else num_samples

    def _extension(self, at: float) -> Extended | None:
        """The event by which the study is extended, if it is to be."""
        from raytuner.events import Extended

        if not (pending := self._pending):
            return None
        top = getattr(self._scheduler, "max_t", None) if "scheduler" in pending else None
        return Extended(at, self._trials, top, "space" in pending, pending)

    def _study(self, seed: int, as_it_began: bool = True) -> Study:
        """The study of these settings; or, if there is one in the folder, ``as_it_began``: extensions are events."""
        from raytuner.study import Study

        scheduler, trials = self._scheduler, self._trials
        if as_it_began and self._folder.exists():
            began = self._folder.read()
            trials = self._trials_of(began["num_samples"])
            if began["scheduler"] != spell(scheduler, SCHEDULERS) and isinstance(scheduler, AsyncHyperBandScheduler):
                scheduler = make(began["scheduler"], SCHEDULERS)
        return Study(
            self._objective,
            built(scheduler, seed, self._space.feasible if self._space.constraints else None),
            trials,
            Retries(self._run.failure_config.max_failures, max_same=self._max_same),
            self._run.checkpoint_config,
            bool(self._run.failure_config.fail_fast),
            each_report=is_rule(self._run.stop),
            allocate=self._allocation,
        )

    @property
    def _max_same(self) -> int | None:
        """`FailureConfig.max_same_failures`, which studies that were begun before there was such a rule do without."""
        rules: dict[str, Any] = self._folder.read()["failure_config"] if self._folder.exists() else {}
        return rules.get("max_same_failures")

    # ------------------------------------------------------------------------------------------- what the study is

    def _known_seed(self) -> int | None:
        """The seed of the study in the folder, None if there is none; ValueError if it is another study."""
        if not self._folder.exists():
            return None
        what, known = self._describe(), {**_ABSENT, **self._recorded(), **self._changes}
        for name, registry in (("search_alg", SEARCHERS), ("scheduler", SCHEDULERS)):
            known[name] = current(known.get(name), registry)
        differences = []
        for name in _IDENTITY:
            if name == "space" and known.get("space") != what["space"]:
                differences += _space_differences(known.get("space"), self._space)
            elif name == "failure_config" and isinstance(known.get(name), dict):
                rules = {**what[name], **_FIRST_RULES, **known[name]}
                differences += [
                    f"{each}: {rules[each]!r} became {now!r}" for each, now in what[name].items() if rules[each] != now
                ]
            elif (was := {**_LATER.get(name, {}), **known[name]} if name in _LATER else known.get(name)) != what[name]:
                differences.append(f"{name}: {_brief(was)} became {_brief(what[name])}")
        seed = known["seed"]
        if self._config.seed not in (None, seed):
            differences.append(f"seed: {seed} became {self._config.seed}")
        if differences:
            raise ValueError(
                f"{self._folder.root} holds another study: {'; '.join(differences)}. "
                "Give the new study another name, or delete the folder. A study can be extended, by more trials for "
                "example: see raytuner.Extension"
            )
        assert isinstance(seed, int)
        return seed

    def _recorded(self) -> dict[str, Any]:
        """What the study in the folder is, as it was extended."""
        from raytuner.record.journal import extensions

        if self._known is None:
            self._known = extended(self._folder.read(), extensions(self._folder.root))
        return self._known

    def _tell_what_changed(self) -> None:
        """Say what differs from what the study was begun with, besides its settings."""
        found = changes(self._folder.read(), {"versions": versions(), "code": code(self._train)})
        if found:
            _log.warning("since the study %s was begun: %s", self._folder.name, "; ".join(found))

    def _begin(self) -> int:
        """Begin the study in its folder; its seed."""
        seed = secrets.randbelow(2**32) if self._config.seed is None else self._config.seed
        self._folder.create({**self._describe(), "seed": seed, "code": code(self._train)})
        return seed

    def _describe(self) -> dict[str, Any]:
        """What ``study.json`` holds of this study, as it reads back from JSON."""
        what = {
            "name": self._folder.name,
            "trainable": qualified_name(self._train),
            "space": self._space.to_json(),
            "metric": self._objective.metric,
            "mode": self._objective.mode if self._objective.metric else None,
            "num_samples": self._config.num_samples,
            "search_alg": spell(self._searcher, SEARCHERS),
            "scheduler": spell(self._scheduler, SCHEDULERS),
            "stop": _stop_rule(self._run.stop),
            "failure_config": _failure_rules(self._run.failure_config),
            "checkpoint_config": asdict(self._run.checkpoint_config),
            "max_concurrent_trials": self._config.max_concurrent_trials,
            "time_budget_s": self._config.budget_s,
            "chdir_to_trial_dir": self._config.chdir_to_trial_dir,
            "resources": _resources(self._slot),
            **self._describe_search(),
        }
        read_back: dict[str, Any] = json.loads(json.dumps(what))
        return read_back

    def _describe_search(self) -> dict[str, Any]:
        """What was said of the search besides the space and the searcher; of constraints the names."""
        default, config = self._space.default, self._config
        points = [self._space.partial(point, "points_to_evaluate") for point in config.points_to_evaluate or ()]
        return {
            "constraints": [code_name(each) for each in self._space.constraints],
            "default_config": default and {"config": pack(default.centre), "confidence": default.confidence},
            "points_to_evaluate": [pack(point) for point in points],
            "evaluated_rewards": [_plain_number(each) for each in config.evaluated_rewards or ()],
        }


_IDENTITY = (
    *("space", "metric", "mode", "num_samples", "search_alg", "scheduler", "stop"),
    *("failure_config", "checkpoint_config"),
    *("constraints", "default_config", "points_to_evaluate", "evaluated_rewards"),
)
"""What a study must share with the one in its folder to go on with it: everything its decisions depend on."""

_FIRST_RULES: Mapping[str, Any] = {"on_nan": "fail"}
"""Of `FailureConfig`, as studies of the first version had it, which did not record it."""

_LATER: Mapping[str, Mapping[str, Any]] = {
    "checkpoint_config": {
        "num_to_keep_in_study": None,
        "quota_count": None,
        "quota_bytes": None,
        "checkpoint_interval_s": None,
    },
}
"""Settings that studies of earlier versions did not have, as they were then."""

_ABSENT: Mapping[str, Any] = {
    "constraints": [],
    "default_config": None,
    "points_to_evaluate": [],
    "evaluated_rewards": [],
}
"""What records had nothing of before these came."""


class _Clock:
    def now(self) -> float:
        return time.time()


def _objective(config: TuneConfig, scheduler: object, patient: bool) -> Objective:
    """The metric and mode, from the `TuneConfig` or, as Ray allows, the scheduler or the searcher."""
    found: dict[str, str | None] = {}
    for name in ("metric", "mode"):
        found[name] = getattr(config, name)
        for other in (scheduler, config.search_alg):
            ours, theirs = found[name], getattr(other, name, None)
            if ours is not None and theirs is not None and ours != theirs:
                raise ValueError(f"{name} is {ours!r} in TuneConfig, but {theirs!r} in {type(other).__name__}")
            found[name] = theirs if ours is None else ours
    if found["metric"] is not None and found["mode"] is None:
        raise ValueError(f"mode must be 'min' or 'max' where a metric is given ({found['metric']!r}), got None")
    return Objective(found["metric"], found["mode"] or "min", patient)


def _check_points(points: Any, rewards: Any) -> None:
    """Refuse points and values that are none in any space."""
    if points is not None and (isinstance(points, str | Mapping) or not isinstance(points, Sequence)):
        raise TypeError(f"points_to_evaluate must be a list of configurations, got {points!r:.80}")
    for number, point in enumerate(points or ()):
        if not isinstance(point, Mapping):
            raise TypeError(f"points_to_evaluate[{number}] must be a configuration, a dict, got {point!r:.80}")
    if rewards is None:
        return
    if isinstance(rewards, str | Mapping) or not isinstance(rewards, Sequence):
        raise TypeError(f"evaluated_rewards must be a list of values, got {rewards!r:.80}")
    if len(rewards) != len(points or ()):
        raise ValueError(f"evaluated_rewards has {len(rewards)} values for {len(points or ())} points_to_evaluate")


def _points(config: TuneConfig, space: Space, objective: Objective) -> list[Point]:
    """The points to evaluate, in the space's and the objective's terms."""
    given = config.points_to_evaluate or ()
    points = []
    for number, (point, raw) in enumerate(zip(given, config.evaluated_rewards or [None] * len(given), strict=True)):
        part = space.partial(point, f"points_to_evaluate[{number}]")
        if raw is None:
            points.append(Point(part))
            continue
        if objective.metric is None:
            raise ValueError("evaluated_rewards are values of a metric: metric must be given")
        if lacking := space.lacking(part):
            raise ValueError(
                f"points_to_evaluate[{number}] lacks {', '.join(lacking)}; with a value in evaluated_rewards it must "
                "be complete"
            )
        value = _plain_number(raw)
        reading = objective.read({objective.metric: value})
        if reading.value is None:
            raise ValueError(f"evaluated_rewards[{number}] must be a finite number or None, got {raw!r:.80}")
        points.append(Point(part, reading.value, reading.values[0]))
    return points


def _top(scheduler: object) -> int:
    """The scheduler's last rung; 1 if it does not say."""
    known = (getattr(policy, "max_t", None) for policy in (scheduler, getattr(scheduler, "scheduler", None)))
    return next((top for top in known if isinstance(top, int)), 1)


def _plain_number(value: Any) -> Any:
    """A NumPy scalar as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _read_search(what: Mapping[str, Any]) -> dict[str, Any]:
    """What `Tuner` recorded of the search besides the space and the searcher, but for constraints, as arguments."""
    found: dict[str, Any] = {}
    if (default := what.get("default_config")) is not None:
        found |= {"default_config": unpack(default["config"]), "default_confidence": default["confidence"]}
    if points := what.get("points_to_evaluate"):
        found |= {"points_to_evaluate": [unpack(point) for point in points]}
        found |= {"evaluated_rewards": what.get("evaluated_rewards") or None}
    return found


def _rebuild(argument: str, what: Mapping[str, Any], registry: Mapping[str, Any], folder: Folder) -> Any:
    try:
        return make(what, registry)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"tune_config must be given again, for the {argument} in {folder.record}: {error!s:.1000}"
        ) from error


def _objects(described: Any) -> Iterator[str]:
    """The names of the objects in a space, as ``study.json`` has it."""
    match described:
        case {"$held": [name, _, _]}:
            yield name
        case {"$dict": dict(fields)}:  # it only looks like something else
            for each in fields.values():
                yield from _objects(each)
        case dict() | list():
            for each in described.values() if isinstance(described, dict) else described:
                yield from _objects(each)


def _brief(value: Any) -> str:
    """As much of a setting as a message can hold: a warm start has hundreds of rows."""
    text = repr(value)
    return text if len(text) <= 1000 else f"{text[:900]} … ({len(text)} characters)"


def _space_differences(known: Any, space: Space) -> list[str]:
    try:
        return Space.from_json(known).differences(space)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        return ["the space is another"]


def _stop_rule(stop: Mapping[str, float] | StopRule | None) -> dict[str, Any]:
    """A stop rule as JSON; of one that is code the name, which is the same in a script and where that is imported."""
    if stop is None or isinstance(stop, Mapping):
        return dict(stop or {})
    return {"function": code_name(stop)}


def _failure_rules(config: FailureConfig) -> dict[str, Any]:
    """What to do with failing trials, as JSON; of what is code the name."""
    rules = {each.name: getattr(config, each.name) for each in fields(config)}
    return rules | {"on_oom": None if config.on_oom is None else code_name(config.on_oom)}


def _failure_config(recorded: Mapping[str, Any], given: FailureConfig) -> FailureConfig:
    """The recorded rules; what is code, as it is given again."""
    rules = {**_FIRST_RULES, "max_same_failures": None, **recorded}
    return FailureConfig(**{**rules, "on_oom": given.on_oom if rules.get("on_oom") else None})


def _lives_of(rule: StopRule) -> Iterator[StopRule]:
    """A stop rule for each `fit`: first the user's own, then, since that has seen reports, copies of it as it was."""
    as_it_was = rule
    with suppress(Exception):  # it cannot be copied: then it serves again
        as_it_was = copy.deepcopy(rule)
    yield rule
    while True:
        yield copy.deepcopy(as_it_was) if as_it_was is not rule else rule


def _resources(slot: Slot | Callable[[Config], Slot]) -> dict[str, Any]:
    if isinstance(slot, Slot):
        return {**asdict(slot), "custom": dict(slot.custom)}
    return {"function": code_name(getattr(slot, "resources", slot))}


def _whole(name: str, value: object, least: int, or_else: int | None) -> None:
    """Check a whole number of at least ``least``, or the one other value that is allowed."""
    if value == or_else and type(value) is type(or_else):
        return
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least} (or {or_else}), got {value!r}")


def _has_build(name: str, value: object, registry: Mapping[str, object]) -> None:
    if value is not None and (isinstance(value, type) or not callable(getattr(value, "build", None))):
        ours = ", ".join(f"{each}()" for each in registry)
        raise TypeError(
            f"{name} must be one of {ours}, or an object with a build method like theirs; got {value!r:.80}"
        )


def _seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name} must be a number of seconds above 0, got {value!r}")


def _bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def _is_file_name(name: str) -> bool:
    return bool(name) and Path(name).name == name and name not in (".", "..")
