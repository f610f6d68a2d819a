"""What the user's training function sees of the tuner: `report`, `get_checkpoint`, `should_checkpoint`, `get_context`.

A `Session` is one run of that function. When a report reaches the lease's ``until`` the function *parks* inside
`report` and waits: the trial's next lease lets it go on, at once and with all its state. Any other lease unwinds it by
`TrialEnded`, which ``except Exception`` does not swallow. So one thread is enough for all the trials of a process:
it takes what comes from its `Leases`.

`Runner` is where an executor's side and the functions meet: leases come in, and what is said goes out, through the
`raytuner.mailbox` it holds.
"""

from __future__ import annotations

import inspect
import logging
import math
import numbers
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from raytuner.cache import CACHE_BYTES
from raytuner.checkpoints import MANIFEST, Checkpoint, DamagedCheckpoint, Staged, Store
from raytuner.events import Checkpointed, Damaged, Ended, Failed, How, Loaded
from raytuner.mailbox import Frame, Leases, Outbox, Said, row_of
from raytuner.object_checkpoints import ObjectStore, store_at
from raytuner.objective import AUTOMATIC, Objective
from raytuner.record.patience import PATIENCE_S, Patience, StorageError, always, is_outage
from raytuner.record.storage import Place
from raytuner.retry import out_of_memory
from raytuner.surroundings import Surroundings
from raytuner.trial import END, UNDER_WAY, Failure, Lease, Slot
from raytuner.uploads import Uploads

_log = logging.getLogger(__name__)

T = TypeVar("T")


class NotReportable(TypeError):
    """A metric is of a kind that no table can hold."""


class TrialEnded(BaseException):
    """Raised by `report` to end the training function. Let it pass; ``finally`` blocks run."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a process must know of the study to run its trials.

    ``stop``: metric names and the value at which a trial ends (at or above, as in Ray). ``time_attr``: the metric that
    ``until`` is measured in. ``checkpoint_every``, ``checkpoint_interval_s``: steps, and seconds, between checkpoints
    that `should_checkpoint` asks for (0, None: only where leases may end). ``grace_s``: how long an unwound function
    may take to return. ``objective``: the first report must hold its metric, and no report may hold one that cannot be
    ranked. ``checkpoint_at_end``: class trainables save where they end. ``chdir``: a working directory for each trial;
    ``stdout``, ``stderr``: files in it for what it prints. ``heartbeat_timeout_s``: a trial that reports nothing for so
    long hangs. ``patience_s``: how long the storage may fail before the trial ends for that. ``here``: the folder of
    trials' own folders' folder on the machine they run on, by the study's name; may begin with ``~`` (None: that of the
    checkpoints' folder). ``cache_bytes``: how much of checkpoints that lie in an object store this machine keeps.
    """

    checkpoints: Path | Place
    stop: Mapping[str, float]
    time_attr: str = "training_iteration"
    checkpoint_every: int = 0
    grace_s: float = 10.0
    objective: Objective = field(default_factory=lambda: Objective(None))
    checkpoint_at_end: bool = False
    chdir: bool = False
    stdout: str | None = None
    stderr: str | None = None
    heartbeat_timeout_s: float | None = None
    slot: Slot = field(default_factory=Slot)
    patience_s: float = PATIENCE_S
    here: Path | None = None
    cache_bytes: int = CACHE_BYTES
    checkpoint_interval_s: float | None = None

    @property
    def folder(self) -> Path:
        """Of the study, on this machine."""
        if self.here is None and isinstance(self.checkpoints, Place):
            raise ValueError(f"here must be given for a study in {self.checkpoints.parent}")
        return (self.here or Path(self.checkpoints).parent).expanduser()

    def store(self) -> Store | ObjectStore:
        """Where checkpoints are kept, for one session."""
        return store_at(self.checkpoints, self.folder / "cache", self.cache_bytes)


