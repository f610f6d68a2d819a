"""Callbacks: the user's code that hears how a study goes, in the shape of ``ray.tune.Callback``.

A callback cannot hurt the study. It runs in a thread of its own (`raytuner.delivery`) and is told what stands in the
record, when it is durable there, and not before. So it may be slow, raise, or hang: the study goes on, and what it did
not hear in time is told when the study is resumed, or by ``raytuner sync``.

*   Each callback hears everything, from the study's beginning, in the order of the record; one that is given to a study
    for the first time hears first what happened before.
*   How far it got is kept on disk, about every second. After a driver was killed, the calls since then are made again:
    **at least once**. Where nothing is killed, exactly once. What `get_state` returns is kept together with how far it
    got: so what a callback counts in it counts everything once.
*   What it is told may be past: a trial that starts may be over by now, a checkpoint deleted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytuner.checkpoints import Checkpoint
    from raytuner.retelling import TrialView


class Callback:
    """Hears how a study goes; to be subclassed. Ray's own callbacks and loggers are taken as well.

    ``iteration`` is the number of the turn of the driver's loop that is told of, ``trials`` are all trials so far, in
    the order of their numbers, as they stood then; ``trial`` is one of these (`raytuner.retelling.TrialView`). All is
    given by name. ``**info`` is there for what later versions may add.
    """

    def setup(
        self,
        stop: Any = None,
        num_samples: int | None = None,
        total_num_samples: int | None = None,
        **info: Any,
    ) -> None:
        """Called before the first other call of each run (each `Tuner.fit`, each `sync`). If it raises, nothing is told
        in that run."""

    def on_step_begin(self, iteration: int, trials: list[TrialView], **info: Any) -> None:
        """A turn of the driver's loop is about to be told."""

    def on_step_end(self, iteration: int, trials: list[TrialView], **info: Any) -> None:
        """It was told."""

    def on_trial_start(self, iteration: int, trials: list[TrialView], trial: TrialView, **info: Any) -> None:
        """A trial has its configuration and is about to run. Called once in each run for each trial that is told of
        there, before all else about it; not again where it goes on after a pause or a failure, but where it does after
        its end, because the study was extended."""

    def on_trial_restore(self, iteration: int, trials: list[TrialView], trial: TrialView, **info: Any) -> None:
        """A trial goes on from a checkpoint: its own, or that of the trial it was forked from."""

    def on_trial_result(
        self, iteration: int, trials: list[TrialView], trial: TrialView, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported; each report once, in the order of its steps. ``result``, the callback's to change: its
        metrics, nested names joined by ``/``, Ray's automatic ones, and its ``config``."""

    def on_checkpoint(
        self, iteration: int, trials: list[TrialView], trial: TrialView, checkpoint: Checkpoint, **info: Any
    ) -> None:
        """A trial published a checkpoint that was not deleted since. It may be at any time: whoever wants it for long
        copies it."""

    def on_trial_save(self, iteration: int, trials: list[TrialView], trial: TrialView, **info: Any) -> None:
        """The same, whether or not the checkpoint is still there."""

    def on_trial_complete(self, iteration: int, trials: list[TrialView], trial: TrialView, **info: Any) -> None:
        """A trial is over and did not fail: it ended, or was stopped."""

    def on_trial_recover(self, iteration: int, trials: list[TrialView], trial: TrialView, **info: Any) -> None:
        """A trial is to run again, after an error, the loss of its worker, or the driver's death."""

    def on_trial_error(self, iteration: int, trials: list[TrialView], trial: TrialView, **info: Any) -> None:
        """A trial failed for good."""

    def on_experiment_end(self, trials: list[TrialView], **info: Any) -> None:
        """The study is over, or has ended early and can be resumed; nothing more was recorded when this is called."""

    def get_state(self) -> dict[str, Any] | None:
        """What the callback must know to go on in another run: numbers, text, lists, dicts. None: nothing."""
        return None

    def set_state(self, state: dict[str, Any]) -> None:
        """Called after `setup` with what `get_state` returned last, if that was something."""


def checked_callbacks(callbacks: object) -> list[Any]:
    """The callbacks as a list. TypeError for what is none."""
    if callbacks is None:
        return []
    if isinstance(callbacks, str | Mapping) or not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks must be a list of raytuner.Callback, got {callbacks!r:.80}")
    for number, each in enumerate(callbacks):
        if isinstance(each, type):
            raise TypeError(f"callbacks[{number}] must be an object, not a class: {each.__name__}()")
        if not callable(getattr(each, "on_trial_result", None)):
            raise TypeError(f"callbacks[{number}] must be a raytuner.Callback or one of Ray's, got {each!r:.80}")
        if any(each is other for other in callbacks[:number]):
            raise ValueError(f"callbacks[{number}] stands in the list twice: {each!r:.80}")
    return list(callbacks)
