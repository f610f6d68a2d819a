"""Classes and functions as trials, in real sessions: what is called when, what is saved, what is refused."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytuner.checkpoints import Checkpoint, Store
from raytuner.events import Ended, Failed, How
from raytuner.mailbox import Leases, Outbox
from raytuner.objective import Objective
from raytuner.session import Rules, Session, get_context, report
from raytuner.trainable import (
    Bound,
    Reserved,
    Trainable,
    check,
    name_of,
    qualified_name,
    runnable,
    slot_of,
    with_parameters,
    with_resources,
)
from raytuner.trial import END, Lease, Report, Reports, Slot, Trial


class Actor:
    """Runs leases as a trial actor does: in one thread, what `runnable` made kept between them."""

    def __init__(self, folder: Path, trainable: Any, *, stop: Mapping[str, float] | None = None, **rules: Any) -> None:
        self.run = runnable(trainable)
        self.rules = Rules(folder / "study" / "checkpoints", stop or {}, **rules)
        self.store = Store(self.rules.checkpoints)
        self.outbox = Outbox()
        self.session: Session | None = None
        self.reports: list[Report] = []  # of the latest lease
        self._attempts = 0
        self._leases = Leases()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def lease(
        self, trial: int = 0, until: int = END, *, config: Any = None, checkpoint: int | None = None, donor: int = -1
    ) -> Ended | Failed:
        """Run a trial to ``until``, from where it is parked or from a checkpoint; return how that ended."""
        self._attempts += 1
        source = trial if donor < 0 else donor
        self._leases.add([Lease(Trial(trial, config or {}), self._attempts, until, checkpoint, source, 0, 0.0, 0)])
        self.reports = []
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for item in self.outbox.take(timeout_s=30):
                if isinstance(item, Ended | Failed):
                    return item
                if isinstance(item, Reports):
                    self.reports += list(item)
        raise TimeoutError("the lease does not end")

    def tell_to_end(self) -> None:
        """Tell what runs."""
        assert self.session is not None
        self._leases.unwind(self.session.lease.trial.id, self.session.lease.attempt)

    def unwind(self) -> None:
        """End what is parked."""
        assert self.session is not None
        self._leases.unwind(self.session.lease.trial.id, self.session.lease.attempt, parked=True)
        assert self._idle.wait(30)

    def close(self) -> None:
        self._leases.close()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _work(self) -> None:
        while (lease := self._leases.next()) is not None:
            self._idle.clear()
            self.session = Session(self.run, lease, self.rules, {}, self.outbox, self._leases)
            self.session.run()
            self._idle.set()
        close = getattr(self.run, "close", None)
        if close is not None:
            close()


Hire = Callable[..., Actor]


@pytest.fixture
def hire(tmp_path: Path) -> Iterator[Hire]:
    """Makes actors, and closes them. All work on one study, in ``tmp_path / "study"``."""
    hired: list[Actor] = []

    def hire(trainable: Any, **rules: Any) -> Actor:
        hired.append(Actor(tmp_path, trainable, **rules))
        return hired[-1]

    yield hire
    for actor in hired:
        actor.close()


class Counting(Trainable):
    """Counts its steps; tells ``calls`` what is called. The base of most classes below."""

    calls: list[str]

    def __init_subclass__(cls) -> None:
        if cls.__name__ != cls.__bases__[0].__name__:  # that is the one in which parameters are bound
            cls.calls = []

    def setup(self, config: dict[str, Any]) -> None:
        self.calls.append(f"setup {config}")
        self.count = 0

    def step(self) -> dict[str, Any]:
        self.count += 1
        self.calls.append(f"step {self.count}")
        return {"loss": 1 / self.count, "iteration": self.iteration}

    def cleanup(self) -> None:
        self.calls.append(f"cleanup of trial {self.trial_id}")


class Saving(Counting):
    def save_checkpoint(self, checkpoint_dir: str) -> Any:
        self.calls.append(f"save {self.count} at {self.iteration}")
        Path(checkpoint_dir, "count").write_text(str(self.count))

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.count = int(Path(checkpoint, "count").read_text())
        self.calls.append(f"load {self.count} at {self.iteration}")


# ------------------------------------------------------------------------------------------------ the life of a class


def test_setup_then_steps_then_cleanup(hire: Hire) -> None:
    class Model(Counting):
        pass

    ended = hire(Model, stop={"training_iteration": 2}).lease(config={"lr": 0.1})
    assert isinstance(ended, Ended)
    assert (ended.how, ended.step) == (How.STOPPED, 2)
    assert Model.calls == ["setup {'lr': 0.1}", "step 1", "step 2", "cleanup of trial 0"]


def test_what_steps_return_is_reported(hire: Hire) -> None:
    class Model(Counting):
        pass

    actor = hire(Model, stop={"training_iteration": 2})
    actor.lease(trial=7)
    assert [each.step for each in actor.reports] == [1, 2]
    assert [each.metrics["loss"] for each in actor.reports] == [1.0, 0.5]
    assert [each.metrics["iteration"] for each in actor.reports] == [0, 1]  # steps that are done, as in Ray
    assert actor.reports[0].metrics["trial_id"] == "7"


def test_done_ends_the_trial_as_returned(hire: Hire) -> None:
    class Model(Counting):
        def step(self) -> dict[str, Any]:
            return {**super().step(), "done": np.bool_(self.count == 3)}

    ended = hire(Model).lease(until=10)
    assert isinstance(ended, Ended)
    assert (ended.how, ended.step) == (How.RETURNED, 3)


def test_done_at_the_leases_end_is_done(hire: Hire) -> None:
    class Model(Saving):
        def step(self) -> dict[str, Any]:
            return {**super().step(), "done": self.count == 2}

    ended = hire(Model).lease(until=2)
    assert isinstance(ended, Ended)
    assert ended.how is How.RETURNED


def test_an_instance_goes_on_where_it_is_parked(hire: Hire) -> None:
    class Model(Counting):
        pass

    actor = hire(Model)
    for until in (1, 3):
        ended = actor.lease(until=until)
        assert isinstance(ended, Ended)
        assert (ended.how, ended.step) == (How.REACHED, until)
    actor.close()
    assert Model.calls == ["setup {}", "step 1", "step 2", "step 3", "cleanup of trial 0"]


def test_what_users_do_to_a_configuration_is_theirs_alone(hire: Hire) -> None:
    class Model(Counting):
        def setup(self, config: dict[str, Any]) -> None:
            super().setup(config)
            config["net"]["layers"].append(config.pop("more"))

        def step(self) -> dict[str, Any]:
            self.calls.append(f"has {self.config}")
            self.config["net"].clear()
            return {"done": True}

    config = {"net": {"layers": [1, 2]}, "more": 3}
    hire(Model).lease(config=config)
    assert Model.calls[1] == "has {'net': {'layers': [1, 2]}, 'more': 3}"
    assert config == {"net": {"layers": [1, 2]}, "more": 3}


def test_objects_in_a_configuration_are_not_copied(hire: Hire) -> None:
    data = np.zeros(3)
    seen = []

    class Model(Counting):
        def setup(self, config: dict[str, Any]) -> None:
            seen.append(config["data"])

        def step(self) -> dict[str, Any]:
            return {"done": True}

    hire(Model).lease(config={"data": data})
    assert seen[0] is data


def test_an_instance_knows_its_trial(hire: Hire, tmp_path: Path) -> None:
    class Model(Counting):
        def setup(self, config: dict[str, Any]) -> None:
            self.calls.append(f"{self.trial_id} {self.trial_name} {self.trial_resources}")

        def step(self) -> dict[str, Any]:
            Path(self.logdir, "notes").write_text("mine")
            return {"done": True, "same": self.trial_dir == self.logdir}

    actor = hire(Model, slot=Slot(2, 0.5, 0.0, {"tpu": 1.0}))
    actor.lease(trial=12)
    assert Model.calls[0] == "12 trial_12 {'cpu': 2, 'gpu': 0.5, 'tpu': 1.0}"
    assert (tmp_path / "study" / "artifacts" / "000012" / "notes").read_text() == "mine"
    assert actor.reports[0].metrics["same"] is True


def test_a_class_can_be_tried_by_hand() -> None:
    class Model(Counting):
        pass

    model = Model({"lr": 0.1})
    assert model.step() == {"loss": 1.0, "iteration": 0}
    assert (model.trial_id, model.trial_name, model.trial_resources) == ("default", "default", None)
    assert (model.iteration, model.training_iteration, model.config) == (0, 0, {"lr": 0.1})
    assert Model().config == {}
    with pytest.raises(RuntimeError, match=r"Model\.logdir is a trial's folder; no Tuner made this instance"):
        _ = model.logdir


def test_log_result_hears_of_each_step_before_it_is_reported(hire: Hire) -> None:
    class Model(Counting):
        def log_result(self, result: dict[str, Any]) -> None:
            self.calls.append(f"log {result['training_iteration']}: {result['loss']}")
            result["logged"] = True

    actor = hire(Model, stop={"training_iteration": 2})
    actor.lease()
    assert Model.calls[1:5] == ["step 1", "log 1: 1.0", "step 2", "log 2: 0.5"]
    assert [each.metrics["logged"] for each in actor.reports] == [True, True]


@pytest.mark.parametrize(("result", "shown"), [(None, "NoneType: None"), (0.5, "float: 0.5")])
def test_a_step_that_returns_no_dict_is_named(hire: Hire, result: Any, shown: str) -> None:
    class Model(Counting):
        def step(self) -> Any:
            return result

    failed = hire(Model).lease()
    assert isinstance(failed, Failed)
    assert "TypeError: " in failed.message
    assert f"Model.step() must return a dict of metrics, got {shown}" in failed.message
    assert Model.calls == ["setup {}", "cleanup of trial 0"]


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_a_class_that_does_not_save_is_never_asked_to(hire: Hire) -> None:
    class Model(Counting):
        pass

    actor = hire(Model, checkpoint_every=1, checkpoint_at_end=True, stop={"training_iteration": 3})
    actor.lease(until=2)
    assert [bool(each.checkpoint) for each in actor.reports] == [False, False]
    assert isinstance(actor.lease(), Ended)
    assert actor.store.steps(0) == []


def test_saved_exactly_at_the_leases_end(hire: Hire) -> None:
    class Model(Saving):
        pass

    actor = hire(Model)
    actor.lease(until=3)
    assert [bool(each.checkpoint) for each in actor.reports] == [False, False, True]
    assert actor.store.steps(0) == [3]
    assert Model.calls[-1] == "save 3 at 3"
    actor.close()


def test_saved_at_the_end_of_a_lease_in_another_time_attr(hire: Hire) -> None:
    class Model(Saving):
        def step(self) -> dict[str, Any]:
            return {**super().step(), "epochs": 2 * self.count}

    actor = hire(Model, time_attr="epochs")
    actor.lease(until=5)
    assert actor.store.steps(0) == [3]
    actor.close()


def test_saved_every_so_often(hire: Hire) -> None:
    class Model(Saving):
        pass

    actor = hire(Model, checkpoint_every=2, stop={"training_iteration": 5})
    actor.lease()
    assert actor.store.steps(0) == [2, 4]


def test_saved_where_the_step_says_so(hire: Hire) -> None:
    class Model(Saving):
        def step(self) -> dict[str, Any]:
            return {**super().step(), "should_checkpoint": self.count == 2}

    actor = hire(Model, stop={"training_iteration": 3})
    actor.lease()
    assert actor.store.steps(0) == [2]


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("ending", ["done", "stop rule"])
def test_checkpoint_at_end(hire: Hire, at_end: bool, ending: str) -> None:
    class Model(Saving):
        def step(self) -> dict[str, Any]:
            return {**super().step(), "done": ending == "done" and self.count == 2}

    stop = {"training_iteration": 2} if ending == "stop rule" else {}
    actor = hire(Model, stop=stop, checkpoint_at_end=at_end)
    ended = actor.lease()
    assert isinstance(ended, Ended)
    assert ended.how is (How.RETURNED if ending == "done" else How.STOPPED)
    assert actor.store.steps(0) == ([2] if at_end else [])


def test_a_trial_that_is_told_to_end_is_saved_first(hire: Hire) -> None:
    actor: Actor

    class Model(Saving):
        def step(self) -> dict[str, Any]:
            if self.count == 2:
                actor.tell_to_end()
            return super().step()

    actor = hire(Model)
    ended = actor.lease()
    assert isinstance(ended, Ended)
    assert (ended.how, ended.step) == (How.UNWOUND, 3)
    assert actor.store.steps(0) == [3]


def test_told_to_end_when_it_is_too_late_to_save_it_makes_another_step(hire: Hire) -> None:
    class Late(Outbox):
        def report(self, said: Any) -> None:
            super().report(said)
            actor.tell_to_end()

    class Model(Saving):
        pass

    actor = hire(Model)
    actor.outbox = Late()
    ended = actor.lease()
    assert isinstance(ended, Ended)
    assert (ended.how, ended.step) == (How.UNWOUND, 2)
    assert actor.store.steps(0) == [2]


def test_what_is_saved_temporarily_is_gone_when_the_trial_parks(
    hire: Hire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    during = []

    class Model(Saving):
        def save_checkpoint(self, checkpoint_dir: str) -> Any:
            during.append(Path(checkpoint_dir).parent)
            return super().save_checkpoint(checkpoint_dir)

    actor = hire(Model)
    actor.lease(until=1)
    assert during == [tmp_path / "tmp"]
    assert os.listdir(tmp_path / "tmp") == []
    actor.close()


def test_what_is_saved_temporarily_is_gone_after_an_error(
    hire: Hire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))

    class Model(Saving):
        def save_checkpoint(self, checkpoint_dir: str) -> Any:
            super().save_checkpoint(checkpoint_dir)
            raise OSError("disk full")

    actor = hire(Model)
    failed = actor.lease(until=1)
    assert isinstance(failed, Failed)
    assert "disk full" in failed.message
    assert os.listdir(tmp_path / "tmp") == []
    assert actor.store.steps(0) == []


def test_a_trial_goes_on_from_its_checkpoint_in_a_new_instance(hire: Hire) -> None:
    class Model(Saving):
        pass

    first = hire(Model)
    first.lease(until=2)
    first.close()
    Model.calls.clear()
    second = hire(Model)
    ended = second.lease(until=3, checkpoint=2)
    assert isinstance(ended, Ended)
    assert ended.step == 3
    assert Model.calls == ["setup {}", "load 2 at 2", "step 3", "save 3 at 3"]
    second.close()


def test_a_fork_goes_on_from_anothers_checkpoint(hire: Hire) -> None:
    class Model(Saving):
        pass

    actor = hire(Model)
    actor.lease(trial=0, until=2)
    actor.lease(trial=1, until=3, checkpoint=2, donor=0)
    assert Model.calls[-3:] == ["load 2 at 2", "step 3", "save 3 at 3"]
    assert actor.store.steps(1) == [3]
    actor.close()


class InADict(Counting):
    """Saves the dict that the test wants saved, and keeps what it is given back."""

    saved: Any = None
    loaded: list[Any]

    def save_checkpoint(self, checkpoint_dir: str) -> Any:
        return self.saved

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.loaded.append(checkpoint)


def through_a_checkpoint(hire: Hire, saved: Any) -> tuple[Any, list[str]]:
    """What comes back of a dict, and the names of the files it was kept in."""

    class Model(InADict):
        pass

    Model.saved, Model.loaded = saved, []
    actor = hire(Model)
    ended = actor.lease(until=1)
    assert isinstance(ended, Ended), ended
    actor.close()
    hire(Model, stop={"training_iteration": 2}).lease(checkpoint=1)
    assert actor.store.verify(0, 1)
    files = sorted(set(os.listdir(actor.store.path(0, 1))) - {"MANIFEST.json"})
    return Model.loaded[0], files


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"step": 3, "loss": -0.0, "name": "löss \ud800", "done": False, "nothing": None},
        {"nested": {"layers": [[1, 2], []]}},
    ],
)
def test_a_dict_of_plain_values_is_kept_as_json(hire: Hire, saved: dict[str, Any]) -> None:
    loaded, files = through_a_checkpoint(hire, saved)
    assert loaded == saved
    assert json.dumps(loaded) == json.dumps(saved)
    assert files == ["_dict_checkpoint.json"]


@pytest.mark.parametrize(
    "saved",
    [
        {"tuple": (1, 2)},
        {1: "a number as a name"},
        {"array": [np.float64(0.5)]},
        {"ordered": OrderedDict(one=1)},
        {"set": {1, 2}},
        {"deep": [[{"bytes": b"\x00"}]]},
        {"huge": 10**5000},
        {"least": math.inf},
    ],
)
def test_a_dict_of_other_values_is_kept_as_a_pickle(hire: Hire, saved: dict[Any, Any]) -> None:
    loaded, files = through_a_checkpoint(hire, saved)
    assert loaded == saved
    assert type(next(iter(loaded.values()))) is type(next(iter(saved.values())))
    assert files == ["_dict_checkpoint.pkl"]


def test_dicts_that_json_would_spoil_are_kept_as_pickles(hire: Hire) -> None:
    loop: dict[str, Any] = {"loss": math.nan}
    loop["itself"] = loop
    loaded, files = through_a_checkpoint(hire, loop)
    assert math.isnan(loaded["loss"])
    assert loaded["itself"] is loaded
    assert files == ["_dict_checkpoint.pkl"]


def test_the_directory_itself_may_be_returned(hire: Hire) -> None:
    class Model(Saving):
        def save_checkpoint(self, checkpoint_dir: str) -> Any:
            super().save_checkpoint(checkpoint_dir)
            return checkpoint_dir

    actor = hire(Model)
    actor.lease(until=1)
    assert actor.store.steps(0) == [1]
    actor.close()


@pytest.mark.parametrize("saved", ["/elsewhere", 3])
def test_anything_else_that_is_returned_is_named(hire: Hire, saved: Any) -> None:
    class Model(InADict):
        pass

    Model.saved = saved
    failed = hire(Model).lease(until=1)
    assert isinstance(failed, Failed)
    assert "Model.save_checkpoint() must return None, a dict, or the directory it was given" in failed.message
    assert f"got {type(saved).__name__}: {saved!r}" in failed.message


def test_a_class_that_saves_but_does_not_load_says_so(hire: Hire) -> None:
    class Model(Counting):
        def save_checkpoint(self, checkpoint_dir: str) -> Any:
            return {}

    actor = hire(Model)
    actor.lease(until=1)
    failed = hire(Model).lease(checkpoint=1)
    assert isinstance(failed, Failed)
    assert "Model does not implement load_checkpoint()" in failed.message


def test_what_a_script_defines_can_be_loaded_where_the_script_is_not(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from raytuner.trainable import _write
class State(dict):
    pass
_write(Path({str(tmp_path)!r}), {{"state": State(step=3)}})
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
    assert pickle.loads((tmp_path / "_dict_checkpoint.pkl").read_bytes())["state"] == {"step": 3}


# ------------------------------------------------------------------------------------- one instance, several trials


class Resettable(Saving):
    answer: Any = True

    def reset_config(self, new_config: dict[str, Any]) -> Any:
        self.calls.append(f"reset to {new_config} in trial {self.trial_id}")
        new_config.clear()
        self.count = 0
        return self.answer


def test_an_instance_that_can_be_reset_serves_the_next_trial(hire: Hire) -> None:
    class Model(Resettable):
        pass

    actor = hire(Model)
    config = {"lr": 2}
    actor.lease(trial=0, until=1, config={"lr": 1})
    actor.lease(trial=1, until=1, config=config)
    assert config == {"lr": 2}
    assert Model.calls == [
        "setup {'lr': 1}",
        "step 1",
        "save 1 at 1",
        "reset to {'lr': 2} in trial 1",
        "step 1",
        "save 1 at 1",
    ]
    assert actor.store.steps(1) == [1]
    actor.close()
    assert Model.calls[6:] == ["cleanup of trial 1"]
    actor.close()
    assert len(Model.calls) == 7


def test_a_reset_instance_has_the_new_configuration_and_stands_where_the_trial_stands(hire: Hire) -> None:
    class Model(Resettable):
        def step(self) -> dict[str, Any]:
            self.calls.append(f"{self.config} {self.iteration}")
            return super().step()

    actor = hire(Model)
    actor.lease(trial=0, until=2, config={"lr": 1})
    actor.lease(trial=1, until=1, config={"lr": 2})
    Model.calls.clear()
    ended = actor.lease(trial=0, until=3, config={"lr": 1}, checkpoint=2)
    assert isinstance(ended, Ended)
    assert ended.step == 3
    assert Model.calls == [
        "reset to {'lr': 1} in trial 0",
        "load 2 at 2",
        "{'lr': 1} 2",
        "step 3",
        "save 3 at 3",
    ]
    actor.close()


def test_an_instance_that_will_not_be_reset_is_cleaned_up_before_another_is_made(hire: Hire) -> None:
    class Model(Resettable):
        answer = False

        def cleanup(self) -> None:
            super().cleanup()
            self.calls.append(f"its configuration was {self.config}")

    actor = hire(Model)
    actor.lease(trial=0, until=1, config={"lr": 1})
    actor.lease(trial=1, until=1, config={"lr": 2})
    assert Model.calls[3:7] == [
        "reset to {'lr': 2} in trial 1",
        "cleanup of trial 0",
        "its configuration was {'lr': 1}",
        "setup {'lr': 2}",
    ]
    actor.close()


def test_an_instance_that_cannot_be_reset_is_cleaned_up_where_its_trial_ends(hire: Hire) -> None:
    class Model(Counting):
        pass

    actor = hire(Model)
    actor.lease(trial=0, until=1)
    assert Model.calls[-1] == "step 1"
    actor.unwind()
    assert Model.calls[-1] == "cleanup of trial 0"
    actor.lease(trial=1, until=1)
    assert Model.calls[3:] == ["setup {}", "step 1"]
    actor.close()


def test_a_parked_trials_instance_is_no_other_trials(hire: Hire) -> None:
    class Model(Resettable):
        pass

    actor, other = hire(Model), hire(Model)
    other.run = actor.run  # as no two actors have it
    actor.lease(trial=0, until=1)
    other.lease(trial=1, until=1)
    assert [each for each in Model.calls if each.startswith(("setup", "reset"))] == ["setup {}", "setup {}"]


def test_a_reset_that_fails_is_the_trials_error(hire: Hire) -> None:
    class Model(Resettable):
        def reset_config(self, new_config: dict[str, Any]) -> bool:
            raise ValueError("lr must not be 2")

    actor = hire(Model)
    actor.lease(trial=0, until=1)
    failed = actor.lease(trial=1, until=1)
    assert isinstance(failed, Failed)
    assert failed.trial == 1
    assert "lr must not be 2" in failed.message
    assert Model.calls[-1].startswith("cleanup")
    assert isinstance(actor.lease(trial=2, until=1), Ended)
    assert Model.calls[-3] == "setup {}"
    actor.close()


def test_an_error_in_a_step_discards_the_instance(hire: Hire, caplog: pytest.LogCaptureFixture) -> None:
    class Model(Resettable):
        def step(self) -> dict[str, Any]:
            if self.config.get("bad"):
                raise RuntimeError("no such luck")
            return super().step()

        def cleanup(self) -> None:
            super().cleanup()
            raise OSError("cleanup fails, too")

    actor = hire(Model)
    with caplog.at_level(logging.WARNING):
        failed = actor.lease(trial=0, until=1, config={"bad": True})
    assert isinstance(failed, Failed)
    assert "RuntimeError: no such luck" in failed.message
    assert "cleanup fails, too" not in failed.message
    assert "cleanup fails, too" in caplog.text
    assert Model.calls == ["setup {'bad': True}", "cleanup of trial 0"]
    assert isinstance(actor.lease(trial=0, until=1), Ended)
    assert Model.calls[2:4] == ["setup {}", "step 1"]  # no reset
    actor.close()


def test_an_error_in_load_checkpoint_discards_the_instance(hire: Hire) -> None:
    class Model(Resettable):
        def load_checkpoint(self, checkpoint: Any) -> None:
            raise RuntimeError("another format")

    actor = hire(Model)
    actor.lease(until=1)
    actor.unwind()
    failed = actor.lease(until=2, checkpoint=1)
    assert isinstance(failed, Failed)
    assert "another format" in failed.message
    assert Model.calls[-1] == "cleanup of trial 0"


def test_a_metric_that_cannot_be_ranked_fails_the_trial_and_keeps_the_instance(hire: Hire) -> None:
    class Model(Resettable):
        def step(self) -> dict[str, Any]:
            return {"loss": math.nan}

    actor = hire(Model, objective=Objective("loss"))
    assert isinstance(actor.lease(trial=0), Failed)
    assert "cleanup of trial 0" not in Model.calls
    assert isinstance(actor.lease(trial=1), Failed)
    assert Model.calls == ["setup {}", "reset to {} in trial 1"]
    actor.close()


def test_a_cleanup_that_fails_does_not_fail_its_trial(
    hire: Hire, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Model(Counting):
        def cleanup(self) -> None:
            raise OSError("nothing to remove")

    with caplog.at_level(logging.WARNING):
        ended = hire(Model, stop={"training_iteration": 1}).lease()
    assert isinstance(ended, Ended)
    assert "Model.cleanup() raised an error" in caplog.text


# ---------------------------------------------------------------------------------------------------- Ray's own class


@pytest.fixture
def rays_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ray makes a folder for each instance, if it is let."""
    import ray.tune.trainable.trainable as rays

    monkeypatch.setattr(rays, "DEFAULT_STORAGE_PATH", str(tmp_path / "ray_results"))
    return tmp_path / "ray_results"


