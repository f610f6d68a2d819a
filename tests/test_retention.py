"""Which checkpoints are kept: of one trial, and of a study."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytuner import checkpoints as published
from raytuner import retention as module
from raytuner.retention import (
    BestInStudy,
    BestN,
    CheckpointConfig,
    Everything,
    InUse,
    Kept,
    LatestN,
    Need,
    Quota,
    Stock,
    Stored,
    StudyRule,
    over_the_study,
    rank,
    retention,
)

checkpoints = st.lists(
    st.builds(Kept, st.integers(0, 40), st.one_of(st.none(), st.integers(-3, 3).map(float), st.just(math.nan))),
    unique_by=lambda kept: kept.step,
)
orders = st.sampled_from(["max", "min"])


def configs() -> st.SearchStrategy[CheckpointConfig]:
    return st.builds(
        CheckpointConfig,
        num_to_keep=st.one_of(st.none(), st.integers(1, 5)),
        checkpoint_score_attribute=st.sampled_from([None, "accuracy"]),
        checkpoint_score_order=orders,
    )


@given(checkpoints, configs(), st.sets(st.integers(0, 40)))
def test_what_must_be_kept_is_kept_and_no_more_than_asked(
    kept: list[Kept], config: CheckpointConfig, in_use: set[int]
) -> None:
    steps = {one.step for one in kept}
    keep = retention(config).keep(kept, in_use)
    assert keep <= steps
    assert keep >= in_use & steps
    if steps:
        assert max(steps) in keep
    if config.num_to_keep is None:
        assert keep == steps
    else:
        least = min(config.num_to_keep, len(steps))
        latest_too = config.checkpoint_score_attribute is not None
        assert least <= len(keep) <= least + latest_too + len(in_use & steps)
    assert keep == retention(config).keep(kept[::-1], in_use)


@given(checkpoints, st.integers(1, 5), orders)
def test_nothing_better_than_what_best_n_keeps_is_dropped(kept: list[Kept], n: int, order: str) -> None:
    keep = BestN(n, order).keep(kept, ())
    sign = 1 if order == "max" else -1

    def value(one: Kept) -> float:
        return -math.inf if one.score is None or math.isnan(one.score) else sign * one.score

    dropped = [value(one) for one in kept if one.step not in keep]
    assert max(dropped, default=-math.inf) <= min((value(one) for one in kept if one.step in keep), default=math.inf)


@given(checkpoints, configs())
def test_deciding_at_every_checkpoint_ends_like_deciding_once(kept: list[Kept], config: CheckpointConfig) -> None:
    """The study drops checkpoints as they come; what it dropped could never have been kept in the end."""
    rule, alive = retention(config), list[Kept]()
    for one in sorted(kept, key=lambda one: one.step):
        alive.append(one)
        keep = rule.keep(alive, ())
        alive = [one for one in alive if one.step in keep]
    assert {one.step for one in alive} == rule.keep(kept, ())


@given(st.dictionaries(st.integers(0, 40), st.integers(-3, 3)), configs())
def test_it_keeps_what_ray_keeps(scores: dict[int, int], config: CheckpointConfig) -> None:
    """Ray's bookkeeping, checkpoint after checkpoint: drop the worst (or first) beyond n, but never the latest."""
    sign = 1 if config.checkpoint_score_order == "max" else -1
    alive: list[int] = []
    for step in sorted(scores):
        alive.append(step)
        if config.checkpoint_score_attribute is not None:
            alive.sort(key=lambda step: (sign * scores[step], step))
        if config.num_to_keep is not None:
            alive = [one for one in alive[: -config.num_to_keep] if one == step] + alive[-config.num_to_keep :]
    kept = [Kept(step, float(score)) for step, score in scores.items()]
    assert retention(config).keep(kept, ()) == set(alive)


def test_rules_by_example() -> None:
    kept = [Kept(1, 0.5), Kept(2, 0.9), Kept(3, math.nan), Kept(4, None), Kept(5, 0.9), Kept(6, 0.1)]
    assert Everything().keep(kept, ()) == {1, 2, 3, 4, 5, 6}
    assert InUse().keep(kept, {2, 77}) == {2}
    assert LatestN(2).keep(kept, ()) == {5, 6}
    assert LatestN(9).keep(kept, ()) == {1, 2, 3, 4, 5, 6}
    assert BestN(1).keep(kept, ()) == {5}  # of equals the later
    assert BestN(3).keep(kept, ()) == {1, 2, 5}
    assert BestN(2, "min").keep(kept, ()) == {1, 6}
    assert BestN(5).keep(kept, ()) == {1, 2, 3, 5, 6}
    best_two = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="accuracy")
    assert retention(best_two).keep(kept, {3}) == {2, 3, 5, 6}
    assert retention(CheckpointConfig(num_to_keep=1)).keep(kept, {3}) == {3, 6}
    assert retention(CheckpointConfig()).keep(kept, ()) == {1, 2, 3, 4, 5, 6}
    assert retention(best_two).keep([], {3}) == set()


