"""The real executor on a real Ray: leases, parking, unwinding, lost actors, GPUs, resources given back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

import raytuner as tune
from raytuner.events import Ended, Event, Failed, How, Reported, Slots
from raytuner.executors.ray_actors import NoActors, RayActors
from raytuner.executors.room import NoResources, slots_in
from raytuner.session import Rules
from raytuner.trial import END, Failure, Lease, Slot, Trial
from raytuner.work import Work

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(180)]


def lease(trial: int, until: int, attempt: int = 1, checkpoint: int | None = None, **config: Any) -> Lease:
    return Lease(Trial(trial, config), attempt, until, checkpoint, trial, tries=0, since=0.0, origin=0)


@contextmanager
def actors(
    train: Callable[[Any], Any], folder: Path, slots: int = 1, slot: Slot | None = None, **rules: Any
) -> Iterator[RayActors]:
    executor = RayActors(Work(train), Rules(folder / "checkpoints", **{"stop": {}, **rules}), slot or Slot(), slots)
    try:
        until(executor, lambda event: event == Slots(event.at, slots))
        yield executor
    finally:
        executor.close()


def until(executor: RayActors, found: Callable[[Event], bool], limit_s: float = 60.0) -> list[Event]:
    """Events up to the first that is looked for."""
    events: list[Event] = []
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        for event in executor.wait(1.0):
            events.append(event)
            if found(event):
                return events
    raise AssertionError(f"not seen within {limit_s} s; seen: {events}")


def over(event: Event) -> bool:
    return isinstance(event, Ended | Failed)


def steps(events: Sequence[Event]) -> list[int]:
    return [report.step for event in events if isinstance(event, Reported) for report in event.reports]


def count(config: dict[str, Any]) -> None:
    seen = 0
    while True:
        seen += 1
        tune.report({"seen": seen, "thread": threading.get_ident(), "pid_seen": os.getpid()})


def metrics(events: Sequence[Event]) -> dict[str, Any]:
    ended = events[-1]
    assert isinstance(ended, Ended)
    return dict(ended.metrics)


def test_a_parked_trial_goes_on_where_it_stands(tmp_path: Path) -> None:
    with actors(count, tmp_path) as executor:
        executor.run(lease(0, until=3))
        first = until(executor, over)
        executor.run(lease(0, until=9, attempt=2))
        second = until(executor, over)
    assert steps(first) == [1, 2, 3]
    assert steps(second) == [4, 5, 6, 7, 8, 9]
    assert metrics(first)["thread"] == metrics(second)["thread"]
    assert metrics(second)["seen"] == 9, "its own state goes on too"
    assert metrics(second)["training_iteration"] == 9
    assert metrics(second)["time_total_s"] > 0
    assert second[-1].how is How.REACHED


def save_and_count(config: dict[str, Any]) -> None:
    step = 0
    if checkpoint := tune.get_checkpoint():
        step = int(Path(checkpoint.path, "step").read_text())
    while True:
        step += 1
        if tune.should_checkpoint():
            folder = Path(config["folder"]) / f"saved-{step}"
            folder.mkdir(exist_ok=True)
            (folder / "step").write_text(str(step))
            tune.report({"at": step}, checkpoint=tune.Checkpoint.from_directory(folder))
        else:
            tune.report({"at": step})


def test_an_evicted_trial_starts_from_its_checkpoint(tmp_path: Path) -> None:
    with actors(save_and_count, tmp_path) as executor:
        executor.run(lease(0, until=3, folder=str(tmp_path)))
        first = until(executor, over)
        executor.run(lease(1, until=2, folder=str(tmp_path)))  # wants the slot that trial 0 is parked in
        until(executor, over)
        executor.run(lease(0, until=5, attempt=2, checkpoint=3, folder=str(tmp_path)))
        second = until(executor, over)
    saved = [
        report.step for event in first if isinstance(event, Reported) for report in event.reports if report.checkpoint
    ]
    assert saved == [3], "should_checkpoint() is true where the lease ends, and nowhere else"
    assert steps(second) == [4, 5]
    assert metrics(second)["at"] == 5
    assert metrics(second)["training_iteration"] == 5, "the count of iterations goes on after a restore"
    assert metrics(second)["iterations_since_restore"] == 2


def clumsy(config: dict[str, Any]) -> None:
    try:
        while True:
            try:
                tune.report({"x": 1})
            except Exception:
                Path(config["folder"], "swallowed").touch()
    finally:
        Path(config["folder"], f"finally-{config['name']}").touch()


@pytest.mark.parametrize("parked", [True, False])
def test_unwinding_runs_finally_and_is_not_swallowed(parked: bool, tmp_path: Path) -> None:
    with actors(clumsy, tmp_path) as executor:
        executor.run(lease(0, until=2 if parked else END, folder=str(tmp_path), name="a"))
        until(executor, over if parked else lambda event: isinstance(event, Reported))
        executor.unwind(0, 1)
        if not parked:
            assert until(executor, over)[-1].how is How.UNWOUND
        executor.run(lease(1, until=1, folder=str(tmp_path), name="b"))  # the slot is free again
        until(executor, over)
    assert (tmp_path / "finally-a").exists()
    assert not (tmp_path / "swallowed").exists()


def stubborn(config: dict[str, Any]) -> None:
    while True:
        try:
            tune.report({"x": 1})
        except BaseException:
            if config.get("endless"):
                threading.Event().wait()
            raise


def test_a_function_that_will_not_end_loses_its_actor_not_the_slot(tmp_path: Path) -> None:
    with actors(stubborn, tmp_path, grace_s=0.2) as executor:
        executor.run(lease(0, until=1, endless=True))
        until(executor, over)
        executor.run(lease(1, until=1))  # finds the actor dead, and does not pay for it: it moves to the next
        seen = until(executor, over)
        assert [event.slots for event in seen if isinstance(event, Slots)] == [0, 1]
        assert isinstance(seen[-1], Ended)
        assert (seen[-1].trial, seen[-1].how) == (1, How.REACHED)


def test_a_killed_actor_is_a_lost_trial_and_is_replaced(tmp_path: Path) -> None:
    with actors(count, tmp_path, slots=2) as executor:
        executor.run(lease(0, until=END))
        executor.run(lease(1, until=END))
        pids: dict[int, int] = {}
        while len(pids) < 2:
            for event in executor.wait(1.0):
                if isinstance(event, Reported):
                    pids[event.trial] = event.reports[-1].metrics["pid_seen"]
        os.kill(pids[0], 9)
        seen = until(executor, over)
        assert isinstance(seen[-1], Failed)
        assert (seen[-1].trial, seen[-1].failure) == (0, Failure.LOST)
        slots = [event.slots for event in seen if isinstance(event, Slots)]
        assert slots[0] == 1, "the slot is gone first"
        if slots[-1] == 1:
            until(executor, lambda event: event == Slots(event.at, 2))
        executor.run(lease(0, until=3, attempt=2))
        again = until(executor, lambda event: over(event) and event.trial == 0)
        assert [event.slots for event in again if isinstance(event, Slots)] == []


def test_actors_that_die_idle_are_replaced_before_a_trial_meets_them(tmp_path: Path) -> None:
    with actors(count, tmp_path, slots=2) as executor:
        pids = []
        for trial in range(2):  # each in an actor of its own: the first one's is taken by a parked trial
            executor.run(lease(trial, until=1))
            pids.append(metrics(until(executor, over))["pid_seen"])
        assert pids[0] != pids[1]
        for pid in pids:
            os.kill(pid, 9)
        seen = until(executor, lambda event: event == Slots(event.at, 2))
        assert {type(event) for event in seen} == {Slots}
        assert min(event.slots for event in seen if isinstance(event, Slots)) == 0
        executor.run(lease(0, until=3, attempt=2))
        assert steps(until(executor, over)) == [1, 2, 3], "without a checkpoint it starts again"


def reports_from_another_thread(config: dict[str, Any]) -> None:
    caught: list[Exception] = []

    def speak() -> None:
        try:
            tune.report({"x": 1})
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=speak)
    thread.start()
    thread.join()
    tune.report({"said": str(caught[0])})


def test_no_other_thread_speaks_for_a_trial(tmp_path: Path) -> None:
    """One left over from an earlier trial would speak for the wrong one."""
    with actors(reports_from_another_thread, tmp_path) as executor:
        executor.run(lease(0, until=END))
        seen = until(executor, over)
    assert steps(seen) == [1]
    assert "in the thread it was called in" in metrics(seen)["said"]


def saves_when_asked(config: dict[str, Any]) -> None:
    while True:
        if tune.should_checkpoint():
            tune.report({"saved": True}, checkpoint=tune.Checkpoint.from_directory(config["folder"]))
        else:
            tune.report({"saved": False})


def test_the_last_report_of_an_unwound_trial_and_its_checkpoint_count(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "weights").write_text("1")
    with actors(saves_when_asked, tmp_path) as executor:
        executor.run(lease(0, until=END, folder=str(tmp_path / "state")))
        until(executor, lambda event: isinstance(event, Reported))
        executor.unwind(0, 1)
        seen = until(executor, over)
    last = [report for event in seen if isinstance(event, Reported) for report in event.reports][-1]
    assert last.metrics["saved"]
    assert last.checkpoint
    assert seen[-1].step == last.step


def slow_to_end(config: dict[str, Any]) -> None:
    try:
        while True:
            tune.report({"x": 1})
    finally:
        threading.Event().wait(0.3)
        Path(config["folder"], f"ended-{config['name']}").touch()


def test_parked_functions_may_end_before_their_actors_do(tmp_path: Path) -> None:
    with actors(slow_to_end, tmp_path, slots=2) as executor:
        for trial in range(2):
            executor.run(lease(trial, until=1, folder=str(tmp_path), name=trial))
        ended: list[Event] = []
        while len(ended) < 2:
            ended += [event for event in executor.wait(None) if over(event)]
        for trial in range(2):
            executor.unwind(trial, 1)
    assert {path.name for path in tmp_path.glob("ended-*")} == {"ended-0", "ended-1"}


def test_a_time_attribute_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        tune.report({"epochs": 1.5})
        tune.report({"epochs": float("nan")})

    with actors(train, tmp_path, time_attr="epochs") as executor:
        executor.run(lease(0, until=3))
        failed = until(executor, over)[-1]
    assert isinstance(failed, Failed)
    assert "the scheduler's time_attr, must not fall: 1.5, then nan" in failed.message


def fails(config: dict[str, Any]) -> None:
    tune.report({"x": 1})
    raise ValueError("this learning rate is not to my taste")


def test_an_error_is_told_with_its_traceback(tmp_path: Path) -> None:
    with actors(fails, tmp_path) as executor:
        executor.run(lease(0, until=END))
        failed = until(executor, over)[-1]
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.ERROR
    assert "not to my taste" in failed.message
    assert "in fails" in failed.message


def quits(config: dict[str, Any]) -> None:
    raise SystemExit(3)


def test_sys_exit_in_a_trial_is_an_error_of_that_trial(tmp_path: Path) -> None:
    with actors(quits, tmp_path) as executor:
        executor.run(lease(0, until=END))
        failed = until(executor, over)[-1]
    assert isinstance(failed, Failed)
    assert "SystemExit" in failed.message


def where(config: dict[str, Any]) -> None:
    tune.report({"gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "pid_seen": os.getpid()})


@pytest.mark.parametrize(
    ("gpu", "slots", "on"), [(0.5, 4, ["0", "0", "1", "1"]), (1.0, 2, ["0", "1"]), (2.0, 1, ["0,1"])]
)
def test_gpus_are_shared_or_not_as_asked(gpu: float, slots: int, on: list[str], tmp_path: Path) -> None:
    with actors(where, tmp_path, slots=slots, slot=Slot(cpu=0.5, gpu=gpu)) as executor:
        for trial in range(slots):
            executor.run(lease(trial, until=1))
        ended: list[Event] = []
        while len(ended) < slots:
            ended += [event for event in executor.wait(None) if over(event)]
    assert sorted(event.metrics["gpus"] for event in ended) == on
    assert len({event.metrics["pid_seen"] for event in ended}) == slots


def test_what_the_cluster_can_never_give_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(NoResources, match="GPU: 3 wanted, 2 there"):
        RayActors(Work(count), Rules(tmp_path, {}), Slot(gpu=3), None)
    with pytest.raises(NoResources, match="tpu: 1 wanted, 0 there"):
        RayActors(Work(count), Rules(tmp_path, {}), Slot(custom={"tpu": 1}), None)


def test_as_many_slots_as_the_cluster_holds() -> None:
    assert slots_in([{"CPU": 4, "GPU": 2}], Slot(cpu=1, gpu=0.5)) == 4
    assert slots_in([{"CPU": 4, "GPU": 2}], Slot(cpu=1, gpu=1)) == 2
    assert slots_in([{"CPU": 3}], Slot(cpu=0.1)) == 30
    assert slots_in([{"CPU": 3}], Slot(cpu=0)) == 3
    assert slots_in([{"CPU": 64, "memory": 64 * 2**30}], Slot(cpu=1, memory_gib=16)) == 4
    # A slot lies on one node.
    assert slots_in([{"CPU": 8, "GPU": 8}, {"CPU": 8}, {"CPU": 8, "GPU": 6}], Slot(gpu=4)) == 3
    with pytest.raises(NoResources, match="GPU: 4 wanted, 2 there"):
        slots_in([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}], Slot(gpu=4))
    with pytest.raises(NoResources, match="no node has all of it"):
        slots_in([{"CPU": 1, "GPU": 4}, {"CPU": 8}], Slot(cpu=2, gpu=1))


class Unpicklable:
    """Breaks where it is taken out, not where it is put in."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


