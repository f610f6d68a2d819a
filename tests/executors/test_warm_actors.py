"""Actors that run trial after trial: nothing piles up in them, and nothing is stuck behind what takes long.

With leases given out ahead, with actors that are killed, and with reservations that differ from trial to trial.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.events import Ended, Event, Failed, How, Reported, Slots
from raytuner.executors import ray_actors
from raytuner.executors.ray_actors import RayActors
from raytuner.session import Rules
from raytuner.trial import END, Failure, Lease, Slot, Trial
from raytuner.work import Work

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(120)]


def lease(trial: int, until: int = END, attempt: int = 1, **config: Any) -> Lease:
    return Lease(Trial(trial, config), attempt, until, None, trial, tries=0, since=0.0, origin=0)


ONE_CPU = Slot()


@contextmanager
def actors(
    train: Callable[[Any], Any],
    folder: Path,
    slots: int | None = 2,
    slot: Slot | Callable[[Any], Slot] = ONE_CPU,
    ahead: bool = False,
    **rules: Any,
) -> Iterator[RayActors]:
    executor = RayActors(Work(train), Rules(folder / "checkpoints", {}, **rules), slot, slots, ahead)
    try:
        yield executor
    finally:
        executor.close()


@dataclass
class Desk:
    """Gives leases out, as many as there are slots for, and writes down what is heard.

    A lease that ends twice, or that speaks when it is over, is a defect.
    """

    executor: RayActors
    slots: int = 0
    most: int = 0  # the most slots there were
    out: dict[tuple[int, int], Lease] = field(default_factory=dict)
    over: dict[int, Ended | Failed] = field(default_factory=dict)  # by trial: how its latest lease ended
    last: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # by trial: its latest metrics

    def run(self, leases: Iterable[Lease] = (), done: Callable[[], bool] | None = None, limit_s: float = 40.0) -> None:
        """Until all that is out, and these leases, are over; or until ``done``."""
        waiting = list(reversed(list(leases)))
        deadline = time.monotonic() + limit_s
        while (waiting or self.out) if done is None else not done():
            assert time.monotonic() < deadline, f"not done within {limit_s} s: {len(waiting)} wait, {self.out} run"
            while waiting and len(self.out) < self.slots:
                self.give(waiting.pop())
            for event in self.executor.wait(0.5):
                self.hear(event)

    def give(self, *leases: Lease) -> None:
        for each in leases:
            self.out[each.trial.id, each.attempt] = each
            self.executor.run(each)

    def hear(self, event: Event) -> None:
        match event:
            case Slots(slots=slots):
                self.slots, self.most = slots, max(slots, self.most)
            case Reported(trial=trial, attempt=attempt, reports=reports):
                assert (trial, attempt) in self.out, f"{event}: it is over"
                self.last[trial] = reports[-1].metrics
            case Ended(trial=trial, attempt=attempt) | Failed(trial=trial, attempt=attempt):
                ended = self.out.pop((trial, attempt), None)
                assert ended is not None, f"{event}: it was over before"
                self.over[trial] = event
                if ended.trial.config.get("then") == "unwind":
                    self.executor.unwind(trial, attempt)

    def ends(self, trials: Iterable[int]) -> list[How | Failure]:
        """How the latest leases of these trials ended."""
        found = (self.over[trial] for trial in trials)
        return [end.how if isinstance(end, Ended) else end.failure for end in found]


# ------------------------------------------------------------------------------------------------- nothing piles up


def held() -> dict[str, Any]:
    """What this process holds: Python's threads, open files, memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    }


LEEWAY_MIB = 8.0  # 200 trials in each actor: each that kept 42 KiB would show