def test_scores_come_from_metrics() -> None:
    config = CheckpointConfig(checkpoint_score_attribute="eval/loss", checkpoint_score_order="min")
    assert config.score({"eval/loss": 2}) == 2.0
    assert math.isnan(config.score({"eval/loss": math.nan}) or 0.0)
    for metrics in ({}, {"eval/loss": None}, {"eval/loss": "2"}, {"eval/loss": [2]}):
        assert config.score(metrics) is None
    assert CheckpointConfig().score({"eval/loss": 2}) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_to_keep": 0},
        {"num_to_keep": -1},
        {"num_to_keep": True},
        {"num_to_keep": 1.5},
        {"num_to_keep": "1"},
        {"checkpoint_score_attribute": ""},
        {"checkpoint_score_attribute": 3},
        {"checkpoint_score_order": "maximum"},
        {"checkpoint_score_order": None},
        {"checkpoint_frequency": -1},
        {"checkpoint_frequency": None},
        {"checkpoint_at_end": "yes"},
        {"num_to_keep_in_study": 0},
        {"num_to_keep_in_study": 2.0},
        {"quota_count": -1},
        {"quota_bytes": True},
        {"checkpoint_interval_s": 0},
        {"checkpoint_interval_s": math.nan},
        {"checkpoint_interval_s": "5"},
        {"checkpoint_interval_s": True},
    ],
    ids=str,
)
def test_a_wrong_config_is_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name} must be .* not {wrong[name]!r}$"):
        CheckpointConfig(**wrong)


def test_the_defaults_are_rays() -> None:
    import ray.tune

    ours, theirs = CheckpointConfig(), ray.tune.CheckpointConfig()
    for name in theirs.__dataclass_fields__:
        if name.startswith("_"):
            continue
        assert getattr(ours, name) == getattr(theirs, name)


def test_the_names_are_where_they_were() -> None:
    for name in (
        "AnyOf",
        "BestN",
        "CheckpointConfig",
        "Everything",
        "InUse",
        "Kept",
        "LatestN",
        "Retention",
        "retention",
    ):
        assert getattr(published, name) is getattr(module, name)


# ---------------------------------------------------------------------------------------------- over all trials

KEYS = st.tuples(st.integers(0, 4), st.integers(1, 5))
WORTHS = st.none() | st.integers(-2, 2).map(float) | st.just(math.nan)
CHANGES = st.lists(
    st.tuples(st.just("add"), KEYS, WORTHS, st.integers(0, 9))
    | st.tuples(st.just("need"), KEYS, st.sampled_from(Need))
    | st.tuples(st.just("remove"), KEYS),
    max_size=60,
)
LIMIT = st.none() | st.integers(1, 12)


class Books:
    """What a `Stock` is told, and by the plainest of means what must go."""

    def __init__(self, rules: tuple[StudyRule, ...]) -> None:
        self.rules = rules
        self.there: dict[tuple[int, int], Stored] = {}
        self.made = 0

    def tell(self, change: tuple[Any, ...], stock: Stock) -> None:
        match change:
            case "add", key, value, nbytes:
                self.made += 1
                self.there[key] = Stored(*key, value, nbytes, self.made)
                stock.add(*key, value, nbytes)
            case "need", key, need if key in self.there:
                self.there[key] = replace(self.there[key], need=need)
                stock.appraise(*key, need)
            case "remove", key:
                self.there.pop(key, None)
                stock.remove(*key)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.there.values())

    def worst_first(self, *needs: Need) -> list[tuple[int, int]]:
        found = [one for one in self.there.values() if one.need in needs]
        return [(one.trial, one.step) for one in sorted(found, key=lambda one: (rank(one.worth), one.need, one.made))]

    def next_to_go(self) -> tuple[int, int] | None:
        spare, paused = self.worst_first(Need.NOTHING, Need.SUPERSEDED), self.worst_first(Need.STEPS)
        for rule in self.rules:
            match rule:
                case BestInStudy(n) if len(spare) > n:
                    return spare[0]
                case Quota(count, nbytes, best) if len(self.there) > (count or 99) or self.nbytes > (nbytes or 999):
                    if len(spare) > best:
                        return spare[0]
                    if paused:
                        return paused[0]
        return None


