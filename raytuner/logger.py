"""Loggers in the names of ``ray.tune.logger``: files about each trial in ``logs/<trial>`` of the study's folder.

They are callbacks like any other (`raytuner.callback`), so they write what is durable, and after a kill are told the
last reports again. `CSVLoggerCallback` and `JsonLoggerCallback` then look at what their files hold: each report is in
them once. These files are not fsynced, as the record is: what a power failure takes from their ends comes back with
``raytuner sync --from-start``. Unlike Ray, none is on unless it is asked for: the study's own record has all of it.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from raytuner.callback import Callback

if TYPE_CHECKING:
    from raytuner.retelling import TrialView

_log = logging.getLogger(__name__)

_STEP = "training_iteration"


class LoggerCallback(Callback):
    """A callback that writes about each trial. Ray's shape: to be subclassed by what a trial does."""

    def log_trial_start(self, trial: TrialView) -> None:
        """A trial is about to run, or is told of for the first time in this process."""

    def log_trial_restore(self, trial: TrialView) -> None:
        """A trial goes on from a checkpoint."""

    def log_trial_save(self, trial: TrialView) -> None:
        """A trial published a checkpoint."""

    def log_trial_result(self, iteration: int, trial: TrialView, result: dict[str, Any]) -> None:
        """A trial reported."""

    def log_trial_end(self, trial: TrialView, failed: bool = False) -> None:
        """A trial is over; whether it failed."""

    def on_trial_start(self, iteration: int, trials: list[TrialView], trial: TrialView, **info: Any) -> None:
        self.log_trial_start(trial)

    def on_trial_restore(self, iteration: int, trials: list[TrialView], trial: TrialView, **info: Any) -> None:
        self.log_trial_restore(trial)

    def on_trial_save(self, iteration: int, trials: list[TrialView], trial: TrialView, **info: Any) -> None:
        self.log_trial_save(trial)

    def on_trial_result(
        self, iteration: int, trials: list[TrialView], trial: TrialView, result: dict[str, Any], **info: Any
    ) -> None:
        self.log_trial_result(iteration, trial, result)

    def on_trial_complete(self, iteration: int, trials: list[TrialView], trial: TrialView, **info: Any) -> None:
        self.log_trial_end(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[TrialView], trial: TrialView, **info: Any) -> None:
        self.log_trial_end(trial, failed=True)


class _FileLogger(LoggerCallback):
    """One growing file of lines per trial. Only the files of trials that were heard of lately are open."""

    _OPEN = 128
    _NAME: str

    def setup(self, *args: Any, **info: Any) -> None:
        self._files: dict[TrialView, _LineFile] = {}

    def log_trial_end(self, trial: TrialView, failed: bool = False) -> None:
        if trial in self._files:
            self._files.pop(trial).close()

    def on_experiment_end(self, trials: list[TrialView], **info: Any) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, trial: TrialView) -> _LineFile:
        """The trial's file, whole to its last line, to be written at its end."""
        file = self._files.pop(trial, None)
        if file is None:
            while len(self._files) >= self._OPEN:
                self._files.pop(next(iter(self._files))).close()
            file = _LineFile(Path(trial.local_path, self._NAME))
        self._files[trial] = file
        return file


class _LineFile:
    """A text file that was written line by line by a process that may have died in one."""

    def __init__(self, path: Path) -> None:
        self.first = self.last = ""
        """Its first and its last line, as they were found."""
        if path.exists():
            with open(path, "r+b") as before:
                self.first = before.readline().decode("utf-8", "replace")
                self.last = _cut_to_whole_lines(before).decode("utf-8", "replace")
        self.new = not self.last
        self.file: TextIO = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - `close` closes it
        self.step = 0  # the last that is in it
        self.writer: csv.DictWriter[str] | None = None

    def close(self) -> None:
        self.file.close()


def _cut_to_whole_lines(file: BinaryIO) -> bytes:
    """Cut off a last line that has no end; returns the one before it, b"" if there is none."""
    size = file.seek(0, os.SEEK_END)
    taken = 1 << 12
    while True:
        file.seek(max(0, size - taken))
        raw = file.read()
        end = raw.rfind(b"\n") + 1
        begin = raw.rfind(b"\n", 0, max(0, end - 1)) + 1
        if begin or taken >= size:
            file.truncate(size - len(raw) + end)
            return raw[begin:end]
        taken *= 4


