"""Learning curves: what the shapes look like, and that a recorded study's curves are its own."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raytuner as tune
from raytuner.actions import Fork, Proposal
from raytuner.curves import SHAPES, Own, Recorded, Shape, chance, point_of
from raytuner.events import Proposed
from raytuner.record.folder import Folder, NoStudy
from raytuner.record.journal import Journal
from raytuner.space import Space, choice, grid_search, loguniform, randint, uniform
from raytuner.trial import Report, Reports, Trial

SPACE = Space(
    {
        "lr": loguniform(1e-4, 1.0),
        "width": randint(4, 64),
        "optimizer": choice([{"name": "sgd", "momentum": uniform(0.0, 0.99)}, {"name": "adam"}]),
    }
)
CONFIGS = [SPACE.sample(np.random.default_rng([5, i])) for i in range(400)]
T = 81


def values(shape: Shape, step: int) -> list[float]:
    return [shape.value(config, step) for config in CONFIGS]


def order(of: list[float]) -> list[int]:
    return sorted(range(len(of)), key=lambda i: of[i])


# ------------------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_a_function_of_trial_and_step(name: str) -> None:
    one, other = Shape(name, SPACE, T, seed=3), Shape(name, SPACE, T, seed=3)
    trials = [Trial(number, config) for number, config in enumerate(CONFIGS[:20])]
    said = [(trial.id, step, one.at(trial, step)["loss"]) for trial in trials for step in (1, 9, 81)]
    for number, step, value in reversed(said):
        assert other.at(trials[number], step)["loss"] == value or math.isnan(value)
    assert one.at(Trial(0, CONFIGS[1]), 9) != one.at(Trial(0, CONFIGS[2]), 9), (
        "another study's trial of the same number"
    )
    assert all(type(value) is float for _, _, value in said)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_begins_near_1_and_its_best_end_near_0(name: str) -> None:
    shape = Shape(name, SPACE, T, seed=3)
    sound = [value for value in values(shape, T) if not math.isnan(value)]
    assert shape.sound == (len(sound) == len(CONFIGS))
    assert -1e-9 < min(sound) < 0.25
    assert max(sound) < 1.5
    assert 0.5 < statistics.mean(values(shape, 1)) < 1.01
    assert shape.value(CONFIGS[0]) == shape.value(CONFIGS[0], T) or math.isnan(shape.value(CONFIGS[0]))


def test_formulas() -> None:
    f, g = 0.25, 0.5
    at = {name: SHAPES[name](f, g, 27, 81) for name in SHAPES}
    assert at["power"] == at["noisy"] == at["diverging"] == pytest.approx(f + 0.75 * 28**-0.7)
    assert at["exponential"] == pytest.approx(f + 0.75 * math.exp(-10 / 3))
    assert at["crossing"] == pytest.approx(f + 0.75 * math.exp(-(3 + 27 / 4) / 3))
    assert at["late"] == pytest.approx(f + 0.75 / (1 + (1 / 3 / 0.35) ** 6))
    assert at["overfit"] == pytest.approx(at["power"] + 0.5 * (1 / 3 - 1 / 4) ** 2)
    assert math.isnan(SHAPES["diverging"](0.1, 0.95, 27, 81))


def test_power_curves_never_cross_and_crossing_curves_do() -> None:
    power, crossing = Shape("power", SPACE, T), Shape("crossing", SPACE, T)
    assert order(values(power, 1)) == order(values(power, T))
    early, end = order(values(crossing, 3)), order(values(crossing, T))
    assert not set(early[:40]) & set(end[:40]), "the best tenth at the third step is not that of the end"


def test_what_overfits_gets_worse_after_a_quarter() -> None:
    shape = Shape("overfit", SPACE, T)
    worse = sum(end > middle for end, middle in zip(values(shape, T), values(shape, 30), strict=True))
    assert 0.5 < worse / len(CONFIGS) < 1.0


def test_a_fifth_diverges_before_the_end() -> None:
    shape = Shape("diverging", SPACE, T)
    assert 0.1 < sum(map(math.isnan, values(shape, T))) / len(CONFIGS) < 0.3
    assert sum(map(math.isnan, values(shape, 1))) < 0.05 * len(CONFIGS)


def test_noise_is_normal_and_everybody_s_own() -> None:
    noisy, without = Shape("noisy", SPACE, T), Shape("power", SPACE, T)
    trial = Trial(7, CONFIGS[7])
    off = [noisy.at(trial, step)["loss"] - without.at(trial, step)["loss"] for step in range(1, 2001)]
    assert statistics.mean(off) == pytest.approx(0, abs=0.005)
    assert statistics.stdev(off) == pytest.approx(0.05, rel=0.1)
    assert noisy.value(trial.config, 9) == without.value(trial.config, 9)
    assert noisy.at(Trial(8, CONFIGS[7]), 1) != noisy.at(trial, 1)
    quiet = Shape("noisy", SPACE, T, noise=0.0)
    assert quiet.at(trial, 9) == without.at(trial, 9)


def test_with_mode_max_more_is_better() -> None:
    least, most = Shape("late", SPACE, T), Shape("late", SPACE, T, metric="accuracy", mode="max")
    assert most.at(Trial(0, CONFIGS[0]), 9) == {"accuracy": 1 - least.at(Trial(0, CONFIGS[0]), 9)["loss"]}
    assert most.value(CONFIGS[0]) == 1 - least.value(CONFIGS[0])


def test_another_seed_has_another_optimum() -> None:
    best = {order(values(Shape("power", SPACE, T, seed=seed), T))[0] for seed in range(8)}
    assert len(best) > 5


def test_a_space_without_parameters_has_one_curve() -> None:
    shape = Shape("power", Space({"a": 1}), T)
    assert shape.value({"a": 1}, T) == pytest.approx(82**-0.7)


def test_a_grid_has_curves_too() -> None:
    shape = Shape("power", Space({"a": grid_search([1, 2, 3])}), T)
    assert len({shape.value({"a": a}) for a in (1, 2, 3)}) == 3


def test_a_fork_from_outside_is_moved_to_the_edge() -> None:
    config = {"lr": 1.2, "width": 100, "optimizer": {"name": "sgd", "momentum": 0.5}}
    x, active = point_of(SPACE, config)
    names = [param.name for param in SPACE.params]
    assert dict(zip(names, x, strict=True))["lr"] == 1.0
    assert dict(zip(names, x, strict=True))["width"] == 1.0
    assert active[names.index("lr")]
    assert not active[names.index("optimizer")]
    assert 0 < Shape("power", SPACE, T).value(config) < 1
    x, active = point_of(SPACE, {**config, "lr": -1.0})
    assert x[names.index("lr")] == 0.0


def test_chance_is_the_same_everywhere() -> None:
    assert chance(1, 2, 3) == pytest.approx(0.4175580595044028, abs=1e-15)
    found = [chance(7, trial, step) for trial in range(50) for step in range(50)]
    assert statistics.mean(found) == pytest.approx(0.5, abs=0.02)
    assert len(set(found)) == len(found)
    assert min(found) > 0
    assert chance(1, 0) != chance(1) != chance(1, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "straight"}, "curve must be one of power, .*; got 'straight'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"mode": "most"}, "mode must be 'min' or 'max', got 'most'"),
        ({"noise": -1}, "noise must be a number of at least 0, got -1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Shape(**{"name": "power", "space": SPACE, "steps": T, **arguments})


def test_a_function_must_return_metrics() -> None:
    assert Own(lambda config, step: {"loss": config["x"] / step}).at(Trial(0, {"x": 4}), 2) == {"loss": 2.0}
    with pytest.raises(TypeError, match=r"curve must return a dict of metrics, got 0\.5 for step 3"):
        Own(lambda config, step: 0.5).at(Trial(0, {}), 3)  # type: ignore[arg-type,return-value]


# ---------------------------------------------------------------------------------------------------------- recorded

LINE = Space({"x": uniform(0.0, 1.0), "kind": choice(["a", "b"])})


def config(x: float, kind: str = "a") -> dict[str, Any]:
    return {"x": x, "kind": kind}


def study(
    root: Path, trials: Mapping[int, tuple[dict[str, Any], int]], space: Space = LINE, seconds: float = 2.0
) -> Path:
    """A study's folder: trial ``i`` reports 100 i + step, up to some step; all begin at second 0."""
    Folder(root).create({"space": space.to_json(), "metric": "loss", "mode": "min"})
    journal = Journal(root)
    for number, (given, length) in trials.items():
        said = Reports.of(
            number,
            1,
            [
                Report(step, float(step), {"loss": 100.0 * number + step, "note": f"{number}"}, seconds * step)
                for step in range(1, length + 1)
            ],
        )
        journal.commit([Proposed(0.0, number, Proposal(given))], [said] if length else [])
    journal.close()
    return root