def grown(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> set[str]:
    """What a process holds more of: the least that was seen after, beside the most that was seen before."""

    def more(name: str) -> float:
        return min(each[name] for each in after) - max(each[name] for each in before)

    return {name for name in ("threads", "files") if more(name) > 0} | (
        {"memory"} if more("rss_mib") > LEEWAY_MIB else set()
    )


left_behind: list[Any] = []


def all_sorts(config: dict[str, Any]) -> None:
    """Says what its process holds, having done what trials do; leaves something behind if it is told to."""
    match config.get("leaks"):
        case "threads":
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        case "files":
            left_behind.append(os.open(os.devnull, os.O_RDONLY))
        case "memory":
            left_behind.append(os.urandom(64 * 1024))
    cycle: list[Any] = [bytearray(100_000)]
    cycle.append(cycle)
    if config["then"] == "print":
        print("a long line", "x" * 200)
        print("another", file=sys.stderr)
    tune.report({**held(), "pid_seen": os.getpid()})
    if config["then"] == "fail":
        raise ValueError("made to fail")


ENDS = {"return": END, "park": 1, "fail": END, "print": END, "unwind": 1}
"""What trials do, and until where: those that end at a report are parked there."""


def sorts(trials: range, **config: Any) -> list[Lease]:
    names = list(ENDS)
    chosen = [(trial, names[(trial + trial // 5) % 5]) for trial in trials]
    return [lease(trial, until=ENDS[then], then=then, **config) for trial, then in chosen]


@pytest.mark.timeout(180)
def test_nothing_piles_up_in_five_hundred_trials(tmp_path: Path) -> None:
    """Neither in the actors nor in the driver; and the measure sees what does: a thread, a file, 64 KiB a trial."""
    with actors(all_sorts, tmp_path / "study", chdir=True, stdout="out", stderr="err") as executor:
        desk = Desk(executor)

        def samples(trials: range) -> dict[int, list[Mapping[str, Any]]]:
            """What the latest of these trials said, by process."""
            found: dict[int, list[Mapping[str, Any]]] = {}
            for trial in trials[-30:]:
                found.setdefault(desk.last[trial]["pid_seen"], []).append(desk.last[trial])
            return found

        def growth(trials: range, **config: Any) -> dict[int, set[str]]:
            """What grew, by process, while these ran."""
            before, ours = samples(range(trials.start)), held()
            desk.run(sorts(trials, **config))
            after = samples(trials)
            assert before.keys() == after.keys(), "an actor was lost"
            return {pid: grown(before[pid], after[pid]) for pid in before} | {os.getpid(): grown([ours], [held()])}

        desk.run(done=lambda: desk.slots == 2)
        desk.run(sorts(range(100)))
        clean = growth(range(100, 500))
        assert len(clean) == 3
        assert not any(clean.values()), clean
        ends = desk.ends(range(500))
        assert {end: ends.count(end) for end in set(ends)} == {
            How.RETURNED: 200,
            How.REACHED: 200,
            Failure.ERROR: 100,
        }
        for name, trials in (("threads", 60), ("files", 60), ("memory", 400)):
            first = max(desk.over) + 1
            leaked = growth(range(first, first + trials), leaks=name)
            assert leaked == {pid: {name} if pid != os.getpid() else set() for pid in leaked}
    assert len(list((tmp_path / "study" / "artifacts").glob("*/out"))) >= 100


# --------------------------------------------------------------------------------------------------- leases ahead


def quick(config: dict[str, Any]) -> None:
    tune.report({"pid_seen": os.getpid()})


def waits(config: dict[str, Any]) -> None:
    """Reports, at once, and then returns when it may: after some time, or when a file appears."""
    tune.report({"pid_seen": os.getpid()})
    began = time.monotonic()
    while time.monotonic() - began < config.get("seconds", 60 if "file" in config else 0):
        if "file" in config and Path(config["file"]).exists():
            return
        if config.get("speaks"):
            tune.report({"pid_seen": os.getpid()})
        time.sleep(0.005)


def warmed_up(executor: RayActors) -> Desk:
    """After trials so short that many leases are given out ahead."""
    desk = Desk(executor)
    desk.run(done=lambda: desk.slots == 2)  # both are up
    while desk.slots < 16:
        first = len(desk.over)
        assert first < 3000, "no more than that are given out ahead"
        desk.run(lease(trial) for trial in range(first, first + 100))
    return desk


def test_leases_given_ahead_end_exactly_once(tmp_path: Path) -> None:
    with actors(quick, tmp_path, ahead=True) as executor:
        desk = warmed_up(executor)
        more = range(len(desk.over), len(desk.over) + 400)
        desk.run(lease(trial) for trial in more)
        assert set(desk.ends(range(more.stop))) == {How.RETURNED}
        assert len({desk.last[trial]["pid_seen"] for trial in more}) == 2


LONG = 100_000
"""The trial that takes long."""


def long_and_others(desk: Desk, file: Path, seconds: float = 0.03, speaks: bool = False) -> range:
    """Give out one that takes until the file is there, and others, of which half wait behind it; return those."""
    others = range(LONG + 1, LONG + desk.slots)
    desk.give(lease(LONG, file=str(file), speaks=speaks))
    desk.give(*(lease(trial, seconds=seconds) for trial in others))
    desk.run(done=lambda: LONG in desk.last)
    return others


@pytest.mark.parametrize("speaks", [False, True], ids=["silent", "reports on and on"])
@pytest.mark.parametrize("seconds", [0.0, 0.04], ids=["behind it short ones", "behind it longer ones"])
def test_what_waits_behind_a_long_trial_runs_elsewhere(seconds: float, speaks: bool, tmp_path: Path) -> None:
    file = tmp_path / "go on"
    with actors(waits, tmp_path, ahead=True) as executor:
        desk = warmed_up(executor)
        others = long_and_others(desk, file, seconds, speaks)
        desk.run(done=lambda: len(desk.out) == 1, limit_s=20)
        assert desk.out.keys() == {(LONG, 1)}, "it still runs"
        assert set(desk.ends(others)) == {How.RETURNED}
        assert desk.last[LONG]["pid_seen"] not in {desk.last[trial]["pid_seen"] for trial in others}
        file.touch()
        desk.run()
        assert desk.ends([LONG]) == [How.RETURNED]


def test_what_waits_in_an_actor_that_is_killed_runs_elsewhere_free_of_charge(tmp_path: Path) -> None:
    with actors(waits, tmp_path, ahead=True) as executor:
        desk = warmed_up(executor)
        others = long_and_others(desk, tmp_path / "go on")
        assert len(desk.out) > len(others) // 2, "some wait behind it"
        killed = desk.last[LONG]["pid_seen"]
        os.kill(killed, signal.SIGKILL)
        desk.run()
        assert desk.ends([LONG]) == [Failure.LOST]
        assert set(desk.ends(others)) == {How.RETURNED}
        assert killed not in {desk.last[trial]["pid_seen"] for trial in others}
        desk.run(done=lambda: desk.slots >= 2)  # a new actor takes its place
        desk.run([lease(LONG, attempt=2)])
        assert desk.ends([LONG]) == [How.RETURNED]


def unwind_what_waits(executor: RayActors, desk: Desk) -> list[int]:
    """Tell all that wait in one actor with the long one to end; return them."""
    (there,) = (worker.leases for worker in executor._workers if worker.leases and worker.leases[0].trial.id == LONG)
    told = [each.trial.id for each in there][1:]
    assert len(told) > 5
    for trial in told:
        executor.unwind(trial, 1)
    return told


def never_ran(desk: Desk, trials: Sequence[int]) -> bool:
    return set(desk.ends(trials)) == {How.UNWOUND} and not desk.last.keys() & set(trials)


def test_leases_that_wait_in_an_actor_are_unwound_at_once(tmp_path: Path) -> None:
    with actors(waits, tmp_path, ahead=True, grace_s=60.0) as executor:
        desk = warmed_up(executor)
        long_and_others(desk, tmp_path / "go on")
        told = unwind_what_waits(executor, desk)
        desk.run(done=lambda: len(desk.out) == 1, limit_s=20)
        assert never_ran(desk, told)
        (tmp_path / "go on").touch()
        desk.run()


def test_unwound_leases_that_wait_in_an_actor_that_is_killed_run_nowhere(tmp_path: Path) -> None:
    with actors(waits, tmp_path, ahead=True, grace_s=60.0) as executor:
        desk = warmed_up(executor)
        long_and_others(desk, tmp_path / "go on")
        os.kill(desk.last[LONG]["pid_seen"], signal.SIGSTOP)  # it is not told any more
        told = unwind_what_waits(executor, desk)
        os.kill(desk.last[LONG]["pid_seen"], signal.SIGKILL)
        desk.run(limit_s=20)
        assert desk.ends([LONG]) == [Failure.LOST]
        assert never_ran(desk, told)


def taking_back(executor: RayActors, desk: Desk) -> Any:
    """Go on until leases are being taken back from an actor; return what the executor knows of that."""
    deadline = time.monotonic() + 20
    while not (found := [worker for worker in executor._workers if worker.withdrawn is not None]):
        assert time.monotonic() < deadline
        for event in executor.wait(0.0):
            desk.hear(event)
    return found[0]


def test_a_lease_may_be_unwound_while_it_is_taken_back(tmp_path: Path) -> None:
    with actors(waits, tmp_path, ahead=True, grace_s=60.0) as executor:
        desk = warmed_up(executor)
        long_and_others(desk, tmp_path / "go on")
        taking_back(executor, desk)
        told = unwind_what_waits(executor, desk)
        desk.run(done=lambda: len(desk.out) == 1, limit_s=20)
        assert never_ran(desk, told)
        (tmp_path / "go on").touch()
        desk.run()


def test_an_actor_may_be_lost_while_leases_are_taken_back(tmp_path: Path) -> None:
    """Both are heard of in one turn."""
    import ray

    with actors(waits, tmp_path, ahead=True) as executor:
        desk = warmed_up(executor)
        others = long_and_others(desk, tmp_path / "go on")
        worker = taking_back(executor, desk)
        assert ray.wait([worker.withdrawn], timeout=20, fetch_local=False)[0]
        os.kill(desk.last[LONG]["pid_seen"], signal.SIGKILL)
        assert ray.wait([worker.stream], timeout=20, fetch_local=False)[0]
        desk.run()
        assert desk.ends([LONG]) == [Failure.LOST]
        assert set(desk.ends(others)) == {How.RETURNED}


# ------------------------------------------------------------------------------------------ slots of several sizes


def sized(config: dict[str, Any]) -> None:
    """Says in what kind of actor it runs, again and again."""
    import ray

    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
    while True:
        assigned = ray.get_runtime_context().get_assigned_resources()
        tune.report({"pid_seen": os.getpid(), "gpus": gpus, "has": assigned})


def size(config: Mapping[str, Any]) -> Slot:
    return Slot(cpu=config["cpus"], gpu=config.get("gpus", 0.0))


def test_each_trial_runs_in_an_actor_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_actors, "_SCATTERED_S", 1.0)
    sizes: dict[str, dict[str, float]] = {
        "small": {"cpus": 0.5},
        "shared": {"cpus": 0.5, "gpus": 0.5},
        "large": {"cpus": 1, "gpus": 1.0},
    }
    kinds = [*sizes] * 4
    with actors(sized, tmp_path, None, size) as executor:
        desk = Desk(executor)
        desk.run(lease(trial, until=1, **sizes[kind]) for trial, kind in enumerate(kinds))
        assert set(desk.ends(range(len(kinds)))) == {How.REACHED}
    pids: dict[str, set[int]] = {kind: set() for kind in sizes}
    for trial, kind in enumerate(kinds):
        said = desk.last[trial]
        pids[kind].add(said["pid_seen"])
        assert said["has/CPU"] == sizes[kind]["cpus"]
        assert said.get("has/GPU", 0.0) == sizes[kind].get("gpus", 0.0)
        assert said["gpus"] in (("none",) if kind == "small" else ("0", "1"))
    assert len(set.union(*pids.values())) == sum(map(len, pids.values())), "an actor has one size"


def test_what_is_free_may_lie_scattered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of each GPU is free, and one GPU is wanted: one more actor makes room."""
    monkeypatch.setattr(ray_actors, "_SCATTERED_S", 1.0)
    with actors(sized, tmp_path, None, size) as executor:
        desk = Desk(executor)
        desk.run(lease(trial, until=1, cpus=0.5, gpus=0.5) for trial in range(4))
        on = {gpu: [trial for trial in range(4) if desk.last[trial]["gpus"] == gpu] for gpu in "01"}
        assert [len(trials) for trials in on.values()] == [2, 2]
        for trials in zip(*on.values(), strict=True):  # those that were idle longest lie on different GPUs
            desk.run(lease(trial, until=2, attempt=2, cpus=0.5, gpus=0.5) for trial in trials)
        desk.run([lease(4, until=1, cpus=1, gpus=1)])
        assert desk.last[4]["has/GPU"] == 1


def test_idle_actors_make_room_for_one_of_another_size(tmp_path: Path) -> None:
    with actors(sized, tmp_path, None, size) as executor:
        desk = Desk(executor)
        desk.run(lease(trial, until=1, cpus=1) for trial in range(4))  # the whole machine, and all are parked
        assert len({desk.last[trial]["pid_seen"] for trial in range(4)}) == 4
        desk.run([lease(4, until=1, cpus=4)])
        assert desk.last[4]["has/CPU"] == 4
        desk.run([lease(0, until=2, attempt=2, cpus=1)])  # and back
        assert desk.last[0]["has/CPU"] == 1
        assert desk.last[0]["training_iteration"] == 2
        assert set(desk.ends(range(5))) == {How.REACHED}


def test_only_as_many_make_room_as_must_and_not_the_trial_s_own(tmp_path: Path) -> None:
    with actors(sized, tmp_path, None, size) as executor:
        desk = Desk(executor)
        desk.run(lease(trial, until=1, cpus=1) for trial in range(4))
        before = {trial: desk.last[trial]["pid_seen"] for trial in range(4)}
        ended = list(desk.over)  # in this order
        desk.run([lease(4, until=1, cpus=2)])
        stayed = []
        for trial in reversed(ended):
            desk.run([lease(trial, until=2, attempt=2, cpus=1)])
            stayed += [trial] if desk.last[trial]["pid_seen"] == before[trial] else []
        assert stayed == ended[:1:-1], "two made room, those that had been idle longest"


def test_a_configuration_that_asks_for_too_much_is_an_error_of_its_trial(tmp_path: Path) -> None:
    with actors(sized, tmp_path, None, size) as executor:
        desk = Desk(executor)
        desk.run([lease(0, until=1, cpus=64), lease(1, until=1), lease(2, until=1, cpus=1)])
        assert desk.ends(range(3)) == [Failure.NO_RESOURCES, Failure.NO_RESOURCES, How.REACHED]
        too_much, no_answer = desk.over[0], desk.over[1]
        assert isinstance(too_much, Failed)
        assert "CPU: 64 wanted, 4 there" in too_much.message
        assert isinstance(no_answer, Failed)
        assert "KeyError: 'cpus'" in no_answer.message
