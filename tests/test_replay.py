"""The guard of everything else: a study whose driver dies takes the decisions it would have taken.

Over every searcher and every scheduler of the contract suites: a new one joins by standing there. Each algorithm meets
each searcher, each setting of it one, as do populations, which ask the searcher at the start only; `make chaos` has all
pairs. The simulator's order
of arrival does not depend on the driver's death, so the decisions of an interrupted study must equal, one by one, those
of the same study left alone.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from raytuner.driver import ReplayDiffers
from raytuner.executors.simulate import World
from raytuner.models import time_varying_bandit
from raytuner.schedulers import AsyncHyperBandScheduler, HyperBandScheduler
from raytuner.searchers import GridSearch, RandomSearch
from tests.conftest import CHAOS_CASES
from tests.lives import GRID, SPACE, Case, Checks, Died, Fate, Life, fate, live_through
from tests.schedulers.test_contract import SETTINGS, any_model
from tests.searchers.test_contract import SEARCHERS_UNDER_TEST
from tests.searchers.warm_started import Forgetful, WarmStarted

__all__ = ["any_model", "fate"]  # fixtures

DEATHS = 200
SUGGEST = time_varying_bandit.suggest


@pytest.fixture
def the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """PB2's own, in place of `any_model`."""
    monkeypatch.setattr(time_varying_bandit, "suggest", SUGGEST)


def case_of(searcher: str, scheduler: str) -> Case:
    search = SEARCHERS_UNDER_TEST[searcher]
    return Case(search, SETTINGS[scheduler], GRID if isinstance(search, GridSearch) else SPACE)


POPULATIONS = {"pbt", "pbt synch", "pbt replay", "pb2"}
"""They ask the searcher at the start only."""

VARIANTS = {
    *("asha 2", "asha to the end", "asha without rungs", "asha too many brackets"),
    *("hyperband", "hyperband 2", "hyperband to the end", "hyperband grace", "hyperband one step", "median"),
    *("asha promotion 2", "asha promotion brackets", "asha promotion to the end"),
    *("pbt half", "pbt tournament", "pbt synch tournament", "pb2 synch", "resource changing", "resource changing asha"),
}
"""Settings of an algorithm that others stand for: a third of the deaths."""

BRIEFLY: dict[str, set[str]] = {
    "bohb, warm-started from a history": {"asha", "hyperband 9"},
    "sobol": {"fifo"},
    "tpe": {"asha", "hyperband 9"},
    "tpe, univariate": set(),
    "evolution": set(),
    "evolution, small": {"asha", "hyperband 9"},
    "cmaes": {"asha", "hyperband 9"},
    "gp": {"hyperband 9"},
}
"""All that these searchers meet here, a third of the deaths: other schedulers ask and tell them nothing new.

Those that meet none are machines that stand here under another name.
"""

PAIRS = [
    pytest.param(searcher, scheduler, id=f"{searcher}-{scheduler}")
    for searcher in SEARCHERS_UNDER_TEST
    for scheduler in SETTINGS
    if (scheduler not in POPULATIONS | VARIANTS or searcher == "random")
    and (searcher != "kde" or scheduler == "hyperband 9")  # it is the same machine as "kde, early"
    and scheduler in BRIEFLY.get(searcher, SETTINGS)
]


@pytest.mark.parametrize(("searcher", "scheduler"), PAIRS)
@pytest.mark.usefixtures("few_candidates")
def test_an_interrupted_study_takes_the_same_decisions(
    searcher: str, scheduler: str, fast_path: Path, fate: Fate
) -> None:
    deaths = DEATHS // 3 if scheduler in VARIANTS or searcher in BRIEFLY else DEATHS
    check(case_of(searcher, scheduler), fast_path, fate, deaths)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(1))
