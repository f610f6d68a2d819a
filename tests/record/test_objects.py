"""The record in an object store: one writer at a time, no acknowledged turn lost, no damage unnoticed."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raytuner.events import Finish, Opened, Ticked
from raytuner.record import objects as objects_module
from raytuner.record.journal import JOURNAL, Journal, Row, is_complete, read
from raytuner.record.lock import ObjectLock, StudyInUse, StudyTaken
from raytuner.record.objects import ObjectLog
from raytuner.record.segments import DamagedSegment, Messages
from raytuner.record.storage import Place
from raytuner.trial import Reports
from tests.record.test_journal import said
from tests.s3 import objects, s3, s3_server  # noqa: F401

# ruff: noqa: F811 - fixtures are named like what they are imported as

FOREVER_S = 3600.0


def lock(root: Place, beat_s: float = FOREVER_S, dead_after_s: float = FOREVER_S, settle_s: float = 0.0) -> ObjectLock:
    return ObjectLock(root, beat_s, dead_after_s, settle_s)


TURNS: list[tuple[Sequence[Row], Sequence[Reports]]] = [
    ([Opened(1.0, 1)], []),
    ([Ticked(2.0)], [said(0, 1, loss=0.5), said(1, 1, loss=0.25, note="naïve")]),
    ([], [said(0, 2, loss=0.4)]),
    ([], [said(0, 3, loss=0.3, late=7)]),
    ([Ticked(5.0), Ticked(5.5)], [said(1, 2, loss=0.2)]),
    ([], [said(0, 4, loss=0.1)]),
    ([Finish(True, "")], []),
]


def write(root: Path | Place, turns: Sequence[tuple[Sequence[Row], Sequence[Reports]]] = TURNS) -> None:
    with closing(Journal(root)) as journal:
        for rows, reports in turns:
            journal.commit(rows, reports)


def numbers(root: Place) -> list[int]:
    return [int(name.split("-")[-1].removesuffix(".arrow")) for name in objects(root / "journal")]


# ---------------------------------------------------------------------------------------------------- the record


def test_a_record_reads_as_a_local_one_does(s3: Place, fast_path: Path) -> None:
    for root in (s3, fast_path):
        write(root, TURNS[:3])
        assert not is_complete(root)
        write(root, TURNS[3:])
        assert is_complete(root)
    there, here = read(s3), read(fast_path)
    assert there.rows == here.rows
    assert there.reports.equals(here.reports)
    with closing(Journal(s3)) as remote, closing(Journal(fast_path)) as local:
        assert list(remote.rows()) == list(local.rows()) == list(here.rows)
        assert remote.last_steps() == local.last_steps()
        assert remote.turn == local.turn == len(TURNS)


def test_reading_where_nothing_is(s3: Place) -> None:
    assert (list(read(s3).rows), read(s3).reports.num_rows, is_complete(s3)) == ([], 0, False)


def test_reports_wait_for_decisions_and_go_with_them(s3: Place) -> None:
    with closing(Journal(s3)) as journal:
        journal.commit(*TURNS[0])
        journal.commit(*TURNS[2])
        journal.commit(*TURNS[3])
        assert numbers(s3) == [0]
        journal.commit(*TURNS[4])
        assert numbers(s3) == [0, 1]
        assert read(s3).reports["step"].to_pylist() == [2, 3, 2]
        journal.commit(*TURNS[5])
        assert numbers(s3) == [0, 1]
    assert numbers(s3) == [0, 1, 2]
    assert read(s3).reports["step"].to_pylist() == [2, 3, 2, 4]


def test_many_objects_become_one(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_module, "MANY", 3)
    write(s3, TURNS[:5])  # three objects
    write(s3, [([Opened(9.0, 2)], [])])
    expected = read(s3)
    Journal(s3).close()
    assert read(s3).rows == expected.rows
    write(s3, TURNS[5:])
    for name in objects(s3 / "journal"):
        if name < "000003":
            (s3 / "journal" / name).remove()
    found = read(s3)
    assert list(found.rows) == [*expected.rows, Finish(True, "")]
    assert found.reports["step"].to_pylist() == [*expected.reports["step"].to_pylist(), 4]
    with closing(Journal(s3)) as journal:
        assert journal.turn == len(TURNS) + 1
    assert is_complete(s3)


def test_reports_do_not_wait_for_long(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_module, "GATHER_S", 0.02)
    with closing(Journal(s3)) as journal:
        journal.commit(*TURNS[2])
        while not numbers(s3):
            time.sleep(0.01)
        assert read(s3).reports["step"].to_pylist() == [2]


@pytest.mark.parametrize("landed", [False, True])
def test_a_write_that_failed_is_written_again_as_it_was(
    landed: bool, s3: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, tried = Place.write, []

    def fails_once(place: Place, data: bytes) -> None:
        tried.append((place, data))
        if len(tried) == 1:
            if landed:
                write(place, data)
            raise OSError("the network is down")
        write(place, data)

    journal = Journal(s3)
    journal.commit(*TURNS[0])
    journal.commit(*TURNS[2])
    monkeypatch.setattr(Place, "write", fails_once)
    with pytest.raises(OSError, match="the network is down"):
        journal.commit(*TURNS[1])
    with pytest.raises(RuntimeError, match="an earlier turn could not be written"):
        journal.commit(*TURNS[4])
    journal._broken = False  # as whoever has patience with a storage would go on
    journal.commit(*TURNS[1])
    assert tried[0] == tried[1]
    journal.commit(*TURNS[4])
    journal.close()
    assert list(read(s3).rows) == [*TURNS[0][0], *TURNS[1][0], *TURNS[4][0]]
    assert read(s3).reports["step"].to_pylist() == [2, 1, 1, 2]


# ---------------------------------------------------------------------------------------------------- one writer


def test_a_second_driver_is_told_who_runs_the_study(s3: Place) -> None:
    with lock(s3) as first:
        with pytest.raises(StudyInUse, match=r"is being run by process \d+ on .*, since 2.*, last heard of \d+ s ago"):
            lock(s3)
        first.check()
    with lock(s3) as second:
        assert second.name > first.name
        with pytest.raises(StudyTaken):
            first.check()


DIES = """
import os, sys
from raytuner.record.lock import ObjectLock
from raytuner.record.storage import Place