def test_a_subclass_of_rays_class_runs(hire: Hire, rays_results: Path) -> None:
    from ray import tune

    calls: list[str] = []

    class Model(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any], data: Any = None) -> None:
            calls.append(f"setup {config} {data} {self.trial_id} {self.trial_name} {Path(self.logdir).name}")
            self.count = 0

        def step(self) -> dict[str, Any]:
            self.count += 1
            return {"loss": 1 / self.count, "done": self.count == 4}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            calls.append(f"save at {self.iteration}")
            return {"count": self.count}

        def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            calls.append(f"load {checkpoint} at {self.iteration}")
            self.count = checkpoint["count"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            calls.append(f"reset {new_config} {self.config} {self.trial_id}")
            self.count = 0
            return True

        def cleanup(self) -> None:
            calls.append(f"cleanup {self.trial_id}")

    trainable = with_parameters(Model, data=[1, 2])
    check(trainable)
    here = Path.cwd()
    actor = hire(trainable)
    actor.lease(trial=0, until=2, config={"lr": 1})
    actor.lease(trial=1, until=1, config={"lr": 2})
    ended = actor.lease(trial=0, config={"lr": 1}, checkpoint=2)
    actor.close()
    assert isinstance(ended, Ended)
    assert (ended.how, ended.step) == (How.RETURNED, 4)
    assert calls == [
        "setup {'lr': 1} [1, 2] 0 trial_0 000000",
        "save at 2",
        "reset {'lr': 2} {'lr': 2} 1",
        "save at 1",
        "reset {'lr': 1} {'lr': 1} 0",
        "load {'count': 2} at 2",
        "cleanup 0",
    ]
    assert not rays_results.exists()
    assert Path.cwd() == here


def test_of_rays_class_too_what_is_not_implemented_is_not_called(hire: Hire, rays_results: Path) -> None:
    from ray import tune

    class Model(tune.Trainable):  # type: ignore[misc]
        def step(self) -> dict[str, Any]:
            return {"loss": 1.0}

    class Empty(tune.Trainable):  # type: ignore[misc]
        pass

    with pytest.raises(TypeError, match=r"Empty is a class that lacks step: implement it"):
        check(Empty)
    check(Model)
    actor = hire(Model, checkpoint_every=1, stop={"training_iteration": 2})
    assert isinstance(actor.lease(), Ended)
    assert actor.store.steps(0) == []


def test_no_ray_is_needed_for_it() -> None:
    code = "import sys, raytuner.trainable, raytuner.surroundings; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# --------------------------------------------------------------------------------------------------------- functions


def plain(config: dict[str, Any]) -> None:
    report({"loss": config["lr"]})


def with_data(config: dict[str, Any], data: Any, *, epochs: int = 1) -> None:
    for _ in range(epochs):
        report({"loss": config["lr"] * len(data)})


class Callable_:
    def __call__(self, config: dict[str, Any]) -> None:
        report({"loss": 1.0})


def test_a_function_is_run_as_it_is(hire: Hire) -> None:
    assert runnable(plain) is plain
    assert isinstance(hire(plain).lease(config={"lr": 1.0}), Ended)


def test_a_functions_parameters_come_by_name(hire: Hire) -> None:
    trainable = with_parameters(with_data, data=[1, 2, 3], epochs=2)
    check(trainable)
    actor = hire(trainable)
    ended = actor.lease(config={"lr": 2.0})
    assert isinstance(ended, Ended)
    assert [each.metrics["loss"] for each in actor.reports] == [6.0, 6.0]


def test_a_classs_parameters_go_to_setup(hire: Hire) -> None:
    class Model(Resettable):
        def setup(self, config: dict[str, Any], data: Any, scale: float = 1.0) -> None:  # type: ignore[override]
            super().setup(config)
            self.calls.append(f"with {data} {scale}")

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config, scale=3.0)  # type: ignore[call-arg]
            return True

    trainable = with_parameters(Model, data=[1], scale=2.0)
    check(trainable)
    actor = hire(trainable)
    actor.lease(trial=0, until=1)
    actor.lease(trial=1, until=1)
    assert [each for each in Model.calls if each.startswith("with")] == ["with [1] 2.0", "with [1] 3.0"]
    assert name_of(trainable) == "Model"


