"""Callbacks: each hears all that is on record, in its order; whatever one does, the study goes on as it would."""

from __future__ import annotations

import json
import random
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import raytuner as tune
from raytuner import delivery
from raytuner.actions import Resume, Start
from raytuner.delivery import Deliveries, named, sync
from raytuner.events import Checkpointed, Drop, Failed, Finish, Loaded, Opened, Over, Retry
from raytuner.logger import CSVLoggerCallback, JsonLoggerCallback
from raytuner.record.folder import Folder
from raytuner.record.journal import Journal, Row, is_complete, read
from raytuner.record.lock import FileLock
from raytuner.schedulers import HyperBandScheduler, PopulationBasedTraining
from raytuner.searchers import RandomSearch
from raytuner.trial import Report, Reports, State, Why
from tests.lives import SPACE, Case, Died, Fate, Life, fate, live_through

__all__ = ["fate"]  # a fixture

pytestmark = pytest.mark.timeout(60)

HOOKS = (
    *("setup", "on_step_begin", "on_step_end", "on_trial_start", "on_trial_restore", "on_trial_save"),
    *("on_trial_result", "on_trial_complete", "on_trial_recover", "on_trial_error", "on_checkpoint"),
    "on_experiment_end",
)


class Heard(NamedTuple):
    """A call: the hook, the trial, and the step of a result."""

    hook: str
    trial: int | None = None
    step: int | None = None


class Listener(tune.Callback):
    """Writes down what it hears. ``before``: called first, with each."""

    def __init__(self, before: Callable[[Heard], None] = lambda heard: None) -> None:
        self.heard: list[Heard] = []
        self.arguments: list[dict[str, Any]] = []
        self._before = before

    def results(self) -> list[tuple[int | None, int | None]]:
        return [(each.trial, each.step) for each in self.heard if each.hook == "on_trial_result"]

    def of(self, *hooks: str) -> list[Heard]:
        return [each for each in self.heard if each.hook in hooks]


def _listen(hook: str) -> Any:
    def heard(self: Listener, **info: Any) -> None:
        trial = int(info["trial"].trial_id) if "trial" in info else None
        step = info["result"]["training_iteration"] if "result" in info else None
        self._before(Heard(hook, trial, step))
        self.heard.append(Heard(hook, trial, step))
        self.arguments.append(info)

    return heard


for _hook in HOOKS:
    setattr(Listener, _hook, _listen(_hook))


def train(config: dict[str, Any]) -> None:
    step = 0
    if checkpoint := tune.get_checkpoint():
        step = json.loads(Path(checkpoint.path, "state.json").read_text())
    while step < 9:
        step += 1
        if step == 2 and config["x"] < 0.2:
            raise RuntimeError("x is too small")
        metrics = {"loss": config["x"] + 1 / step, "nested": {"step": step}}
        if tune.should_checkpoint():
            import tempfile

            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "state.json").write_text(str(step))
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
        else:
            tune.report(metrics)


def tuner(folder: Path, *callbacks: Any, deadline_s: float = 30.0, **settings: Any) -> tune.Tuner:
    return tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", num_samples=6, scheduler=HyperBandScheduler(max_t=9), seed=1
        ),
        run_config=tune.RunConfig(
            name="study",
            storage_path=folder,
            verbose=0,
            callbacks=callbacks,
            callback_deadline_s=deadline_s,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            **settings,
        ),
        executor="inline",
    )


def expected(rows: list[Row], root: Path) -> Counter[Heard]:
    """What must be heard, once each, of the events and reports on record."""
    table = read(root).reports
    found = Counter(
        Heard("on_trial_result", trial, step)
        for trial, step in zip(table["trial"].to_pylist(), table["step"].to_pylist(), strict=True)
    )
    for row in rows:
        match row:
            case Checkpointed(trial=trial):
                found[Heard("on_trial_save", trial)] += 1
            case Loaded(trial=trial):
                found[Heard("on_trial_restore", trial)] += 1
            case Retry(trial):
                found[Heard("on_trial_recover", trial)] += 1
            case Over(trial, state):
                found[Heard("on_trial_error" if state is State.FAILED else "on_trial_complete", trial)] += 1
    return found