def test_actors_that_cannot_start_are_an_error_not_a_loop(tmp_path: Path) -> None:
    broken = Unpicklable()

    def train(config: dict[str, Any]) -> None:
        tune.report({"x": broken})

    with pytest.raises(NoActors, match="3 trial actors in a row could not be started"), actors(train, tmp_path):
        pass


def free() -> dict[str, float]:
    return {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")}


def test_everything_is_given_back(tmp_path: Path) -> None:
    with actors(count, tmp_path, slots=3, slot=Slot(cpu=1, gpu=0.5)) as executor:
        for trial in range(3):
            executor.run(lease(trial, until=END))
        until(executor, lambda event: isinstance(event, Reported))
        assert free()["CPU"] <= 1.0
    deadline = time.monotonic() + 30
    while free() != {"CPU": 4.0, "GPU": 2.0} and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert free() == {"CPU": 4.0, "GPU": 2.0}


def test_the_local_ray_listens_on_loopback_only() -> None:
    addresses = {node["NodeManagerAddress"] for node in ray.nodes()}
    assert addresses == {"127.0.0.1"}
    ports = {node["NodeManagerPort"] for node in ray.nodes()}
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if int(port, 16) in ports:
                assert address in ("0100007F", "0000000000000000FFFF00000100007F"), line


def test_a_parked_trials_lease_comes_before_one_that_would_drive_it_out(tmp_path: Path) -> None:
    """Hyperband's promotions come in any order: 2 waits first and has no home, 0 and 1 are parked."""
    with actors(count, tmp_path, slots=2) as executor:
        for trial in range(2):
            executor.run(lease(trial, until=1))
        ended: list[Event] = []
        while len(ended) < 2:
            ended += [event for event in executor.wait(None) if over(event)]
        for trial in (2, 0, 1):
            executor.run(lease(trial, until=3, attempt=2))
        seen: list[Event] = []
        while sum(map(over, seen)) < 3:
            seen += executor.wait(1.0)
    for trial in range(2):
        said = [event for event in seen if isinstance(event, Reported) and event.trial == trial]
        assert steps(said) == [2, 3], f"trial {trial} goes on where it is parked"