def test_later_parameters_count() -> None:
    bound = with_parameters(with_parameters(with_data, data=[1], epochs=1), epochs=2)
    assert bound == Bound(with_data, {"data": [1], "epochs": 2})


def test_parameters_and_resources_compose_in_either_order() -> None:
    one = with_resources(with_parameters(with_data, data=[1]), {"cpu": 2})
    other = with_parameters(with_resources(with_data, {"cpu": 2}), data=[1])
    assert one == other == Reserved(Bound(with_data, {"data": [1]}), Slot(cpu=2.0))
    check(one)
    assert with_resources(one, {"gpu": 1}) == Reserved(one.train, Slot(gpu=1.0))


class Takes(Trainable):
    def setup(self, config: dict[str, Any], data: Any = None, *, scale: float = 1.0) -> None:
        pass

    def step(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("trainable", "parameters", "message"),
    [
        (with_data, {"dta": 1}, "with_parameters: with_data takes no parameter 'dta'; it takes data, epochs"),
        (plain, {"data": 1}, "plain takes no parameter 'data'; it takes none besides the configuration"),
        (Takes, {"dta": 1}, "Takes.setup takes no parameter 'dta'; it takes data, scale"),
        (Counting, {"x": 1}, "Counting.setup takes no parameter 'x'; it takes none besides the configuration"),
        (plain, {"config": 1}, "'config' is where plain(config: 'dict[str, Any]') -> 'None' takes the configuration"),
        (Takes, {"config": 1}, "'config' is where Takes.setup"),
        (lambda *, data: None, {"data": 1}, "must take the configuration as its first argument, and the parameters by"),
        (Callable_, {"data": 1}, "Callable_ has no setup() to give data to"),
        ("PPO", {"data": 1}, "registered names are not supported: pass the function or class"),
        (None, {"data": 1}, "trainable must be a function of one argument"),
        (Bound(with_data, {"data": 1}), {"dta": 1}, "takes no parameter 'dta'"),
        (Reserved(with_data, Slot()), {"dta": 1}, "takes no parameter 'dta'"),
    ],
)
def test_parameters_that_cannot_be_given_are_refused_by_name(
    trainable: Any, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError) as refused:
        with_parameters(trainable, **parameters)
    assert message in str(refused.value)


