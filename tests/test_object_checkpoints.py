"""Checkpoints in an object store, through a real server on loopback, and the cache in front of it."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.cache import Cache
from raytuner.checkpoints import MANIFEST, Checkpoint, DamagedCheckpoint, Janitor, Store
from raytuner.events import Damaged, Ended, Failed, Loaded
from raytuner.object_checkpoints import ObjectStore, store_at
from raytuner.record.journal import read
from raytuner.record.patience import Patience, is_outage
from raytuner.record.storage import Place
from raytuner.results import ResultGrid
from raytuner.session import Rules, get_checkpoint, report
from raytuner.trial import Failure
from tests.s3 import objects, s3, s3_server
from tests.test_session import Desk

__all__ = ["s3", "s3_server"]  # fixtures


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "nothing").write_bytes(b"")
    (folder / "a name, with % and ü").write_text("its content")
    (folder / "deep" / "er" / "large").write_bytes(random.Random(0).randbytes(9_000_001))  # more than one part
    return folder


def store(s3: Place, tmp_path: Path, machine: str = "one") -> ObjectStore:
    made = store_at(s3 / "study/checkpoints", tmp_path / machine, 1 << 30)
    assert isinstance(made, ObjectStore)
    return made


def contents(folder: str | Path) -> dict[str, Any]:
    root = Path(folder)
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if path.name != MANIFEST
    }


def test_what_is_published_is_fetched_on_another_machine(s3: Place, source: Path, tmp_path: Path) -> None:
    here, there = store(s3, tmp_path), store(s3, tmp_path, "other")
    digest = here.publish(source, 7, 27, 1)
    assert there.fetch(7, 27, digest)[0] == digest == there.verify(7, 27)
    assert contents(there.fetch(7, 27, digest)[1]) == contents(source)
    assert there.nbytes(7, 27) == here.nbytes(7, 27) == 9_000_001 + len("its content")
    assert contents(there.load(7, 27).path) == contents(source)
    assert (there.steps(7), there.all()) == ([27], {(7, 27)})


def test_the_manifest_is_written_last_and_removed_first(
    s3: Place, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever dies in between leaves no checkpoint, or a whole one."""
    seen: list[bool] = []
    kept = store(s3, tmp_path)
    write, remove = Place.write, Place.remove

    def written(place: Place, data: bytes) -> None:
        assert place.name.startswith("MANIFEST-")
        seen.append(len(objects(s3)) == 3)
        write(place, data)

    def removed(place: Place) -> None:
        manifests = [name for name in objects(s3) if "MANIFEST" in name]
        seen.append(place.name.startswith("MANIFEST-") == bool(manifests))
        remove(place)

    monkeypatch.setattr(Place, "write", written)
    monkeypatch.setattr(Place, "remove", removed)
    monkeypatch.setattr("raytuner.object_checkpoints._AT_ONCE", 1)
    kept.publish(source, 7, 27, 1)
    kept.delete(7, 27)
    assert seen == [True] * 5
    assert objects(s3) == {}
    assert kept.steps(7) == []


def test_data_without_a_manifest_is_no_checkpoint_and_swept(s3: Place, source: Path, tmp_path: Path) -> None:
    kept = store(s3, tmp_path)
    digests = {(trial, step): kept.publish(source, trial, step, 1) for trial, step in ((0, 1), (0, 2), (1, 1))}
    (s3 / "study/checkpoints/000000/000003/1-dead/weights").write(b"half")
    (s3 / "study/checkpoints/000000/000002/9-dead/weights").write(b"of another attempt")
    (s3 / "study/checkpoints/notes.txt").write(b"the user's")
    assert kept.all() == set(digests)
    kept.sweep({(0, 2), (1, 1)})
    left = objects(s3 / "study/checkpoints")
    assert "notes.txt" in left
    assert not any("dead" in name or name.startswith("000000/000001") for name in left)
    assert kept.all() == {(0, 2), (1, 1)}
    assert store(s3, tmp_path, "other").verify(0, 2) == digests[0, 2]
    kept.publish(source, 0, 3, 1)
    kept.sweep_trial(0, {3})
    assert kept.all() == {(0, 3), (1, 1)}


