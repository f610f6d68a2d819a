"""How much each trial reserves, where that may change while it runs: what a rule may know, and whether slots find room.

A study that has an `Allocation` asks it, for each trial that has reported, when it gives out the trial's next lease.
What a rule answers must be a function of the `StudyView` and the trial it is asked about: then sizes, like everything
else, follow from the events. `raytuner.schedulers.resource_changing` has the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raytuner.trial import Config, Metrics, Slot


@dataclass(frozen=True, slots=True)
class LiveTrial:
    """A trial that is not over. ``step`` and ``metrics`` are those of its last report (0 and empty: there was none);
    ``value`` is the study's metric there, lower is better (None: it has none). ``slot``: what it reserves.
    ``running``: it runs or waits for its slot; otherwise it is paused, and reserves nothing."""

    id: int
    config: Config
    step: int
    metrics: Metrics
    value: float | None
    slot: Slot
    running: bool


@dataclass(frozen=True, slots=True)
class StudyView:
    """What a rule may know of the study. ``live``: by number. ``base``: what `with_resources` says. ``nodes``: what
    each node of the cluster has; a trial lies on one of them. ``to_come``: how many more trials will be started (None:
    nobody knows). ``most``: so many may run at the same time (None: no bound)."""

    live: Sequence[LiveTrial]
    base: Slot
    nodes: Sequence[Slot]
    to_come: int | None
    most: int | None

    @property
    def cluster(self) -> Slot:
        """What all nodes have together."""
        return total((node, 1) for node in self.nodes)

    @property
    def seats(self) -> float:
        """How many trials may come to run at the same time, from now on."""
        known = math.inf if self.to_come is None else len(self.live) + self.to_come
        return known if self.most is None else min(known, self.most)


@dataclass(frozen=True)
class Allocation:
    """What sizes a study's leases. ``rule``: what a trial is to reserve (None: what it does now). ``base``, ``most``:
    as in `StudyView`."""

    rule: Callable[[StudyView, LiveTrial], Slot | None]
    base: Slot
    most: int | None = None


# ------------------------------------------------------------------------------------------------------- arithmetic


def plus(slot: Slot, unit: Slot, times: float = 1) -> Slot:
    """A slot and so many units more, in multiples of 1/10,000, as Ray counts."""
    names = dict.fromkeys([*slot.custom, *unit.custom])
    custom = {name: _sum(slot.custom.get(name, 0.0), unit.custom.get(name, 0.0), times) for name in names}
    return Slot(
        _sum(slot.cpu, unit.cpu, times),
        _sum(slot.gpu, unit.gpu, times),
        slot.memory_gib + unit.memory_gib * times,
        {name: amount for name, amount in custom.items() if amount},
    )


def _sum(amount: float, more: float, times: float) -> float:
    return round(amount + more * times, 4)


def total(slots: Iterable[tuple[Slot, int]]) -> Slot:
    """The sum of slots, each so many times."""
    found = Slot(cpu=0.0)
    for slot, count in slots:
        found = plus(found, slot, count)
    return found


def covers(there: Slot, wanted: Slot) -> bool:
    """Whether there is as much of everything as is wanted."""
    left = plus(there, wanted, -1)
    return min(left.cpu, left.gpu, left.memory_gib, *left.custom.values()) > -_NEAR


def packs(nodes: Sequence[Slot], slots: Iterable[tuple[Slot, int]]) -> bool:
    """Whether slots, each so many times, find room on the nodes: the largest first, each where it fits first.

    A slot lies on one node, and a fraction of a GPU on one GPU. On one node the answer is exact but for fractions of
    GPUs; on several a cleverer packing may exist where this finds none.
    """
    free = [_Node(node) for node in nodes]
    for slot, count in sorted(slots, key=lambda each: _size(each[0]), reverse=True):
        left = count
        for node in free:
            left -= node.take(slot, left)
        if left:
            return False
    return True


def _size(slot: Slot) -> tuple[float, float, float, float]:
    return slot.gpu, slot.cpu, slot.memory_gib, sum(slot.custom.values())


_NEAR = 1e-6  # amounts that differ by less are equal


class _Node:
    """What is free on a node."""

    def __init__(self, node: Slot) -> None:
        self._free = {"cpu": node.cpu, "memory": node.memory_gib, **_custom(node.custom)}
        self._gpus = int(node.gpu + _NEAR)  # that nobody uses
        self._parts: list[float] = []  # what is free of those that somebody uses a part of

    def take(self, slot: Slot, most: int) -> int:
        """Put as many of these here as find room, at most so many; how many did."""
        want = {"cpu": slot.cpu, "memory": slot.memory_gib, **_custom(slot.custom)}
        if not any(want.values()) and not slot.gpu:
            want["cpu"] = 1.0  # as `raytuner.executors.room` counts it
        fit = most
        for name, amount in want.items():
            if amount > 0:
                fit = min(fit, int((self._free.get(name, 0.0) + _NEAR) / amount))
        fit = self._take_gpus(slot.gpu, max(fit, 0))
        for name, amount in want.items():
            self._free[name] = self._free.get(name, 0.0) - amount * fit
        return fit

    def _take_gpus(self, gpu: float, most: int) -> int:
        if gpu <= 0:
            return most
        if gpu >= 1:
            fit = min(most, int(self._gpus / gpu + _NEAR))
            self._gpus -= int(gpu * fit + _NEAR)
            return fit
        fit = 0
        for place, part in enumerate(self._parts):
            here = min(most - fit, int((part + _NEAR) / gpu))
            self._parts[place] = part - gpu * here
            fit += here
        while fit < most and self._gpus:
            here = min(most - fit, int((1 + _NEAR) / gpu))
            self._gpus -= 1
            self._parts.append(1 - gpu * here)
            fit += here
        return fit


def _custom(custom: Mapping[str, float]) -> dict[str, float]:
    return {f"custom {name}": amount for name, amount in custom.items()}


def less(nodes: Sequence[Slot], reserve: Slot) -> list[Slot]:
    """What is left of the nodes if so much is kept back, of the last ones first."""
    kept, left = reserve, []
    for node in reversed(nodes):
        taken = Slot(
            min(kept.cpu, node.cpu),
            min(kept.gpu, node.gpu),
            min(kept.memory_gib, node.memory_gib),
            {name: min(amount, node.custom.get(name, 0.0)) for name, amount in kept.custom.items()},
        )
        left.append(plus(node, taken, -1))
        kept = plus(kept, taken, -1)
    return left[::-1]
