"""Whether a space's constraints let a configuration be tried."""

from __future__ import annotations

from raytuner.space import Space
from raytuner.trial import Config

ATTEMPTS = 100
"""So often is a machine's proposal drawn anew before it is one of `Space.sample`."""


def constrained(space: Space) -> bool:
    """Whether `feasible` may refuse anything."""
    return getattr(space, "feasible", None) is not None


def feasible(space: Space, config: Config) -> bool:
    """Whether a configuration of the space may be tried."""
    allows = getattr(space, "feasible", None)
    return allows is None or bool(allows(config))
