"""What proposes configurations: ``search_alg=`` takes one of these. One searcher, one file."""

from __future__ import annotations

from raytuner.protocols import SearchAlgorithm
from raytuner.searchers.bohb import BOHB
from raytuner.searchers.cmaes import CMAES
from raytuner.searchers.evolution import DifferentialEvolution
from raytuner.searchers.grid_search import GridSearch
from raytuner.searchers.random_search import RandomSearch
from raytuner.searchers.sobol import SobolSearch
from raytuner.searchers.tpe import TPE

__all__ = ["BOHB", "CMAES", "SEARCHERS", "TPE", "DifferentialEvolution", "GridSearch", "RandomSearch", "SobolSearch"]

SEARCHERS: dict[str, type[SearchAlgorithm]] = {
    kind.__name__: kind for kind in (BOHB, CMAES, DifferentialEvolution, GridSearch, RandomSearch, SobolSearch, TPE)
}
"""By class name: a study's record names its searcher and the arguments, never an import path."""
