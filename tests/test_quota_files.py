"""A population under a quota, with real files: they are counted from outside, over and over, while it runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.checkpoints import MANIFEST, Store
from raytuner.events import Checkpointed, Drop, Failed, Loaded, Over, Slots
from raytuner.record.journal import read
from raytuner.retention import CheckpointConfig
from raytuner.schedulers import PopulationBasedTraining
from raytuner.trial import Why

pytestmark = pytest.mark.timeout(120)

SIZE = 10_000  # bytes of a checkpoint
MEMBERS = 4
STEPS = 24


def train(config: dict[str, Any]) -> None:
    """Says from where it began, and whether it had a folder of its own by then."""
    import tempfile
    from pathlib import Path

    import raytuner as tune

    trial = int(tune.get_context().get_trial_id())
    root = Path(tune.get_context().get_trial_dir()).parent.parent
    checkpoint = tune.get_checkpoint()
    began = "" if checkpoint is None else str(Path(checkpoint.path).relative_to(root / "checkpoints"))
    own = (root / "checkpoints" / f"{trial:06d}").exists()
    step = 0 if checkpoint is None else int(Path(checkpoint.path, "weights").read_text().split()[0])
    while True:
        step += 1
        metrics = {"score": step * config["lr"], "began": began, "own": own}
        if tune.should_checkpoint():
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "weights").write_text(f"{step} ".ljust(10_000, "."))
                tune.report(metrics, checkpoint=tune.Checkpoint(folder))
        else:
            tune.report(metrics)


@dataclass
class Seen:
    looks: int = 0
    count: int = 0
    nbytes: int = 0


@contextmanager
def watched(folder: Path) -> Iterator[Seen]:
    """Look at what is there, whole and half, as often as can be, and keep the most that was ever seen."""
    seen, stop = Seen(), threading.Event()

    def look() -> None:
        before: dict[str, int] = {}
        while not stop.is_set():
            there: dict[str, int] = {}
            for trial in listed(folder):
                for checkpoint in listed(trial):
                    there[checkpoint] = 0
                    for path in listed(checkpoint):
                        if os.path.basename(path) != MANIFEST:
                            try:
                                there[checkpoint] += os.stat(path).st_size
                            except FileNotFoundError:
                                continue
            # A look takes time. What two looks in a row found was there at once, between them.
            both = there.keys() & before.keys()
            nbytes = sum(min(there[each], before[each]) for each in both)
            seen.count, seen.nbytes, seen.looks = max(seen.count, len(both)), max(seen.nbytes, nbytes), seen.looks + 1
            before = there

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def listed(folder: str | Path) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []


@pytest.mark.parametrize("unit", ["count", "bytes"])
@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_population_never_exceeds_its_quota_by_more_than_what_is_in_flight(
    executor: str, unit: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Children of one donor read its files where they are: no copy is made, and they count once."""
    if executor == "ray":
        request.getfixturevalue("local_ray")
    most = 2 * MEMBERS + 2
    quota = CheckpointConfig(**({"quota_count": most} if unit == "count" else {"quota_bytes": most * SIZE}))
    root = tmp_path / "study"
    with watched(root / "checkpoints") as seen:
        results = tune.Tuner(
            train,
            param_space={"lr": tune.uniform(0.0, 1.0)},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=MEMBERS,
                scheduler=PopulationBasedTraining(
                    time_attr="training_iteration",
                    perturbation_interval=2,
                    quantile_fraction=0.5,
                    hyperparam_mutations={"lr": tune.uniform(0.0, 1.0)},
                ),
                max_concurrent_trials=2,
                seed=0,
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=tmp_path,
                stop={"training_iteration": STEPS},
                checkpoint_config=quota,
                verbose=0,
            ),
            executor=executor,
        ).fit()
    rows = read(root).rows
    slots = max(row.slots for row in rows if isinstance(row, Slots))
    there = f"at most {seen.count} checkpoints, {seen.nbytes} bytes, in {seen.looks} looks; {slots} slots"
    print(f"quota {quota.quota_count or quota.quota_bytes}: {there}")
    assert seen.looks > 20
    if unit == "count":
        assert most <= seen.count <= most + slots
    else:
        assert (most - 1) * SIZE <= seen.nbytes <= (most + slots) * SIZE
    published = {(row.trial, row.step): row.nbytes for row in rows if isinstance(row, Checkpointed)}
    assert set(published.values()) == {SIZE}
    assert len(published) > 2 * most, "else there was nothing to drop"
    dropped = {(row.trial, row.step) for row in rows if isinstance(row, Drop)}
    store = Store(root / "checkpoints")
    left = {(trial, step) for trial in range(200) for step in store.steps(trial)}
    assert left == published.keys() - dropped
    assert len(left) == most
    for trial, step in left:
        store.verify(trial, step)

    forks = {row.trial: (row.source, row.step) for row in rows if isinstance(row, Loaded) and row.source != row.trial}
    donors = list(forks.values())
    assert len(forks) >= 4
    assert not any(isinstance(row, Failed) or (isinstance(row, Over) and row.why is Why.NO_SOURCE) for row in rows)
    table = results.to_arrow("reports")
    for trial, began, own in zip(*(table[name].to_pylist() for name in ("trial", "began", "own")), strict=True):
        if trial in forks:  # its first report
            source, step = forks.pop(trial)
            assert (began, own) == (f"{source:06d}/{step:06d}", False), "it has nothing of its own until it saves"
    assert not forks
    assert executor == "ray" or len(set(donors)) < len(donors), "some share one"
