"""Deterministic simulation: seeded studies of every searcher under every scheduler, in which everything fails.

Trials raise, hang, lose their workers and nodes, run out of memory; messages come twice and late; workers stay away;
checkpoints are found damaged. The storage fails for a moment or for good, at any write; the driver dies between any two
writes of the journal, with its write half done, or in a power failure that takes what was not fsynced. All of it is a
function of the seed: ``CHAOS_SEED=17`` runs one study alone.

What must hold: no acknowledged row is lost, no step counts twice, no lease that is over runs again; no checkpoint is
missing that is referenced, none is there that is not; every study ends; and its decisions are those of the same study
whose driver and storage were left alone.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from raytuner.checkpoints import CheckpointConfig
from raytuner.events import Damaged, Failed
from raytuner.executors.simulate import Workload, World
from raytuner.objective import Objective
from raytuner.record.journal import read
from raytuner.record.patience import PatientJournal, StorageError
from raytuner.retry import Remedies, Retries
from raytuner.searchers import GridSearch
from raytuner.study import Study
from raytuner.trial import Failure, Trial
from tests.conftest import CHAOS_CASES
from tests.lives import GRID, SPACE, Case, Checks, Died, Fate, Life, decisions, fate
from tests.record.test_patience import Storm, patience
from tests.schedulers.test_contract import SETTINGS, any_model
from tests.searchers.test_contract import SEARCHERS_UNDER_TEST

__all__ = ["any_model", "fate"]  # fixtures

STUDIES = max(40, CHAOS_CASES // 5)
PAIRS = [
    (searcher, scheduler)
    for searcher, search in SEARCHERS_UNDER_TEST.items()
    for scheduler in SETTINGS
    if not (isinstance(search, GridSearch) and scheduler == "pbt replay")  # what is replayed has no grid
]
PAIRS = random.Random(0).sample(PAIRS, len(PAIRS))  # few seeds meet many of both
RESTARTS = 400  # more, and a study does not end
AILMENTS = (Failure.ERROR, Failure.LOST, Failure.NODE, Failure.HUNG, Failure.OUT_OF_MEMORY, Failure.HOST_OUT_OF_MEMORY)


def halve(config: dict[str, Any], error: str, times: int) -> dict[str, Any] | None:
    return {"width": max(4, config["width"] // 2)} if times < 2 else None


@dataclass(frozen=True)
class Rough(Case):
    """A case in which everything may fail, as its ``seed`` says."""

    ails: float = 0.0
    repeats: float = 0.0
    away_s: float = 0.0
    damaged: bool = False
    retries: Retries = field(default_factory=Retries)

    @classmethod
    def of(cls, seed: int) -> Rough:
        searcher, scheduler = PAIRS[seed % len(PAIRS)]
        search, rng = SEARCHERS_UNDER_TEST[searcher], random.Random(f"case {seed}")
        return cls(
            search,
            SETTINGS[scheduler],
            GRID if isinstance(search, GridSearch) else SPACE,
            trials=rng.randint(3, 14),
            slots=rng.randint(1, 5),
            seed=seed,
            checkpoint_config=CheckpointConfig(
                num_to_keep=rng.choice([None, 1, 2]), quota_count=rng.choice([None, None, 12])
            ),
            remedies=Remedies(halve) if rng.random() < 0.5 else None,
            ails=rng.choice([0.0, 0.01, 0.04]),
            repeats=rng.choice([0.0, 0.1]),
            away_s=rng.choice([0.0, 0.0, 7.5]),
            damaged=rng.random() < 0.25,
            retries=Retries(max_failures=rng.randint(0, 2), max_losses=rng.randint(0, 3)),
        )

    @property
    def is_comparable(self) -> bool:
        """Whether a driver's death leaves the order alone in which trials speak.

        A trial that is parked reads no checkpoint; once its driver has died it does, and may find it damaged.
        """
        return not self.damaged or self.slots == 1

    def study(self) -> Study:
        scheduler = self.scheduler.build(self.seed)
        return Study(Objective("loss", "min"), scheduler, self.trials, self.retries, self.checkpoint_config)

    def workload(self) -> Workload:
        def fault(trial: Trial, step: int, tries: int) -> Failure | None:
            chance = random.Random(f"ails {self.seed} {trial.id} {step} {tries}")
            return chance.choice(AILMENTS) if chance.random() < self.ails else None

        def again(what: str) -> Any:
            return lambda trial, step, tries: (
                random.Random(f"{what} {self.seed} {trial.id} {step} {tries}").random() < self.repeats
            )

        return replace(
            super().workload(),
            fault=fault,
            twice=again("twice"),
            late=again("late"),
            late_s=3.25,
            away_s=self.away_s,
            damaged=(lambda trial, step: (trial * 3 + step + self.seed) % 7 == 0) if self.damaged else None,
        )


@dataclass
class Story:
    """What befell a study."""

    seed: int
    befell: Counter[str] = field(default_factory=Counter)
    violation: str = ""


def live(case: Rough, root: Path, fate: Fate, rng: random.Random | None, befell: Counter[str]) -> list[Any]:
    """Run a study to its end, whatever befalls it; its decisions. ``rng``: of deaths and outages (None: there are
    none)."""
    world, checks, gap, away = World(), Checks(), 40, 0
    fate.rng = rng or random.Random(0)
    fate.synced.clear()

    def fails(call: int) -> bool:
        nonlocal away
        if rng is not None and away == 0 and rng.random() < 0.004:
            away = rng.choice([1, 3, 10_000])
            befell["outages"] += 1
        away -= 1 if (failed := away > 0) else 0
        return failed

    with pytest.MonkeyPatch.context() as patch:
        Storm(patch, fails)
        for _ in range(RESTARTS):
            fate.moments = None if rng is None else rng.randint(1, gap)
            journal = None
            try:
                life = Life(case, root, world, fate, checks)
                journal = life.journal
                life.journal = PatientJournal(journal, patience(30)[0], root)  # type: ignore[assignment]
                life.run_to_end()
                assert life.study.finished is not None
                if life.study.finished.complete:
                    break
            except Died:
                befell["deaths"] += 1
                gap += 2  # so that a study that must first replay its life gets on with it
            except (StorageError, OSError):
                befell["storage given up"] += 1
                away = 0  # whoever resumes it found the storage well
            finally:
                if journal is not None:
                    journal.close()
            if rng is not None and rng.random() < 0.3:
                befell["power failures"] += 1
                fate.power_fails()
        else:
            raise AssertionError(f"the study did not end within {RESTARTS} restarts")
        fate.moments, away = None, 0
        checks.at_the_end(root, world)
        last = Life(case, root, world, fate, Checks())  # whoever opens it once more sweeps
        last.run_to_end()
        last.journal.close()
    kept = {(trial, step) for trial, steps in last.study.checkpoints.items() for step in steps}
    assert world.checkpoints == kept, (
        f"there are checkpoints {world.checkpoints - kept} that nobody refers to, or {kept - world.checkpoints} lack"
    )
    for row in read(root).rows:
        if isinstance(row, Failed):
            befell[row.failure.name] += 1
        befell["damaged"] += isinstance(row, Damaged)
    return decisions(read(root).rows)


def story(seed: int, fate: Fate) -> Story:
    """Live through a study twice: left alone but for its trials' ailments, and with all that may befall it."""
    case, found = Rough.of(seed), Story(seed)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    try:
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            alone = live(case, Path(folder, "alone"), fate, None, Counter())
            hit = live(case, Path(folder, "hit"), fate, random.Random(f"fate {seed}"), found.befell)
            if case.is_comparable:
                found.befell["compared"] += 1
                assert hit == alone, "its decisions are not those of the study that was left alone"
    except BaseException:
        found.violation = traceback.format_exc()
    found.befell["studies"] += 1
    return found