def check_all(listener: Listener, root: Path) -> None:
    """Everything once, in the order of the record; each trial from its start to its end."""
    rows = list(read(root).rows)
    wanted = expected(rows, root)
    assert Counter(each for each in listener.heard if each in wanted) == wanted
    assert len(listener.results()) == read(root).reports.num_rows
    steps: dict[int | None, int] = {}
    for trial, step in listener.results():
        assert step is not None
        assert step > steps.get(trial, 0)
        steps[trial] = step
    assert listener.heard[0] == Heard("setup")
    assert listener.of("setup") == [Heard("setup")]
    for trial in steps:
        about = [each.hook for each in listener.heard if each.trial == trial]
        assert about[0] == "on_trial_start"
        assert about.count("on_trial_start") == 1
        assert about[-1] in ("on_trial_complete", "on_trial_error")


def lasting(heard: list[Heard]) -> list[Heard]:
    """Without what depends on whether a checkpoint is still there."""
    return [each for each in heard if each.hook != "on_checkpoint"]


# ------------------------------------------------------------------------------------------------ what is heard


def test_everything_once_and_in_order(tmp_path: Path) -> None:
    listener, other = Listener(), Listener()
    tuner(tmp_path, listener, other).fit()
    root = tmp_path / "study"
    for each in (listener, other):
        check_all(each, root)
        assert each.heard[-1] == Heard("on_experiment_end")
    assert listener.of("on_trial_error"), "the study has a trial that fails"
    assert listener.of("on_trial_recover") == []
    assert lasting(listener.heard) == lasting(other.heard)


def test_what_a_trial_shows(tmp_path: Path) -> None:
    listener = Listener()
    seen: list[tuple[Heard, str, int | None, bool]] = []

    def look(heard: Heard) -> None:
        if heard.trial is not None:
            trial = views[heard.trial]
            seen.append((heard, trial.status, trial.last_result.get("training_iteration"), trial.checkpoint is None))

    class Looking(Listener):
        def on_trial_start(self, trial: Any, **info: Any) -> None:
            views[int(trial.trial_id)] = trial
            super().on_trial_start(trial=trial, **info)

    views: dict[int, Any] = {}
    listener = Looking(look)
    results = tuner(tmp_path, listener).fit()
    assert [str(view) for view in views.values()] == [f"train_{number}" for number in range(6)]
    for result in results:
        view = views[int(result.trial_id)]
        assert view.config == result.config == view.evaluated_params
        assert view.trial_id == result.trial_id
        assert view.last_result["loss"] == result.metrics["loss"]
        assert view.is_finished()
        assert (view.get_error() is None) == (result.error is None)
        assert (view.checkpoint and view.checkpoint.path) == (result.checkpoint and result.checkpoint.path)
        assert Path(view.local_path) == tmp_path / "study" / "logs" / f"{int(result.trial_id):06d}"
        assert Path(view.local_path).is_dir()
        assert view.experiment_dir_name == "study"
    for heard, status, step, _ in seen:
        assert status == {"on_trial_complete": "TERMINATED", "on_trial_error": "ERROR"}.get(heard.hook, "RUNNING")
        assert heard.step in (None, step), "a result is the last one when it is told of"
    result = next(info["result"] for info in listener.arguments if info.get("result", {}).get("nested/step") == 1)
    assert result["trial_id"] == "0"
    assert result["config"] == dict(results[0].config)
    assert result["done"] is False
    assert {"date", "timestamp", "time_total_s", "pid", "checkpoint_dir_name"} <= result.keys()
    setup = listener.arguments[0]
    assert setup == {"stop": None, "num_samples": 6, "total_num_samples": 6, "time_budget_s": None}


def test_a_paused_trial_is_seen_as_such_and_checkpoints_are_of_ours(tmp_path: Path) -> None:
    statuses: set[str] = set()

    class Steps(tune.Callback):
        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            statuses.update(trial.status for trial in trials)

        def on_checkpoint(self, checkpoint: Any, trial: Any, **info: Any) -> None:  # type: ignore[override]
            assert isinstance(checkpoint, tune.Checkpoint)
            kept.append(checkpoint.path)

    kept: list[str] = []
    tuner(tmp_path, Steps()).fit()
    assert statuses == {"RUNNING", "PAUSED", "TERMINATED", "ERROR"}
    assert kept, "the newest is there to the end"


