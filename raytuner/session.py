"""What the user's training function sees of the tuner: `report`, `get_checkpoint`, `should_checkpoint`, `get_context`.

A `Session` is one run of that function in a thread. When a report reaches the lease's ``until`` the thread parks inside
`report` and waits: the trial's next lease lets it go on, in about a millisecond and with all its state. Any other
verdict unwinds the function by `TrialEnded`, which ``except Exception`` does not swallow.
"""

from __future__ import annotations

import inspect
import numbers
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from raytuner.checkpoints import Checkpoint, Store
from raytuner.events import Ended, Failed, How
from raytuner.trial import Failure, Lease, Report

_BACKLOG = 10_000  # reports that may wait to be sent before `report` blocks


class TrialEnded(BaseException):
    """Raised by `report` to end the training function. Let it pass; ``finally`` blocks run."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What an actor must know of the study to run its trials.

    ``stop``: metric names and the value at which a trial ends (at or above, as in Ray). ``time_attr``: the metric that
    ``until`` is measured in. ``checkpoint_every``: steps between checkpoints asked for by `should_checkpoint`
    (0: only at the ends of leases). ``grace_s``: how long an unwound function may take to return.
    """

    checkpoints: Path
    stop: Mapping[str, float]
    time_attr: str = "training_iteration"
    checkpoint_every: int = 0
    grace_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Context:
    """Who is running: the trial's number, its study's name, its folder."""

    trial_id: int
    experiment_name: str
    trial_dir: Path

    def get_trial_id(self) -> str:
        return str(self.trial_id)

    def get_trial_name(self) -> str:
        return f"trial_{self.trial_id}"

    def get_experiment_name(self) -> str:
        return self.experiment_name

    def get_trial_dir(self) -> str:
        """A folder for the trial's own files, in the study's folder; made when it is first asked for."""
        self.trial_dir.mkdir(parents=True, exist_ok=True)
        return str(self.trial_dir)


