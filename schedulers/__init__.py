"""Who runs, how far, and who must go: Ray's scheduler names, as settings that build small pure machines.

`raytuner.protocols.Scheduler` says what a machine is asked; ``asha.py`` is the one to copy.
"""

from __future__ import annotations

from raytuner.protocols import SchedulingPolicy
from raytuner.schedulers.asha import ASHAScheduler, AsyncHyperBandScheduler
from raytuner.schedulers.fifo import FIFOScheduler
from raytuner.schedulers.hyperband import HyperBandForBOHB, HyperBandScheduler
from raytuner.schedulers.median_stopping import MedianStoppingRule
from raytuner.schedulers.pb2 import PB2
from raytuner.schedulers.pbt import PopulationBasedTraining
from raytuner.schedulers.pbt_replay import PopulationBasedTrainingReplay
from raytuner.schedulers.resource_changing import (
    DistributeResources,
    DistributeResourcesToTopJob,
    ResourceChangingScheduler,
)

SCHEDULERS: dict[str, type[SchedulingPolicy]] = {
    "ASHAScheduler": ASHAScheduler,
    "AsyncHyperBandScheduler": AsyncHyperBandScheduler,
    "FIFOScheduler": FIFOScheduler,
    "HyperBandForBOHB": HyperBandForBOHB,
    "HyperBandScheduler": HyperBandScheduler,
    "MedianStoppingRule": MedianStoppingRule,
    "PB2": PB2,
    "PopulationBasedTraining": PopulationBasedTraining,
    "PopulationBasedTrainingReplay": PopulationBasedTrainingReplay,
    "ResourceChangingScheduler": ResourceChangingScheduler,
}
"""By the name a study's file gives them."""

__all__ = [
    "PB2",
    "SCHEDULERS",
    "ASHAScheduler",
    "AsyncHyperBandScheduler",
    "DistributeResources",
    "DistributeResourcesToTopJob",
    "FIFOScheduler",
    "HyperBandForBOHB",
    "HyperBandScheduler",
    "MedianStoppingRule",
    "PopulationBasedTraining",
    "PopulationBasedTrainingReplay",
    "ResourceChangingScheduler",
]
