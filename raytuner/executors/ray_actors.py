"""The real executor: warm trial actors in slots, on whatever Ray this process is connected to.

Each actor has one stream, on which it says what its trials say as long as it lives; leases are sent to it, one or
several in a call. Ray reserves what a slot asks for (CPUs, GPUs and fractions of them, memory, custom resources), sets
``CUDA_VISIBLE_DEVICES`` and notices dead workers and nodes; this file turns that into events. A dead actor is replaced;
its slot is gone until the replacement is up.

Nodes come and go (`raytuner.executors.nodes`): actors are hired for those that come, slots go with those that do. The
trial of a node that died, or is to go, goes on elsewhere, free of charge (`Failure.NODE`); one that is to go lets its
trials save first.

Two kinds of `Slots` are announced. Where every trial reserves the same, there are as many actors as fit on the cluster,
hired at once. Where the reservation is a function of the configuration, or changes while trials run (`Lease.slot`),
actors are hired for the trials that come, idle ones of another size making room, and one slot more is open as long as
one more may fit. A trial that is to reserve something else leaves the actor it is parked in, which makes room.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from raytuner.actor import TrialActor
from raytuner.events import Checkpointed, Damaged, Ended, Event, Failed, How, Loaded, Reported, Slots
from raytuner.executors.nodes import Home, Nodes, is_of_a_node
from raytuner.executors.room import count, fits_beside, least, slots_in
from raytuner.mailbox import Item
from raytuner.session import Rules
from raytuner.trial import Config, Failure, Lease, Reports, Slot
from raytuner.work import Work

_log = logging.getLogger(__name__)
_PATIENCE_S = 10
_STARTS = 3  # actors in a row that may fail to come up before the study gives up
_UNREAD = 64  # batches that an actor may be ahead of the driver
_AHEAD = 31  # leases that may wait in an actor at most
_AHEAD_S = 0.06  # and how long they may take together
_STUCK_S = 0.25  # leases that wait behind one that takes longer are given to others
_SCATTERED_S = 5.0  # an actor that is not up by then may have found no place
_STACK_S = 5.0  # how long an actor may take to say what its trial is doing
_DOUBT_S = 1.0  # when a process died, its node may be about to
_SHORT_S = 30.0  # how long a trial may wait, on a node that is to go, for the step that it saves there
_HOPELESS = 6  # after so many times that, one that is larger than it need be is given up


class NoActors(RuntimeError):
    """Trial actors cannot be started."""


@dataclass(eq=False, slots=True)
class _Worker:
    """An actor in a slot, with the leases that are out to it, the first of which runs; perhaps with a trial parked."""

    actor: Any
    slot: Slot
    up: Any  # the reference that tells when the actor is up
    stream: Any = None  # what it says; None until it is up
    node: str = ""  # where it is, once it is up
    leaving: bool = False  # whether that node is to go: then it is given nothing new
    gone: bool = False  # whether it is ours no more: what it says does not count
    leases: deque[Lease] = field(default_factory=deque)
    unsent: list[Lease] = field(default_factory=list)
    heard: bool = False  # whether the first lease's trial has spoken
    since: float = 0.0  # when the first lease was given or, if there is none, the last one ended
    parked: int | None = None
    stands: int = 0  # the step at which the last lease ended
    short: bool = False  # whether that was short of its rung, so that the trial goes on at once
    late: int = 0  # how often it was looked at and not up
    guest: int | None = None  # the trial that was parked here when the last lease was given
    withdrawn: Any = None  # the reference to leases that it gives back
    spoke: float = 0.0  # when it was last heard
    stack: Any = None  # the reference to what its trial is doing, asked for when it had said nothing for too long
    asked: float = 0.0  # when that was


class RayActors:
    """Leases on actors; as many as the cluster holds, at most ``most`` (None: no bound).

    ``slot``: what each trial reserves, or a function of its configuration that says so. ``ahead``: leases may be given
    out before there is a slot for them, since nothing depends on their order; that happens while they are so short
    that the way to the actor and back would take longer than they do. ``resizes``: leases may say what they reserve,
    more or less than ``slot``.

    Raises `NoResources` if the cluster, as it is, can never run a trial, naming what falls short.
    """

    def __init__(
        self,
        work: Work,
        rules: Rules,
        slot: Slot | Callable[[Config], Slot],
        most: int | None,
        ahead: bool = False,
        runtime_env: Mapping[str, Any] | None = None,
        resizes: bool = False,
    ) -> None:
        self._nodes = Nodes()
        self._slot = slot if isinstance(slot, Slot) else Slot(cpu=0.0)
        self._slot_of = None if isinstance(slot, Slot) else slot
        self._resizes = resizes
        self._by_size = resizes or self._slot_of is not None
        slots_in(self._nodes.known, self._slot)
        self._work = ray.put(work.stored(ray.put))
        self._rules = ray.put(rules)
        self._runtime_env = dict(runtime_env) if runtime_env else None
        self._kind = ray.remote(concurrency_groups={"stream": 1})(TrialActor)
        self._most = most
        self._workers: list[_Worker] = []
        if isinstance(slot, Slot):
            self._settle()
        self._waiting: deque[Lease] = deque()  # for an actor that is up and free
        self._moved: set[int] = set()  # trials that were given another actor, free of charge: each is once
        self._least = self._slot if resizes else None  # of each resource that a trial asked for
        self._modest: set[int] = set()  # trials that could not be given more than the least, for now
        self._grace_s, self._heartbeat_s = rules.grace_s, rules.heartbeat_timeout_s
        self._deadlines: dict[tuple[int, int], float] = {}  # when unwound leases must be over
        self._ahead_allowed, self._ahead, self._lease_s = ahead, 0, 0.2
        self._announced = 0  # as whoever listens takes it to be
        self._told: tuple[Slot, ...] = ()  # what each node has, as far as that was announced
        self._failed_starts = 0
        self._in_doubt: list[tuple[float, _Worker, Lease, str]] = []  # lost, but with its node? not known until then
        self._placed = self._warned = time.monotonic()
        self._repetition_told = False
        self._events: deque[Event] = deque()

    # ------------------------------------------------------------------------------------------------ the executor

    def run(self, lease: Lease) -> None:
        self._waiting.append(lease)
        if lease.last:
            self._deadlines[lease.trial.id, lease.attempt] = time.monotonic() + self._grace_s

    def unwind(self, trial: int, attempt: int) -> None:
        for lease in self._waiting:
            if (lease.trial.id, lease.attempt) == (trial, attempt):
                self._waiting.remove(lease)
                self._events.append(_unwound(lease))
                return
        for doubt in self._in_doubt:
            if (doubt[2].trial.id, doubt[2].attempt) == (trial, attempt):
                self._in_doubt.remove(doubt)
                self._events.append(_unwound(doubt[2]))
                return
        for worker in self._workers:
            out = next((each for each in worker.leases if (each.trial.id, each.attempt) == (trial, attempt)), None)
            if out is not None and out in worker.unsent:
                worker.unsent.remove(out)
                worker.leases.remove(out)
                worker.parked = worker.guest
                self._events.append(_unwound(out))
            elif out is not None:
                worker.actor.unwind.remote(trial, attempt, parked=False)
                self._deadlines[trial, attempt] = time.monotonic() + self._grace_s
            elif worker.parked == trial:
                worker.actor.unwind.remote(trial, attempt, parked=True)
                worker.parked = None

    def wait(self, timeout_s: float | None) -> Sequence[Event]:
        if time.monotonic() >= self._nodes.due:
            self._look()
        self._make_more_room()
        self._give_out()
        self._leave()
        self._announce()
        if self._events:
            timeout_s = 0.0
        waiting = {worker.up if worker.stream is None else worker.stream: worker for worker in self._workers}
        waiting |= {worker.withdrawn: worker for worker in self._workers if worker.withdrawn is not None}
        waiting |= {worker.stack: worker for worker in self._workers if worker.stack is not None}
        for key in self._wait(list(waiting), timeout_s):
            worker = waiting[key]
            if worker.gone:
                continue  # its node died, as was heard of another one there
            if key is worker.withdrawn:
                self._take_back(worker)
            elif key is worker.stack:
                self._end_hung(worker)
            elif worker.stream is None:
                self._welcome(worker)
            else:
                self._hear(worker)
        self._end_overdue()
        self._look_for_hung()
        self._decide()
        self._warn()
        self._announce()
        events = list(self._events)
        self._events.clear()
        return events

    def close(self, at_once: bool = False) -> None:
        """End all actors; but let what is parked, or was told to end, return first, for the grace period at most."""
        idle = [worker for worker in self._workers if worker.stream is not None and not worker.leases]
        closing = [] if at_once else [worker.actor.close.remote() for worker in idle]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=self._grace_s, fetch_local=False)
        for worker in self._workers:
            ray.kill(worker.actor, no_restart=True)
        self._workers.clear()

    def _wait(self, keys: list[Any], timeout_s: float | None) -> list[Any]:
        """What is there, once there is something or the time is over, or the nodes are to be looked at."""
        now = time.monotonic()
        limits = [self._nodes.due] if timeout_s is None else [self._nodes.due, now + timeout_s]
        limits += [now + _STUCK_S] if any(len(worker.leases) > 1 for worker in self._workers) else []
        if self._by_size:
            limits += [worker.since + _SCATTERED_S for worker in self._coming()]
        limits += self._deadlines.values()
        limits += [due for due, *_ in self._in_doubt]
        limits += [self._silent_until(worker) for worker in self._workers if self._is_watched(worker)]
        limit = max(0.0, min(limits) - now)
        if not keys:
            time.sleep(limit)
            return []
        ready, _ = ray.wait(keys, num_returns=1, timeout=limit, fetch_local=False)
        if ready and len(keys) > 1:  # whatever else is there by now belongs to the same turn
            ready, _ = ray.wait(keys, num_returns=len(keys), timeout=0, fetch_local=False)
        return list(ready)

    def _warn(self) -> None:
        """Say, now and then, that nothing can be placed."""
        now = time.monotonic()
        wanted = self._workers or self._waiting or not self._by_size
        if not wanted or any(worker.stream is not None for worker in self._workers):
            self._placed = self._warned = now
        elif now >= self._warned + _PATIENCE_S:
            self._warned = now
            slot = self._workers[0].slot if self._workers else self._least or self._slot
            _log.warning(
                "no trial could be placed for %d s: each reserves %s, %s; free in the cluster: %s",
                now - self._placed,
                slot,
                "and would fit on a node" if count(self._nodes.staying, slot) else "and fits on no node that is left",
                {name: amount for name, amount in ray.available_resources().items() if ":" not in name},
            )

    # ----------------------------------------------------------------------------------------------------- actors

    def _hire(self, slot: Slot) -> _Worker:
        actor = self._kind.options(**_options(slot, self._runtime_env)).remote(self._work, self._rules)
        worker = _Worker(actor, slot, actor.ready.remote())
        self._workers.append(worker)
        return worker

    def _welcome(self, worker: _Worker) -> None:
        """An actor is up, or failed to come up."""
        try:
            worker.node = ray.get(worker.up)
        except RayError as error:
            self._failed_starts += not is_of_a_node(error)
            if self._failed_starts >= _STARTS:
                raise NoActors(f"{_STARTS} trial actors in a row could not be started; the last: {error}") from error
            self._replace(worker)
            return
        self._failed_starts = 0
        worker.stream = worker.actor.serve.options(
            num_returns="streaming", concurrency_group="stream", _generator_backpressure_num_objects=_UNREAD
        ).remote()
        self._send(worker)
        if self._nodes.home(worker.node) is not Home.STAYS:
            self._look()

    def _replace(self, worker: _Worker) -> None:
        """An actor is dead; what it had not begun goes to others."""
        self._put_back(list(worker.leases))
        worker.leases.clear()
        self._dismiss(worker)
        self._settle()

    def _dismiss(self, worker: _Worker, at_once: bool = True) -> None:
        """Be rid of an actor, which may end what it does unless ``at_once``."""
        worker.gone = True
        self._workers.remove(worker)
        if at_once:
            ray.kill(worker.actor, no_restart=True)
        else:
            worker.actor.close.remote()
            worker.actor.__ray_terminate__.remote()

    def _settle(self) -> None:
        """Where all are alike: have as many actors as fit on the nodes that stay."""
        if self._by_size:
            return
        fit = count(self._nodes.staying, self._slot)
        wanted = fit if self._most is None else min(fit, self._most)
        ours = [worker for worker in self._workers if not worker.leaving]
        for _ in range(wanted - len(ours)):
            self._hire(self._slot)
        homeless = [worker for worker in reversed(ours) if worker.stream is None]
        for worker in homeless[: max(0, len(ours) - wanted)]:
            self._dismiss(worker)

    def _bury(self, worker: _Worker, error: Exception, failure: Failure = Failure.LOST) -> None:
        """An actor died, or its node did, or what it said and nobody had fetched is gone; or it is to die."""
        if worker.gone:
            return
        if isinstance(error, OutOfMemoryError):
            failure = Failure.HOST_OUT_OF_MEMORY
        if failure is Failure.LOST:
            self._look()
            if worker.gone:
                return
            if is_of_a_node(error) or self._nodes.home(worker.node) is not Home.STAYS:
                failure = Failure.NODE
        last: Ended | Failed | None = None
        if worker.leases:
            first = worker.leases.popleft()
            trial = first.trial.id
            if self._deadlines.pop((trial, first.attempt), None) is not None:
                last = _unwound(first)
            elif failure is Failure.LOST and (worker.heard or trial in self._moved):
                self._in_doubt.append((time.monotonic() + _DOUBT_S, worker, first, str(error)))
            elif worker.heard or trial in self._moved or failure in (Failure.HUNG, Failure.NODE):
                last = _failed(first, failure, str(error))
            else:  # its actor died before it began, perhaps of the trial that was there before
                self._moved.add(trial)
                worker.leases.appendleft(first)
        self._replace(worker)
        self._announce()  # the slot is gone before the lease is over: else another would be given out for it
        if last is not None:
            self._events.append(last)

    def _decide(self) -> None:
        """Of processes that died a while ago: their trials were lost, with their nodes or alone."""
        now = time.monotonic()
        due = [doubt for doubt in self._in_doubt if doubt[0] <= now]
        if due:
            self._look()
        for doubt in due:
            _, worker, lease, message = doubt
            self._in_doubt.remove(doubt)
            self._announce()
            alone = self._nodes.home(worker.node) is Home.STAYS
            self._events.append(_failed(lease, Failure.LOST if alone else Failure.NODE, message))

    def _end_overdue(self) -> None:
        """A function that does not return when it is told to is ended with its actor."""
        if not self._deadlines:
            return
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.leases:
                first = worker.leases[0].trial.id, worker.leases[0].attempt
                if self._deadlines.get(first, now) < now:
                    _log.warning("trial %d did not end within %g s and is killed", first[0], self._grace_s)
                    self._bury(worker, TimeoutError())

    def _is_watched(self, worker: _Worker) -> bool:
        """Whether a trial runs in an actor that must speak now and then."""
        running = worker.stream is not None and worker.leases and worker.leases[0] not in worker.unsent
        return bool(self._heartbeat_s and running)

    def _silent_until(self, worker: _Worker) -> float:
        """When an actor will have said nothing for too long, or not have told for too long what it is doing."""
        if worker.stack is not None:
            return worker.asked + _STACK_S
        return max(worker.spoke, worker.since) + (self._heartbeat_s or 0.0)

    def _look_for_hung(self) -> None:
        now = time.monotonic()
        for worker in [each for each in self._workers if self._is_watched(each) and self._silent_until(each) <= now]:
            if worker.stack is None:
                worker.stack, worker.asked = worker.actor.stack.remote(), now
            else:
                self._end_hung(worker, f"its process did not say within {_STACK_S:g} s what it was doing")

    def _end_hung(self, worker: _Worker, doing: str | None = None) -> None:
        """An actor that said nothing for too long is ended, unless it has spoken after all."""
        stack, worker.stack = worker.stack, None
        if not self._is_watched(worker) or max(worker.spoke, worker.since) > worker.asked:
            return
        if doing is None:
            try:
                doing = ray.get(stack)
            except RayError as error:
                self._bury(worker, error)
                return
        first = worker.leases[0].trial.id
        _log.warning("trial %d reported nothing for %g s: its process is ended", first, self._heartbeat_s)
        message = f"nothing was reported for {self._heartbeat_s:g} s; where it stood:\n{doing}"
        self._bury(worker, TimeoutError(message), Failure.HUNG)

    # ------------------------------------------------------------------------------------------------------- nodes

    def _look(self) -> None:
        """See which nodes there are: bury the actors of those that are gone, have those leave that are on one that is
        to go, hire for those that came."""
        if not self._nodes.look() and all(self._nodes.home(worker.node) is Home.STAYS for worker in self._up()):
            return
        for worker in self._up():
            home = self._nodes.home(worker.node)
            if home is Home.GONE:
                self._bury(worker, RuntimeError(f"the node {worker.node} is dead"), Failure.NODE)
            elif home is Home.GOING and not worker.leaving:
                self._vacate(worker)
        self._settle()

    def _up(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.stream is not None]

    def _vacate(self, worker: _Worker) -> None:
        """The node of an actor is to go: its trial is to save and leave, what waits behind it goes to others."""
        _log.warning("the node %s is to go; what runs there saves, and goes on elsewhere", worker.node)
        worker.leaving = True
        for lease in worker.unsent:
            worker.leases.remove(lease)
        self._put_back(worker.unsent)
        worker.unsent = []
        if len(worker.leases) > 1 and worker.withdrawn is None:
            worker.withdrawn = worker.actor.withdraw.remote()
        self._end_first(worker)

    def _end_first(self, worker: _Worker) -> None:
        """Have the trial that runs in a leaving actor save at its next report, and end there. One that parks at each
        report is given a lease that does that."""
        if worker.leaving and worker.leases and not worker.leases[0].each_report:
            first = worker.leases[0]
            worker.actor.unwind.remote(first.trial.id, first.attempt, parked=False)

    def _leave(self) -> None:
        """Actors whose node is to go, and that have nothing to do any more, end: then the node can."""
        now = time.monotonic()
        for worker in list(self._workers):
            waits = worker.parked is not None and worker.short and now - worker.since < _SHORT_S
            if worker.leaving and not worker.leases and not waits:
                self._dismiss(worker, at_once=False)

    # ------------------------------------------------------------------------------------------------------ leases

    def _give_out(self) -> None:
        """Send the leases that wait to actors that are free, or nearly."""
        self._parked_first()
        while self._waiting:
            lease = self._waiting[0]
            slot = self._size(lease)
            worker = None if slot is None else self._place(lease, slot)
            if slot is not None and worker is None:
                break
            self._waiting.popleft()
            if worker is None:
                continue
            if self._by_size:
                lease = replace(lease, slot=worker.slot)
            if lease.origin and lease.checkpoint is None and worker.parked != lease.trial.id:
                self._warn_of_repetition(lease)
            if worker.leaving:
                lease = replace(lease, last=True)
            if not worker.leases:
                worker.heard, worker.since = False, time.monotonic()
            worker.leases.append(lease)
            worker.unsent.append(lease)
            worker.guest, worker.parked = worker.parked, None
        for worker in self._workers:
            self._send(worker)
        if any(worker.stream is not None and not worker.leases for worker in self._workers):
            self._withdraw()

    def _parked_first(self) -> None:
        """Leases whose trial is parked in a free actor come first: any other might drive it out."""
        homes = {worker.parked: worker for worker in self._workers if worker.parked is not None and not worker.leases}

        def leaves(lease: Lease) -> bool:
            home = homes.get(lease.trial.id)
            return home is None or self._leaves(home, lease)

        if homes and len(self._waiting) > 1:
            self._waiting = deque(sorted(self._waiting, key=leaves))

    def _warn_of_repetition(self, lease: Lease) -> None:
        if not self._repetition_told:
            self._repetition_told = True
            _log.warning(
                "trial %d starts again at 0: it was paused at step %d without a checkpoint, and its slot was wanted. "
                "Save where should_checkpoint() says so, and go on from get_checkpoint() (this is said once)",
                lease.trial.id,
                lease.origin,
            )

    def _size(self, lease: Lease) -> Slot | None:
        """What a lease reserves; None if that cannot be: then its attempt has failed."""
        if not self._by_size:
            return self._slot
        try:
            slot = self._wanted(lease) if self._slot_of is None else self._slot_of(lease.trial.config)
            slots_in(self._nodes.known, slot)
        except Exception as error:  # the user's function, or what it asks for
            whose = "which the scheduler gave this trial" if self._resizes else "of this configuration"
            message = f"the resources {whose}: {type(error).__name__}: {error}"
            self._events.append(_failed(lease, Failure.NO_RESOURCES, message))
            return None
        self._least = slot if self._least is None else least(self._least, slot)
        return slot

    def _place(self, lease: Lease, slot: Slot) -> _Worker | None:
        """Where a lease goes: to the actor its trial is parked in, else to an empty one, else to any that is idle."""
        if self._by_size:
            return self._place_by_size(lease, slot)
        home = next((worker for worker in self._workers if worker.parked == lease.trial.id and not worker.leases), None)
        if home is not None and home.leaving and not self._leaves(home, lease):
            return home
        free = [worker for worker in self._up() if not worker.leaving and len(worker.leases) <= self._ahead]
        return min(free, key=lambda worker: _preference(worker, lease), default=None)

    def _place_by_size(self, lease: Lease, slot: Slot) -> _Worker | None:
        """An idle actor of the right size, or a new one, if need be in the place of idle ones of other sizes."""
        idle = [worker for worker in self._workers if not worker.leases]
        home = next((worker for worker in idle if worker.parked == lease.trial.id), None)
        if home is not None:
            if not self._leaves(home, lease):
                return home
            idle.remove(home)
            self._dismiss(home, at_once=False)
        idle = [worker for worker in idle if not worker.leaving]
        same = [worker for worker in idle if worker.slot == slot]
        if same:
            return min(same, key=lambda worker: _preference(worker, lease))
        idle.sort(key=lambda worker: (worker.parked is not None, worker.since))
        while not self._fits(slot):
            if not idle:
                return None
            self._dismiss(idle.pop(0), at_once=False)
        return self._hire(slot)

    def _wanted(self, lease: Lease) -> Slot:
        """What a lease is to reserve where that may change."""
        return lease.slot if lease.slot is not None and lease.trial.id not in self._modest else self._slot

    def _leaves(self, home: _Worker, lease: Lease) -> bool:
        """Whether a trial leaves the actor it is parked in for another: never where it would lose steps."""
        is_to = home.leaving or (self._resizes and home.slot != self._wanted(lease))
        return is_to and home.stands == lease.checkpoint

    def _make_more_room(self) -> None:
        """What is free may lie scattered, as half of one GPU and half of another: then one more idle actor must go."""
        now = time.monotonic()
        late = [worker for worker in self._coming() if now - worker.since >= _SCATTERED_S]
        if not self._by_size or not late:
            return
        for worker in late:
            worker.since, worker.late = now, worker.late + 1
        gpu = any(worker.slot.gpu for worker in late)
        idle = [worker for worker in self._workers if worker.stream is not None and not worker.leases]
        if idle:
            least_missed = min(idle, key=lambda each: (gpu and not each.slot.gpu, each.parked is not None, each.since))
            self._dismiss(least_missed, at_once=False)
        elif self._resizes:
            for worker in late:
                if worker.late >= _HOPELESS and worker.slot != self._slot:
                    self._settle_for_less(worker)

    def _coming(self) -> list[_Worker]:
        """The actors that are not up, and that somebody waits for."""
        return [worker for worker in self._workers if worker.stream is None and worker.leases]

    def _settle_for_less(self, worker: _Worker) -> None:
        """What a trial was given cannot be had: somebody else has it, or what is free lies scattered."""
        self._modest.update(lease.trial.id for lease in worker.leases)
        _log.warning("%s cannot be had now: trials %s go on with %s", worker.slot, sorted(self._modest), self._slot)
        self._dismiss(worker)
        self._put_back(list(worker.leases))

    def _fits(self, slot: Slot) -> bool:
        within = self._most is None or len(self._workers) < self._most
        taken = [worker.slot for worker in self._workers if not worker.leaving]
        return within and fits_beside(self._nodes.staying, taken, slot)

    def _send(self, worker: _Worker) -> None:
        if worker.unsent and worker.stream is not None:
            worker.actor.take.remote(worker.unsent)
            worker.unsent = []

    def _withdraw(self) -> None:
        """One is idle: take back what waits behind a lease that takes long."""
        now = time.monotonic()
        for worker in self._workers:
            if len(worker.leases) > 1 and worker.withdrawn is None and now - worker.since > _STUCK_S:
                worker.withdrawn = worker.actor.withdraw.remote()

    def _take_back(self, worker: _Worker) -> None:
        reference, worker.withdrawn = worker.withdrawn, None
        try:
            back: list[Lease] = ray.get(reference)
        except RayError:
            return  # it is dead; its stream says so too
        back = [lease for lease in back if lease in worker.leases]
        for lease in back:
            worker.leases.remove(lease)
        self._put_back(back)
        self._end_first(worker)

    def _put_back(self, leases: Sequence[Lease]) -> None:
        """Leases that had not begun wait for another actor; those that were to end are over."""
        for lease in reversed(leases):
            if self._deadlines.pop((lease.trial.id, lease.attempt), None) is None:
                self._waiting.appendleft(lease)
            else:
                self._events.append(_unwound(lease))

    def _hear(self, worker: _Worker) -> None:
        """Take the next batch of what an actor's trials say."""
        try:
            batch: list[Item] = ray.get(next(worker.stream))
        except (RayError, StopIteration) as error:
            wrong = error.cause if isinstance(error, RayTaskError) else error
            self._bury(worker, wrong if isinstance(wrong, Exception) else error)
            return
        worker.spoke = time.monotonic()
        for item in batch:
            if isinstance(item, Reports):
                worker.heard = True
                self._events.append(Reported(item.at[-1], item.trial, item.attempt, item))
            elif isinstance(item, Loaded | Checkpointed):
                self._events.append(item)
            else:
                self._over(worker, item)

    def _over(self, worker: _Worker, last: Ended | Failed | Damaged) -> None:
        """A lease ended."""
        for lease in worker.leases:
            if (lease.trial.id, lease.attempt) == (last.trial, last.attempt):
                worker.leases.remove(lease)
                break
        else:
            return
        stays = isinstance(last, Ended) and (
            last.how.parks or (last.how is How.UNWOUND and not last.metrics and worker.guest == last.trial)
        )  # or its lease was taken back before it began
        worker.parked = last.trial if stays else None
        if isinstance(last, Ended) and last.how.parks:
            worker.stands, worker.short = last.step, lease.each_report and last.level < lease.until
        else:
            worker.short = False
            self._modest.clear()  # something is given back
        worker.heard, worker.since = False, time.monotonic()
        asked = self._deadlines.pop((last.trial, last.attempt), None) is not None
        self._lease_s += 0.2 * (last.spent - self._lease_s)
        if worker.leaving:
            self._end_first(worker)
            self._announce()  # the slot is gone before the lease is over: else another would be given out for it
            if isinstance(last, Ended) and last.how is How.UNWOUND and not asked:
                if not last.metrics:  # it never began
                    self._put_back([replace(lease, last=False)])
                    return
                last = replace(_failed(lease, Failure.NODE, f"the node {worker.node} is to go"), spent=last.spent)
        self._events.append(last)

    # ------------------------------------------------------------------------------------------------------- slots

    def _announce(self) -> None:
        """Say how many leases may be out, if that is news."""
        if not self._by_size:
            if self._ahead_allowed:
                self._ahead = _power_of_two(min(_AHEAD, int(_AHEAD_S / max(self._lease_s, 1e-6))))
            slots = sum(not worker.leaving for worker in self._up()) * (1 + self._ahead)
            slots += sum(len(worker.leases) or worker.short for worker in self._workers if worker.leaving)
        else:
            out = len(self._waiting) + len(self._in_doubt) + sum(bool(worker.leases) for worker in self._workers)
            busy = [worker.slot for worker in self._workers if worker.leases and not worker.leaving]
            more = self._least is None or fits_beside(self._nodes.staying, busy, self._least)
            within = self._most is None or out < self._most
            slots = out + (not self._waiting and more and within)
        nodes = tuple(map(_whole_node, self._nodes.staying)) if self._resizes else ()
        news = nodes != self._told and bool(nodes)  # where none is left, the rules go by what there was
        if slots != self._announced or news:
            self._announced, self._told = slots, nodes if news else self._told
            self._events.append(Slots(time.time(), slots, nodes if news else None))