class Session:
    """One run of the training function, from a start or a checkpoint to its end, over one or more leases.

    ``place``: where it runs (``hostname``, ``node_ip``, ``pid``), added to each report.

    The actor's side is `items`, `proceed`, `unwind`; the function's side is `report` and its like, in ``_thread``.
    """

    def __init__(self, train: Callable[..., Any], lease: Lease, rules: Rules, place: Mapping[str, str | int]) -> None:
        self.lease = lease
        self.items: queue.Queue[Report | Ended | Failed] = queue.Queue(_BACKLOG)
        self.parked = False
        self.checkpoint: Checkpoint | None = None
        study = rules.checkpoints.parent
        self.context = Context(lease.trial.id, study.name, study / "artifacts" / f"{lease.trial.id:06d}")
        self._train = train
        self._rules = rules
        self._store = Store(rules.checkpoints)
        self._step = lease.checkpoint or 0
        self._level = float(self._step)
        self._metrics: Mapping[str, Any] = {}
        self._reports = 0
        self._ran_s = 0.0  # in earlier leases of this session
        self._resumed = self._last = time.monotonic()
        self._unwound = False
        self._over = False
        self._declined = False  # whether the function was told that the next report needs no checkpoint
        self._how = How.RETURNED
        self._go = threading.Semaphore(0)
        self._place = place
        self._thread = threading.Thread(target=self._run, name=f"trial-{lease.trial.id}", daemon=True)

    # ------------------------------------------------------------------------------------------- the actor's side

    def start(self) -> None:
        """Begin to run the function."""
        self._thread.start()

    def proceed(self, lease: Lease) -> None:
        """Let the parked function go on under its trial's next lease."""
        self.lease = lease
        self._resumed = self._last = time.monotonic()
        self.parked = False
        self._go.release()

    def unwind(self) -> None:
        """End the function at its next report, or where it is parked."""
        self._unwound = True
        self._go.release()

    def gone(self) -> bool:
        """Whether the function returns within the grace period."""
        self._thread.join(self._rules.grace_s)
        return not self._thread.is_alive()

    # -------------------------------------------------------------------------------------- the function's side

    def report(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> None:
        """One step is done. Returns when the trial is to go on; raises `TrialEnded` when it is not."""
        if self._over:
            raise TrialEnded  # it was told so before, and did not listen
        step = self._step + 1
        flat = flatten(metrics)
        level = self._read_level(flat, step)
        if checkpoint is not None:
            if not isinstance(checkpoint, Checkpoint):
                raise TypeError(f"checkpoint must be a raytuner.Checkpoint, got {type(checkpoint).__name__}")
            self._store.publish(Path(checkpoint.path), self.lease.trial.id, step, self.lease.attempt)
            self.checkpoint = Checkpoint(self._store.path(self.lease.trial.id, step))
        self._step, self._level, self._reports = step, level, self._reports + 1
        self._metrics = {**self._automatic(step), **flat, "training_iteration": step}
        self.items.put(Report(step, level, self._metrics, time.time(), checkpoint is not None))
        if any(_reaches(self._metrics.get(name), most) for name, most in self._rules.stop.items()):
            self._how = How.STOPPED
            self._end()
        declined, self._declined = self._declined, False
        if self._unwound and not declined:  # else after the next, for which `should_checkpoint` is true
            self._end()
        if level >= self.lease.until:
            self._park()

    def should_checkpoint(self) -> bool:
        """Whether the next report wants a checkpoint: the lease may end there, or ``checkpoint_frequency`` says so."""
        step = self._step + 1
        every = self._rules.checkpoint_every
        last = min(self.lease.until, self._rules.stop.get("training_iteration", self.lease.until))
        # With another time_attr it is not known, before it is made, whether the next report ends the lease.
        wanted = (every and step % every == 0) or self._rules.time_attr != "training_iteration" or step >= last
        self._declined = not (self._unwound or wanted)
        return not self._declined

    def _park(self) -> None:
        self.parked = True
        self._ran_s += self._seconds()
        self.items.put(self._ended(How.REACHED))
        self._go.acquire()
        if self._unwound:
            self._end()

    def _end(self) -> NoReturn:
        self._over = True
        raise TrialEnded

    def _run(self) -> None:
        _here.session = self
        try:
            if self.lease.checkpoint is not None:
                self.checkpoint = self._store.load(self.lease.donor, self.lease.checkpoint)
            last = self._train(self.lease.trial.config)
            if isinstance(last, Mapping):
                self.report(last, None)
            how = How.RETURNED
        except TrialEnded:
            how = How.UNWOUND if self._unwound else self._how
        except BaseException:
            lease, spent = self.lease, self._seconds()
            message = traceback.format_exc()
            self.items.put(Failed(time.time(), lease.trial.id, lease.attempt, Failure.ERROR, message, spent))
            return
        self.items.put(self._ended(how))

    def _ended(self, how: How) -> Ended:
        lease = self.lease
        spent = self._seconds()
        return Ended(
            time.time(), lease.trial.id, lease.attempt, how, self._step, self._level, dict(self._metrics), spent
        )

    def _seconds(self) -> float:
        """How long this lease has run."""
        return time.monotonic() - self._resumed

    def _automatic(self, step: int) -> dict[str, Any]:
        """Ray's automatic metrics."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        return {
            "training_iteration": step,
            "time_this_iter_s": took,
            "time_total_s": self.lease.spent + self._seconds(),
            "time_since_restore": self._ran_s + self._seconds(),
            "iterations_since_restore": self._reports,
            "timestamp": int(time.time()),
            "trial_id": str(self.lease.trial.id),
            **self._place,
        }

    def _read_level(self, metrics: Mapping[str, Any], step: int) -> float:
        name = self._rules.time_attr
        if name == "training_iteration":
            return float(step)
        if name not in metrics:
            raise ValueError(f"the report lacks {name!r}, the scheduler's time_attr; it holds {sorted(metrics)}")
        level = float(metrics[name])
        if not level >= self._level:
            raise ValueError(f"{name!r}, the scheduler's time_attr, must not fall: {self._level}, then {level}")
        return level


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A report as names and plain scalars; nested names are joined by ``/``.

    NumPy scalars and one-element tensors become Python's. Raises TypeError for anything else, naming it.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"report() takes a dict of metrics, got {type(metrics).__name__}: {metrics!r:.80}")
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"metric names must be strings, got {name!r}")
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = _plain(prefix + name, value)
    return flat


def _reaches(value: Any, most: float) -> bool:
    return isinstance(value, (int, float)) and value >= most


def _plain(name: str, value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, numbers.Number | str) or getattr(value, "shape", None) == () or _size(value) == 1:
        item = getattr(value, "item", None)
        plain = item() if callable(item) else value
        if type(plain) in (bool, int, float, str):
            return plain
    raise TypeError(f"metric {name!r} must be a number, a string or a bool, got {type(value).__name__}: {value!r:.80}")


def _size(value: Any) -> int | None:
    numel = getattr(value, "numel", None) or getattr(value, "size", None)
    found = numel() if callable(numel) else numel
    return found if isinstance(found, int) else None


# ------------------------------------------------------------------------------------------- the public functions

_here = threading.local()
"""Holds the session whose function runs in this thread. No other thread may speak for it: one left over from an earlier
trial of this process would speak for the wrong one."""


def _session(caller: str) -> Session:
    session: Session | None = getattr(_here, "session", None)
    if session is None:
        raise RuntimeError(
            f"{caller}() works inside a training function that a raytuner Tuner runs, in the thread it was called in"
        )
    return session


def report(metrics: Mapping[str, Any], *, checkpoint: Checkpoint | None = None) -> None:
    """Report one step's metrics, and optionally a checkpoint of it.

    ``metrics``: names to numbers, strings or bools; nested dicts are flattened with ``/``. Each call counts as one
    ``training_iteration``. The directory of ``checkpoint`` is copied before this returns. A scheduler may end the
    trial here: the call then raises an exception that is no `Exception`; let it pass.
    """
    _session("report").report(metrics, checkpoint)


def get_checkpoint() -> Checkpoint | None:
    """The checkpoint to go on from: the newest this trial reported, or the one it was restored or forked from."""
    return _session("get_checkpoint").checkpoint


def should_checkpoint() -> bool:
    """Whether the report that comes next should carry a checkpoint, because the trial may be paused or ended there."""
    return _session("should_checkpoint").should_checkpoint()


def get_context() -> Context:
    """The running trial's number, name and folder."""
    return _session("get_context").context


def takes_config(train: Callable[..., Any]) -> bool:
    """Whether a training function can be called with one argument, the configuration."""
    try:
        inspect.signature(train).bind({})
    except TypeError:
        return False
    except ValueError:  # some builtins have no signature to look at
        return True
    return True