def test_parameters_that_can_be_given() -> None:
    def anything(config: Any, **others: Any) -> None: ...
    def positional(*args: Any, data: Any) -> None: ...

    for train in (anything, positional, functools.partial(with_data, epochs=3), max):
        assert with_parameters(train, data=1).parameters == {"data": 1}


# --------------------------------------------------------------------------------------------------------- resources


def by_size(config: Mapping[str, Any]) -> dict[str, float]:
    return {"cpu": config["workers"], "gpu": 0.5}


def test_resources_of_a_dict() -> None:
    given = {"CPU": 2, "gpu": 0.5, "memory": 2**31, "TPU": 3}
    assert slot_of(given) == Slot(2.0, 0.5, 2.0, {"TPU": 3.0})
    assert with_resources(plain, given).slot == slot_of(given)
    assert slot_of({}) == Slot(1.0)


@pytest.mark.parametrize(
    ("resources", "error", "message"),
    [
        ({"cpu": -1}, ValueError, "resources['cpu'] must be a number of 0 or more, got -1"),
        ({"cpu": math.nan}, ValueError, "resources['cpu'] must be a number of 0 or more, got nan"),
        ({"cpu": True}, ValueError, "resources['cpu'] must be a number of 0 or more, got True"),
        ({"cpu": "2"}, ValueError, "resources['cpu'] must be a number of 0 or more, got '2'"),
        ({"gpu": 1.5}, ValueError, "resources['gpu'] must be a fraction of one GPU or a whole number, got 1.5"),
        ({0: 1}, TypeError, "resources must have names such as 'cpu' and 'gpu', got 0"),
    ],
)
def test_resources_that_cannot_be(resources: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as refused:
        slot_of(resources)
    assert message in str(refused.value)
    with pytest.raises(error) as later:
        _slot(with_resources(plain, lambda config: resources))({"lr": 1})
    assert message in str(later.value)
    assert "resources function" in later.value.__notes__[0]
    assert "{'lr': 1}" in later.value.__notes__[0]


@pytest.mark.parametrize("resources", [3, "gpu", [1], None])
def test_resources_that_are_no_dict(resources: Any) -> None:
    with pytest.raises(TypeError, match=r"resources must be a dict such as \{'cpu': 1, 'gpu': 0.5\}.*; got "):
        with_resources(plain, resources)
    with pytest.raises(TypeError, match=r"what the resources function .*<lambda> returned must be a dict such as"):
        _slot(with_resources(plain, lambda config: resources))({})


def test_gangs_are_not_there_yet() -> None:
    from ray.tune import PlacementGroupFactory

    gang = PlacementGroupFactory([{"CPU": 1}, {"CPU": 1}])
    assert callable(gang)
    message = r"dict such as \{'cpu': 1, 'gpu': 0.5\}.* gangs of workers, as a PlacementGroupFactory describes, are not"
    with pytest.raises(TypeError, match=message):
        with_resources(plain, gang)
    with pytest.raises(TypeError, match=message):
        _slot(with_resources(plain, lambda config: gang))({})

    class ScalingConfig:  # by name: Ray's needs all of ray.train
        pass

    with pytest.raises(TypeError, match="as a ScalingConfig describes, are not there yet"):
        with_resources(plain, ScalingConfig())  # type: ignore[arg-type]


def test_resources_of_a_function_of_the_configuration() -> None:
    slot = _slot(with_resources(Takes, by_size))
    assert slot({"workers": 3}) == Slot(3.0, 0.5)

    def greedy(config: dict[str, Any]) -> dict[str, float]:
        return {"cpu": config.pop("workers")}

    config = {"workers": 2}
    assert _slot(with_resources(plain, greedy))(config) == Slot(2.0)
    assert config == {"workers": 2}


def test_a_resources_function_travels() -> None:
    from ray import cloudpickle

    extra = 1
    reserved = with_resources(plain, lambda config: {"cpu": config["workers"] + extra})
    there = cloudpickle.loads(cloudpickle.dumps(reserved.slot))
    assert there({"workers": 3}) == Slot(4.0)


def test_a_resources_function_takes_the_configuration() -> None:
    with pytest.raises(TypeError, match=r"resources must take one argument, the configuration; .*<lambda> does not"):
        with_resources(plain, lambda: {"cpu": 1})  # type: ignore[arg-type, misc]


def test_an_error_in_a_resources_function_is_its_own() -> None:
    with pytest.raises(KeyError, match="workers"):
        _slot(with_resources(plain, by_size))({})


def _slot(reserved: Reserved) -> Callable[[Any], Slot]:
    assert callable(reserved.slot)
    return reserved.slot


# ------------------------------------------------------------------------------------------------------- at the door


class NoStep(Trainable):
    pass


class Unfinished(Trainable, ABC):
    def step(self) -> dict[str, Any]:
        return self.loss()

    @abstractmethod
    def loss(self) -> dict[str, Any]: ...


class WithoutConfig(Trainable):
    def __init__(self) -> None: ...

    def step(self) -> dict[str, Any]:
        return {}


class NeedsData(Trainable):
    def setup(self, config: dict[str, Any], data: Any) -> None:  # type: ignore[override]
        pass

    def step(self) -> dict[str, Any]:
        return {}


class AsRaysIs:
    """No subclass of anything, but all that is called is there."""

    def __init__(self, config: dict[str, Any]) -> None: ...

    def step(self) -> dict[str, Any]:
        return {"done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None: ...
    def load_checkpoint(self, checkpoint: Any) -> None: ...
    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def cleanup(self) -> None: ...


@pytest.mark.parametrize(
    "trainable",
    [
        plain,
        lambda config: None,
        Callable_(),
        functools.partial(with_data, data=1),
        Takes,
        AsRaysIs,
        Bound(with_data, {"data": 1}),
        Bound(NeedsData, {"data": 1}),
        Reserved(Bound(NeedsData, {"data": 1}), Slot()),
        print,
    ],
)
def test_what_can_be_run(trainable: Any) -> None:
    check(trainable)


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        ("PPO", "trainable is 'PPO': registered names are not supported: pass the function or class"),
        (None, "trainable must be a function of one argument, the configuration, or a subclass of raytuner.Trainable;"),
        (Reserved(3, Slot()), "; got 3"),
        (lambda: None, "trainable must take one argument, the configuration; lambda() does not"),
        (with_data, "with_data(config: 'dict[str, Any]', data: 'Any', *, epochs: 'int' = 1) -> 'None' does not"),
        (Bound(with_data, {"epochs": 1}), "with epochs bound does not. with_parameters binds the others"),
        (NoStep, "trainable NoStep is a class that lacks step: implement it"),
        (Unfinished, "trainable Unfinished is a class that lacks loss: implement it"),
        (Callable_, "Callable_ is a class that lacks step, save_checkpoint, load_checkpoint, reset_config, cleanup: "),
        (Callable_, "derive it from raytuner.Trainable"),
        (WithoutConfig, "trainable WithoutConfig must be made with one argument, the configuration"),
        (NeedsData, "NeedsData.setup must take one argument, the configuration; setup(self, config: "),
        (Takes({}), "; pass the class Takes itself"),
    ],
)
def test_what_cannot_be_run(trainable: Any, message: str) -> None:
    with pytest.raises(TypeError) as refused:
        check(trainable)
    assert message in str(refused.value)