def losses(curves: Recorded, trial: Trial, *steps: int) -> list[float]:
    return [curves.at(trial, step)["loss"] for step in steps]


def test_a_recorded_configuration_has_its_own_curve(fast_path: Path) -> None:
    curves = Recorded(study(fast_path, {0: (config(0.1), 3), 1: (config(0.9), 9), 2: (config(0.5), 27)}))
    assert curves.steps == 27
    assert curves.space == LINE
    assert losses(curves, Trial(17, config(0.9)), 1, 5, 9) == [101.0, 105.0, 109.0]
    assert curves.at(Trial(17, config(0.9)), 5) == {"loss": 105.0, "note": "1"}
    assert repr(curves) == f"Recorded('{fast_path}': 3 trials, up to step 27)"


def test_any_other_has_the_nearest_one_s(fast_path: Path) -> None:
    curves = Recorded(study(fast_path, {0: (config(0.1), 3), 1: (config(0.9), 9), 2: (config(0.5, "b"), 27)}))
    assert losses(curves, Trial(3, config(0.3)), 1) == [1.0]
    assert losses(curves, Trial(3, config(0.51)), 1) == [101.0], "another option is as far as the whole range"
    assert losses(curves, Trial(3, config(0.99, "b")), 1) == [201.0]


def test_beyond_its_end_a_trial_goes_on_like_the_nearest_that_got_so_far(fast_path: Path) -> None:
    trials = {0: (config(0.1), 3), 1: (config(0.9), 9), 2: (config(0.5), 5)}
    curves = Recorded(study(fast_path, trials))
    # 3, then what trial 2 said more at steps 4 and 5 than at 3, then the same of trial 1.
    assert losses(curves, Trial(0, config(0.1)), 3, 4, 5, 6, 9) == [3.0, 4.0, 5.0, 6.0, 9.0]
    assert curves.at(Trial(0, config(0.1)), 7) == {"loss": 7.0, "note": "1"}
    assert losses(curves, Trial(0, config(0.1)), 10, 1000) == [9.0, 9.0], "beyond everybody's end nothing changes"


