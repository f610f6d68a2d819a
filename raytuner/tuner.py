"""The public face, in Ray's names and shapes: ``Tuner(train, param_space=…, tune_config=…, run_config=…).fit()``.

A study lives in ``<storage_path>/<name>``, on a disk or in an object store. Running the same script again goes on where
that study stands, and returns its results at once when it is over. Another space, metric, searcher or scheduler under
the same name is refused.
"""

from __future__ import annotations

import copy
import json
import logging
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raytuner.budget import TimeBudget
from raytuner.checkpoints import CheckpointConfig, Janitor
from raytuner.config import RunConfig, TuneConfig
from raytuner.extension import EXTENDABLE, Extension, check_possible, extended, longer
from raytuner.identity import (
    differences,
    failure_config,
    failure_rules,
    objects_in,
    read_search,
    rebuilt,
    resources,
    stop_rule,
)
from raytuner.interrupts import Interrupts
from raytuner.object_checkpoints import store_at
from raytuner.objective import Objective
from raytuner.record.folder import Folder, NoStudy
from raytuner.record.lock import Hold, take
from raytuner.record.patience import Patience, PatientJournal, StorageError
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
from raytuner.space import Constraint, Space, code_name, pack
from raytuner.spelling import make, spell
from raytuner.stopper import StopRule, Watch, is_rule
from raytuner.trainable import Bound, Reserved, check, name_of, qualified_name
from raytuner.trial import Failure, Slot
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
                failure_config=failure_config(what["failure_config"], run.failure_config),
                checkpoint_config=CheckpointConfig(**what["checkpoint_config"]),
            )
        if (config := tune_config) is None:
            searcher = rebuilt("search_alg", what["search_alg"], SEARCHERS, folder)
            scheduler = rebuilt("scheduler", what["scheduler"], SCHEDULERS, folder)
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
                    **read_search(what),
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
                names = list(map(str, objects_in(what["space"])))
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
        known = {**self._recorded(), **self._changes}
        found = differences(known, self._describe(), self._space)
        seed = known["seed"]
        if self._config.seed not in (None, seed):
            found.append(f"seed: {seed} became {self._config.seed}")
        if found:
            raise ValueError(
                f"{self._folder.root} holds another study: {'; '.join(found)}. "
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
            "stop": stop_rule(self._run.stop),
            "failure_config": failure_rules(self._run.failure_config),
            "checkpoint_config": asdict(self._run.checkpoint_config),
            "max_concurrent_trials": self._config.max_concurrent_trials,
            "time_budget_s": self._config.budget_s,
            "chdir_to_trial_dir": self._config.chdir_to_trial_dir,
            "resources": resources(self._slot),
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


def _lives_of(rule: StopRule) -> Iterator[StopRule]:
    """A stop rule for each `fit`: first the user's own, then, since that has seen reports, copies of it as it was."""
    as_it_was = rule
    with suppress(Exception):  # it cannot be copied: then it serves again
        as_it_was = copy.deepcopy(rule)
    yield rule
    while True:
        yield copy.deepcopy(as_it_was) if as_it_was is not rule else rule