def test_an_attempt_that_is_thought_dead_can_harm_nobody(s3: Place, source: Path, tmp_path: Path) -> None:
    """It publishes the same step once more, with other weights: whoever knows the hash gets what it is of."""
    kept = store(s3, tmp_path)
    digest = kept.publish(source, 7, 27, 1)
    expected = contents(source)
    (source / "nothing").write_text("something else")
    late = store(s3, tmp_path, "of the dead").publish(source, 7, 27, 2)
    assert late != digest
    other = store(s3, tmp_path, "other")
    assert contents(other.fetch(7, 27, digest)[1]) == expected
    assert kept.steps(7) == [27]
    kept.delete(7, 27)
    assert objects(s3) == {}


DAMAGE: dict[str, Callable[[Place, dict[str, bytes]], None]] = {
    "a flipped bit": lambda place, found: (place / large(found)).write(b"\1" + found[large(found)][1:]),
    "a truncated file": lambda place, found: (place / large(found)).write(found[large(found)][:-1]),
    "a longer file": lambda place, found: (place / large(found)).write(found[large(found)] + b"x"),
    "a lost file": lambda place, found: (place / large(found)).remove(),
    "a lost manifest": lambda place, found: (place / manifest(found)).remove(),
    "a changed manifest": lambda place, found: (place / manifest(found)).write(found[manifest(found)] + b" "),
}


def large(found: dict[str, bytes]) -> str:
    return next(name for name in found if name.endswith("large"))


def manifest(found: dict[str, bytes]) -> str:
    return next(name for name in found if "MANIFEST" in name)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_when_it_is_fetched(damage: str, s3: Place, source: Path, tmp_path: Path) -> None:
    kept, place = store(s3, tmp_path), s3 / "study/checkpoints/000007/000027"
    digest = kept.publish(source, 7, 27, 1)
    DAMAGE[damage](place, objects(place))
    other = store(s3, tmp_path, "other")
    with pytest.raises(DamagedCheckpoint, match=r"000007/000027"):
        other.fetch(7, 27, digest)
    assert list((tmp_path / "other").glob("*")) == [], "nothing half-made is left"
    assert kept.fetch(7, 27, digest)[0] == digest, "where it was made it is whole"
    moved = kept.quarantine(7, 27)
    assert moved is not None
    assert moved.startswith(str(s3).partition("?")[0])
    assert objects(place) == {}
    assert len(objects(s3 / "study/quarantine/000007-000027")) >= 2
    kept.publish(source, 7, 27, 2)
    assert kept.quarantine(7, 27) != moved
    assert kept.quarantine(7, 27) is None


@pytest.mark.parametrize(
    "wrong",
    ["../escape", "/etc/passwd", "a//b", "a/../../b", ".", "\0"],
    ids=["up", "root", "empty", "deep", "dot", "nul"],
)
def test_a_manifest_that_leads_elsewhere_is_refused(wrong: str, s3: Place, source: Path, tmp_path: Path) -> None:
    """Also one whose hash is right."""
    import hashlib

    place = s3 / "study/checkpoints/000007/000027"
    store(s3, tmp_path).publish(source, 7, 27, 1)
    found = objects(place)
    content = json.loads(found[manifest(found)])
    for changed in ({"data": wrong}, {"files": [{**content["files"][0], "path": wrong}]}):
        raw = json.dumps({**content, **changed}).encode()
        digest = hashlib.sha256(raw).hexdigest()
        (place / f"MANIFEST-{digest}.json").write(raw)
        with pytest.raises(DamagedCheckpoint, match="bad manifest"):
            store(s3, tmp_path, "other").fetch(7, 27, digest)