_fate: Fate | None = None  # of the processes below


def told(seed: int) -> Story:
    assert _fate is not None
    return story(seed, _fate)


def stories(seeds: range, fate: Fate) -> Iterator[Story]:
    """Live through studies in several processes: what is patched here is patched there."""
    global _fate
    _fate = fate
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), maxtasksperchild=50) as pool:
        yield from pool.imap_unordered(told, seeds)


def named(seed: int) -> str:
    searcher, scheduler = PAIRS[seed % len(PAIRS)]
    return f"seed {seed}: {searcher} under {scheduler}"


def summary(befell: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(befell.items()))


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("few_candidates")
def test_studies_in_which_everything_fails(fate: Fate, capsys: pytest.CaptureFixture[str]) -> None:
    alone = os.environ.get("CHAOS_SEED")
    seeds = range(STUDIES) if alone is None else range(int(alone), int(alone) + 1)
    befell, violations = Counter[str](), []
    for each in stories(seeds, fate):
        befell += each.befell
        if each.violation:
            violations.append(each)
            with capsys.disabled():
                print(f"\n{named(each.seed)}, to replay it alone: CHAOS_SEED={each.seed}\n{each.violation}", flush=True)
    with capsys.disabled():
        pairs = len({seed % len(PAIRS) for seed in seeds})
        print(
            f" {len(seeds):,} studies, seeds {seeds[0]} to {seeds[-1]}, {pairs} of {len(PAIRS)} pairs of a searcher "
            f"and a scheduler; {summary(befell)}; {len(violations)} violations",
            flush=True,
        )
    assert not violations, f"violations: {'; '.join(named(each.seed) for each in violations)}"
    assert alone is not None or befell["deaths"] > len(seeds)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("few_candidates")
def test_a_few_studies_in_which_everything_fails(fate: Fate) -> None:
    befell = Counter[str]()
    for seed in range(12):
        found = story(seed, fate)
        assert not found.violation, f"{named(seed)}\n{found.violation}"
        befell += found.befell
    assert befell["deaths"] > 12
    assert befell["outages"]


def test_a_violation_is_seen(fate: Fate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard bites: a record that loses what was acknowledged, a driver that keeps what nobody needs."""
    seed = next(
        seed for seed in range(200) if not Rough.of(seed).damaged and Rough.of(seed).checkpoint_config.num_to_keep
    )
    assert not story(seed, fate).violation
    with monkeypatch.context() as patch:
        patch.setattr(Life, "delete", lambda self, trial, step: None)
        patch.setattr(Life, "sweep", lambda self, referenced: None)
        assert "nobody refers to" in story(seed, fate).violation
    with monkeypatch.context() as patch:
        commit = Life.commit
        chance = random.Random(0)

        def forgets(self: Life, rows: Any, reports: Any) -> None:
            commit(self, rows, [each for each in reports if chance.random() < 0.8])
            self._checks._said += reports

        patch.setattr(Life, "commit", forgets)
        assert "was acknowledged, is missing" in story(seed, fate).violation
