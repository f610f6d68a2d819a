"""Rungs and brackets by integer arithmetic, and the checks that schedulers' settings share.

``floor(log(243) / log(3))`` is 4 in floating point, one rung too few; so nothing here takes a logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex


@dataclass(frozen=True, slots=True)
class Bracket:
    """One successive halving: ``size`` trials start, and are compared at each of ``steps``, lowest first."""

    size: int
    steps: tuple[int, ...]

    def sizes(self, eta: int) -> list[int]:
        """How many trials run to each of ``steps``, when none fails."""
        return [self.size // eta**rung for rung in range(len(self.steps))]


def levels(least: int, most: int, eta: int) -> list[int]:
    """Steps at which trials are compared, lowest first: most, most // eta, ... down to least."""
    steps = [most]
    while steps[-1] // eta >= least:
        steps.append(steps[-1] // eta)
    return steps[::-1]


def rising(least: int, most: int, eta: int) -> list[int]:
    """Steps at which trials are compared, lowest first: least, least * eta, ... below most, then most."""
    steps = []
    while least < most:
        steps.append(least)
        least *= eta
    return [*steps, most]


def further(steps: Sequence[int], max_t: int, eta: int) -> list[int]:
    """Rungs beyond the last: where `rising` has them, and at ``max_t``."""
    found, step = list(steps), steps[0]
    while step < max_t:
        if step > steps[-1]:
            found.append(step)
        step *= eta
    return [*found, max_t]


def brackets(least: int, most: int, eta: int) -> list[Bracket]:
    """Hyperband's brackets, the one that starts lowest first (Li et al. 2018, algorithm 1).

    The ceiling form of the table: brackets of 81 34 15 8 5 at R = 81, eta = 3.
    """
    steps = levels(least, most, eta)
    s_max = len(steps) - 1
    return [
        Bracket(size=-(-(s_max + 1) * eta**s // (s + 1)), steps=tuple(steps[s_max - s :])) for s in range(s_max, -1, -1)
    ]


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """The setting as an `int`; Ray's users also write ``4.0``."""
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(number, SupportsIndex) and index(number) >= least and (most is None or index(number) <= most):
        return index(number)
    wanted = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    raise ValueError(f"{name}={value!r}: expected {wanted}")


def check_mode(mode: str | None) -> None:
    """Refuse a direction that is none."""
    if mode not in (None, "min", "max"):
        raise ValueError(f"mode={mode!r}: expected 'min', 'max', or None to take TuneConfig's")