def test_forks_and_failures_of_a_population(fast_path: Path, fate: Fate) -> None:
    """A record of the simulator, whose trials die, come back, and continue others."""
    scheduler = PopulationBasedTraining(
        perturbation_interval=3, hyperparam_mutations={"lr": tune.loguniform(1e-4, 1.0)}
    )
    case = Case(RandomSearch(), scheduler, SPACE, trials=20)
    live_through(case, fast_path, fate, gap=None)
    listener = told(fast_path)
    check_all(listener, fast_path)
    assert listener.of("on_trial_recover")
    assert listener.of("on_trial_restore")
    forks = [info["trial"] for info in listener.arguments if info.get("trial") is not None and info["trial"].parent]
    assert forks
    failed = Counter(row.trial for row in read(fast_path).rows if isinstance(row, Failed))
    assert {
        int(view.trial_id): view.num_failures for view in listener.arguments[-1]["trials"] if view.num_failures
    } == (dict(failed))
    assert any(isinstance(row, Drop) for row in read(fast_path).rows)


def test_a_trial_that_goes_on_after_its_end(tmp_path: Path) -> None:
    """As in a study that is extended: it starts and ends again, and the study's first end was none."""
    journal = Journal(tmp_path)
    for step, decision in ((1, Start(0, 1, {"x": 1.0})), (2, Resume(0, 2))):
        journal.commit([Opened(0.0, step), decision], [])
        journal.commit(
            [Over(0, State.DONE, Why.FULL_BUDGET), Finish(True, "")],
            [Reports.of(0, step, [Report(step, float(step), {"loss": 1.0}, 0.0)])],
        )
    journal.close()
    life = ["on_trial_start", "on_trial_result", "on_trial_complete"]
    listener = told(tmp_path)
    assert [each.hook for each in listener.heard if "step" not in each.hook] == [
        *("setup", *life, *life, "on_experiment_end")
    ]
    logger = CSVLoggerCallback()
    sync(tmp_path, [logger])
    assert len((tmp_path / "logs" / "000000" / "progress.csv").read_text().splitlines()) == 3


def told(root: Path, listener: Listener | None = None) -> Listener:
    """A listener that was told all of a record of the simulator."""
    begin(root)
    listener = listener or Listener()
    sync(root, [listener])
    return listener


def begin(root: Path) -> None:
    if not Folder(root).exists():  # `Folder.create` refuses to begin a study where there is a record
        beside = root.with_name(f"{root.name}-begun")
        Folder(beside).create({"trainable": "module.train", "stop": {}, "num_samples": 24})
        (beside / "study.json").rename(root / "study.json")
        beside.rmdir()


# ------------------------------------------------------------------------------------------------- it cannot hurt


def test_a_callback_that_waits_for_the_study_does_not_hold_it_up(tmp_path: Path) -> None:
    """If the loop waited for it they would wait for each other."""
    over = threading.Event()
    listener = Listener(lambda heard: None if over.wait(50) else pytest.fail("the loop waits"))
    root, results = tmp_path / "study", list[Any]()
    fit = threading.Thread(target=lambda: results.append(tuner(tmp_path, listener).fit()))
    fit.start()
    pause = threading.Event()
    while not (root / "journal").is_dir() or not is_complete(root):
        assert not pause.wait(0.01)
    assert listener.heard == []
    over.set()
    fit.join()
    check_all(listener, root)
    assert len(results[0]) == 6


