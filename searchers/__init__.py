"""What proposes configurations: ``search_alg=`` takes one of these. One searcher, one file."""

from __future__ import annotations

from raytuner.protocols import SearchAlgorithm
from raytuner.searchers.bohb import BOHB
from raytuner.searchers.cmaes import CMAES
from raytuner.searchers.evolution import DifferentialEvolution
from raytuner.searchers.gp import GPSearch
from raytuner.searchers.grid_search import GridSearch
from raytuner.searchers.random_search import RandomSearch
from raytuner.searchers.sobol import SobolSearch
from raytuner.searchers.tpe import TPE
from raytuner.searchers.tune_bohb import TuneBOHB

__all__ = [
    "BOHB",
    "CMAES",
    "SEARCHERS",
    "TPE",
    "DifferentialEvolution",
    "GPSearch",
    "GridSearch",
    "RandomSearch",
    "SobolSearch",
    "TuneBOHB",
]

SEARCHERS: dict[str, type[SearchAlgorithm]] = {
    kind.__name__: kind
    for kind in (BOHB, CMAES, DifferentialEvolution, GPSearch, GridSearch, RandomSearch, SobolSearch, TPE, TuneBOHB)
}
"""By class name: a study's record names its searcher and the arguments, never an import path."""
