"""The public face, in Ray's names and shapes: ``Tuner(train, param_space=…, tune_config=…, run_config=…).fit()``.

A study lives in ``<storage_path>/<name>``. Running the same script again goes on where that study stands, and returns
its results at once when it is over. Another space, metric, searcher or scheduler under the same name is refused.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytuner.checkpoints import CheckpointConfig, Store
from raytuner.folder import Folder, Lock, NoStudy
from raytuner.objective import Objective
from raytuner.protocols import SchedulingPolicy, SearchAlgorithm
from raytuner.retry import Retries
from raytuner.schedulers import SCHEDULERS, FIFOScheduler
from raytuner.searchers import SEARCHERS, GridSearch, RandomSearch
from raytuner.session import Rules, takes_config
from raytuner.space import Space
from raytuner.trial import Slot

if TYPE_CHECKING:
    from raytuner.driver import Driver
    from raytuner.results import ResultGrid
    from raytuner.study import Study

_STORAGE = "~/raytuner_results"


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How to search.

    ``metric``, ``mode`` (``"min"`` or ``"max"``): what to optimise; may stand in the scheduler instead.
    ``num_samples``: how many trials are started (with `grid_search`: how often the grid is run through; -1: until the
    searcher has nothing more). ``search_alg``: by default the grid if the space has one, else random.
    ``scheduler``: by default every trial runs to its end. ``max_concurrent_trials``: at most so many at a time (None:
    as many as the cluster holds). ``seed``: of every random choice; drawn and recorded if not given.
    """

    metric: str | None = None
    mode: str | None = None
    num_samples: int = 1
    search_alg: SearchAlgorithm | None = None
    scheduler: SchedulingPolicy | None = None
    max_concurrent_trials: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.metric is not None:
            Objective(self.metric)
        if self.mode not in (None, "min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {self.mode!r}")
        _whole("num_samples", self.num_samples, least=1, or_else=-1)
        _whole("max_concurrent_trials", self.max_concurrent_trials, least=1, or_else=None)
        _whole("seed", self.seed, least=0, or_else=None)
        _has_build("search_alg", self.search_alg, SEARCHERS)
        _has_build("scheduler", self.scheduler, SCHEDULERS)