@pytest.mark.parametrize("scheduler", SETTINGS)
@pytest.mark.parametrize("searcher", SEARCHERS_UNDER_TEST)
def test_many_interrupted_studies(searcher: str, scheduler: str, seed: int, fast_path: Path, fate: Fate) -> None:
    if CHAOS_CASES < 10_000 and scheduler not in BRIEFLY.get(searcher, SETTINGS):
        pytest.skip("all pairs are for the long run")
    if (searcher, scheduler) == ("grid", "pbt replay"):
        pytest.skip("a schedule has its own configurations, which are not of the grid's space")
    case = case_of(searcher, scheduler)
    chance = random.Random(f"{searcher} {scheduler} {seed}")
    fate.rng.seed(seed)
    case = replace(case, seed=seed, slots=chance.randint(1, 16), trials=chance.randint(1, 40))
    check(case, fast_path, fate, min(DEATHS, CHAOS_CASES // 25))


@pytest.mark.usefixtures("the_model")
def test_a_population_with_a_model_takes_the_same_decisions(fast_path: Path, fate: Fate) -> None:
    """The others have PB2 propose at random, since its Gaussian process takes a while at every fork of every life."""
    check(Case(RandomSearch(), SETTINGS["pb2"], SPACE, trials=6, slots=3), fast_path, fate, 10)


def check(case: Case, root: Path, fate: Fate, deaths: int) -> None:
    """Interrupt a study, over and over, until its drivers have died so often; every time it must end as if not."""
    expected, alone = live_through(case, root / "alone", fate, gap=None)
    died = round_ = 0
    while died < deaths:
        round_ += 1
        # The mean life is about a tenth of the study; every other round the power fails with the driver.
        found, checks = live_through(case, root / str(round_), fate, alone.leases // 3 + 4, power=round_ % 2 == 0)
        assert found == expected
        died += checks.deaths
        # Each death repeats at most the leases that were running, one per slot.
        assert checks.leases <= alone.leases + checks.deaths * case.slots


def test_a_searcher_that_forgets_is_caught(fast_path: Path, fate: Fate) -> None:
    """The guard bites: hidden state that is not journaled makes the decisions differ."""
    with pytest.raises(AssertionError):
        check(Case(Forgetful(), AsyncHyperBandScheduler(max_t=9), SPACE), fast_path, fate, DEATHS)
    fate.moments = None
    check(Case(WarmStarted(), AsyncHyperBandScheduler(max_t=9), SPACE), fast_path / "sound", fate, 20)


def test_an_unwritten_decision_is_caught(fast_path: Path, fate: Fate) -> None:
    """The guard bites: a driver that issues commands before they are durable gives leases out twice."""
    case = Case(RandomSearch(), HyperBandScheduler(max_t=9), SPACE)
    world, checks = World(), Checks()
    life = Life(case, fast_path, world, fate, checks)
    life.journal.commit = lambda rows, reports: None  # type: ignore[method-assign]
    fate.moments = 60
    with pytest.raises(Died):
        life.run_to_end()
    life.journal.close()
    fate.moments = None
    with pytest.raises(AssertionError, match="runs again"):
        Life(case, fast_path, world, fate, checks).run_to_end()


@pytest.mark.parametrize("changed", [HyperBandScheduler(max_t=27), AsyncHyperBandScheduler(max_t=9)])
def test_another_scheduler_is_told_from_the_record(changed: object, fast_path: Path, fate: Fate) -> None:
    case = Case(RandomSearch(), HyperBandScheduler(max_t=9), SPACE)
    live_through(case, fast_path, fate, gap=None)
    with pytest.raises(ReplayDiffers, match=r"recorded was .* but the study now decides"):
        Life(replace(case, scheduler=changed), fast_path, World(), fate, Checks())


def test_a_finished_study_is_left_alone(fast_path: Path, fate: Fate) -> None:
    """Opening it again replays it to its end; nothing is run and nothing written."""
    case = Case(RandomSearch(), HyperBandScheduler(max_t=9), SPACE)
    live_through(case, fast_path, fate, gap=None)
    before = {path: path.read_bytes() for path in fast_path.rglob("*.arrow")}
    checks = Checks()
    life = Life(case, fast_path, World(), fate, checks)
    life.journal.close()
    assert life.study.finished is not None
    assert life.study.finished.complete
    assert checks.leases == 0
    assert {path: path.read_bytes() for path in fast_path.rglob("*.arrow")} == before


def test_one_slot_without_checkpoints(fast_path: Path, fate: Fate) -> None:
    """Trials that never save start again at 0 after a death; with one slot the order is fixed all the same."""

    class Unsaved(Case):
        def workload(self):  # type: ignore[no-untyped-def]
            return replace(super().workload(), saves=lambda trial, step: False, saves_at_end=False)

    check(Unsaved(RandomSearch(), AsyncHyperBandScheduler(max_t=9), SPACE, slots=1), fast_path, fate, 50)
