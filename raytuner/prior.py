"""Priors: what a user believes of a parameter before anything was tried, as densities over its coordinate.

A prior is a centre, the value that is thought best, and a confidence c between 0 and 1:

- numbers and ordered options: a normal distribution around the centre's coordinate u in [0, 1], of standard deviation
  (1 - c) / 2, truncated to [0, 1]. So c = 0.5 has most of its mass within a quarter of the range, c = 0.9 within 1/20;
- r unordered options: the centre has the mass 1 / r + c (1 - 1 / r), the others share what is left evenly: c = 0 would
  be uniform, c = 1 only the centre.

Densities are relative to uniform: 1 everywhere where nothing is believed. `raytuner.space.Space` joins them.

Searchers with a model add `fading` times the log density to what they rank candidates by: piBO, Hvarfner, Stoll, Souza,
Lindauer, Hutter & Nardi 2022, "piBO: Augmenting Acquisition Functions with User Beliefs for Bayesian Optimization"
(arXiv:2204.11051), eq. 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STANDARD = NormalDist()

BETA = 10.0
"""How many outcomes a prior outweighs."""


def fading(known: int) -> float:
    """How much a prior counts once so many outcomes, or trials, are known: beta / n."""
    return BETA / max(known, 1)


@dataclass(frozen=True, slots=True)
class Prior:
    """What was given: the value thought best (of an unordered choice the number of its option), and how surely."""

    centre: Any
    confidence: float


class Belief(Protocol):
    """A density over one coordinate, relative to uniform."""

    def log_density(self, u: Floats) -> Floats:
        """Its logarithm at coordinates (m,) of [0, 1]; (m,)."""

    def quantile(self, p: float) -> float:
        """The coordinate below which lies the mass ``p``."""


@dataclass(frozen=True, slots=True)
class Bump:
    """A normal density around a coordinate ``centre``, truncated to [0, 1]."""

    centre: float
    sd: float

    @classmethod
    def of(cls, centre: float, confidence: float) -> Bump:
        return cls(min(max(centre, 0.0), 1.0), (1 - confidence) / 2)

    def log_density(self, u: Floats) -> Floats:
        low, high = self._ends()
        z = (u - self.centre) / self.sd
        found: Floats = -0.5 * z * z - math.log(math.sqrt(2 * math.pi) * self.sd * (high - low))
        return found

    def quantile(self, p: float) -> float:
        low, high = self._ends()
        mass = min(max(low + p * (high - low), 1e-300), 1 - 2**-53)
        return min(max(self.centre + self.sd * _STANDARD.inv_cdf(mass), 0.0), 1.0)

    def _ends(self) -> tuple[float, float]:
        """The normal's mass below 0 and below 1; they are at least 0.4 apart, as the centre is between."""
        return _STANDARD.cdf(-self.centre / self.sd), _STANDARD.cdf((1 - self.centre) / self.sd)


@dataclass(frozen=True, slots=True)
class Mass:
    """One of ``options`` is likelier than the others."""

    options: int
    option: int
    confidence: float

    def log_density(self, u: Floats) -> Floats:
        option = np.minimum(np.floor(u * self.options), self.options - 1)
        own, other = math.log1p((self.options - 1) * self.confidence), math.log1p(-self.confidence)
        found: Floats = np.where(option == self.option, own, other)
        return found

    def quantile(self, p: float) -> float:
        other = (1 - self.confidence) / self.options  # the mass of each of the others
        below = self.option * other
        own = 1 - (self.options - 1) * other
        if p < below:
            return p / other / self.options
        if p < below + own:
            return (self.option + (p - below) / own) / self.options
        return min((self.option + 1 + (p - below - own) / other) / self.options, 1.0)
