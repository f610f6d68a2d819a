"""Failed or lost: again, or give up? Each class of failure has an allowance of its own. Pure.

=====================  ==================================================  =============================================
class                  what it is                                          runs again
=====================  ==================================================  =============================================
ERROR                  the training function raised                        ``max_failures`` times; not after the same
                                                                           traceback `SAME` times in a row
OUT_OF_MEMORY          the same, for want of the accelerator's memory      as often as ``on_oom`` finds a remedy;
                                                                           else as an error
HOST_OUT_OF_MEMORY     for want of the machine's: Ray ended the process,   ``max_losses`` times in a row, with losses
                       or Python raised MemoryError
LOST                   the worker is gone                                  ``max_losses`` times in a row
NODE                   its node is gone, or is to go (preempted, drained)  always, free of charge
HUNG                   nothing was reported for ``heartbeat_timeout_s``    ``max_hangs`` times in a row
NOT_REPORTABLE         a metric that no table can hold                     never: the same code would say the same again
NO_METRIC, NOT_FINITE  a report that cannot be ranked                      never
NO_RESOURCES           what it was to reserve cannot be had                never
STORAGE                the storage failed, for ``storage_patience_s``      when the study, which ends early, is resumed
=====================  ==================================================  =============================================

*In a row* means without progress in between: a lease ended, or a checkpoint was made. In whatever class, a trial that
is given up is told to the searcher as failed, which is worse than any value.
"""

from __future__ import annotations

import copy
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raytuner.space import plain
from raytuner.trial import Failure

_log = logging.getLogger(__name__)

SAME = 3
"""A trial whose code raises the same error so often in a row, without progress, would raise it for ever."""


@dataclass(slots=True)
class Tally:
    """A trial's failures so far: all of them, those since it last made progress, and how many of the last were the
    same error, which was this."""

    total: Counter[Failure] = field(default_factory=Counter)
    in_a_row: Counter[Failure] = field(default_factory=Counter)
    same: int = 0
    error: str = ""

    def add(self, failure: Failure, message: str) -> None:
        """Count one more."""
        self.total[failure] += 1
        if failure is Failure.NODE:  # it says nothing about the trial
            return
        self.in_a_row[failure] += 1
        seen = fingerprint(failure, message)
        self.same, self.error = self.same + 1 if seen == self.error else 1, seen

    def progressed(self) -> None:
        """A lease ended, or a checkpoint was made."""
        self.in_a_row.clear()
        self.same, self.error = 0, ""


@dataclass(frozen=True, slots=True)
class Retries:
    """Allowances per trial, each for a class of failure: see the table above.

    ``max_failures``: how often a trial whose code raised starts again from its newest checkpoint (-1: always).
    ``max_losses``: how often in a row one whose worker was lost does; losses are the cluster's fault, but code that
    kills its process must not do so for ever. ``max_hangs``: how often in a row one that said nothing does.
    ``max_same``: the study ends early, resumable, when so many trials have failed for good, all in the same way, and
    none has yet reported a value: that is a bug, not a bad configuration (None: it never does).
    """

    max_failures: int = 0
    max_losses: int = 3
    max_hangs: int = 1
    max_same: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_failures, bool) or not isinstance(self.max_failures, int) or self.max_failures < -1:
            raise ValueError(f"max_failures must be an integer, -1 (for ever) or more, got {self.max_failures!r}")
        for name in ("max_losses", "max_hangs"):
            most = getattr(self, name)
            if isinstance(most, bool) or not isinstance(most, int) or most < 0:
                raise ValueError(f"{name} must be an integer, 0 or more, got {most!r}")
        same: object = self.max_same
        if same is not None and (isinstance(same, bool) or not isinstance(same, int) or same < 1):
            raise ValueError(f"max_same_failures must be an integer, 1 or more, or None, got {same!r}")

    def again(self, failure: Failure, tally: Tally, remedied: bool = False) -> bool:
        """Whether a trial with these failures, this one counted in, runs again; ``remedied``: with a configuration that
        was changed because of it."""
        if remedied:
            return True
        match failure:
            case Failure.ERROR | Failure.OUT_OF_MEMORY:
                errors = tally.total[Failure.ERROR] + tally.total[Failure.OUT_OF_MEMORY]
                allowed = self.max_failures == -1 or errors <= self.max_failures
                return allowed and tally.same < SAME
            case Failure.LOST | Failure.HOST_OUT_OF_MEMORY:
                losses = tally.in_a_row[Failure.LOST] + tally.in_a_row[Failure.HOST_OUT_OF_MEMORY]
                return losses <= self.max_losses
            case Failure.NODE:
                return True
            case Failure.HUNG:
                return tally.in_a_row[Failure.HUNG] <= self.max_hangs
            case Failure.NOT_REPORTABLE | Failure.NO_METRIC | Failure.NOT_FINITE | Failure.NO_RESOURCES:
                return False
            case Failure.STORAGE:  # no fault of the trial's
                return True