@given(CHANGES, LIMIT, LIMIT, LIMIT)
def test_a_stock_names_what_the_rules_say(
    changes: list[tuple[Any, ...]], best: int | None, count: int | None, nbytes: int | None
) -> None:
    """Whatever came, went and came to be needed before; never what is needed, and never more than must."""
    rules = over_the_study(CheckpointConfig(num_to_keep_in_study=best, quota_count=count, quota_bytes=nbytes))
    stock, books = Stock(rules), Books(rules)
    for change in changes:
        books.tell(change, stock)
        while (surplus := stock.surplus()) is not None:
            assert surplus == books.next_to_go()
            gone = books.there[surplus]
            assert gone.need < Need.TRIAL
            spare = [one for one in books.there.values() if one.need <= Need.SUPERSEDED]
            over_count = count is not None and len(books.there) > count
            over_bytes = nbytes is not None and books.nbytes > nbytes
            over_best = best is not None and len(spare) > best
            assert over_count or over_bytes or over_best, "it might have stayed"
            if gone.need is Need.STEPS:
                assert len(spare) <= (best or 1), "what nobody goes on from goes first"
            books.tell(("remove", surplus), stock)
        assert books.next_to_go() is None
        assert (len(stock), stock.nbytes) == (len(books.there), books.nbytes)
        fits = (count is None or len(stock) <= count) and (nbytes is None or stock.nbytes <= nbytes)
        assert (stock.exceeded is None) == fits
        left = [one.need for one in books.there.values() if one.need is not Need.TRIAL]
        assert fits or (Need.STEPS not in left and len(left) <= (best or 1)), "the quota holds where it can"


@given(st.lists(st.tuples(WORTHS, st.sampled_from(Need)), max_size=15), st.integers(1, 8))
def test_a_larger_quota_keeps_all_that_a_smaller_one_does(stored: list[tuple[float | None, Need]], most: int) -> None:
    def kept(most: int) -> set[int]:
        stock = Stock((Quota(most),))
        left = set(range(len(stored)))
        for trial, (value, need) in enumerate(stored):
            stock.add(trial, 1, value, 1)
            stock.appraise(trial, 1, need)
        while (surplus := stock.surplus()) is not None:
            left.remove(surplus[0])
            stock.remove(*surplus)
        return left

    assert kept(most) <= kept(most + 1)


@given(st.lists(WORTHS, min_size=1, max_size=25), st.integers(1, 5))
def test_the_best_of_a_study_are_those_of_all_it_ever_had(worths: list[float | None], n: int) -> None:
    """Dropped as they come, as a study does it: what was dropped could never have been among them in the end."""
    stock, left = Stock((BestInStudy(n),)), set()
    for trial, value in enumerate(worths):
        stock.add(trial, 1, value, 1)
        stock.appraise(trial, 1, Need.NOTHING)
        left.add(trial)
        while (surplus := stock.surplus()) is not None:
            left.remove(surplus[0])
            stock.remove(*surplus)
    ranked = sorted(range(len(worths)), key=lambda trial: (rank(worths[trial]), trial))
    assert left == set(ranked[-n:])


def test_what_goes_first_by_example() -> None:
    stock = Stock((Quota(1),))
    for trial, (value, need) in enumerate(
        [
            (9.0, Need.STEPS),
            (1.0, Need.STEPS),
            (5.0, Need.SUPERSEDED),
            (9.0, Need.NOTHING),
            (2.0, Need.NOTHING),
            (2.0, Need.NOTHING),
            (math.nan, Need.NOTHING),
            (None, Need.NOTHING),
            (0.0, Need.TRIAL),
        ]
    ):
        stock.add(trial, 7, value, 100)
        stock.appraise(trial, 7, need)
    gone = []
    while (surplus := stock.surplus()) is not None:
        gone.append(surplus[0])
        stock.remove(*surplus)
    assert gone == [7, 6, 4, 5, 2, 1, 0]
    assert len(stock) == 2, "what runs, and the best of what there is"
    assert stock.exceeded == Quota(1)


def test_what_is_best_in_the_study_does_not_count_what_trials_go_on_from() -> None:
    stock = Stock((BestInStudy(2),))
    for trial in range(6):
        stock.add(trial, 1, float(trial), 1)
        stock.appraise(trial, 1, Need.TRIAL if trial % 2 else Need.NOTHING)
    assert stock.surplus() == (0, 1)  # of 0, 2, 4
    stock.remove(0, 1)
    assert stock.surplus() is None
    stock.appraise(5, 1, Need.SUPERSEDED)
    assert stock.surplus() == (2, 1)  # of 2, 4, 5


def test_a_quota_says_what_it_is() -> None:
    assert str(Quota(12, 3_000_000)) == "12 checkpoints, 3,000,000 bytes"
    assert str(Quota(None, 5)) == "5 bytes"


def test_a_long_life_costs_no_more_than_what_is_there() -> None:
    """What changes its need over and over leaves no trace."""
    chance = random.Random(0)
    stock = Stock((Quota(50),))
    for trial in range(50):
        stock.add(trial, 1, float(trial), 1)
    for _ in range(5000):
        stock.appraise(chance.randrange(50), 1, chance.choice(list(Need)))
    assert len(stock.spare._heap) <= 2 * 50 + 65