ObjectLock(Place.of(sys.argv[1]), 3600, 3600, 0)
os._exit(0)
"""


def test_a_dead_process_of_this_machine_is_not_waited_for(s3: Place) -> None:
    subprocess.run([sys.executable, "-c", DIES, str(s3)], check=True)
    lock(s3).release()  # would wait for an hour


def elsewhere(held: ObjectLock) -> None:
    """As if the holder were on another machine."""
    held._what["machine"] = "another"
    held._beat()


def test_a_holder_elsewhere_is_dead_when_it_is_not_heard_of(s3: Place) -> None:
    dead = lock(s3)
    elsewhere(dead)
    with lock(s3, dead_after_s=1.5) as taker:
        taker.check()
        with pytest.raises(StudyTaken, match=rf"was taken over by process {taker._what['pid']} on "):
            dead.check()


def test_a_holder_elsewhere_lives_while_its_heart_beats(s3: Place) -> None:
    with lock(s3, beat_s=0.05) as held:
        elsewhere(held)
        with pytest.raises(StudyInUse):
            lock(s3, dead_after_s=60)
        held.check()


def test_of_many_that_want_it_at_once_one_has_it(s3: Place) -> None:
    got: list[ObjectLock] = []
    refused: list[StudyInUse] = []
    barrier = threading.Barrier(6)

    def want() -> None:
        barrier.wait()
        try:
            got.append(lock(s3, settle_s=1.0))
        except StudyInUse as error:
            refused.append(error)

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) + len(refused) == 6
    assert [holds(each) for each in got].count(True) == 1
    for each in got:
        each.release()


def holds(held: ObjectLock) -> bool:
    try:
        held.check()
    except StudyTaken:
        return False
    return True


def test_a_zombies_rows_do_not_count_and_it_notices(s3: Place) -> None:
    zombie_lock = lock(s3)
    zombie = Journal(s3, zombie_lock)
    zombie.commit([Opened(1.0, 1)], [])
    zombie.commit([Ticked(2.0)], [said(0, 1, loss=1.0)])
    elsewhere(zombie_lock)
    with lock(s3, dead_after_s=0) as held, closing(Journal(s3, held)) as journal:
        assert list(journal.rows()) == [Opened(1.0, 1), Ticked(2.0)]
        with pytest.raises(StudyTaken, match="this process has lost the study in s3://"):
            zombie.commit([Ticked(3.0)], [said(0, 2, loss=2.0)])  # before the other one has written anything
        journal.commit([Opened(4.0, 2)], [])
        with pytest.raises(RuntimeError):
            zombie.commit([Ticked(5.0)], [])
        zombie.close()
        journal.commit([Ticked(6.0)], [said(0, 2, loss=3.0)])
    found = read(s3)
    assert list(found.rows) == [Opened(1.0, 1), Ticked(2.0), Opened(4.0, 2), Ticked(6.0)]
    assert found.reports["loss"].to_pylist() == [1.0, 3.0]
    with pytest.raises(StudyTaken, match="was taken over by epoch"):
        ObjectLog(s3, zombie_lock)


ZOMBIE = """
import sys
from raytuner.events import Opened, Ticked
from raytuner.record.journal import Journal
from raytuner.record.lock import ObjectLock, StudyTaken
from raytuner.record.storage import Place

