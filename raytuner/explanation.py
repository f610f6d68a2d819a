"""Why a searcher thinks of a configuration as it does: what ``explain`` answers.

Values are the searcher's: lower is better, those of a metric to be maximised with the sign turned
(`raytuner.Tuner.explain` gives them in the metric's own).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raytuner.actions import Answer
from raytuner.events import Ask, Event, Extended, Proposed, Tell
from raytuner.protocols import Searcher

if TYPE_CHECKING:
    from raytuner.record.journal import Row
    from raytuner.study import Study


EVIDENCE = 8
"""So many outcomes at most are named in an explanation."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """An outcome that a prediction rests on."""

    trial: int
    step: int
    value: float | None  # None: failed
    weight: float
    """Of a process: the correlation of the two, 1 for the same; of kernel densities: its share of the density."""


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


def remembered(rows: Sequence[Row], study: Study, searcher: Searcher) -> Searcher:
    """A fresh searcher, once it was told what a record holds. ``study``: a fresh one, to read it with."""
    events = [row for row in rows if isinstance(row, Event)]
    anew = [place for place, event in enumerate(events) if isinstance(event, Extended) and event.respaced]
    answers: dict[int, deque[Answer]] = {}
    for event in events[anew[-1] if anew else 0 :]:
        if isinstance(event, Proposed):
            answers.setdefault(event.trial, deque()).append(event.answer)
    for event in events:
        for command in study.handle(event):
            match command:
                case Tell(seen):
                    searcher.tell(seen)
                case Ask(trial, until, pending) if answers.get(trial):
                    searcher.recall(trial, until, pending, answers[trial].popleft())
    return searcher
