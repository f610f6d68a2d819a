"""Search on a virtual clock: W workers evaluate jobs that an optimiser hands out.

raytuner's optimiser is its own `Study` with its searchers and schedulers, whose leases are the jobs; nothing is copied.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import raytuner
from raytuner.checkpoints import CheckpointConfig
from raytuner.events import Ask, Checkpointed, Ended, Event, How, Opened, Proposed, Run, Slots, Tell
from raytuner.objective import Objective
from raytuner.protocols import SchedulingPolicy, SearchAlgorithm
from raytuner.retry import Retries
from raytuner.space import Space
from raytuner.study import Study
from raytuner.trial import Lease


@dataclass(frozen=True)
class Job:
    """A configuration, flat, to be run to a resource."""

    config: dict[str, Any]
    resource: int
    tag: Any = None


class Optimiser(Protocol):
    """Says what is to be run next, and is told what came of it."""

    def ask(self) -> Any:
        """A job, or None while it waits for one."""

    def tell(self, job: Job, value: float) -> None: ...


@dataclass
class Trace:
    """The regret of the incumbent, the best seen at the highest resource seen so far, over time; without noise."""

    horizon: float
    points: list[tuple[float, float]] = field(default_factory=list)
    evaluations: int = 0

    def at(self, share: float) -> float:
        """After so much of the budget; 1, as of a random configuration, before there is any."""
        seen = [regret for at, regret in self.points if at <= share * self.horizon + 1e-9]
        return min(seen[-1], 1.0) if seen else 1.0


def simulate(problem: Any, optimiser: Optimiser, budget: float, workers: int, seed: int) -> Trace:
    """``budget``: of all workers together, in full evaluations of mean cost."""
    trace = Trace(budget * problem.mean_cost / workers)
    running: list[tuple[float, int, Any]] = []
    reached: dict[Any, int] = {}
    now, number, best = 0.0, 0, (-1, math.inf)
    while now <= trace.horizon:
        while len(running) < workers and (job := optimiser.ask()) is not None:
            key = problem.space.key(job.config)
            paid = reached.get(key, 0) if problem.resumable else 0
            took = problem.cost(job.config, job.resource) - (problem.cost(job.config, paid) if paid else 0.0)
            reached[key] = max(reached.get(key, 0), job.resource)
            number += 1
            heapq.heappush(running, (now + max(took, 1e-6 * problem.mean_cost), number, job))
        now, _, job = heapq.heappop(running)
        if now > trace.horizon:
            break
        value = problem.evaluate(job.config, job.resource, seed)
        trace.evaluations += 1
        if (job.resource, -value) > (best[0], -best[1]):
            best = job.resource, value
            trace.points.append((now, problem.norm_regret(problem.true(job.config))))
        optimiser.tell(job, value)
    return trace


def space_of(params: Any) -> Space:
    """A problem's space as ours: parameters that depend on a choice stand in its branches."""

    def domain(param: Any) -> Any:
        if param.kind == "int":
            low, high = int(param.low), int(param.high) + 1
            return raytuner.lograndint(low, high) if param.log else raytuner.randint(low, high)
        if param.kind == "float":
            of = raytuner.loguniform if param.log else raytuner.uniform
            return of(param.low, param.high)
        if not any(child.parent == param.name for child in params):
            return raytuner.choice(list(param.choices))
        return raytuner.choice([{param.name: option, **branch(param.name, option)} for option in param.choices])

    def branch(parent: str, option: Any) -> dict[str, Any]:
        return {child.name: domain(child) for child in params if child.parent == parent and option in child.when}

    return Space({param.name: domain(param) for param in params if param.parent is None})


def nested(params: Any, config: Any) -> dict[str, Any]:
    """A flat configuration as `space_of` has it."""

    def value(param: Any) -> Any:
        if not any(child.parent == param.name for child in params):
            return config[param.name]
        below = [child for child in params if child.parent == param.name and config[param.name] in child.when]
        return {param.name: config[param.name], **{child.name: value(child) for child in below}}

    return {param.name: value(param) for param in params if param.parent is None}


def flat(config: Any) -> dict[str, Any]:
    """A configuration without branches."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found.update(flat(value) if isinstance(value, dict) else {name: value})
    return found


class Searching:
    """A study as an optimiser. ``workers``: how many jobs at a time."""

    def __init__(
        self, problem: Any, seed: int, workers: int, search_alg: SearchAlgorithm, scheduler: SchedulingPolicy
    ) -> None:
        self._problem = problem
        space = space_of(problem.space.params)
        self._searcher = search_alg.build(space, seed)
        self._study = Study(Objective("y"), scheduler.build(seed), None, Retries(), CheckpointConfig())
        self._runs: deque[Lease] = deque()
        self._pump(Opened(0.0, 1))
        self._pump(Slots(0.0, workers))

    def ask(self) -> Job | None:
        if not self._runs:
            return None
        lease = self._runs.popleft()
        config = self._problem.space.prune(flat(lease.trial.config))
        return Job(config, lease.until, lease)

    def tell(self, job: Job, value: float) -> None:
        lease, metrics = job.tag, {"y": value}
        self._pump(Checkpointed(0.0, lease.trial.id, lease.attempt, lease.until, metrics))
        self._pump(Ended(0.0, lease.trial.id, lease.attempt, How.REACHED, lease.until, float(lease.until), metrics))

    def _pump(self, event: Event) -> None:
        events = deque([event])
        while events:
            for command in self._study.handle(events.popleft()):
                match command:
                    case Ask(trial, until, pending):
                        answer = self._searcher.ask(trial, until, pending)
                        events.append(Proposed(0.0, trial, answer))
                    case Tell(seen):
                        self._searcher.tell(seen)
                    case Run(lease):
                        self._runs.append(lease)


def searching(name: str, problem: Any, seed: int, workers: int) -> Searching:
    """``SEARCHER+SCHEDULER`` on a problem."""
    searcher, _, scheduler = name.partition("+")
    search_alg: Any = SEARCHERS[searcher]
    if not hasattr(search_alg, "build"):
        search_alg = search_alg(problem)
    return Searching(problem, seed, workers, search_alg, SCHEDULERS[scheduler](problem))


SEARCHERS: dict[str, Any] = {
    "random": raytuner.searchers.RandomSearch(),
    "sobol": raytuner.searchers.SobolSearch(),
    "bohb": raytuner.searchers.BOHB(),
    "bohb-log": raytuner.searchers.BOHB(values="log"),
    "bohb-rank": raytuner.searchers.BOHB(values="rank"),
    "kde": raytuner.searchers.BOHB(model="kde"),
    "gp": raytuner.searchers.GPSearch(),
    "tpe": raytuner.searchers.TPE(),
    "tpe-univariate": raytuner.searchers.TPE(multivariate=False),
    "evolution": raytuner.searchers.DifferentialEvolution(),
    "cmaes": raytuner.searchers.CMAES(),
}


def _rungs(problem: Any) -> dict[str, Any]:
    return {"max_t": problem.R, "grace_period": problem.rungs[0], "reduction_factor": problem.eta}


SCHEDULERS: dict[str, Any] = {
    "hyperband": lambda p: raytuner.schedulers.HyperBandScheduler(
        max_t=p.R, grace_period=p.rungs[0], reduction_factor=p.eta
    ),
    "asha": lambda p: raytuner.schedulers.ASHAScheduler(**_rungs(p)),
    "promotion": lambda p: raytuner.schedulers.ASHAScheduler(**_rungs(p), promotion=True),
    "full": lambda p: raytuner.schedulers.ASHAScheduler(max_t=p.R, grace_period=p.R, reduction_factor=p.eta),
}