root = Place.of(sys.argv[1])
journal = Journal(root, ObjectLock(root, 0.1, 1, 0))
journal.commit([Opened(1.0, 1)], [])
print("held", flush=True)
sys.stdin.readline()
try:
    journal.commit([Ticked(2.0)], [])
except StudyTaken as error:
    print(error, flush=True)
"""


def as_soon_as_it_is_free(root: Place) -> ObjectLock:
    while True:
        try:
            return lock(root, dead_after_s=2)
        except StudyInUse:
            time.sleep(0.1)


def test_a_process_that_was_stopped_for_long_and_wakes_up_is_refused(s3: Place) -> None:
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", ZOMBIE, str(s3)], **pipe) as zombie:
        try:
            assert zombie.stdout is not None
            assert zombie.stdin is not None
            assert zombie.stdout.readline() == "held\n"
            zombie.send_signal(signal.SIGSTOP)
            with as_soon_as_it_is_free(s3) as held, closing(Journal(s3, held)) as journal:
                journal.commit([Opened(3.0, 2)], [])
                zombie.send_signal(signal.SIGCONT)
                zombie.stdin.write("\n")
                zombie.stdin.flush()
                assert "and was taken over by process" in zombie.stdout.readline()
                journal.commit([Ticked(4.0)], [])
        finally:
            zombie.kill()
    assert list(read(s3).rows) == [Opened(1.0, 1), Opened(3.0, 2), Ticked(4.0)]


# -------------------------------------------------------------------------- every order of requests, in a store that
#                                                                            keeps its promises and nothing more


class Stage:
    """Threads of which one runs at a time, from one request to the next; which is chance of a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._there: dict[str, bytes] = {}
        self._at: dict[str, float] = {}
        self._clock = itertools.count(1)
        self._turn: dict[int, threading.Event] = {}
        self._waiting = threading.Semaphore(0)

    def request(self) -> None:
        """Wait until it is this thread's turn, if it is one of ours."""
        turn = self._turn.get(threading.get_ident())
        if turn is not None:
            self._waiting.release()
            turn.wait()
            turn.clear()

    def play(self, parts: Sequence[Callable[[], None]]) -> None:
        def act(part: Callable[[], None]) -> None:
            self._turn[threading.get_ident()] = threading.Event()
            self.request()
            try:
                part()
            finally:
                del self._turn[threading.get_ident()]
                self._waiting.release()

        threads = [threading.Thread(target=act, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for _ in threads:
            self._waiting.acquire()
        while self._turn:
            self._turn[self._rng.choice(sorted(self._turn))].set()
            self._waiting.acquire()
        for thread in threads:
            thread.join()

    def read(self, place: Place) -> bytes:
        self.request()
        if place.path not in self._there:
            raise FileNotFoundError(place.path)
        return self._there[place.path]

    def write(self, place: Place, data: bytes) -> None:
        self.request()
        self._there[place.path] = data
        self._at[place.path] = float(next(self._clock))

    def remove(self, place: Place) -> None:
        self.request()
        if self._there.pop(place.path, None) is None:
            raise FileNotFoundError(place.path)

    def listed(self, place: Place) -> dict[str, float]:
        self.request()
        inside = f"{place.path}/"
        return {name.removeprefix(inside): self._at[name] for name in self._there if name.startswith(inside)}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Stage]:
    def set_up(seed: int) -> Stage:
        stage = Stage(seed)
        for name in ("read", "write", "remove", "listed"):
            act = getattr(stage, name)
            monkeypatch.setattr(Place, name, lambda place, *data, act=act: act(place, *data))
        monkeypatch.setattr("raytuner.record.lock._machine", lambda: "")  # nobody knows who is dead
        monkeypatch.setattr(objects_module, "_AT_ONCE", 1)
        return stage

    return set_up


@pytest.mark.parametrize("seed", range(200))
def test_whoever_takes_over_whenever_nothing_acknowledged_is_lost(seed: int, stage: Callable[[int], Stage]) -> None:
    """Three drivers, each of which believes at once that the others are dead."""
    root = Place.of("s3://bucket/study")
    play = stage(seed)
    acknowledged: dict[int, list[float]] = {}

    def driver(who: int) -> Callable[[], None]:
        def act() -> None:
            for life in range(2):
                numbers = itertools.count(100 * who + 10 * life)
                try:
                    held = lock(root, dead_after_s=-1e9)
                except StudyInUse:
                    continue
                with dying(held):
                    try:
                        journal = Journal(root, held)
                        for _ in range(3):
                            number = float(next(numbers))
                            journal.commit([Ticked(number)], [said(who, int(number) + 1, loss=number)])
                            acknowledged.setdefault(who, []).append(number)
                    except StudyTaken:
                        pass

        return act

    play.play([driver(who) for who in range(3)])
    found = [row.at for row in read(root).rows if isinstance(row, Ticked)]
    assert len(found) == len(set(found))
    assert sorted(read(root).reports["loss"].to_pylist()) == sorted(found)
    for who, numbers in acknowledged.items():
        assert [number for number in found if number in numbers] == numbers, (who, found)
    assert acknowledged or not found


@contextmanager
def dying(held: ObjectLock) -> Iterator[None]:
    """In the end the holder's heart stops, and it gives nothing back."""
    yield
    held._over.set()


# --------------------------------------------------------------------------------------------------------- damage


@pytest.fixture
def finished(stage: Callable[[int], Stage]) -> Place:
    """A record of two lives, in memory."""
    stage(0)
    root = Place.of("s3://bucket/study")
    write(root, TURNS[:3])
    write(root, [([Opened(9.0, 2)], []), *TURNS[3:]])
    return root


def stored(root: Place) -> dict[str, bytes]:
    return {name: (root / "journal" / name).read() for name in sorted((root / "journal").listed())}


def damages(raw: bytes, rng: random.Random) -> Iterator[bytes]:
    yield b""
    for _ in range(3):
        yield raw[: rng.randrange(1, len(raw))]
        place = rng.randrange(len(raw))
        yield raw[:place] + bytes([raw[place] ^ (1 << rng.randrange(8))]) + raw[place + 1 :]
    starts = [place for place in range(1, len(raw)) if raw[place : place + 4] == b"\xff\xff\xff\xff"]
    yield from (raw[:place] for place in starts)  # between two messages
    yield raw + raw


def test_every_damaged_object_is_named(finished: Place) -> None:
    rng = random.Random(0)
    for name, raw in stored(finished).items():
        place = finished / "journal" / name
        for damaged in damages(raw, rng):
            place.write(damaged)
            with pytest.raises(DamagedSegment, match=name.replace(".", r"\.")):
                read(finished)
        place.write(raw)
    assert read(finished).rows[-1] == Finish(True, "")


def test_a_missing_object_is_named(finished: Place) -> None:
    whole = stored(finished)
    names = list(whole)
    for name in names[:-1]:
        (finished / "journal" / name).remove()
        with pytest.raises(DamagedSegment, match=f"lacks {name}".replace(".", r"\.")):
            read(finished)
        with pytest.raises(DamagedSegment):
            Journal(finished)
        (finished / "journal" / name).write(whole[name])
    (finished / "journal" / names[-1]).remove()  # as it was before that was written
    assert list(read(finished).rows) == [
        row for rows, _ in [*TURNS[:3], ([Opened(9.0, 2)], []), *TURNS[3:-1]] for row in rows
    ]


def test_an_object_in_anothers_place_is_named(finished: Place) -> None:
    whole = stored(finished)
    names = list(whole)
    for name, other in itertools.permutations(names, 2):
        (finished / "journal" / name).write(whole[other])
        with pytest.raises(DamagedSegment):
            read(finished)
        (finished / "journal" / name).write(whole[name])


class Hostile(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.int64(), "hostile")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, raw: bytes) -> Hostile:
        raise AssertionError("what stands in an object was run")