def test_one_that_hangs_is_left_behind_and_hears_the_rest_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, other = threading.Event(), Listener()

    def hang(heard: Heard) -> None:
        if heard.hook == "on_trial_result" and heard.step == 3:
            assert go_on.wait(50)

    listener = Listener(hang)
    tuner(tmp_path, listener, other, deadline_s=0.2).fit()
    root = tmp_path / "study"
    assert is_complete(root)
    check_all(other, root)
    assert "callback Listener has not heard everything; the rest is told" in caplog.text
    assert "Listener-2" not in caplog.text
    heard = list(listener.heard)
    # While it hangs nothing else is told to it: its methods need not bear two threads.
    assert len(tuner(tmp_path, listener, other).fit()) == 6
    assert "callback Listener still is in a call of an earlier run" in caplog.text
    assert sync(root, [listener])[0].rest == "it still is in a call of an earlier run"
    assert listener.heard == heard
    go_on.set()
    pause = threading.Event()
    while delivery._Thread.hangs(listener):
        assert not pause.wait(0.01)
    assert len(listener.heard) == len(heard) + 1, "the thread that was left does nothing more"
    # Another process would have another object, which hears all that this one did not.
    successor = Listener()
    (done, _) = sync(root, [successor, other])
    assert done.rest == ""
    whole = listener.heard[: len(heard)] + [
        each
        for each in successor.heard
        if each.hook != "setup" and not (each.hook == "on_trial_start" and each in heard)  # again in its process
    ]
    assert lasting(whole) == lasting(other.heard)


def test_all_that_raises_is_said_once_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(3)

    def fail(heard: Heard) -> None:
        if heard.hook != "setup":
            raise chance.choice([ValueError, KeyError, SystemExit])(f"on purpose, in {heard}")

    bad, good = Listener(fail), Listener()
    results = tuner(tmp_path, bad, good).fit()
    assert len(results) == 6
    check_all(good, tmp_path / "study")
    assert bad.heard == [Heard("setup")]
    said = Counter(record.getMessage() for record in caplog.records if record.name == "raytuner.delivery")
    assert set(said.values()) == {1}
    assert {message.split()[2] for message in said} == {each.hook for each in good.heard} - {"setup"}
    assert len(said) <= 3 * len(HOOKS)
    assert "on purpose, in Heard" in caplog.text, "with its traceback"


def test_one_that_cannot_be_set_up_hears_nothing_until_it_can(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Tracker(Listener):
        pass

    def refuse(heard: Heard) -> None:
        raise ConnectionError("no server")

    listener = Tracker(refuse)
    tuner(tmp_path, listener).fit()
    assert listener.heard == []
    assert caplog.text.count("callback Tracker could not be set up and is told nothing") == 1
    assert sync(tmp_path / "study", [Tracker(refuse)])[0].rest == "its setup failed"
    mended = Tracker()
    tuner(tmp_path, mended).fit()
    check_all(mended, tmp_path / "study")


def test_a_record_that_cannot_be_read_ends_the_callback_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*ignored: Any) -> Iterator[Any]:
        raise OSError("stale file handle")

    monkeypatch.setattr("raytuner.record.cursor.Cursor.read", broken)
    assert len(tuner(tmp_path, Listener()).fit()) == 6
    assert "callback Listener is told nothing more in this run" in caplog.text


def test_a_place_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*ignored: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(delivery, "write_whole", full)
    monkeypatch.setattr(delivery, "_KEEP_EVERY_S", 0.0)
    listener = Listener()
    tuner(tmp_path, listener).fit()
    check_all(listener, tmp_path / "study")
    assert caplog.text.count("how far callback Listener got could not be written") == 1


def test_one_that_is_left_before_it_began(fast_path: Path, fate: Fate) -> None:
    """Where it stood is not forgotten."""
    live_through(Case(RandomSearch(), HyperBandScheduler(max_t=9), SPACE), fast_path, fate, gap=None)
    told(fast_path)
    place = (fast_path / "callbacks" / "Listener.json").read_bytes()
    courier = delivery._Courier(Listener(), "Listener", Folder(fast_path), "train", {})
    courier.leave()
    courier.open(delivery.durable_end(fast_path))
    assert (fast_path / "callbacks" / "Listener.json").read_bytes() == place


