"""How callbacks hear of a study: each in a thread of its own, which reads the record from where it last stood.

The driver only says how many turns are durable (`Deliveries.wake`): a number and an event, whatever the callback does.
The thread reads these turns (`record.cursor`), makes calls of them (`retelling`), and keeps how far it got in
``callbacks/<name>.json``, about every second. That file is written whole or not at all, and counts a call only once it
returned: so after a kill the last calls are made again, and none is missing.

A call that raises is logged, once for each hook and kind of error, and passed over. A `setup` that raises keeps its
callback where it stood. When the driver is done the threads have a deadline; what is left then is told to the same
callback when the study is run or asked for again, or by `sync`. A call that still hangs stays behind in its thread,
which does nothing more once it returns.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from raytuner.callback import checked_callbacks
from raytuner.checkpoints import Checkpoint
from raytuner.record.cursor import Cursor
from raytuner.record.durable import make_folders, write_whole
from raytuner.record.folder import Folder, NoStudy
from raytuner.record.journal import Journal
from raytuner.record.lock import take
from raytuner.retelling import Call, Retelling, TrialView
from raytuner.space import pack, unpack

_log = logging.getLogger(__name__)

_FORMAT = 1
_KEEP_EVERY_S = 1.0  # how far a callback got
_LOOK_EVERY_S = 0.05  # whether a wait was called off
_GATHER_S = 0.1  # turns that come meanwhile are read together: to read each by itself would keep the loop's CPU busy


@dataclass(frozen=True, slots=True)
class Place:
    """How far a callback got: it heard all of the turns before ``turn``, and ``calls`` of that one's."""

    turn: int = 0
    calls: int = 0


@dataclass(frozen=True)
class Delivered:
    """What `sync` did for a callback: ``calls`` that were made, of which ``errors`` raised. ``rest``: why there is more
    that it did not hear ("": there is nothing)."""

    name: str
    calls: int
    errors: int
    rest: str = ""


def sync(path: str | Path, callbacks: Sequence[Any] | None = None, *, from_start: bool = False) -> list[Delivered]:
    """Tell callbacks what they have not yet heard of the study in a folder, here and now, without a deadline.

    ``callbacks``: objects of the same classes, in the same order among those of one class, as the study had. None:
    those of raytuner's own loggers that it had; the others it had are named in the answer. ``from_start``: tell all of
    it again, from the beginning. Raises `raytuner.StudyInUse` while a driver runs the study: that tells them itself.
    """
    folder = Folder(path)
    root, what = local_root(folder), folder.read()
    given = _loggers(folder) if callbacks is None else checked_callbacks(callbacks)
    trainable = re.sub(r"[^\w-]", "", what["trainable"].rpartition(".")[2])
    setup = {name: what.get(name) for name in ("stop", "num_samples", "time_budget_s")}
    done = []
    with take(root):
        end = durable_end(root)
        for name, callback in named(given).items():
            if _Thread.hangs(callback):
                done.append(Delivered(name, 0, 0, "it still is in a call of an earlier run"))
                continue
            courier = _Courier(callback, name, folder, trainable, setup)
            if from_start:
                courier.rewind()
            courier.open(end)
            try:
                rest = "" if courier.deliver(end, lambda: False) else "its setup failed"
            finally:
                courier.keep()
            done.append(Delivered(name, courier.made, courier.errors, rest))
    told = {each.name for each in done}
    for name, kept in _kept(folder).items():
        if name not in told and kept["turn"] < end:
            done.append(Delivered(name, 0, 0, f"{kept['callback']} was not given"))
    return done


def local_root(folder: Folder) -> Path:
    """Where a study lies on this machine. ValueError if it is in an object store: its record is no file that grows."""
    if not isinstance(folder.root, Path):
        raise ValueError(f"callbacks hear of studies on a disk, not yet of those in object stores: {folder.root}")
    return folder.root


def durable_end(root: Path) -> int:
    """How many turns a record holds, durably, for whoever has the study's lock."""
    with closing(Journal(root)) as journal:
        return journal.turn


