"""Why a searcher thinks of a configuration as it does: what ``explain`` answers.

Values are the searcher's: lower is better, those of a metric to be maximised with the sign turned
(`raytuner.Tuner.explain` gives them in the metric's own).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Evidence:
    """An outcome that a prediction rests on."""

    trial: int
    step: int
    value: float | None  # None: failed
    weight: float
    """How much the predicted mean moves per unit of this outcome's; of kernel densities: its share of the density."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a model expects of a configuration.

    surrogate: "process" (a Gaussian process) or "densities" (kernel densities of the good and the others).
    outcomes: how many the model knows of.
    step: the rung that the prediction is for.
    mean, deviation: of the value there, in its unit; None of densities, which predict none.
    acquisition: what made or would make it be proposed: log expected improvement (of scores), or a bound; of densities
        log l / g.
    evidence: the outcomes that count most, the largest weight first.
    """

    surrogate: str
    outcomes: int
    step: int
    mean: float | None
    deviation: float | None
    acquisition: float
    evidence: Sequence[Evidence]

    def in_sign(self, sign: float) -> Explanation:
        """With all values times ``sign``."""
        turned = [replace(each, value=None if each.value is None else sign * each.value) for each in self.evidence]
        return replace(self, mean=None if self.mean is None else sign * self.mean, evidence=tuple(turned))
