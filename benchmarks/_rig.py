"""raytuner's own study, searchers and schedulers as an optimiser of the measuring rig: ask for a job, tell its value.

The rig (``--rig``, its package is ``hpoharness``) has problems, a simulation of W workers and adapters for peers. Here
its jobs are the leases of a `raytuner.study.Study`; nothing of it is copied.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import raytuner
from raytuner.actions import Proposal
from raytuner.checkpoints import CheckpointConfig
from raytuner.events import Ask, Checkpointed, Ended, Event, How, Opened, Proposed, Run, Slots, Tell
from raytuner.objective import Objective
from raytuner.protocols import SchedulingPolicy, SearchAlgorithm
from raytuner.retry import Retries
from raytuner.space import Space
from raytuner.study import Study
from raytuner.trial import Lease


def space_of(params: Any) -> Space:
    """A rig's space as ours: parameters that depend on a choice stand in its branches."""

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


def flat(config: Any) -> dict[str, Any]:
    """A configuration as the rig has it: without branches."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found.update(flat(value) if isinstance(value, dict) else {name: value})
    return found


class Optimizer:
    """A study that runs on a rig. ``workers``: how many jobs at a time."""

    def __init__(
        self, problem: Any, seed: int, workers: int, search_alg: SearchAlgorithm, scheduler: SchedulingPolicy
    ) -> None:
        from hpoharness.simulate import Job

        self._job = Job
        self.problem, self.seed, self.n_workers = problem, seed, workers
        space = space_of(problem.space.params)
        self._searcher = search_alg.build(space, seed)
        self._study = Study(Objective("y"), scheduler.build(seed), None, Retries(), CheckpointConfig())
        self._runs: deque[Lease] = deque()
        self.stats = {"model": 0, "random": 0}
        self.s = self
        self._pump(Opened(0.0, 1))
        self._pump(Slots(0.0, workers))

    def ask(self) -> Any:
        if not self._runs:
            return None
        lease = self._runs.popleft()
        config = self.problem.space.prune(flat(lease.trial.config))
        return self._job(config, lease.until, lease)

    def tell(self, job: Any, value: float) -> None:
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
                        if isinstance(answer, Proposal):
                            self.stats[str((answer.note or {}).get("origin", "random"))] += 1
                        events.append(Proposed(0.0, trial, answer))
                    case Tell(seen):
                        self._searcher.tell(seen)
                    case Run(lease):
                        self._runs.append(lease)


def optimizer(name: str) -> Any:
    """``SEARCHER+SCHEDULER`` as a factory for the rig: of a problem, a seed and a number of workers."""
    searcher, _, scheduler = name.partition("+")

    def made(problem: Any, seed: int, workers: int) -> Optimizer:
        return Optimizer(problem, seed, workers, SEARCHERS[searcher], SCHEDULERS[scheduler](problem))

    return made


SEARCHERS: dict[str, SearchAlgorithm] = {
    "random": raytuner.searchers.RandomSearch(),
    "bohb": raytuner.searchers.BOHB(),
    "bohb-log": raytuner.searchers.BOHB(values="log"),
    "bohb-rank": raytuner.searchers.BOHB(values="rank"),
    "kde": raytuner.searchers.BOHB(model="kde"),
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
