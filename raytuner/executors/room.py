"""Whether a trial fits: arithmetic over what the nodes of a cluster have and what trials reserve. No Ray here.

Ray places the actors; this tells how many it can place, so that no more leases are given out than can run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from raytuner.trial import Slot


class NoResources(ValueError):
    """The cluster can never hold a single trial."""


def wants(slot: Slot) -> dict[str, float]:
    """What a slot asks for, in Ray's words; one that asks for nothing is counted as one CPU."""
    want = {"CPU": slot.cpu, "GPU": slot.gpu, "memory": slot.memory_gib * 2**30, **slot.custom}
    return {name: amount for name, amount in want.items() if amount > 0} or {"CPU": 1.0}


def least(one: Slot, other: Slot) -> Slot:
    """The least of each resource: where this does not fit, neither does."""
    both = one.custom.keys() & other.custom.keys()
    return Slot(
        min(one.cpu, other.cpu),
        min(one.gpu, other.gpu),
        min(one.memory_gib, other.memory_gib),
        {name: min(one.custom[name], other.custom[name]) for name in both},
    )


def count(nodes: Sequence[Mapping[str, float]], slot: Slot) -> int:
    """How many slots fit on nodes, perhaps none; a slot lies on one node."""
    want = wants(slot).items()
    return sum(min(_times(name, node.get(name, 0), amount) for name, amount in want) for node in nodes)


def slots_in(nodes: Sequence[Mapping[str, float]], slot: Slot) -> int:
    """How many slots fit on a cluster's nodes, given what each has; a slot lies on one node.

    Raises `NoResources` where none fits, naming what the most a node has falls short of.
    """
    want, fit = wants(slot), count(nodes, slot)
    if not fit:
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in want}
        short = [f"{name}: {want[name]:g} wanted, {most[name]:g} there" for name in want if want[name] > most[name]]
        raise NoResources(
            f"no trial fits on any node of this cluster; {'; '.join(short) or 'no node has all of it: ' + str(want)}"
        )
    return fit


def fits_beside(nodes: Sequence[Mapping[str, float]], taken: Iterable[Slot], slot: Slot) -> bool:
    """Whether a slot is likely to fit beside others, which Ray has placed who knows where: by the sums over all nodes.

    True may be wrong where what is free is scattered: then the trial waits until Ray finds a place.
    """
    free: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.items():
            free[name] = free.get(name, 0.0) + amount
    for other in taken:
        for name, amount in wants(other).items():
            free[name] = free.get(name, 0.0) - amount
    return all(free.get(name, 0.0) + 1e-9 >= amount for name, amount in wants(slot).items())


def _times(name: str, there: float, amount: float) -> int:
    """How often an amount goes into what a node has. A fraction of a GPU lies on one: 0.4 goes twice into each."""
    if name == "GPU" and amount < 1:
        return int(there) * int(1 / amount + 1e-9)
    return int(there / amount + 1e-9)