def test_of_several_the_same_number_else_the_longest(fast_path: Path) -> None:
    curves = Recorded(study(fast_path, {0: (config(0.1), 3), 1: (config(0.1), 9), 2: (config(0.1), 5)}))
    assert losses(curves, Trial(2, config(0.1)), 1) == [201.0]
    assert losses(curves, Trial(8, config(0.1)), 1) == [101.0]


def test_steps_take_as_long_as_they_did(fast_path: Path) -> None:
    curves = Recorded(study(fast_path, {0: (config(0.1), 3), 1: (config(0.9), 1)}, seconds=2.5))
    assert [curves.seconds(Trial(5, config(0.2)), step) for step in (1, 2, 3, 4)] == [2.5] * 4
    assert curves.seconds(Trial(5, config(0.9)), 1) == 2.5, "of one report it is not known: the mean of all"


def test_trials_that_said_nothing_are_passed_over(fast_path: Path) -> None:
    curves = Recorded(study(fast_path, {0: (config(0.1), 0), 1: (config(0.9), 4)}))
    assert losses(curves, Trial(0, config(0.1)), 1) == [101.0]


def test_forks_are_curves_too(fast_path: Path) -> None:
    root = study(fast_path, {0: (config(0.1), 3)})
    journal = Journal(root)
    said = Reports.of(1, 1, [Report(step, float(step), {"loss": 7.0}, 10.0 + step) for step in (3, 4)])
    journal.commit([Fork(1, 0, config(3.0), 4)], [said])
    journal.close()
    curves = Recorded(root)
    assert losses(curves, Trial(9, config(0.9)), 2, 3, 4) == [7.0, 7.0, 7.0], "before its first report that is all"


def test_a_study_without_reports(fast_path: Path) -> None:
    with pytest.raises(NoStudy, match="there is no study in"):
        Recorded(fast_path / "nowhere")
    with pytest.raises(ValueError, match="has not reported anything yet"):
        Recorded(study(fast_path, {0: (config(0.1), 0)}))


def test_a_space_with_functions_must_be_given_again(fast_path: Path) -> None:
    given = {"x": uniform(0.0, 1.0), "y": tune.sample_from(lambda c: c["x"] * 2)}
    root = study(fast_path, {0: ({"x": 0.1, "y": 0.2}, 3)}, Space(given))
    with pytest.raises(ValueError, match="sample_from"):
        Recorded(root)
    assert losses(Recorded(root, given), Trial(4, {"x": 0.3, "y": 0.6}), 2) == [2.0]