EVENT = pa.RecordBatch.from_pylist([], JOURNAL)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda said: {**said, "after": {"000000-00000000": 10**12}}, "lacks 000000-00000000-00000000"),
        (lambda said: {**said, "after": {"000009-00000000": 1}}, "does not say what came before"),
        (lambda said: {**said, "after": [1]}, "does not say what came before"),
        (lambda said: {**said, "table": "../x"}, "does not say what it is"),
        (lambda said: {**said, "batches": 7}, "it has 1 batches, and says of itself"),
        (lambda said: [], "does not say what it is"),
        (lambda said: deep(), "does not say what it is"),
    ],
)
def test_hostile_objects_are_refused(change: Callable[[Any], Any], wrong: str, finished: Place) -> None:
    epoch = "000007-00000000"
    said = {"epoch": epoch, "number": 0, "batches": 1, "table": "journal", "after": {}}
    changed = change(said)
    text = changed if isinstance(changed, str) else json.dumps(changed)
    place(finished, epoch).write(sealed(EVENT, text))
    with pytest.raises(DamagedSegment, match=wrong):
        read(finished)


@pytest.mark.parametrize("table", ["journal", "reports"])
def test_hostile_columns_are_refused(table: str, finished: Place) -> None:
    said = json.dumps({"epoch": "000007-00000000", "number": 0, "batches": 1, "table": table, "after": {}})
    other = pa.RecordBatch.from_pydict({"x": [1]})
    place(finished, "000007-00000000").write(sealed(other, said))
    with pytest.raises(DamagedSegment, match="has other columns than belong there: x"):
        read(finished)
    column = pa.ExtensionArray.from_storage(Hostile(), pa.array([1]))
    pa.register_extension_type(Hostile())
    try:
        hostile = pa.RecordBatch.from_arrays([column], names=["x"])
        place(finished, "000007-00000000").write(sealed(hostile, said))
        with pytest.raises(DamagedSegment, match="of an Arrow extension type, which is never read"):
            read(finished)
    finally:
        pa.unregister_extension_type("hostile")


def place(root: Place, epoch: str) -> Place:
    return root / f"journal/{epoch}-00000000.arrow"


def deep() -> str:
    return "[" * 100_000 + "]" * 100_000


def sealed(batch: pa.RecordBatch, said: str) -> bytes:
    messages = Messages(batch.schema, {b"raytuner-object": said.encode()})
    return messages.head + messages.batch(batch, 0, False)


def test_objects_that_are_not_ours_are_passed_over(finished: Place) -> None:
    before = read(finished).rows
    for name in ("notes.txt", "000009-zzzzzzzz-00000000.arrow", "x/000009-00000000-00000000.arrow", "000000.arrow"):
        (finished / "journal" / name).write(b"?")
    assert read(finished).rows == before


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"pid": 1}', "null"])
def test_a_damaged_claim_is_waited_for_and_taken_over(text: str, s3: Place) -> None:
    (s3 / "lock" / "000004-00000000.json").write(text.encode())
    with lock(s3, dead_after_s=0) as held:
        assert held.name > "000005"


def test_a_claim_holds_no_secret(s3: Place) -> None:
    with lock(s3):
        (raw,) = objects(s3 / "lock").values()
    assert set(json.loads(raw)) == {"host", "pid", "since", "machine", "started"}