def test_a_store_that_is_away_is_no_damage(source: Path, s3: Place, tmp_path: Path) -> None:
    kept = store(s3, tmp_path)
    digest = kept.publish(source, 7, 27, 1)
    away = Place.of("s3://bucket/study/checkpoints?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1")
    lost = Place.of(str(s3).replace("s3://bucket", "s3://no-such-bucket")) / "study/checkpoints"
    for place in (away, lost):
        with pytest.raises(OSError, match="bucket") as caught:
            store_at(place, tmp_path / "other", 1 << 30).fetch(7, 27, digest)
        assert is_outage(caught.value), caught.value
    with pytest.raises(OSError, match="bucket"):
        store_at(lost, tmp_path / "other", 1 << 30).publish(source, 7, 27, 1)


def test_the_janitor_works_there_too(s3: Place, source: Path, tmp_path: Path) -> None:
    kept = store(s3, tmp_path)
    for step in (1, 2, 3):
        kept.publish(source, 0, step, 1)
    janitor = Janitor(kept, Patience(5.0))
    janitor.delete(0, 1)
    assert janitor.sweep({(0, 2)})
    janitor.close()
    assert kept.all() == {(0, 2)}


# ----------------------------------------------------------------------------------------------- through a session


class RemoteDesk(Desk):
    """A runner of one machine."""

    def __init__(self, s3: Place, here: Path, train: Callable[[Any], Any], **rules: Any) -> None:
        self.rules = Rules(s3 / "study/checkpoints", {}, here=here, **rules)
        super().__init__(here, train)
        self.runner._rules = self.rules
        self.store = self.rules.store()  # type: ignore[assignment]


def counts(steps: int) -> Callable[[Any], None]:
    def train(config: Any) -> None:
        begun = get_checkpoint()
        first = 1 if begun is None else int(Path(begun.path, "step").read_text()) + 1
        for step in range(first, steps + 1):
            Path("mine").mkdir(exist_ok=True)
            Path("mine", "step").write_text(str(step))
            report({"loss": 1.0}, checkpoint=Checkpoint("mine"))
            newest = get_checkpoint()
            assert newest is not None
            assert Path(newest.path, "step").read_text() == str(step)

    return train


@pytest.fixture
def desks(s3: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RemoteDesk]]:
    monkeypatch.chdir(tmp_path)
    made: list[RemoteDesk] = []

    def make(machine: str, train: Callable[[Any], Any], **rules: Any) -> RemoteDesk:
        (tmp_path / machine).mkdir(exist_ok=True)
        made.append(RemoteDesk(s3, tmp_path / machine, train, **rules))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_trial_goes_on_from_the_cache_where_it_was_and_from_the_store_elsewhere(
    desks: Callable[..., RemoteDesk], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[int, int]] = []
    download = ObjectStore._download

    def counted(store: ObjectStore, trial: int, step: int, digest: str) -> tuple[str, str]:
        fetched.append((trial, step))
        return download(store, trial, step, digest)

    monkeypatch.setattr(ObjectStore, "_download", counted)
    one = desks("one", counts(6))
    ended = one.run(until=3)
    assert isinstance(ended, Ended), ended
    digest = one.digests[3]
    one.runner.unwind(0, 1, parked=True)
    ended = one.run(until=4, attempt=2, checkpoint=3, digest=digest)
    assert isinstance(ended, Ended), ended
    assert fetched == [], "all of it came from this machine"
    other = desks("other", counts(6))
    ended = other.run(attempt=3, checkpoint=4, digest=one.digests[4])
    assert isinstance(ended, Ended), ended
    assert fetched == [(0, 4)]
    assert [item.step for item in other.heard if isinstance(item, Loaded)] == [4]
    assert other.steps == [5, 6]
    assert one.store.steps(0) == [1, 2, 3, 4, 5, 6]