def test_a_wait_that_is_called_off(fast_path: Path, fate: Fate) -> None:
    live_through(Case(RandomSearch(), HyperBandScheduler(max_t=9), SPACE), fast_path, fate, gap=None)
    begin(fast_path)
    go_on, listener = threading.Event(), Listener(lambda heard: None if go_on.wait(50) else pytest.fail("it waits"))
    deliveries = Deliveries([listener], Folder(fast_path), "train", {})
    deliveries.wake(delivery.durable_end(fast_path))
    deliveries.close(1e9, lambda: True)
    assert listener.heard == []
    go_on.set()


# ----------------------------------------------------------------------------------------------- deaths and resuming


def test_an_early_end_and_a_resume(tmp_path: Path) -> None:
    """What the first life heard the second does not hear again; the end is told of when there is one."""
    first = Listener()
    failing = tune.FailureConfig(fail_fast=True)
    tuner(tmp_path, first, failure_config=failing).fit()
    root = tmp_path / "study"
    assert not is_complete(root)
    assert first.heard[-1] == Heard("on_experiment_end")
    before = expected(list(read(root).rows), root)
    second = Listener()
    tuner(tmp_path, second, failure_config=failing).fit()
    after = expected(list(read(root).rows), root)
    assert Counter(each for each in first.heard if each in before) == before
    assert Counter(each for each in second.heard if each in after) == after - before
    for trial in {each.trial for each in second.heard} - {None}:
        about = [each.hook for each in second.heard if each.trial == trial]
        assert about[0] == "on_trial_start", "also of a trial that the first life knew"


def test_a_callback_that_is_new_to_a_study_hears_what_was(tmp_path: Path) -> None:
    tuner(tmp_path).fit()
    assert not (tmp_path / "study" / "callbacks").exists()
    late = Listener()
    tuner(tmp_path, late).fit()
    check_all(late, tmp_path / "study")
    heard = len(late.heard)
    tuner(tmp_path, late).fit()
    assert len(late.heard) == heard, "there was nothing more to tell"


class Counting(Listener):
    """What it counts goes with how far it got."""

    def __init__(self, before: Callable[[Heard], None] = lambda heard: None) -> None:
        super().__init__(before)
        self.count: Counter[str] = Counter()

    def on_trial_result(self, trial: Any, result: dict[str, Any], **info: Any) -> None:
        super().on_trial_result(trial=trial, result=result, **info)
        self.count[trial.trial_id] += 1

    def get_state(self) -> dict[str, Any]:
        return dict(self.count)

    def set_state(self, state: dict[str, Any]) -> None:
        self.count = Counter(state)


