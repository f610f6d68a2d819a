"""The settings, in Ray's names: how to search, where and how to run, what to do with failing trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from raytuner.cache import CACHE_BYTES
from raytuner.callback import Callback, checked_callbacks
from raytuner.checkpoints import CheckpointConfig
from raytuner.objective import Objective
from raytuner.protocols import SchedulingPolicy, SearchAlgorithm
from raytuner.record.patience import PATIENCE_S
from raytuner.record.storage import Place
from raytuner.retry import Retries
from raytuner.schedulers import SCHEDULERS
from raytuner.searchers import SEARCHERS
from raytuner.space import Constraint, checked_constraints
from raytuner.stopper import StopRule, is_rule


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