class CSVLoggerCallback(_FileLogger):
    """Writes each trial's reports to ``progress.csv``. As Ray's, it has the columns of the trial's first report: what
    is reported for the first time later on is not in it, which is said once."""

    _NAME = "progress.csv"

    def __init__(self) -> None:
        self._said = False

    def log_trial_result(self, iteration: int, trial: TrialView, result: dict[str, Any]) -> None:
        row = {name: value for name, value in result.items() if name != "config"}
        file = self._file(trial)
        if file.writer is None:
            names = list(row) if file.new else next(csv.reader([file.first]))
            file.writer = csv.DictWriter(file.file, names, extrasaction="ignore")
            if file.new:
                file.writer.writeheader()
            elif file.last != file.first:
                file.step = int(dict(zip(names, next(csv.reader([file.last])), strict=False)).get(_STEP) or 0)
        if result[_STEP] <= file.step:
            return
        file.writer.writerow({name: _one_line(value) for name, value in row.items()})
        file.file.flush()
        file.step = result[_STEP]
        lacking = row.keys() - file.writer.fieldnames
        if lacking and not self._said:
            self._said = True
            _log.warning(
                "%s of trial %s has no column for %s, which its first report did not have. (This is said once.)",
                self._NAME,
                trial.trial_id,
                ", ".join(sorted(lacking)),
            )


class JsonLoggerCallback(_FileLogger):
    """Writes each trial's reports to ``result.json``, a line each, and its configuration to ``params.json``. (Ray's
    ``params.pkl`` is not written.)"""

    _NAME = "result.json"

    def log_trial_start(self, trial: TrialView) -> None:
        text = json.dumps(trial.config, indent=2, sort_keys=True, default=str)
        Path(trial.local_path, "params.json").write_text(text, encoding="utf-8")

    def log_trial_result(self, iteration: int, trial: TrialView, result: dict[str, Any]) -> None:
        file = self._file(trial)
        if not file.step and not file.new:
            file.step = int(json.loads(file.last)[_STEP])
        if result[_STEP] <= file.step:
            return
        file.file.write(json.dumps(result, default=str) + "\n")
        file.file.flush()
        file.step = result[_STEP]


class TBXLoggerCallback(LoggerCallback):
    """Writes each trial's numbers as TensorBoard scalars, by Ray's names (``ray/tune/<metric>``), and at its end its
    configuration as hyperparameters. A report that is told again after a kill is written again, at the same step.

    It needs tensorboardX, which Ray Tune brings.
    """

    def __init__(self) -> None:
        import tensorboardX

        self._make = tensorboardX.SummaryWriter

    def setup(self, *args: Any, **info: Any) -> None:
        self._writers: dict[TrialView, Any] = {}

    def log_trial_result(self, iteration: int, trial: TrialView, result: dict[str, Any]) -> None:
        if trial not in self._writers:
            self._writers[trial] = self._make(trial.local_path, flush_secs=30)
        writer = self._writers[trial]
        step = result.get("timesteps_total") or result[_STEP]
        for name, value in _numbers(result).items():
            writer.add_scalar(f"ray/tune/{name}", value, global_step=step)
        writer.flush()

    def log_trial_end(self, trial: TrialView, failed: bool = False) -> None:
        from tensorboardX.summary import hparams

        writer = self._writers.pop(trial, None)
        if writer is None:
            return
        kinds = str | bool | int | float
        chosen = {name: value for name, value in trial.evaluated_params.items() if isinstance(value, kinds)}
        last = {f"ray/tune/{name}": value for name, value in _numbers(trial.last_result).items()}
        if chosen and last:
            for summary in hparams(hparam_dict=chosen, metric_dict=last):
                writer.file_writer.add_summary(summary)
        writer.close()

    def on_experiment_end(self, trials: list[TrialView], **info: Any) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


LOGGERS: Mapping[str, type[LoggerCallback]] = {
    each.__name__: each for each in (CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback)
}
"""The loggers that can be made by name."""

_NO_SCALARS = ("pid", "timestamp", "time_total_s", "done", _STEP)


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in result.items()
        if name not in _NO_SCALARS
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and not math.isnan(value)
    }


def _one_line(value: Any) -> Any:
    """Text with its line breaks escaped: a row is a line."""
    return value.replace("\r", "\\r").replace("\n", "\\n") if isinstance(value, str) else value