def named(callbacks: Sequence[Any]) -> dict[str, Any]:
    """Callbacks by what their places are kept under: their classes' names, numbered where there are several of one."""
    found: dict[str, Any] = {}
    for callback in callbacks:
        name = re.sub(r"[^\w.-]", "_", type(callback).__name__)
        number = 2
        while name in found:
            name = f"{name.rpartition('-')[0] if number > 2 else name}-{number}"
            number += 1
        found[name] = callback
    return found


class Deliveries:
    """Tells a study's callbacks of it while a driver runs. ``setup``: what their `setup` is called with."""

    def __init__(self, callbacks: Sequence[Any], folder: Folder, trainable: str, setup: Mapping[str, Any]) -> None:
        self._folder = folder
        self._couriers = [
            _Courier(callback, name, folder, trainable, setup) for name, callback in named(callbacks).items()
        ]
        self._threads: list[_Thread] | None = None
        self._end = 0

    def wake(self, end: int) -> None:
        """So many turns are durable. The first time, the threads begin."""
        if end == self._end:
            return
        self._end = end
        if self._threads is None:
            self._threads = [thread for thread in map(_Thread, self._couriers) if thread.begin(end)]
        for thread in self._threads:
            thread.wake(end)

    def close(self, deadline_s: float, called_off: Callable[[], bool] = lambda: False) -> None:
        """Return when everything was told, when the time is up, or when the wait was called off."""
        until = time.monotonic() + deadline_s
        for thread in self._threads or ():
            thread.finish()
        for thread in self._threads or ():
            while not thread.wait(min(_LOOK_EVERY_S, max(0.0, until - time.monotonic()))):
                if time.monotonic() >= until or called_off():
                    break
        for thread in self._threads or ():
            if not thread.leave():
                _log.warning(
                    "callback %s has not heard everything; the rest is told when the study is run again, or by: "
                    "raytuner sync %s",
                    thread.name,
                    self._folder.root,
                )
        self._threads = None


