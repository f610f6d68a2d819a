"""Differential evolution, one population a rung: the half of DEHB that proposes.

Storn & Price 1997 (DE/rand/1/bin) as Awad, Mallik & Hutter 2021 use it in "DEHB: Evolutionary Hyperband for Scalable,
Robust and Efficient Hyperparameter Optimization" (arXiv:2105.09821), in the asynchronous form with immediate
replacement. For a trial that starts at rung b:

    while fewer than population_size trials were begun at b, or fewer than four are known there: a random configuration
    else target: the next member of the population at b, in turn
        mutant (rand/1)  v = x1 + mutation_factor (x2 - x3), three different others of the population
        repair           what is outside [0, 1] is drawn at random
        crossover (bin)  each coordinate is v's with probability crossover_prob, one for sure, the others the target's
    its outcome at b replaces the target's place in the population, unless it is worse

In DEHB the configurations of a bracket's first rung evolve in that rung's own population: this is what is done here. At
its higher rungs DEHB evolves new ones, from the best of the rung below; here what goes on there are the trials that the
scheduler promotes, as in Hyperband. They are members too: while a population has room they join it, then they compete
with the member whose turn it is. A population that has fewer than three members that did not fail is filled up for the
mutation with the best of other rungs, the next lower ones first; DEHB takes mutants of all populations together.

Categorical parameters are cut into equal bins of the unit interval; a member stands anywhere in its bin, drawn anew for
each mutation. So are the coordinates of a member that are inactive in its configuration, where DEHB has defaults.
Failed trials are members worse than all others.

What it does not do: in a small discrete space it may propose the same configuration twice, as DEHB may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from raytuner.actions import Answer, Proposal
from raytuner.models.parzen import Bools, Floats
from raytuner.space import Space
from raytuner.trial import Observation, Pending

_ATTEMPTS = 100  # so often is a proposal drawn anew before it is one of `Space.sample`


@dataclass(frozen=True, slots=True)
class DifferentialEvolution:
    """``search_alg=DifferentialEvolution()``. Names of settings and defaults are DEHB's.

    population_size: members at a rung; None: 4 and one more for each dimension, at least 6 and at most 40.
    mutation_factor: how far a mutant is from its first parent, where 1 is the distance of the other two.
    crossover_prob: how much of a mutant is kept.
    """

    population_size: int | None = None
    mutation_factor: float = 0.5
    crossover_prob: float = 0.5

    def __post_init__(self) -> None:
        if self.population_size is not None and self.population_size < 4:
            raise ValueError(f"population_size must be None or at least 4: got {self.population_size}")
        if not 0 < self.mutation_factor <= 2:
            raise ValueError(f"mutation_factor must be in (0, 2]: got {self.mutation_factor}")
        if not 0 <= self.crossover_prob <= 1:
            raise ValueError(f"crossover_prob must be in [0, 1]: got {self.crossover_prob}")

    def build(self, space: Space, seed: int) -> DifferentialEvolutionSearcher:
        if space.has_grid:
            raise ValueError(
                "DifferentialEvolution() has no use for grid_search(...): write choice(...) there, or use GridSearch()"
            )
        size = min(max(4 + len(space), 6), 40) if self.population_size is None else self.population_size
        return DifferentialEvolutionSearcher(space, seed, size, self.mutation_factor, self.crossover_prob)


class DifferentialEvolutionSearcher:
    """The machine of `DifferentialEvolution`."""

    def __init__(
        self, space: Space, seed: int, population_size: int, mutation_factor: float, crossover_prob: float
    ) -> None:
        self._space = space
        self._seed = seed
        self._size = population_size
        self._mutation_factor = mutation_factor
        self._crossover_prob = crossover_prob
        self._populations: dict[int, _Population] = {}  # by `until`

    def ask(self, trial: int, until: int, pending: Sequence[Pending]) -> Answer:
        rng = np.random.default_rng([self._seed, trial])
        population = self._at(until)
        proposal = self._child(rng, until) if population.begun() >= self._size else None
        if proposal is None:
            proposal = Proposal(self._space.sample(rng), {"origin": "random"})
        population.asked(trial, proposal)
        return proposal

    def tell(self, seen: Observation) -> None:
        value = math.inf if seen.value is None or math.isnan(seen.value) else seen.value
        if (found := self._space.found(seen.config)) is None:
            return
        population = self._at(seen.until)
        if seen.trial not in population.told:
            population.add(_Member(seen.trial, value, *found), self._size)

    def recall(self, trial: int, until: int, pending: Sequence[Pending], answer: Answer) -> None:
        if isinstance(answer, Proposal):
            self._at(until).asked(trial, answer)

    def _at(self, until: int) -> _Population:
        return self._populations.setdefault(until, _Population())

    def _child(self, rng: np.random.Generator, until: int) -> Proposal | None:
        """A child of the population at a rung; None while too little is known for that."""
        population = self._populations[until]
        if len(population.members) < 4 or not len(self._space):
            return None
        slot = population.turn % len(population.members)
        target = population.members[slot]
        pool = self._pool(until, target)
        if len(pool) < 3:
            return None
        for _ in range(_ATTEMPTS):
            parents = [pool[i] for i in rng.choice(len(pool), size=3, replace=False)]
            x1, x2, x3, old = (spread(self._space, each, rng) for each in (*parents, target))
            mutant = repaired(x1 + self._mutation_factor * (x2 - x3), rng)
            config = self._space.decode(crossed(old, mutant, self._crossover_prob, rng))
            if self._space.feasible(config):
                note = {"target": target.trial, "parents": [each.trial for each in parents]}
                return Proposal(config, {"origin": "evolution", "rung": until, "slot": slot, **note})
        return None

    def _pool(self, until: int, target: _Member) -> list[_Member]:
        """Whom parents are drawn from: a rung's members that did not fail, others than the target, at least three."""
        others = sorted((rung for rung in self._populations if rung != until), key=lambda rung: (rung > until, -rung))
        pool: list[_Member] = []
        for rung in (until, *others):
            members = [each for each in self._populations[rung].members if each.value < math.inf]
            known = {each.trial for each in pool} | {target.trial}
            fresh = [each for each in members if each.trial not in known]
            if rung == until:
                pool += fresh
            elif (missing := 3 - len(pool)) > 0:
                pool += sorted(fresh, key=lambda each: (each.value, each.trial))[:missing]
        return pool


