"""TuneBOHB: Ray Tune's name, and its arguments, for BOHB as it was published (`raytuner.searchers.kde`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from raytuner.protocols import Searcher
from raytuner.searchers.bohb import BOHB
from raytuner.space import Space

_SETTINGS = (
    *("min_points_in_model", "top_n_percent", "num_samples"),
    *("random_fraction", "bandwidth_factor", "min_bandwidth"),
)


@dataclass(frozen=True, slots=True)
class TuneBOHB:
    """``search_alg=TuneBOHB()``: the same as ``BOHB(model="kde")``. ``BOHB()``, with a model of all rungs, finds more.

    space: must be None: raytuner's space is ``Tuner(param_space=…)``.
    bohb_config: settings of the model, by the names that `BOHB` has for them.
    metric, mode: as in `TuneConfig`, where these are not given.
    points_to_evaluate, seed, max_concurrent: must not be given here, but in `TuneConfig`.
    """

    space: None = None
    bohb_config: Mapping[str, Any] | None = None
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    points_to_evaluate: Sequence[Mapping[str, Any]] | None = None
    seed: int | None = None
    max_concurrent: int = 0

    def __post_init__(self) -> None:
        if self.space is not None:
            raise ValueError("space belongs to the Tuner: Tuner(…, param_space=…), with TuneBOHB(space=None)")
        for name, other, default in (
            ("points_to_evaluate", "points_to_evaluate", None),
            ("seed", "seed", None),
            ("max_concurrent", "max_concurrent_trials", 0),
        ):
            if getattr(self, name) != default:
                raise ValueError(f"{name} is {getattr(self, name)!r}: say TuneConfig({other}=…) instead")
        unknown = sorted(set(self.bohb_config or {}) - set(_SETTINGS))
        if unknown:
            raise ValueError(f"bohb_config has {unknown}, expected only {sorted(_SETTINGS)}")
        self._bohb()

    def _bohb(self) -> BOHB:
        return BOHB(model="kde", **(self.bohb_config or {}))

    def to_json(self) -> dict[str, Any]:
        """Arguments, for a study's record."""
        return {"bohb_config": asdict(self)["bohb_config"], "metric": self.metric, "mode": self.mode}

    @classmethod
    def from_json(cls, args: Mapping[str, Any]) -> Self:
        return cls(**args)

    def build(self, space: Space, seed: int) -> Searcher:
        return self._bohb().build(space, seed)