class _Thread:
    """A callback's thread. It may outlive its `Deliveries`, hanging in a call; no other is begun meanwhile."""

    _hanging: ClassVar[dict[int, Any]] = {}  # the process's callbacks that have a thread, by identity

    def __init__(self, courier: _Courier) -> None:
        self.name = courier.name
        self._courier = courier
        self._end = 0
        self._news = threading.Event()
        self._finishing = threading.Event()
        self._left = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"raytuner-callback-{self.name}", daemon=True)

    @classmethod
    def hangs(cls, callback: object) -> bool:
        """Whether a thread of an earlier run still is in a call of this callback."""
        return id(callback) in cls._hanging

    def begin(self, end: int) -> bool:
        """Start, unless the callback hangs."""
        callback = self._courier.callback
        if self.hangs(callback):
            _log.warning("callback %s still is in a call of an earlier run: nothing is told to it", self.name)
            return False
        self._hanging[id(callback)] = callback
        self._end = end
        self._thread.start()
        return True

    def wake(self, end: int) -> None:
        self._end = end
        self._news.set()

    def finish(self) -> None:
        """No more turns will come."""
        self._finishing.set()
        self._news.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether all was told, or nothing can be."""
        return self._done.wait(timeout_s)

    def leave(self) -> bool:
        """The thread does nothing more; whether it had told everything."""
        if self._done.is_set():
            return True
        self._left = True
        self._courier.leave()
        return False

    def _run(self) -> None:
        try:
            self._courier.open(self._end)
            while self._courier.deliver(self._end, lambda: self._left):
                if self._finishing.is_set() and not self._news.is_set():
                    break
                self._finishing.wait(_GATHER_S)
                if not self._news.wait(self._courier.keep_in_s()):
                    self._courier.keep()
                    self._news.wait()
                self._news.clear()
            self._courier.keep()
        except Exception:
            _log.exception("callback %s is told nothing more in this run", self.name)
        finally:
            del self._hanging[id(self._courier.callback)]
            self._done.set()


class _Courier:
    """Takes one callback through a record. Not for several threads, but for `leave`."""

    def __init__(self, callback: Any, name: str, folder: Folder, trainable: str, setup: Mapping[str, Any]) -> None:
        self.callback = callback
        self.name = name
        self.made = 0
        self.errors = 0
        self._setup = setup
        self._root = local_root(folder)
        self._path = self._root / "callbacks" / f"{name}.json"
        self._place = Place()
        self._state: Any = None
        self._cursor = Cursor(self._root)
        self._retelling = Retelling(folder, trainable, _checkpoints_for(callback))
        self._set_up: bool | None = None  # None: not tried
        self._started: set[TrialView] = set()  # in this run
        self._logged: set[tuple[str, str]] = set()
        self._lock = threading.Lock()  # of the file
        self._opened = False
        self._left = False
        self._kept: tuple[Place, Any] | None = None
        self._kept_at = time.monotonic()

    def rewind(self) -> None:
        """Forget how far the callback got."""
        self._path.unlink(missing_ok=True)

    def open(self, end: int) -> None:
        """Go to where the callback stood. ``end``: how many turns there are."""
        make_folders(self._path.parent)
        if self._path.exists():
            kept = _read(self._path)
            self._place, self._state = Place(kept["turn"], kept["calls"]), unpack(kept["state"])
            self._kept = self._place, self._state
        if self._place.turn > end or (self._place.turn == end and self._place.calls):
            _log.warning(
                "callback %s has heard %d turns of %s, which has %d: it was put back, and is told what is new",
                self.name,
                self._place.turn,
                self._root,
                end,
            )
            self._place = Place(end)
        self._opened = True
        self.keep()

    def deliver(self, end: int, left: Callable[[], bool]) -> bool:
        """Tell of all turns up to ``end``, until ``left``; False if it was, or if nothing can be told."""
        if self._place.turn >= end:
            return not left()
        if not self._prepared():
            return False
        for happened in self._cursor.read(end):
            if happened.turn < self._place.turn:
                self._retelling.pass_over(happened)
                continue
            for number, call in enumerate(self._retelling.tell(happened)):
                if number < self._place.calls:
                    continue
                if left():
                    return False
                if call.due and (not call.last or happened.turn + 1 == end):
                    self._make(call)
                self._place = Place(happened.turn, number + 1)
                if self.keep_in_s() == 0.0:
                    self.keep()
            self._place = Place(happened.turn + 1)
        return not left()

    def keep_in_s(self) -> float:
        """When the place is to be kept."""
        return max(0.0, self._kept_at + _KEEP_EVERY_S - time.monotonic())

    def keep(self) -> None:
        """Write down how far the callback got, and its state."""
        self._kept_at = time.monotonic()
        if self._set_up:
            self._state = self._asked_state()
        with self._lock:
            self._write()

    def leave(self) -> None:
        """From another thread: write down how far it got, and nothing more after that."""
        with self._lock:
            if self._state is None:  # else they must be kept together, and nobody can ask it now
                self._write()
            self._left = True

    def _write(self) -> None:
        now = self._place, self._state
        if not self._opened or self._left or now == self._kept:
            return
        kind = type(self.callback)
        what = {
            "format": _FORMAT,
            "callback": f"{kind.__module__}:{kind.__qualname__}",
            "turn": now[0].turn,
            "calls": now[0].calls,
            "state": pack(now[1]),
        }
        try:
            write_whole(self._path, json.dumps(what, allow_nan=False) + "\n")
            self._kept = now
        except OSError as error:
            if self._first("keep", error):
                _log.warning("how far callback %s got could not be written to %s: %s", self.name, self._path, error)

    def _prepared(self) -> bool:
        """Whether the callback is set up. It is tried once."""
        if self._set_up is None:
            try:
                if hasattr(self.callback, "setup"):
                    self.callback.setup(**self._setup)
                if self._state is not None and hasattr(self.callback, "set_state"):
                    self.callback.set_state(self._state)
                self._set_up = True
            except (Exception, SystemExit):
                self._set_up = False
                self.errors += 1
                _log.exception(
                    "callback %s could not be set up and is told nothing; once that is mended, run the study again, or "
                    "raytuner sync %s",
                    self.name,
                    self._root,
                )
        return self._set_up

    def _make(self, call: Call) -> None:
        trial = call.trial
        if trial is not None and trial not in self._started:
            self._started.add(trial)
            if call.hook != "on_trial_start":
                self._invoke("on_trial_start", _start_of(call))
        self._invoke(call.hook, call.arguments)
        if trial is not None and call.hook in ("on_trial_complete", "on_trial_error"):
            self._started.discard(trial)  # should it go on after all, in a study that is extended, it starts again

    def _invoke(self, hook: str, arguments: Mapping[str, Any]) -> None:
        to_call = getattr(self.callback, hook, None)
        if to_call is None:
            return
        self.made += 1
        try:
            to_call(**arguments)
        except (Exception, SystemExit) as error:
            self.errors += 1
            if self._first(hook, error):
                _log.exception(
                    "callback %s: %s raised %s. The study goes on, and so does the callback, with the next call. (This "
                    "is said once.)",
                    self.name,
                    hook,
                    type(error).__name__,
                )

    def _asked_state(self) -> Any:
        try:
            state = self.callback.get_state() if hasattr(self.callback, "get_state") else None
            return None if state is None else unpack(json.loads(json.dumps(pack(state), allow_nan=False)))
        except (Exception, SystemExit) as error:
            if self._first("get_state", error):
                _log.exception("callback %s: its state is not kept. (This is said once.)", self.name)
            return None

    def _first(self, hook: str, error: BaseException) -> bool:
        """Whether it is the first of its kind."""
        kind = hook, type(error).__qualname__
        if kind in self._logged:
            return False
        self._logged.add(kind)
        return True


def _start_of(call: Call) -> dict[str, Any]:
    return {name: call.arguments[name] for name in ("iteration", "trials", "trial")}


def _checkpoints_for(callback: object) -> Callable[[str], Any]:
    """What makes a checkpoint of a path: of Ray's class where the callback is Ray's."""
    ray_callback = getattr(sys.modules.get("ray.tune.callback"), "Callback", None)
    if ray_callback is None or not isinstance(callback, ray_callback):
        return Checkpoint
    if hasattr(callback, "_restore_from_remote"):
        # Ray's loggers fetch the files of a trial that goes on from where they were synced to; ours never left.
        callback._restore_from_remote = lambda *ignored: None
    import ray.tune

    def rays(path: str) -> Any:
        return ray.tune.Checkpoint.from_directory(Checkpoint(path).path)

    return rays


def _kept(folder: Folder) -> dict[str, dict[str, Any]]:
    """The places of the callbacks that a study had."""
    return {path.stem: _read(path) for path in sorted((local_root(folder) / "callbacks").glob("[!.]*.json"))}


def _read(path: Path) -> dict[str, Any]:
    try:
        what = json.loads(path.read_text(encoding="utf-8"))
        if what["format"] != _FORMAT:
            raise ValueError(f"format {what['format']!r}; this version of raytuner reads format {_FORMAT}")
        Place(int(what["turn"]), int(what["calls"]))
        _ = what["callback"], what["state"]
    except (ValueError, KeyError, TypeError) as error:
        raise NoStudy(f"{path} is damaged: {error!r}; without it the callback is told everything again") from None
    assert isinstance(what, dict)
    return what


def _loggers(folder: Folder) -> list[Any]:
    """Those of raytuner's own loggers that a study had. Other code is not run because a file names it."""
    from raytuner import logger

    found = []
    for kept in _kept(folder).values():
        module, _, name = kept["callback"].partition(":")
        if module == logger.__name__ and name in logger.LOGGERS:
            found.append(logger.LOGGERS[name]())
    return found