@dataclass(frozen=True, kw_only=True)
class FailureConfig:
    """What to do with failing trials: ``max_failures`` restarts from the newest checkpoint (-1: always), and whether
    the first trial that fails for good ends the study (``fail_fast``)."""

    max_failures: int = 0
    fail_fast: bool = False

    def __post_init__(self) -> None:
        Retries(self.max_failures)
        if not isinstance(self.fail_fast, bool):
            raise ValueError(f"fail_fast must be True or False, got {self.fail_fast!r}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how to run.

    ``name``: of the study and its folder (default: the function's name and the time). ``storage_path``: the folder of
    the study's folder (default ``~/raytuner_results``). ``stop``: metric names and the value at or above which a trial
    ends, e.g. ``{"training_iteration": 27}``. ``verbose``: 0 silent, 1 progress, 2 also each trial's end.
    """

    name: str | None = None
    storage_path: str | Path | None = None
    stop: Mapping[str, float] | None = None
    failure_config: FailureConfig = field(default_factory=FailureConfig)
    checkpoint_config: CheckpointConfig = field(default_factory=CheckpointConfig)
    verbose: int = 1

    def __post_init__(self) -> None:
        for name, kind in (("failure_config", FailureConfig), ("checkpoint_config", CheckpointConfig)):
            given = getattr(self, name)
            if given is None:  # Ray's default
                object.__setattr__(self, name, kind())
            elif not isinstance(given, kind):
                raise TypeError(f"{name} must be a raytuner.{kind.__name__}, got {given!r:.80}")
        if self.name is not None and (not self.name or Path(self.name).name != self.name or self.name in (".", "..")):
            raise ValueError(f"name must be a plain folder name, got {self.name!r}")
        if self.stop is not None and not isinstance(self.stop, Mapping):
            raise TypeError(f"stop must be a dict of metric names and values, got {type(self.stop).__name__}")
        for name, most in (self.stop or {}).items():
            if not isinstance(name, str) or isinstance(most, bool) or not isinstance(most, (int, float)):
                raise ValueError(f"stop must hold metric names and numbers, got {name!r}: {most!r}")
        if self.storage_path is not None and "://" in str(self.storage_path):
            raise ValueError(f"storage_path must be a local folder, got {str(self.storage_path)!r}")
        _whole("verbose", self.verbose, least=0, or_else=0)


@dataclass(frozen=True)
class Reserved:
    """A training function with what each of its trials reserves; made by `with_resources`."""

    train: Callable[[Any], Any]
    slot: Slot


def with_resources(trainable: Callable[[Any], Any], resources: Mapping[str, float]) -> Reserved:
    """Say what each trial reserves: ``{"cpu": 2, "gpu": 0.5, "memory": bytes, "<custom>": amount}``."""
    if not isinstance(resources, Mapping):
        raise TypeError(f"resources must be a dict such as {{'cpu': 1, 'gpu': 0.5}}, got {type(resources).__name__}")
    for name, amount in resources.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not amount >= 0:
            raise ValueError(f"resources[{name!r}] must be a number of 0 or more, got {amount!r}")
    custom = {name: float(amount) for name, amount in resources.items() if name.lower() not in ("cpu", "gpu", "memory")}
    known = {name.lower(): float(amount) for name, amount in resources.items() if name not in custom}
    gpu = known.get("gpu", 0.0)
    if gpu > 1 and gpu != int(gpu):
        raise ValueError(f"resources['gpu'] must be a fraction of one GPU or a whole number, got {gpu!r}")
    train = trainable.train if isinstance(trainable, Reserved) else trainable
    return Reserved(train, Slot(known.get("cpu", 1.0), gpu, known.get("memory", 0.0) / 2**30, custom))


class Tuner:
    """Tunes a training function over a space of configurations."""

    def __init__(
        self,
        trainable: Callable[[Any], Any] | Reserved,
        *,
        param_space: Mapping[str, Any] | Space | None = None,
        tune_config: TuneConfig | None = None,
        run_config: RunConfig | None = None,
    ) -> None:
        self._train = trainable.train if isinstance(trainable, Reserved) else trainable
        self._slot = trainable.slot if isinstance(trainable, Reserved) else Slot()
        _check_trainable(self._train)
        self._space = param_space if isinstance(param_space, Space) else Space(param_space or {})
        self._run = run_config or RunConfig()
        config = tune_config or TuneConfig()
        self._scheduler = config.scheduler or FIFOScheduler()
        self._searcher = config.search_alg or (GridSearch() if self._space.has_grid else RandomSearch())
        self._objective = _objective(config, self._scheduler)
        if self._objective.metric is None and not isinstance(self._searcher, GridSearch | RandomSearch):
            raise ValueError(f"metric must be given: {type(self._searcher).__name__} cannot search without one")
        if self._objective.metric is None and not isinstance(self._scheduler, FIFOScheduler):
            raise ValueError(
                f"metric must be given: {type(self._scheduler).__name__} cannot compare trials without one"
            )
        if self._run.checkpoint_config.checkpoint_at_end:
            raise ValueError("checkpoint_at_end is for class trainables; a function reports its last checkpoint itself")
        self._config = config
        self._searcher.build(self._space, 0)  # a searcher that cannot search this space says so now
        storage = Path(self._run.storage_path or _STORAGE).expanduser().absolute()
        name = self._run.name or f"{getattr(self._train, '__name__', 'train')}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
        self._folder = Folder(storage / name)

    def fit(self) -> ResultGrid:
        """Run the study, or what is left of it, and return its results.

        Raises `raytuner.StudyInUse` if another process runs it, ValueError if another study has its name.
        """
        from raytuner.driver import Driver
        from raytuner.journal import Journal
        from raytuner.progress import Progress
        from raytuner.results import ResultGrid

        with Lock(self._folder.root):
            seed = self._claim()
            journal = Journal(self._folder.root)
            study = self._study(seed)
            progress = Progress(self._folder.name, study, self._trials, self._run.verbose)
            searcher = self._searcher.build(self._space, seed)
            driver = Driver(study, searcher, journal, Store(self._folder.checkpoints), _Clock(), [progress])
            try:
                if study.finished is None or not study.finished.complete:
                    with progress:
                        self._drive(driver)
            except KeyboardInterrupt:
                if self._run.verbose:
                    print(f"Interrupted. Run it again, or Tuner.restore({str(self._folder.root)!r}, …), to go on.")
                raise
            finally:
                journal.close()
        return ResultGrid(self._folder.root)

    def get_results(self) -> ResultGrid:
        """The results so far, without running anything."""
        from raytuner.results import ResultGrid

        return ResultGrid(self._folder.root)

    @classmethod
    def can_restore(cls, path: str | Path) -> bool:
        """Whether there is a study in this folder."""
        try:
            Folder(Path(path).expanduser()).read()
        except NoStudy:
            return False
        return True

    @classmethod
    def restore(
        cls,
        path: str | Path,
        trainable: Callable[[Any], Any] | Reserved,
        *,
        param_space: Mapping[str, Any] | None = None,
        tune_config: TuneConfig | None = None,
        run_config: RunConfig | None = None,
    ) -> Tuner:
        """The study in a folder, to `fit` what is left of it.

        Its space and settings are read from the folder. ``param_space`` is needed again where it holds functions,
        ``tune_config`` where the searcher or the scheduler is not one of raytuner's. Of ``run_config`` only ``verbose``
        counts: the rest is the study's.
        """
        folder = Folder(Path(path).expanduser().absolute())
        what = folder.read()
        run = run_config or RunConfig()
        run = RunConfig(
            name=folder.name,
            storage_path=folder.root.parent,
            stop=what["stop"],
            failure_config=FailureConfig(**what["failure_config"]),
            checkpoint_config=CheckpointConfig(**what["checkpoint_config"]),
            verbose=run.verbose,
        )
        config = tune_config or TuneConfig(
            metric=what["metric"],
            mode=what["mode"],
            num_samples=what["num_samples"],
            search_alg=_rebuild("search_alg", what["search_alg"], SEARCHERS),
            scheduler=_rebuild("scheduler", what["scheduler"], SCHEDULERS),
            max_concurrent_trials=what["max_concurrent_trials"],
            seed=what["seed"],
        )
        if not isinstance(trainable, Reserved):
            trainable = Reserved(trainable, Slot(**what["resources"]))
        space = Space.from_json(what["space"]) if param_space is None else param_space
        return cls(trainable, param_space=space, tune_config=config, run_config=run)

    # ------------------------------------------------------------------------------------------------- its parts

    @property
    def _trials(self) -> int | None:
        """How many trials will be started, if that is known."""
        if self._config.num_samples == -1:
            return None
        grid = self._space.grid_size if isinstance(self._searcher, GridSearch) else 1
        return self._config.num_samples * grid

    def _study(self, seed: int) -> Study:
        from raytuner.study import Study

        return Study(
            self._objective,
            self._scheduler.build(seed),
            self._trials,
            Retries(self._run.failure_config.max_failures),
            self._run.checkpoint_config,
            self._run.failure_config.fail_fast,
        )

    def _drive(self, driver: Driver) -> None:
        from raytuner.cluster.local import connect
        from raytuner.executors.ray_actors import RayActors

        connect()
        rules = Rules(
            self._folder.checkpoints,
            dict(self._run.stop or {}),
            getattr(self._scheduler, "time_attr", "training_iteration"),
            self._run.checkpoint_config.checkpoint_frequency,
        )
        executor = RayActors(self._train, rules, self._slot, self._config.max_concurrent_trials)
        try:
            driver.run(executor)
        finally:
            executor.close()

    # ------------------------------------------------------------------------------------------- what the study is

    def _claim(self) -> int:
        """Begin the study, or make sure that the one in the folder is this one; return its seed."""
        what = self._describe()
        if not self._folder.exists():
            seed = secrets.randbelow(2**32) if self._config.seed is None else self._config.seed
            self._folder.create({**what, "seed": seed})
            return seed
        known = self._folder.read()
        differences = []
        for name in _IDENTITY:
            if name == "space" and known.get("space") != what["space"]:
                differences += _space_differences(known.get("space"), self._space)
            elif known.get(name) != what[name]:
                differences.append(f"{name}: {known.get(name)!r} became {what[name]!r}")
        seed = known["seed"]
        if self._config.seed not in (None, seed):
            differences.append(f"seed: {seed} became {self._config.seed}")
        if differences:
            raise ValueError(
                f"{self._folder.root} holds another study: {'; '.join(differences)}. "
                "Give the new study another name, or delete the folder"
            )
        assert isinstance(seed, int)
        return seed

    def _describe(self) -> dict[str, Any]:
        """What ``study.json`` holds of this study, as it reads back from JSON."""
        what = {
            "name": self._folder.name,
            "trainable": f"{getattr(self._train, '__module__', '?')}.{getattr(self._train, '__qualname__', '?')}",
            "space": self._space.to_json(),
            "metric": self._objective.metric,
            "mode": self._objective.mode if self._objective.metric else None,
            "num_samples": self._config.num_samples,
            "search_alg": _settings(self._searcher),
            "scheduler": _settings(self._scheduler),
            "stop": dict(self._run.stop or {}),
            "failure_config": asdict(self._run.failure_config),
            "checkpoint_config": asdict(self._run.checkpoint_config),
            "max_concurrent_trials": self._config.max_concurrent_trials,
            "resources": {**asdict(self._slot), "custom": dict(self._slot.custom)},
        }
        read_back: dict[str, Any] = json.loads(json.dumps(what))
        return read_back


_IDENTITY = (
    *("space", "metric", "mode", "num_samples", "search_alg", "scheduler", "stop"),
    *("failure_config", "checkpoint_config"),
)
"""What a study must share with the one in its folder to go on with it: everything its decisions depend on."""


class _Clock:
    def now(self) -> float:
        return time.time()


def _objective(config: TuneConfig, scheduler: object) -> Objective:
    """The metric and mode, from the `TuneConfig` or, as Ray allows, the scheduler."""
    found: dict[str, str | None] = {}
    for name in ("metric", "mode"):
        ours, theirs = getattr(config, name), getattr(scheduler, name, None)
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(f"{name} is {ours!r} in TuneConfig, but {theirs!r} in {type(scheduler).__name__}")
        found[name] = theirs if ours is None else ours
    if found["metric"] is not None and found["mode"] is None:
        raise ValueError(f"mode must be 'min' or 'max' where a metric is given ({found['metric']!r}), got None")
    return Objective(found["metric"], found["mode"] or "min")


def _settings(settings: object) -> dict[str, Any]:
    """A searcher's or scheduler's settings as JSON: its class's name and what it was made with."""
    kind = type(settings)
    if (SEARCHERS | SCHEDULERS).get(kind.__name__) is kind and is_dataclass(settings):
        return {"name": kind.__name__, "args": asdict(settings)}  # type: ignore[arg-type]
    # A repr that tells objects apart, as object's own does, would make every run another study.
    args = None if kind.__repr__ is object.__repr__ else repr(settings)
    return {"name": f"{kind.__module__}.{kind.__qualname__}", "args": args}


def _rebuild(argument: str, what: Mapping[str, Any], registry: Mapping[str, Callable[..., Any]]) -> Any:
    if what["name"] not in registry:
        raise ValueError(
            f"tune_config must be given again: the study's {argument} is {what['name']}, not raytuner's own"
        )
    return registry[what["name"]](**what["args"])


def _space_differences(known: Any, space: Space) -> list[str]:
    try:
        return Space.from_json(known).differences(space)
    except ValueError:
        return ["the space is another"]


def _check_trainable(train: object) -> None:
    if isinstance(train, type):
        raise TypeError(f"trainable must be a function of one argument, the configuration; got the class {train!r}")
    if not callable(train):
        raise TypeError(f"trainable must be a function of one argument, the configuration; got {train!r:.80}")
    if not takes_config(train):
        raise TypeError(f"trainable must take one argument, the configuration; {train!r:.80} does not")


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