@dataclass(frozen=True, slots=True)
class _Member:
    """A trial's outcome at a rung. ``value`` inf: failed."""

    trial: int
    value: float
    point: Floats  # (d,)
    active: Bools  # (d,)


@dataclass(slots=True)
class _Population:
    """The members of one rung, each in its slot."""

    members: list[_Member] = field(default_factory=list)
    slots: dict[int, int | None] = field(default_factory=dict)  # of trials under way: whose place they are for
    told: set[int] = field(default_factory=set)  # trials
    turn: int = 0  # counts slots that were given out

    def begun(self) -> int:
        """How many trials run to this rung or were heard of at it."""
        return len(self.slots) + len(self.told)

    def asked(self, trial: int, answer: Proposal) -> None:
        """A trial begins at this rung."""
        slot = answer.note.get("slot")
        if trial not in self.told:
            self.slots[trial] = slot
        self.turn += slot is not None

    def add(self, member: _Member, size: int) -> None:
        """A trial's outcome: it takes its target's place, a vacant one, or that of the member whose turn it is."""
        self.told.add(member.trial)
        slot = self.slots.pop(member.trial, None)
        if slot is None and len(self.members) < size:
            self.members.append(member)
            return
        if slot is None:
            slot = self.turn % len(self.members)
            self.turn += 1
        if member.value <= self.members[slot].value:
            self.members[slot] = member


# ------------------------------------------------------------------------------------------------- the operators


def spread(space: Space, member: _Member, rng: np.random.Generator) -> Floats:
    """A member's point (d,): anywhere in the bins of its options, and anywhere at all where it is inactive."""
    u = rng.random(len(space))
    r = np.maximum(space.categories, 1)
    inside = np.where(space.categories > 0, (np.floor(member.point * r) + u) / r, member.point)
    point: Floats = np.where(member.active, inside, u)
    return point


def repaired(x: Floats, rng: np.random.Generator) -> Floats:
    """A point (d,) with what is outside [0, 1] drawn at random."""
    # The middle between two steps of an integer belongs to either: rounding would always lead to the same one.
    x = x + rng.uniform(-1e-9, 1e-9, size=len(x))
    u = rng.random(len(x))
    return np.where((x >= 0.0) & (x <= 1.0), x, u)


def crossed(target: Floats, mutant: Floats, crossover_prob: float, rng: np.random.Generator) -> Floats:
    """Binomial crossover (d,): each coordinate the mutant's with this probability, and one of them for sure."""
    of_mutant = rng.random(len(target)) < crossover_prob
    of_mutant[rng.integers(len(target))] = True
    return np.where(of_mutant, mutant, target)