def _whole_node(node: Mapping[str, float]) -> Slot:
    """What a node has, without what Ray names its nodes by or keeps for objects."""
    ours = ("CPU", "GPU", "memory", "object_store_memory")
    custom = {name: amount for name, amount in node.items() if name not in ours and ":" not in name}
    return Slot(node.get("CPU", 0.0), node.get("GPU", 0.0), node.get("memory", 0.0) / 2**30, custom)


def _preference(worker: _Worker, lease: Lease) -> tuple[bool, int, bool]:
    return worker.parked != lease.trial.id, len(worker.leases), worker.parked is not None


def _power_of_two(number: int) -> int:
    """The largest one below (0 for 0), less one: so that slots change by halves and doubles, not all the time."""
    return (1 << (number + 1).bit_length() - 1) - 1


def _options(slot: Slot, runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "num_cpus": slot.cpu,
        "num_gpus": slot.gpu,
        "memory": int(slot.memory_gib * 2**30) or None,
        "resources": dict(slot.custom),
        "max_restarts": 0,
        "runtime_env": runtime_env,
    }


def _unwound(lease: Lease) -> Ended:
    """Of a lease that said nothing."""
    return Ended(time.time(), lease.trial.id, lease.attempt, How.UNWOUND, 0, 0.0, {})


def _failed(lease: Lease, failure: Failure, message: str) -> Failed:
    return Failed(time.time(), lease.trial.id, lease.attempt, failure, message)