def test_a_class_with_the_same_methods_runs(hire: Hire) -> None:
    actor = hire(AsRaysIs)
    for trial in (0, 1):
        ended = actor.lease(trial)
        assert isinstance(ended, Ended)
        assert ended.how is How.RETURNED


def test_names() -> None:
    odd = functools.partial(plain)
    assert [name_of(each) for each in (plain, Takes, lambda config: None, odd, Callable_())] == [
        *("plain", "Takes", "lambda", "partial", "Callable_")
    ]
    assert name_of(Reserved(Bound(Takes, {}), Slot())) == "Takes"

    def train(config: Any) -> None: ...

    train.__name__ = "../a b"
    assert name_of(train) == "..ab"
    train.__name__ = ".."
    assert name_of(train) == "function"


def test_qualified_names() -> None:
    here = __name__
    assert qualified_name(plain) == f"{here}.plain"
    assert qualified_name(Reserved(Bound(Takes, {}), Slot())) == f"{here}.Takes"
    assert qualified_name(functools.partial(plain)) == "functools.partial"
    assert qualified_name(Callable_()) == f"{here}.Callable_"
    assert qualified_name(Callable_().__call__) == f"{here}.Callable_.__call__"


def test_a_context_and_a_checkpoint_are_there_as_for_functions(hire: Hire) -> None:
    from raytuner.session import get_checkpoint

    found: list[Any] = []

    class Model(Saving):
        def step(self) -> dict[str, Any]:
            found.append((get_context().get_trial_id(), get_checkpoint()))
            return super().step()

    actor = hire(Model, checkpoint_every=1, stop={"training_iteration": 2})
    actor.lease(trial=3)
    assert found == [("3", None), ("3", Checkpoint(actor.store.path(3, 1)))]
