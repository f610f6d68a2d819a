"""A study's record, told again as the calls of a `raytuner.callback.Callback`: a pure fold over its turns.

Within a turn: what began from a checkpoint; then the reports, each followed by the checkpoint of its step; then all
other events and decisions in their order. A trial has at most one lease in a turn, so that nothing is told before what
it follows from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytuner.actions import Fork, Proposal, Resume, Start
from raytuner.checkpoints import Store
from raytuner.events import Checkpointed, Drop, Ended, Failed, Finish, How, Loaded, Over, Proposed, Retry
from raytuner.record.cursor import Happened
from raytuner.record.folder import Folder
from raytuner.record.journal import METRIC, REPORTS
from raytuner.results import TrialFailed
from raytuner.trial import Config, State

_STATUS = {State.RUNNING: "RUNNING", State.PAUSED: "PAUSED", State.FAILED: "ERROR"}
_OVER = "TERMINATED"


class TrialView:
    """A trial as callbacks see it, at the moment that is told of. Names, and the words of ``status``, are Ray's.

    ``trial_id``: its number, as text. ``config``, ``evaluated_params``: its configuration, nested and with names joined
    by ``/``. ``status``: RUNNING, PAUSED, TERMINATED or ERROR. ``last_result``: its last report that was told of.
    ``checkpoint``: its newest one, None if there is none, or none any more. ``num_failures``: how many attempts failed.
    ``local_path``, ``path``: ``logs/<trial>`` in the study's folder, where loggers write; made when it is asked for.
    ``parent``: the trial it was forked from. `str` is the trainable's name and the trial's number.
    """

    def __init__(
        self,
        number: int,
        config: Config,
        trainable: str,
        root: Path,
        open_checkpoint: Callable[[str], Any],
        parent: str | None = None,
    ) -> None:
        self.trial_id = str(number)
        self.config: dict[str, Any] = dict(config)
        self.trainable_name = trainable
        self.parent = parent
        self.status = _STATUS[State.RUNNING]
        self.last_result: dict[str, Any] = {}
        self.num_failures = 0
        self.experiment_dir_name = root.name
        self.local_experiment_path = self.remote_experiment_path = str(root)
        self.experiment_tag = str(number)
        self._number = number
        self._folder = root / "logs" / f"{number:06d}"
        self._store = Store(root / "checkpoints")
        self._open = open_checkpoint
        self._saved: set[int] = set()
        self._error = ""

    @property
    def evaluated_params(self) -> dict[str, Any]:
        return dict(_flat(self.config))

    @property
    def checkpoint(self) -> Any:
        for step in sorted(self._saved, reverse=True):
            if (found := self.saved(step)) is not None:
                return found
        return None

    @property
    def node_ip(self) -> str | None:
        """Where it reported from last."""
        found: str | None = self.last_result.get("node_ip")
        return found

    def get_ray_actor_ip(self) -> str | None:
        return self.node_ip

    @property
    def local_path(self) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        return str(self._folder)

    path = local_path

    def init_local_path(self) -> None:
        """Make the folder ``local_path``."""
        _ = self.local_path

    def is_finished(self) -> bool:
        return self.status in (_OVER, _STATUS[State.FAILED])

    def get_error(self) -> TrialFailed | None:
        """Why it failed for good; None if it did not."""
        return TrialFailed(self._error) if self._error else None

    def saved(self, step: int) -> Any:
        """The checkpoint of a step, None if it is not there any more."""
        try:
            return self._open(self._store.path(self._number, step))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.trainable_name}_{self.trial_id}".replace("/", "_")

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class Call:
    """A hook to be called. Its trials are as they are to be seen only until the next call is asked for.

    ``last``: only where the record ends with this turn. ``due``: False where what it is about is gone; it counts, so
    that the same turns always make as many calls.
    """

    hook: str
    trial: TrialView | None
    arguments: Mapping[str, Any]
    last: bool = False
    due: bool = True


class Retelling:
    """Folds turns into trials, and tells what happened. ``open_checkpoint`` makes of a path what callbacks are given;
    it raises ValueError if nothing is there."""

    def __init__(self, folder: Folder, trainable: str, open_checkpoint: Callable[[str], Any]) -> None:
        self.trials: list[TrialView] = []
        self._root = Path(str(folder.root))
        self._trainable = trainable
        self._open = open_checkpoint
        self._views: dict[int, TrialView] = {}
        self._rungs: dict[int, int] = {}
        self._steps: dict[int, int] = {}  # highest that was told of

    def tell(self, happened: Happened) -> Iterator[Call]:
        """The calls that a turn makes, in order; each is to be made before the next is asked for."""
        common = {"iteration": happened.turn, "trials": self.trials}
        yield Call("on_step_begin", None, common)
        for hook, trial, more in self._hooks(happened):
            due = more.get("checkpoint", True) is not None
            yield Call(hook, trial, {**common, "trial": trial, **more}, due=due)
        yield Call("on_step_end", None, common)
        if happened.rows and isinstance(happened.rows[-1], Finish):
            yield Call("on_experiment_end", None, {"trials": self.trials}, last=True)

    def pass_over(self, happened: Happened) -> None:
        """Take a turn in without telling of it."""
        for _ in self._hooks(happened, brief=True):
            pass

    def _hooks(self, happened: Happened, brief: bool = False) -> Iterator[tuple[str, TrialView, dict[str, Any]]]:
        rows = happened.rows
        for row in rows:
            if isinstance(row, Loaded) and row.trial in self._views:
                yield "on_trial_restore", self._views[row.trial], {}
        checkpoints = {(row.trial, row.step) for row in rows if isinstance(row, Checkpointed)}
        over = {row.trial for row in rows if isinstance(row, Over)}
        told: set[tuple[int, int]] = set()
        for number, result in self._results(happened, over, brief):
            view = self._views[number]
            view.last_result = result
            yield "on_trial_result", view, {"result": {**result, "config": dict(view.config)}}
            at = number, result["training_iteration"]
            if at in checkpoints:
                told.add(at)
                yield from self._saved(*at)
        for row in rows:
            if (begun := self._begun(row)) is not None:
                yield "on_trial_start", begun, {}
            if isinstance(row, Start | Fork | Resume):
                self._rungs[row.trial] = row.until
            about = self._views.get(getattr(row, "trial", -1))
            if about is not None and not (isinstance(row, Checkpointed) and (row.trial, row.step) in told):
                yield from self._of(about, row)  # of a trial that never got a configuration nothing is told

    def _begun(self, row: object) -> TrialView | None:
        """The trial that has its configuration from this row on."""
        match row:
            case Proposed(trial=number, answer=Proposal(config=config)):
                return self._begin(number, config)
            case Start(number, config=config) if config is not None:
                return self._begin(number, config)
            case Fork(number, source, config):
                return self._begin(number, config, str(source))
        return None

    def _begin(self, number: int, config: Config, parent: str | None = None) -> TrialView:
        view = TrialView(number, config, self._trainable, self._root, self._open, parent)
        self._views[number] = view
        self.trials.append(view)
        return view

    def _saved(self, number: int, step: int) -> Iterator[tuple[str, TrialView, dict[str, Any]]]:
        view = self._views[number]
        view._saved.add(step)
        yield "on_checkpoint", view, {"checkpoint": view.saved(step)}
        yield "on_trial_save", view, {}

    def _of(self, view: TrialView, row: object) -> Iterator[tuple[str, TrialView, dict[str, Any]]]:
        match row:
            case Checkpointed(trial=number, step=step):
                yield from self._saved(number, step)
            case Drop(step=step):
                view._saved.discard(step)
            case Failed():
                view.num_failures += 1
            case Resume():
                view.status = _STATUS[State.RUNNING]
            case Ended(trial=number, how=How.REACHED, level=level) if level >= self._rungs[number]:
                view.status = _STATUS[State.PAUSED]  # until it is resumed
            case Retry():
                view.status = _STATUS[State.RUNNING]
                yield "on_trial_recover", view, {}
            case Over(state=State.FAILED, why=why, message=message):
                view.status, view._error = _STATUS[State.FAILED], message or why.value
                yield "on_trial_error", view, {}
            case Over():
                view.status = _OVER
                yield "on_trial_complete", view, {}

    def _results(self, happened: Happened, over: set[int], brief: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """A turn's reports as Ray gives them; of a step that was reported twice the first. If ``brief``, each trial's
        last one."""
        batch = happened.reports
        if batch is None:
            return
        of_all = {name: batch.column(name).to_pylist() for name in REPORTS.names}
        numbers = of_all["trial"]
        last = {number: row for row, number in enumerate(numbers)}
        wanted = last.values() if brief else range(len(numbers))
        if brief:
            batch = batch.take(list(wanted))
        metrics = {name.removeprefix(METRIC): name for name in batch.schema.names if name not in REPORTS.names}
        columns = {name: batch.column(column).to_pylist() for name, column in metrics.items()}
        for place, row in enumerate(wanted):
            number, step = numbers[row], of_all["step"][row]
            if step <= self._steps.get(number, 0):
                continue
            self._steps[number] = step
            values = ((name, column[place]) for name, column in columns.items())
            result = {name: value for name, value in values if value is not None}
            at = result.get("timestamp", of_all["at"][row])
            result |= {
                "training_iteration": step,
                "trial_id": str(number),
                "done": number in over and last[number] == row,
                "date": time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(at)),
                "checkpoint_dir_name": f"{step:06d}" if of_all["checkpoint"][row] else None,
            }
            yield number, result


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value