def test_damage_in_the_store_is_told_and_damage_in_the_cache_is_mended(
    desks: Callable[..., RemoteDesk], s3: Place, tmp_path: Path
) -> None:
    one = desks("one", counts(2))
    one.run()
    for file in (tmp_path / "one" / "cache").glob("*/step"):
        file.write_text("9")
    ended = one.run(attempt=2, checkpoint=2, digest=one.digests[2])
    assert isinstance(ended, Ended), ended
    place = s3 / "study/checkpoints/000000/000002"
    (place / next(name for name in objects(place) if name.endswith("/step"))).write(b"9")
    other = desks("other", counts(3))
    damaged = other.run(attempt=3, checkpoint=2, digest=one.digests[2])
    assert isinstance(damaged, Damaged), damaged


def test_a_store_that_stays_away_is_no_fault_of_the_trials(
    desks: Callable[..., RemoteDesk], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = desks("one", counts(3), patience_s=0.3)

    def away(place: Place, data: bytes) -> None:
        if "/000002/" in str(place):
            raise OSError("When initiating multiple part upload: AWS Error NETWORK_CONNECTION")
        write(place, data)

    write = Place.write
    monkeypatch.setattr(Place, "write", away)
    failed = one.run()
    assert isinstance(failed, Failed), failed
    assert failed.failure is Failure.STORAGE
    assert failed.message.startswith(one.store.path(0, 2))
    assert one.store.steps(0) == [1]


# ---------------------------------------------------------------------------------------------------- the cache


def entry(cache: Cache, tmp_path: Path, number: int, size: int = 100) -> str:
    """A checkpoint of trial 0 in the cache; its digest."""
    folder = tmp_path / f"made {number}"
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(bytes([number]) * size)
    kept = Store(tmp_path / "store")
    digest = kept.publish(folder, 0, number, 1)
    path = cache.new()
    for name in os.listdir(kept.path(0, number)):
        Path(path, name).write_bytes(Path(kept.path(0, number), name).read_bytes())
    cache.adopt(path, digest)
    return digest


def test_what_was_used_longest_ago_goes_and_what_is_held_stays(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    cache, other = Cache(root, 350), Cache(root, 350)
    digests = []
    for number in range(4):
        digests.append(entry(cache, tmp_path, number))
        cache.release(digests[-1])
        os.utime(root / f"{digests[-1]}.lock", (number, number))
    held = other.find(digests[1], 0, 1)
    assert held is not None
    os.utime(root / f"{digests[1]}.lock", (0, 0))
    cache.trim()
    assert [os.path.isdir(root / digest) for digest in digests] == [False, True, True, True]
    last = [entry(cache, tmp_path, number) for number in (4, 5, 6)]
    assert os.path.isdir(held), "somebody reads it"
    assert all(os.path.isdir(root / digest) for digest in last), "this process does"
    other.close()
    cache.close()
    cache.trim()
    assert sum(os.path.isdir(root / digest) for digest in [*digests, *last]) == 3
    assert len(os.listdir(root)) == 6


def test_what_was_changed_is_not_found(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1000)
    digest = entry(cache, tmp_path, 1)
    assert cache.find(digest, 0, 1) is not None
    assert cache.find(digest, 0, 2) is None, "it is another step's"
    cache.close()
    digest = entry(cache, tmp_path, 1)
    (tmp_path / "cache" / digest / "weights").write_bytes(b"other")
    cache.close()
    assert cache.find(digest, 0, 1) is None
    assert not (tmp_path / "cache" / digest).exists()
    assert cache.find("0" * 64, 0, 1) is None


def test_what_a_dead_process_left_half_made_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    cache = Cache(root, 1000)
    living = cache.new()
    (root / ".tmp-dead").mkdir()
    (root / ".tmp-dead" / "weights").write_bytes(bytes(100))
    (root / ".tmp-dead.lock").touch()  # nobody has it locked
    Cache(root, 1000).trim()
    assert sorted(os.listdir(root)) == sorted([os.path.basename(living), f"{os.path.basename(living)}.lock"])
    cache.discard(living)
    assert os.listdir(root) == []


def hammer(root: str, store: str, seed: int, failed: Any) -> None:
    """Find, make and let go of checkpoints in a cache that is too small for them."""
    try:
        rng, kept = random.Random(seed), Store(store)
        for _ in range(60):
            cache, number = Cache(root, 250), rng.randrange(6)
            digest = kept.verify(0, number)
            path = cache.find(digest, 0, number)
            if path is None:
                made = cache.new()
                for name in os.listdir(kept.path(0, number)):
                    Path(made, name).write_bytes(Path(kept.path(0, number), name).read_bytes())
                path = cache.adopt(made, digest)
            for _ in range(3):
                assert Path(path, "weights").read_bytes() == bytes([number]) * 100
            cache.close()
    except BaseException as error:
        failed.put(repr(error))
        raise


@pytest.mark.timeout(120)
def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 250)
    for number in range(6):
        entry(cache, tmp_path, number)
    cache.close()
    context = multiprocessing.get_context("spawn")
    failed = context.Queue()
    processes = [
        context.Process(target=hammer, args=(str(tmp_path / "cache"), str(tmp_path / "store"), seed, failed))
        for seed in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert failed.empty(), failed.get()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    cache.trim()
    left = [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")]
    assert len(left) == 2
    assert not any(name.startswith(".tmp-") for name in left)


def test_a_lock_file_that_was_removed_meanwhile_is_not_believed(tmp_path: Path) -> None:
    """Whoever waited for it would hold what nobody else sees."""
    cache = Cache(tmp_path / "cache", 1000)
    digest = entry(cache, tmp_path, 1)
    cache.close()
    path = tmp_path / "cache" / f"{digest}.lock"
    flock, calls = fcntl.flock, []

    def late(file: int, how: int) -> None:
        flock(file, how)
        calls.append(how)
        if len(calls) == 1:
            path.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        assert cache.find(digest, 0, 1) is not None
    assert len(calls) == 2
    other = Cache(tmp_path / "cache", 0)
    other.trim()
    assert (tmp_path / "cache" / digest).is_dir(), "it is held"


# ------------------------------------------------------------------------------------------------- whole studies


@pytest.mark.timeout(180)
def test_a_study_with_checkpoints_in_an_object_store(
    s3: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    from raytuner.schedulers import AsyncHyperBandScheduler

    def train(config: Any) -> None:
        begun = get_checkpoint()
        first = 1 if begun is None else int(Path(begun.path, "step").read_text()) + 1
        for step in range(first, 10):
            Path("mine").mkdir(exist_ok=True)
            Path("mine", "step").write_text(str(step))
            report({"loss": config["x"] / step}, checkpoint=Checkpoint("mine"))

    def tuner(most: int) -> tune.Tuner:
        return tune.Tuner(
            train,
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(
                metric="loss", mode="min", num_samples=6, seed=1, scheduler=AsyncHyperBandScheduler(max_t=9)
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=str(s3),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_cache_gib=1e-6 * most,
            ),
            executor="inline",
        )

    results = tuner(1).fit()
    assert results.num_errors == 0
    best = results.get_best_result()
    assert best.checkpoint is not None
    assert Path(best.checkpoint.path, "step").read_text() == "9"
    there = objects(s3 / "study/checkpoints")
    manifests = [name for name in there if "MANIFEST-" in name]
    rows = read(s3 / "study").rows
    assert not any(isinstance(row, Failed) for row in rows)
    assert len(manifests) == 6 == len(there) // 2, "one of each trial, and nothing else"
    again = ResultGrid(s3 / "study")
    assert again.get_best_result("loss", "min").checkpoint == best.checkpoint
