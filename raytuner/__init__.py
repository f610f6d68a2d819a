"""raytuner: hyperparameter tuning on Ray.

``import raytuner as tune`` and write what you would write for Ray Tune. Importing this loads neither Ray nor torch nor
pyarrow nor pandas: each name below is fetched from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytuner.callback import Callback as Callback
    from raytuner.checkpoints import Checkpoint as Checkpoint
    from raytuner.checkpoints import CheckpointConfig as CheckpointConfig
    from raytuner.config import FailureConfig as FailureConfig
    from raytuner.config import RunConfig as RunConfig
    from raytuner.config import TuneConfig as TuneConfig
    from raytuner.curves import Recorded as Recorded
    from raytuner.curves import Shape as Shape
    from raytuner.delivery import sync as sync
    from raytuner.extension import Extension as Extension
    from raytuner.history import History as History
    from raytuner.models.transfer import portfolio as portfolio
    from raytuner.plan import Faults as Faults
    from raytuner.plan import Forecast as Forecast
    from raytuner.plan import simulate as simulate
    from raytuner.record.lock import StudyInUse as StudyInUse
    from raytuner.record.patience import StorageError as StorageError
    from raytuner.results import Result as Result
    from raytuner.results import ResultGrid as ResultGrid
    from raytuner.session import get_checkpoint as get_checkpoint
    from raytuner.session import get_context as get_context
    from raytuner.session import report as report
    from raytuner.session import should_checkpoint as should_checkpoint
    from raytuner.space import choice as choice
    from raytuner.space import grid_search as grid_search
    from raytuner.space import lograndint as lograndint
    from raytuner.space import loguniform as loguniform
    from raytuner.space import ordinal as ordinal
    from raytuner.space import qlograndint as qlograndint
    from raytuner.space import qloguniform as qloguniform
    from raytuner.space import qrandint as qrandint
    from raytuner.space import qrandn as qrandn
    from raytuner.space import quniform as quniform
    from raytuner.space import randint as randint
    from raytuner.space import randn as randn
    from raytuner.space import sample_from as sample_from
    from raytuner.space import uniform as uniform
    from raytuner.stopper import Stopper as Stopper
    from raytuner.trainable import Trainable as Trainable
    from raytuner.trainable import with_parameters as with_parameters
    from raytuner.trainable import with_resources as with_resources
    from raytuner.tuner import Tuner as Tuner

_HOME = {
    "raytuner.callback": ["Callback"],
    "raytuner.checkpoints": ["Checkpoint", "CheckpointConfig"],
    "raytuner.config": ["FailureConfig", "RunConfig", "TuneConfig"],
    "raytuner.curves": ["Recorded", "Shape"],
    "raytuner.delivery": ["sync"],
    "raytuner.extension": ["Extension"],
    "raytuner.history": ["History"],
    "raytuner.record.lock": ["StudyInUse"],
    "raytuner.models.transfer": ["portfolio"],
    "raytuner.record.patience": ["StorageError"],
    "raytuner.plan": ["Faults", "Forecast", "simulate"],
    "raytuner.results": ["Result", "ResultGrid"],
    "raytuner.session": ["get_checkpoint", "get_context", "report", "should_checkpoint"],
    "raytuner.space": [
        *("uniform", "quniform", "loguniform", "qloguniform", "randn", "qrandn", "randint", "qrandint", "lograndint"),
        *("qlograndint", "choice", "ordinal", "grid_search", "sample_from"),
    ],
    "raytuner.stopper": ["Stopper"],
    "raytuner.trainable": ["Trainable", "with_parameters", "with_resources"],
    "raytuner.tuner": ["Tuner"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("logger", "schedulers", "searchers"):
        return import_module(f"raytuner.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'raytuner' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