@dataclass(frozen=True, slots=True)
class Context:
    """Who is running: the trial's number, its study's name, its folder, what it reserves."""

    trial_id: int
    experiment_name: str
    trial_dir: Path
    slot: Slot

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

    def get_trial_resources(self) -> dict[str, float]:
        """What the trial reserves now, as it would be given to `with_resources`."""
        slot = self.slot
        known = {"cpu": slot.cpu, "gpu": slot.gpu, "memory": slot.memory_gib * 2**30}
        return {name: amount for name, amount in known.items() if amount} | dict(slot.custom)


class Session:
    """One run of the training function, from a start or a checkpoint to its end, over one or more leases.

    ``place``: where it runs (``hostname``, ``node_ip``, ``pid``), added to each report. ``outbox``: where what is said
    goes. ``leases``: where the trial's further ones come from. ``leaves``: errors that are no matter of the trial's;
    `run` raises them. ``overdue``: called if the function does not return within the grace period once it was told to.
    ``uploads``: what publishes its checkpoints while it goes on.
    """

    def __init__(
        self,
        train: Callable[..., Any],
        lease: Lease,
        rules: Rules,
        place: Mapping[str, str | int],
        outbox: Outbox,
        leases: Leases,
        leaves: tuple[type[BaseException], ...] = (),
        overdue: Callable[[], object] | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        self.lease = lease
        self._checkpoint: Checkpoint | None = None
        self._saving: int | None = None  # the last step whose checkpoint was reported
        self._newest = ""  # the hash of the manifest of the last that was published
        study = rules.folder
        folder = study / "artifacts" / f"{lease.trial.id:06d}"
        self.context = Context(lease.trial.id, study.name, folder, lease.slot or rules.slot)
        self._train = train
        self._rules = rules
        self._outbox = outbox
        self._leases = leases
        self._leaves = leaves
        self._overdue = overdue
        self._store = rules.store()
        self._patience, self._uploads_patience = Patience(self._patience_s), Patience(self._patience_s)  # one a thread
        self._uploads = uploads or Uploads()
        self._around = Surroundings(folder, rules.chdir, rules.stdout, rules.stderr)
        self._step = self._origin = lease.checkpoint or 0
        self._level = float(self._step) if rules.time_attr == "training_iteration" else -math.inf
        self._stride: float | None = None  # from one report's level to the next, at most so far
        self._saved = time.monotonic()  # when the last checkpoint was made, or the function began
        self._last: Said | None = None
        self._resumed = self._before = time.monotonic()
        self._frame = Frame(lease, self._origin, 0.0, place)
        self._over = False
        self._declined = False  # whether the function was told that the next report needs no checkpoint
        self._how = How.RETURNED
        self._refused: Failed | None = None  # a report that ends the trial as failed
        self._alarm: threading.Timer | None = None
        self._told = False  # whether it was said how the last lease ended

    def run(self) -> None:
        """Run the function, in this thread, to its end."""
        _here.session = self
        last = None
        try:
            last = self._run()
        finally:
            _here.session = None
            self._store.close()
            self._around.forget(ours=not self._told)
            if self._alarm is not None:
                self._alarm.cancel()
            if last is not None and not self._told:
                self._outbox.put(last, urgent=not self._leases.more)

    # -------------------------------------------------------------------------------------- the function's side

    @property
    def step(self) -> int:
        """The last step that was reported, or the checkpoint's that this began from."""
        return self._step

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The one to go on from: the newest that was reported, once it is published."""
        if self._saving is not None:
            step, self._saving = self._saving, None
            self._settle()
            trial = self.lease.trial.id
            path = self._through(lambda: self._store.local(trial, step, self._newest), self._store.path(trial, step))
            self._checkpoint = Checkpoint(path)
        return self._checkpoint

    def report(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> None:
        """One step is done. Returns when the trial is to go on; raises `TrialEnded` when it is not."""
        said = self._take(metrics)
        ends = How.STOPPED if self._stops(said) else None
        staged = None
        if checkpoint is not None:
            said, staged = self._keep(checkpoint, said, ends)
        declined, self._declined = self._declined, False
        # Declined: it ends after the next report, for which `should_checkpoint` is true.
        self._go_on(said, staged, ends, unwinds=not declined)

    def report_step(
        self,
        metrics: Mapping[str, Any],
        save: Callable[[], AbstractContextManager[Checkpoint | None]],
        done: bool,
        wants_checkpoint: bool,
    ) -> None:
        """`report` for class trainables, whose checkpoint is made when it is known whether this report needs one."""
        said = self._take(metrics)
        ends = How.RETURNED if done else How.STOPPED if self._stops(said) else None
        unwinds = self._leases.unwound  # if that comes later, it ends after the next report, which is saved
        needed = (
            wants_checkpoint
            or unwinds
            or self.lease.save
            or said[2] >= self.lease.until
            or self._is_due(said[1])
            or (ends is not None and self._rules.checkpoint_at_end)
        )
        staged = None
        if needed:
            with save() as checkpoint:  # its files are gone before this parks
                if checkpoint is not None:
                    said, staged = self._keep(checkpoint, said, ends)
        self._go_on(said, staged, ends, unwinds)

    def _go_on(self, said: Said, staged: Staged | None, ends: How | None, unwinds: bool) -> None:
        """A report is made. The trial ends with it (``ends``), or is parked, or may be unwound; else this returns."""
        try:
            self._tell(said)
        finally:
            if staged is not None:
                self._upload(staged, said)
        if ends is not None:
            self._end(ends)
        reached = self._level >= self.lease.until
        if unwinds and not reached and self._leases.unwound:
            self._end(How.UNWOUND)
        if reached or self.lease.each_report:
            self._park()

    def should_checkpoint(self) -> bool:
        """Whether the next report wants a checkpoint: the trial may come to its rung there, to be paused or forked, or
        to its end; it was told to end; it may go on with other resources from there; or one is due."""
        step = self._step + 1
        wanted = self._leases.unwound or self.lease.save or self._may_end(step) or self._is_due(step)
        self._declined = not wanted
        return wanted

    def _is_due(self, step: int) -> bool:
        """Whether so many steps, or seconds, have gone by."""
        every, interval_s = self._rules.checkpoint_every, self._rules.checkpoint_interval_s
        if every > 0 and step % every == 0:
            return True
        return interval_s is not None and time.monotonic() - self._saved >= interval_s

    def _may_end(self, step: int) -> bool:
        """Whether the lease may end with the report of this step, which is yet to be made."""
        until, stop, name = self.lease.until, self._rules.stop, self._rules.time_attr
        if step >= stop.get("training_iteration", END):
            return True
        if name == "training_iteration":
            return step >= until
        last = min(until, stop.get(name, END))
        if last >= END:
            return False
        # How far the next report leads is not known: no more than twice as far as any did before.
        return self._stride is None or self._level + 2 * self._stride >= last

    def _take(self, metrics: Mapping[str, Any]) -> Said:
        """Check what the user said, so far without a checkpoint; nothing has happened if this raises."""
        if self._over:
            raise TrialEnded  # it was told so before, and did not listen
        step = self._step + 1
        flat = flatten(metrics)
        now = time.monotonic()
        said = (self._frame, step, float(step), time.time(), now - self._before, now - self._resumed, "", flat)
        if self._rules.time_attr == "training_iteration":
            return said
        return (*said[:2], self._read_level(said), *said[3:])

    def _keep(self, checkpoint: Checkpoint, said: Said, ends: How | None) -> tuple[Said, Staged | None]:
        """Publish a report's checkpoint or, if the trial goes on meanwhile, take its files."""
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(f"checkpoint must be a raytuner.Checkpoint, got {type(checkpoint).__name__}")
        trial, step, attempt = self.lease.trial.id, said[1], self.lease.attempt
        source, path = checkpoint.path, self._store.path(trial, step)
        self._saved = time.monotonic()
        ends_here = ends is not None or self._leases.unwound or self.lease.each_report or said[2] >= self.lease.until

        def is_ours(error: OSError) -> bool:
            """Whether it is the storage that fails, and not the user's own files."""
            return is_outage(error) and not str(error.filename or "").startswith(source)

        if ends_here or self._store.has(trial, step) or not self._uploads.most:
            self._settle()  # they become visible in their order
            digest = self._through(lambda: self._store.publish(source, trial, step, attempt), path, is_ours)
            self._frame.nbytes[step] = self._through(lambda: self._store.nbytes(trial, step), path)
            self._newest, self._saving, self._saved = digest, step, time.monotonic()
            return (*said[:6], digest, said[7]), None
        self._await(self._uploads.room)
        staged = self._through(lambda: self._store.stage(source, trial, step, attempt), path, is_ours)
        self._saved = time.monotonic()
        return (*said[:6], UNDER_WAY, said[7]), staged

    def _upload(self, staged: Staged, said: Said) -> None:
        """Have a checkpoint published while the trial goes on; then it is told."""
        trial, attempt = self.lease.trial.id, self.lease.attempt
        metrics = dict(row_of(said))

        def publish() -> None:
            step, path = staged.step, self._store.path(trial, staged.step)
            digest = self._uploads_patience.through(lambda: self._store.publish_staged(staged), path, always)
            self._newest = digest
            nbytes = self._uploads_patience.through(lambda: self._store.nbytes(trial, step), path, always)
            self._outbox.put(Checkpointed(time.time(), trial, attempt, step, metrics, digest, nbytes), urgent=False)

        self._uploads.put(publish)
        self._saving = staged.step

    def _settle(self) -> None:
        """Wait until all that was reported is published."""
        self._await(self._uploads.wait)

    def _await(self, wait: Callable[[], None]) -> None:
        """Wait for uploads; if the storage failed them, the trial ends."""
        try:
            wait()
        except StorageError as error:
            self._lose(error)

    def _lose(self, error: StorageError) -> NoReturn:
        """The storage failed: the trial ends, for no fault of its own."""
        self._refused = self._failed(Failure.STORAGE, str(error))
        self._end(How.STOPPED)

    def _through(self, act: Callable[[], T], where: str | Path, fails: Callable[[OSError], bool] = is_outage) -> T:
        """Do something to the storage, in a report; if it goes on failing, the trial ends, for no fault of its own."""
        try:
            return self._patience.through(act, where, fails)
        except StorageError as error:
            self._lose(error)

    def _patience_s(self) -> float:
        """How long the storage may fail. Who is told to end meanwhile is not to be killed for waiting."""
        most_s = self._rules.patience_s
        return min(most_s, self._rules.grace_s / 2) if self._leases.unwound else most_s

    def _tell(self, said: Said) -> None:
        """A report is made: it is sent, and counts."""
        first = self._last is None
        if self._level > -math.inf:
            self._stride = max(self._stride or 0.0, said[2] - self._level)
        self._step, self._level, self._last = said[1], said[2], said
        self._before = self._resumed + said[5]
        self._outbox.report(said)
        objective = self._rules.objective
        value = said[7].get(objective.metric) if objective.metric is not None else 0
        sound = type(value) is int or (type(value) is float and math.isfinite(value))
        if not sound and (first or value is not None):
            reading = objective.read(row_of(said))
            if reading.failure is not None and (reading.failure is Failure.NO_METRIC or not objective.patient):
                self._refused = self._failed(reading.failure, reading.message)
                self._end(How.STOPPED)

    def _stops(self, said: Said) -> bool:
        """Whether a report meets the run's stop rule."""
        return any(_reaches(self._value(name, said), most) for name, most in self._rules.stop.items())

    def _value(self, name: str, said: Said) -> Any:
        """What a report says of one metric, ours or the user's."""
        if name == "training_iteration":
            return said[1]
        return said[7][name] if name in said[7] else row_of(said).get(name) if name in AUTOMATIC else None

    def _park(self) -> None:
        """A lease is over; wait for the trial's next one."""
        self._settle()  # before anybody hears of it
        self._around.leave()
        ran_s = self._frame.ran_s + self._seconds()
        self._leases.park()  # before anybody hears of it
        self._outbox.put(self._ended(How.REACHED))
        self._told = True
        lease = self._leases.next_of(self.lease.trial.id)
        if lease is None:
            with suppress(OSError):
                self._around.enter()  # for what the function does in its ``finally``
            self._end(How.UNWOUND)
        self._told = False
        self.lease = lease
        self._frame = Frame(lease, self._origin, ran_s, self._frame.place)
        self._resumed = self._before = time.monotonic()
        self._through(self._enter, self.context.trial_dir)

    def _end(self, how: How) -> NoReturn:
        """Have the function return; whatever it does now, this is how its lease has ended."""
        self._over, self._how = True, how
        if self._overdue is not None:
            self._alarm = threading.Timer(self._rules.grace_s, self._overdue)
            self._alarm.daemon = True
            self._alarm.start()
        raise TrialEnded

    def _run(self) -> Ended | Failed | Damaged:
        last = self._call()
        if self._alarm is not None:
            self._alarm.cancel()  # it did return
        try:
            self._uploads.wait()  # before anybody hears of the end
        except StorageError as error:
            if not isinstance(last, Failed):
                return self._failed(Failure.STORAGE, str(error))
        except Exception as error:
            if not isinstance(last, Failed):
                return self._failed(Failure.ERROR, "".join(traceback.format_exception(error)))
        return last

    def _call(self) -> Ended | Failed | Damaged:
        try:
            self._patience.through(self._arrive, self.context.trial_dir)
            if self.lease.checkpoint is not None:
                try:
                    self._checkpoint = self._load(self.lease.donor, self.lease.checkpoint)
                except DamagedCheckpoint as error:  # no matter of the trial's
                    return self._damaged(self.lease.donor, self.lease.checkpoint, str(error))
            last = self._train(self.lease.trial.config)
            if isinstance(last, Mapping) and not self._over:
                self.report(last, None)
        except self._leaves:
            raise
        except TrialEnded:
            pass
        except StorageError as error:
            return self._failed(Failure.STORAGE, str(error))
        except BaseException as error:
            lines = traceback.format_exception(error.with_traceback(_without_us(error.__traceback__)))
            if not self._over:
                kind = Failure.NOT_REPORTABLE if isinstance(error, NotReportable) else out_of_memory(error)
                return self._failed(kind or Failure.ERROR, "".join(lines))
            _log.warning("trial %d raised an error when it was told to end:\n%s", self.lease.trial.id, "".join(lines))
        return self._refused or self._ended(self._how)

    def _enter(self) -> None:
        """Have the trial find its surroundings; once more, if that failed."""
        self._around.leave()
        self._around.enter()

    def _arrive(self) -> None:
        """Get ready for the trial to run."""
        self._enter()
        self._store.tidy(self.lease.trial.id)  # of a process that died before it said that it had begun

    def _load(self, trial: int, step: int) -> Checkpoint:
        """The checkpoint to begin from, whole and the one that was meant."""
        path = self._store.path(trial, step)
        digest, folder = self._patience.through(lambda: self._store.fetch(trial, step, self.lease.digest), path)
        if self.lease.digest not in ("", digest):
            raise DamagedCheckpoint(path, MANIFEST, f"its hash is {digest}, and was {self.lease.digest}")
        self._outbox.put(Loaded(time.time(), self.lease.trial.id, self.lease.attempt, trial, step, digest), False)
        return Checkpoint(folder)

    def _ended(self, how: How) -> Ended:
        lease = self.lease
        metrics = {} if self._last is None else dict(row_of(self._last))
        return Ended(time.time(), lease.trial.id, lease.attempt, how, self._step, self._level, metrics, self._seconds())

    def _failed(self, failure: Failure, message: str) -> Failed:
        return Failed(time.time(), self.lease.trial.id, self.lease.attempt, failure, message, self._seconds())

    def _damaged(self, source: int, step: int, message: str) -> Damaged:
        lease = self.lease
        return Damaged(time.time(), lease.trial.id, lease.attempt, source, step, message, self._seconds())

    def _seconds(self) -> float:
        """How long this lease has run."""
        return time.monotonic() - self._resumed

    def _read_level(self, said: Said) -> float:
        name, metrics = self._rules.time_attr, said[7]
        value = self._value(name, said) if name in AUTOMATIC else metrics.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            lacks = value is None and name not in metrics
            shown = f"lacks it; it holds {sorted(metrics)}" if lacks else f"holds {name}={value!r:.40}"
            raise ValueError(f"{name!r} is the scheduler's time_attr and must be a number, but the report {shown}")
        level = float(value)
        if not level >= self._level:
            raise ValueError(f"{name!r}, the scheduler's time_attr, must not fall: {self._level}, then {level}")
        return level


class Runner:
    """Runs the trials of a process, one at a time: one thread calls `run` with what ``leases.next()`` gives; the other
    methods are for others.

    ``train``: the training function. Else as for `Session`.
    """

    def __init__(
        self,
        train: Callable[..., Any],
        rules: Rules,
        place: Mapping[str, str | int],
        leaves: tuple[type[BaseException], ...] = (),
        overdue: Callable[[], object] | None = None,
    ) -> None:
        self.leases = Leases()
        self.outbox = Outbox()
        self.uploads = Uploads()
        self._train = train
        self._rules = rules
        self._place = place
        self._leaves = leaves
        self._overdue = overdue

    def run(self, lease: Lease) -> None:
        """Run a lease's trial, in this thread: to its end, or until another's lease is next."""
        Session(
            self._train,
            lease,
            self._rules,
            self._place,
            self.outbox,
            self.leases,
            self._leaves,
            self._overdue,
            self.uploads,
        ).run()

    def unwind(self, trial: int, attempt: int, parked: bool) -> None:
        """End a lease: one that waits or is ``parked`` at once, a running one at its next report."""
        if self.leases.unwind(trial, attempt, parked):
            self.outbox.put(Ended(time.time(), trial, attempt, How.UNWOUND, 0, 0.0, {}))

    def close(self) -> None:
        """Nothing more is run; what is running ends at its next report, and what is parked now."""
        self.leases.close()
        self.outbox.close()


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A report as names and plain scalars; nested names are joined by ``/``.

    NumPy scalars and one-element tensors become Python's. Raises TypeError for anything else, naming it.
    """
    if not isinstance(metrics, Mapping):
        raise NotReportable(f"report() takes a dict of metrics, got {type(metrics).__name__}: {metrics!r:.80}")
    if not prefix and all(type(value) in _SCALARS for value in metrics.values()) and _all_text(metrics):
        return dict(metrics)  # as nearly all are
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise NotReportable(f"metric names must be strings, got {name!r}")
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = _plain(prefix + name, value)
    return flat


_SCALARS = frozenset({bool, int, float, str, type(None)})


def _all_text(names: Mapping[str, Any]) -> bool:
    return all(type(name) is str for name in names)


def _without_us(trace: TracebackType | None) -> TracebackType | None:
    """A traceback that begins with the user's code, if that is in it."""
    inner = trace
    while inner is not None and inner.tb_frame.f_globals.get("__name__", "").startswith("raytuner."):
        inner = inner.tb_next
    return inner or trace


def _reaches(value: Any, most: float) -> bool:
    return isinstance(value, (int, float)) and value >= most


def _plain(name: str, value: Any) -> Any:
    if type(value) in _SCALARS:
        return value
    if isinstance(value, numbers.Number | str) or getattr(value, "shape", None) == () or _size(value) == 1:
        item = getattr(value, "item", None)
        plain = item() if callable(item) else value
        if type(plain) in (bool, int, float, str):
            return plain
    raise NotReportable(
        f"metric {name!r} must be a number, a string or a bool, got {type(value).__name__}: {value!r:.80}"
    )


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


def report_step(
    metrics: Mapping[str, Any],
    save: Callable[[], AbstractContextManager[Checkpoint | None]],
    done: bool,
    wants_checkpoint: bool,
) -> None:
    """One step of a class trainable; ``save`` is called if this report wants a checkpoint. Not for users."""
    _session("report_step").report_step(metrics, save, done, wants_checkpoint)


def standing() -> int:
    """The step at which the trial of this thread stands. Not for users."""
    return _session("standing").step


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
    """Whether the report that comes next should carry a checkpoint: the trial may be paused, forked or ended there, or
    ``checkpoint_frequency`` steps, or ``checkpoint_interval_s`` seconds, have gone by."""
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