def merged(config: Mapping[str, Any], change: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration with a part of it changed, nested as it is nested."""
    found = dict(config)
    for name, value in change.items():
        was = found.get(name)
        found[name] = merged(was, value) if isinstance(was, Mapping) and isinstance(value, Mapping) else value
    return found


class Remedies:
    """Asks the user's ``on_oom`` what to change of a trial's configuration when memory was too small for it.

    It is given the configuration, the error and how often memory was short before, and returns what to change, as a
    dict; None or nothing new: the trial cannot be helped.
    """

    def __init__(self, on_oom: Callable[[dict[str, Any], str, int], Mapping[str, Any] | None]) -> None:
        self._on_oom = on_oom

    def find(self, config: Mapping[str, Any], message: str, tally: Tally) -> Mapping[str, Any] | None:
        """What to change, None if there is nothing."""
        before = tally.total[Failure.OUT_OF_MEMORY] + tally.total[Failure.HOST_OUT_OF_MEMORY]
        try:
            change = self._on_oom(copy.deepcopy(dict(config)), message, before)
            if change is None:
                return None
            if not isinstance(change, Mapping):
                raise TypeError(f"on_oom must return a dict of what to change, or None, got {change!r:.80}")
            change = plain(change, "what on_oom returned")
        except Exception:
            _log.exception("on_oom failed; the trial goes without")
            return None
        return change if merged(config, change) != config else None


def fingerprint(failure: Failure, message: str) -> str:
    """What two failures that are the same have in common: their class and, of a traceback, where it was raised and the
    kind of error; what the error says may differ from one configuration to the next."""
    lines = message.rstrip().splitlines()
    if not any(line.lstrip().startswith("File ") for line in lines):
        return f"{failure.name} {_NUMBERS.sub('#', lines[0]) if lines else ''}"
    places = [line.strip() for line in lines if _PLACE.match(line)]
    last = next((line for line in reversed(lines) if _KIND.match(line)), lines[-1])
    return "\n".join([failure.name, *places, last.partition(":")[0]])


_PLACE = re.compile(r'\s+File ".*", line \d+')
_KIND = re.compile(r"[A-Za-z_][\w.]*(:|$)")
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")


def out_of_memory(error: BaseException) -> Failure | None:
    """Whether an error says that memory was short, and whose: of a GPU (as PyTorch, CUDA, HIP, XLA and CuPy say so) or
    of the machine."""
    name = type(error).__name__
    if isinstance(error, MemoryError) and name == "MemoryError":
        return Failure.HOST_OUT_OF_MEMORY
    if name in ("OutOfMemoryError", "OutOfMemory"):  # torch.OutOfMemoryError, CuPy's
        return Failure.OUT_OF_MEMORY
    return Failure.OUT_OF_MEMORY if isinstance(error, Exception) and _DEVICE.search(str(error)) else None


_DEVICE = re.compile(
    r"(CUDA|cuda|HIP|XPU|MPS)\b.{0,40}out of memory|CUDA_ERROR_OUT_OF_MEMORY|^RESOURCE_EXHAUSTED: Out of memory"
)