@pytest.mark.parametrize("seed", range(4))
def test_drivers_and_callbacks_that_die_at_random_miss_nothing(
    seed: int, fast_path: Path, fate: Fate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each life has new objects. They die in any call, and in the middle of writing down how far they got; drivers die
    in any write. What is heard at least once is everything, in order; what goes with the place is counted once; and
    files of ours have each report once."""
    chance = fate.rng = random.Random(seed)
    begin(fast_path)
    heard: list[list[Heard]] = []
    loggers: list[Any] = []
    deaths = 0

    def maybe_die(likely: float) -> None:
        nonlocal deaths
        if chance.random() < likely:
            deaths += 1
            raise Died

    def write(path: Path, text: str) -> None:
        maybe_die(0.02)
        whole(path, text)
        maybe_die(0.02)

    whole = delivery.write_whole
    monkeypatch.setattr(delivery, "write_whole", write)
    monkeypatch.setattr(delivery._Courier, "keep_in_s", lambda courier: chance.choice([0.0, 1.0, 1.0, 1.0]))
    commit = Life.commit

    def close_files() -> None:
        for logger in loggers:
            if hasattr(logger, "_files"):  # else it was not set up: there was nothing to tell it
                logger.on_experiment_end([])

    def couriers() -> list[Any]:
        close_files()  # a process closes its files, however it dies
        loggers[:] = [CSVLoggerCallback(), JsonLoggerCallback()]
        listener = Counting(lambda _: maybe_die(0.005))
        heard.append(listener.heard)
        made = [listener, *loggers]
        found = [delivery._Courier(each, name, Folder(fast_path), "train", {}) for name, each in named(made).items()]
        for courier in found:
            courier.open(10**9 if life_end is None else life_end)
        return found

    life_end: int | None = None
    lives: list[tuple[Life, list[Any]]] = []

    def commit_and_tell(life: Life, rows: Any, reports: Any) -> None:
        nonlocal life_end
        commit(life, rows, reports)
        life_end = life.journal.turn
        if not lives or lives[-1][0] is not life:
            lives.append((life, couriers()))
        for courier in lives[-1][1]:
            courier.deliver(life.journal.turn, lambda: False)

    monkeypatch.setattr(Life, "commit", commit_and_tell)
    live_through(Case(RandomSearch(), HyperBandScheduler(max_t=9), SPACE), fast_path, fate, gap=300, power=False)
    monkeypatch.setattr(Life, "commit", commit)
    life_end = delivery.durable_end(fast_path)
    while True:
        try:
            for courier in couriers():
                courier.deliver(life_end, lambda: False)
                courier.keep()
            break
        except Died:
            continue
    close_files()
    assert deaths > 10

    table = read(fast_path).reports
    wanted = list(zip(table["trial"].to_pylist(), table["step"].to_pylist(), strict=True))
    told = [(each.trial, each.step) for life in heard for each in life if each.hook == "on_trial_result"]
    assert list(dict.fromkeys(told)) == wanted, "nothing is missing, and the first time is in order"
    must = expected(list(read(fast_path).rows), fast_path)
    assert not must - Counter(each for life in heard for each in life)
    kept = json.loads((fast_path / "callbacks" / "Counting.json").read_text())
    assert kept["state"] == Counter(str(trial) for trial, _ in wanted)
    for trial in {trial for trial, _ in wanted}:
        steps = [step for number, step in wanted if number == trial]
        folder = fast_path / "logs" / f"{trial:06d}"
        lines = (folder / "result.json").read_text().splitlines()
        assert [json.loads(line)["training_iteration"] for line in lines] == steps
        header, *rows = (folder / "progress.csv").read_text().splitlines()
        place = header.split(",").index("training_iteration")
        assert [int(row.split(",")[place]) for row in rows] == steps


def test_a_state_that_is_no_json_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stateful(Listener):
        def get_state(self) -> dict[str, Any]:
            return {"lock": threading.Lock()}

    tuner(tmp_path, listener := Stateful()).fit()
    check_all(listener, tmp_path / "study")
    assert caplog.text.count("callback Stateful: its state is not kept") == 1
    kept = json.loads((tmp_path / "study" / "callbacks" / "Stateful.json").read_text())
    assert kept["state"] is None


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    class Stateful(Listener):
        def get_state(self) -> dict[str, Any]:
            return {"best": float("nan"), "pair": (1, float("-inf"))}

        def set_state(self, state: dict[str, Any]) -> None:
            states.append(state)

    states: list[dict[str, Any]] = []
    failing = tune.FailureConfig(fail_fast=True)
    tuner(tmp_path, Stateful(), failure_config=failing).fit()
    assert states == []
    tuner(tmp_path, Stateful(), failure_config=failing).fit()
    assert repr(states) == "[{'best': nan, 'pair': (1, -inf)}]"


def test_a_place_beyond_the_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folder's journal was put back from a copy."""
    begin(tmp_path)
    (tmp_path / "callbacks").mkdir()
    place = {"format": 1, "callback": "tests:Listener", "turn": 7, "calls": 0, "state": None}
    (tmp_path / "callbacks" / "Listener.json").write_text(json.dumps(place))
    sync(tmp_path, [Listener()])
    assert "has heard 7 turns" in caplog.text
    (tmp_path / "callbacks" / "Listener.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match=r"Listener\.json is damaged: .*format 2; this version"):
        sync(tmp_path, [Listener()])


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ("CSVLoggerCallback", "callbacks must be a list of raytuner.Callback, got 'CSVLoggerCallback'"),
        (Listener(), "callbacks must be a list of raytuner.Callback, got"),
        ([Listener], r"callbacks\[0\] must be an object, not a class: Listener\(\)"),
        ([Listener(), 3], r"callbacks\[1\] must be a raytuner.Callback or one of Ray's, got 3"),
        ([same := Listener(), same], r"callbacks\[1\] stands in the list twice"),
    ],
)
def test_what_is_no_callback(callbacks: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        tune.RunConfig(callbacks=callbacks)


def test_a_deadline_that_is_none() -> None:
    with pytest.raises(ValueError, match="callback_deadline_s must be a number of seconds above 0, got 0"):
        tune.RunConfig(callback_deadline_s=0)


def test_names() -> None:
    given = [Listener(), CSVLoggerCallback(), Listener(), Listener()]
    assert list(named(given)) == ["Listener", "CSVLoggerCallback", "Listener-2", "Listener-3"]


def test_sync_while_a_driver_runs(tmp_path: Path) -> None:
    begin(tmp_path)
    with FileLock(tmp_path), pytest.raises(tune.StudyInUse):
        sync(tmp_path, [Listener()])
    with pytest.raises(ValueError, match="there is no study in"):
        sync(tmp_path / "nothing", [Listener()])


# --------------------------------------------------------------------------------------------------------- Ray's own


def test_rays_own_loggers_write_what_ours_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from ray.tune.logger import CSVLoggerCallback as RaysCsv
    from ray.tune.logger import JsonLoggerCallback as RaysJson
    from ray.tune.logger import TBXLoggerCallback as RaysTbx

    tuner(tmp_path / "ours", CSVLoggerCallback(), JsonLoggerCallback()).fit()
    tuner(tmp_path / "rays", RaysCsv(), RaysJson(), RaysTbx()).fit()
    assert caplog.text == ""
    for number in range(6):
        ours, rays = (tmp_path / each / "study" / "logs" / f"{number:06d}" for each in ("ours", "rays"))
        for name in ("params.json", "progress.csv", "result.json"):
            assert _shape(ours / name) == _shape(rays / name)
        assert len(list(rays.glob("events.out.tfevents.*"))) == 1


def _shape(path: Path) -> Any:
    """A log file without what no two runs share."""
    import csv

    def same(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if not name.startswith(("time", "date", "pid"))}

    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return [same(row) for row in csv.DictReader(file)]
    if path.name == "params.json":
        return json.loads(path.read_text())
    return [same(json.loads(line)) for line in path.read_text().splitlines()]


def test_rays_callbacks_get_rays_checkpoints(tmp_path: Path) -> None:
    import ray.tune

    class Saves(ray.tune.Callback):  # type: ignore[misc]
        def on_checkpoint(self, checkpoint: Any, **info: Any) -> None:
            assert isinstance(checkpoint, ray.tune.Checkpoint)
            with checkpoint.as_directory() as folder:
                heard.append(json.loads(Path(folder, "state.json").read_text()))

    heard: list[int] = []
    tuner(tmp_path, Saves()).fit()
    assert heard


def test_rays_mlflow_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code, over a client that writes down what it is told."""
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class Client:
        def __init__(self) -> None:
            self.calls: list[tuple[str, Any]] = []

        def setup_mlflow(self, **settings: Any) -> None:
            pass

        def start_run(self, tags: Any, run_name: str) -> Any:
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_name))

        def log_params(self, run_id: str, params_to_log: Any) -> None:
            self.calls.append(("params", (run_id, params_to_log)))

        def log_metrics(self, run_id: str, metrics_to_log: Any, step: int) -> None:
            self.calls.append(("metrics", (run_id, step, metrics_to_log["loss"])))

        def end_run(self, run_id: str, status: str) -> None:
            self.calls.append(("end", (run_id, status)))

    callback = MLflowLoggerCallback(experiment_name="study")
    client = callback.mlflow_util = Client()
    results = tuner(tmp_path, callback).fit()
    told: dict[str, list[Any]] = {}
    for name, what in client.calls:
        told.setdefault(name, []).append(what)
    assert told["params"] == [(f"train_{each.trial_id}", dict(each.config)) for each in results]
    assert sorted(told["metrics"]) == sorted(
        (f"train_{row['trial']}", row["step"], row["loss"]) for row in results.to_arrow("reports").to_pylist()
    )
    assert dict(told["end"]) == {f"train_{each.trial_id}": "FAILED" if each.error else "FINISHED" for each in results}
