"""Whether trials fit: arithmetic over what nodes have and slots reserve."""

from __future__ import annotations

from raytuner.executors.room import count, fits_beside, least
from raytuner.trial import Slot


def test_the_least_of_each_resource() -> None:
    """A sum of CPUs and bytes would take eight CPUs for less than one and a gigabyte."""
    large, small = Slot(cpu=8), Slot(cpu=1, memory_gib=1.0, custom={"tpu": 1})
    assert least(large, small) == least(small, large) == Slot(cpu=1)
    assert least(Slot(gpu=0.5, custom={"a": 2, "b": 1}), Slot(gpu=1, custom={"a": 1})) == Slot(gpu=0.5, custom={"a": 1})


def test_nodes_may_have_no_room() -> None:
    assert count([], Slot()) == count([{"CPU": 1.0}], Slot(cpu=2)) == 0
    assert count([{"CPU": 4.0}, {"CPU": 1.0}, {}], Slot(cpu=2)) == 2


def test_where_the_least_does_not_fit_neither_does() -> None:
    node = [{"CPU": 4.0, "GPU": 1.0}]
    taken = [Slot(cpu=1, gpu=1)]
    assert not fits_beside(node, taken, Slot(cpu=1, gpu=0.5))
    assert fits_beside(node, taken, least(Slot(cpu=1, gpu=0.5), Slot(cpu=2)))
    assert not fits_beside(node, taken, Slot(cpu=4))
