"""Explore's laws, over random mutations and configurations, and its rules one by one.

Each kind of hyperparameter has a law of its own in `inside`, written from the table at the head of ``explore.py``.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytuner.schedulers import PopulationBasedTraining
from raytuner.schedulers.explore import FACTORS, Explorer, as_space, completed, from_json, to_json
from raytuner.space import (
    Choice,
    Function,
    Integer,
    Numeric,
    Space,
    choice,
    lograndint,
    loguniform,
    ordinal,
    qlograndint,
    qloguniform,
    qrandint,
    qrandn,
    quniform,
    randint,
    randn,
    same,
    sample_from,
    uniform,
)

Mutations = dict[str, Any]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def explored(mutations: Mapping[str, Any], config: Mapping[str, Any], seed: int = 0, **settings: Any) -> Any:
    """A configuration's next one; it is never resampled unless that is asked for."""
    custom = settings.pop("custom", None)
    given = {"resample_probability": 0.0, "factors": FACTORS} | settings
    return Explorer(mutations, custom=custom, **given).explore(config, rng(seed))


def outcomes(mutations: Mapping[str, Any], config: Mapping[str, Any], **settings: Any) -> set[Any]:
    """What a configuration's one value may become."""
    (name,) = config
    return {explored(mutations, config, seed, **settings)[name] for seed in range(40)}


# ----------------------------------------------------------------------------------------------- random mutations


def numeric() -> st.SearchStrategy[Numeric]:
    """A domain of numbers, of every kind."""
    numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 6))
    widths, quanta = st.sampled_from([1e-3, 0.5, 7.0, 1e6]), st.sampled_from([0.1, 0.25, 1.0, 3.0])
    small, steps, ratios = st.integers(-20, 20), st.integers(2, 40), st.sampled_from([1.5, 10.0, 1e6])
    return st.one_of(
        st.builds(lambda low, width: uniform(low, low + width), numbers, widths),
        st.builds(lambda low, ratio: loguniform(low, low * ratio), st.sampled_from([1e-8, 0.3, 5.0]), ratios),
        st.builds(lambda q, first, n: quniform(first * q, (first + n) * q, q), quanta, small, steps),
        st.builds(lambda q, first, n: qloguniform(first * q, (first + n) * q, q), quanta, st.integers(1, 9), steps),
        st.builds(lambda low, n: randint(low, low + n), small, steps),
        st.builds(lambda q, first, n: qrandint(first * q, (first + n) * q, q), st.integers(2, 16), small, steps),
        st.builds(lambda low, n: lograndint(low, low + n), st.integers(1, 9), steps),
        st.builds(lambda q, first, n: qlograndint(first * q, (first + n) * q, q), steps, st.integers(1, 9), steps),
        st.builds(randn, numbers, widths),
        st.builds(qrandn, st.floats(-9, 9), st.just(2.0), quanta),
    )


plain_values = st.sampled_from([None, True, 1, 1.0, -2.5, "a", "b", (1, 2), [1, [2]], [], {"k": [3]}])
functions = st.sampled_from([lambda: random.random(), lambda: random.randint(1, 9), lambda: "text", lambda: [1, 2]])
names = st.sampled_from("abcd")


def branches(depth: int) -> st.SearchStrategy[Any]:
    """What may be an option of a choice."""
    inner = st.one_of(plain_values, numeric(), st.builds(sample_from, functions))
    if depth:
        inner = st.one_of(inner, choices(depth - 1), st.dictionaries(names, numeric(), max_size=2))
    return st.one_of(plain_values, numeric(), st.dictionaries(names, inner, max_size=3))


def choices(depth: int) -> st.SearchStrategy[Choice]:
    return st.lists(branches(depth), min_size=1, max_size=3).map(choice)


def trees(depth: int = 2, code: bool = True) -> st.SearchStrategy[Mutations]:
    kinds = [numeric(), st.lists(plain_values, min_size=1, max_size=4), choices(depth)]
    if code:
        kinds += [functions, st.builds(sample_from, functions)]
    if depth:
        kinds += [trees(depth - 1, code)]
    return st.dictionaries(names, st.one_of(kinds), max_size=4)


def holds_code(raw: Any) -> bool:
    match raw:
        case Mapping():
            return any(map(holds_code, raw.values()))
        case Choice():
            return any(map(holds_code, raw.options))
        case _:
            return isinstance(raw, Function) or callable(raw)


def moved_outside(value: Any, chance: random.Random) -> Any:
    """A configuration that the searcher, or its ``param_space``, may have made in place of one from the mutations."""
    if isinstance(value, dict):
        kept = {key: moved_outside(each, chance) for key, each in value.items() if chance.random() < 0.8}
        return {**kept, **({"untouched": [value]} if chance.random() < 0.3 else {})}
    if isinstance(value, (int, float)) and not isinstance(value, bool) and chance.random() < 0.4:
        return value * chance.choice([-3, 0, 1.01, 100.0, 10**9])
    return chance.choice(["unknown", None, -1, 0.5, value]) if chance.random() < 0.3 else value


def inside(raw: Any, value: Any, was: Any) -> bool:
    """Whether a value is in the domain that stands in mutations, given what it was before."""
    match raw:
        case Mapping() if isinstance(value, Mapping):
            assert isinstance(was, Mapping)
            assert value.keys() == was.keys(), "what is absent stays absent"
            return all(
                inside(raw[key], value[key], was[key]) if key in raw else same(value[key], was[key]) for key in value
            )
        case Mapping():
            return same(value, was)
        case Numeric():
            return raw.contains(value) and type(value) is (int if isinstance(raw, Integer) else float)
        case Choice():
            return Space({"value": raw}).contains({"value": value})
        case list():
            return any(same(value, each) for each in raw)
        case _:  # whatever the function returns
            return True


@given(trees(), st.integers(0, 999), st.sampled_from([0.0, 0.3, 1.0]), st.booleans())
@settings(max_examples=150)
def test_the_laws(mutations: Mutations, seed: int, resample_probability: float, outside: bool) -> None:
    config = Space(completed({}, mutations)).sample(rng(seed))
    if outside:
        config = moved_outside(config, random.Random(seed))
    given = copy.deepcopy(config)
    explorer = Explorer(mutations, resample_probability, FACTORS, None)
    before = random.getstate()
    found = explorer.explore(config, rng(seed))
    assert same(config, given), "the source's configuration is left alone"
    assert random.getstate() == before
    assert inside(mutations, found, config)

    told = copy.deepcopy(found)
    spoil(found)
    assert same(explorer.explore(config, rng(seed)), told), "same chance, same answer, whatever became of the first"
    assert same(config, given)
    again = explorer.explore(explorer.explore(told, rng(1)), rng(2))
    assert inside(mutations, again, told), "and so on"


def spoil(value: Any) -> None:
    """What a training function may do to its configuration."""
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        spoil(each)
    if isinstance(value, list):
        value.append("spoilt")
    if isinstance(value, dict):
        value["spoilt"] = True


@given(trees(code=False), st.integers(0, 999))
@settings(max_examples=60)
def test_what_json_says_explores_the_same(mutations: Mutations, seed: int) -> None:
    config = Space(completed({}, mutations)).sample(rng(seed))
    if holds_code(mutations):
        with pytest.raises(ValueError, match="sample_from"):
            from_json(json.loads(json.dumps(to_json(mutations))))
        return
    read = from_json(json.loads(json.dumps(to_json(mutations))))
    for resample_probability in (0.0, 0.5):
        found = [
            Explorer(each, resample_probability, FACTORS, None).explore(config, rng(seed)) for each in (mutations, read)
        ]
        assert same(*found)
    assert to_json(read) == to_json(mutations)
    assert Space(completed({}, read)) == Space(completed({}, mutations))


def test_of_functions_json_has_the_names() -> None:
    def draw_it() -> float:
        return 0.5

    assert to_json({"a": {"b": draw_it}, "c": [1, (2, 3)]}) == {
        "a": {"b": {"$sample_from": "test_of_functions_json_has_the_names.<locals>.draw_it"}},
        "c": [1, {"$tuple": [2, 3]}],
    }
    with pytest.raises(ValueError, match=r"sample_from\(.*draw_it\) cannot be read back"):
        from_json(to_json({"a": {"b": draw_it}}))


# --------------------------------------------------------------------------------------------------------- numbers


@given(numeric(), st.integers(0, 999), st.sampled_from([(1.2, 0.8), (2.0,), (0.5, 1.0, 3.0)]))
@settings(max_examples=150)
def test_a_number_is_multiplied_by_a_factor(domain: Numeric, seed: int, factors: Sequence[float]) -> None:
    """Exactly, if the domain goes on forever; else to the nearest value of it, one step away at least."""
    was = domain.sample(rng(seed))
    found = outcomes({"x": domain}, {"x": was}, factors=factors)
    expected = set()
    for factor in factors:
        moved, step = domain.nearest(was * factor), getattr(domain, "q", None)
        if moved == was and step is not None and factor != 1:
            up = (factor > 1) == (was >= 0)
            moved = domain.nearest(was + (step if up else -step))
        expected.add(moved)
    assert found == expected


@pytest.mark.parametrize(
    ("domain", "was", "expected"),
    [
        (uniform(0.0, 1.0), 0.5, {0.5 * 1.2, 0.5 * 0.8}),
        (uniform(0.0, 1.0), 0.9, {1.0, 0.9 * 0.8}),
        (uniform(-1.0, 1.0), -0.5, {-0.5 * 1.2, -0.5 * 0.8}),
        (uniform(2.0, 3.0), 2.0, {2.4, 2.0}),
        (uniform(2.0, 3.0), 77, {3.0, 2.4000000000000004}),  # from outside: from the nearest inside
        (loguniform(1e-5, 1e-1), 1e-3, {1e-3 * 1.2, 1e-3 * 0.8}),
        (loguniform(1e-5, 1e-1), 0.0, {1e-5 * 1.2, 1e-5}),
        (randn(0.0, 1.0), 100.0, {120.0, 80.0}),
        (qrandn(0.0, 1.0, 0.5), 0.5, {1.0, 0.0}),
        (quniform(0.0, 1.0, 0.1), 0.3, {0.4, 0.2}),  # 0.36, 0.24
        (quniform(0.0, 1.0, 0.1), 1.0, {1.0, 0.8}),
        (randint(1, 5), 1, {2, 1}),  # small integers move; the nearest of 1.2 and 0.8 is where they are
        (randint(1, 5), 2, {3, 1}),
        (randint(1, 5), 4, {4, 3}),
        (randint(0, 5), 0, {1, 0}),
        (randint(-5, 5), 0, {1, -1}),
        (randint(-5, 5), -1, {-2, 0}),
        (randint(1, 1000), 100, {120, 80}),
        (qrandint(8, 256, 8), 16, {24, 8}),
        (qrandint(8, 256, 8), 100, {128, 80}),  # 104 is nearest, then 124.8 and 83.2
        (lograndint(1, 1000), 2, {3, 1}),
        (qlograndint(16, 1024, 16), 16, {32, 16}),
        (randint(10**17, 10**17 + 9), 10**17 + 5, {10**17 + 8, 10**17}),
    ],
)
def test_numbers(domain: Numeric, was: float, expected: set[float]) -> None:
    found = outcomes({"x": domain}, {"x": was})
    assert {round(x, 12) for x in found} == {round(x, 12) for x in expected}
    assert all(domain.contains(x) for x in found)
    assert {type(x) for x in found} == {type(domain.sample(rng()))}


def test_too_large_to_be_multiplied() -> None:
    """Where a number would be infinite it stays."""
    assert outcomes({"x": randn(0.0, 1.0)}, {"x": 1e308}, factors=(10.0,)) == {1e308}
    assert outcomes({"x": lambda: 1.0}, {"x": 1e308}, factors=(10.0,)) == {1e308}


@pytest.mark.parametrize("value", ["auto", None, True, math.nan, math.inf, 10**400, [1.0]])
def test_what_is_no_number_is_drawn(value: Any) -> None:
    """``param_space`` may have another choice than the mutations; a study must not die of it when it forks."""
    assert len(outcomes({"x": uniform(0.0, 1.0)}, {"x": value})) == 40
    assert outcomes({"x": lambda: 7}, {"x": value}) == {7}


def test_how_often_a_value_is_drawn_anew() -> None:
    for probability in (0.0, 0.25, 1.0):
        explorer = Explorer({"x": uniform(0.0, 1.0)}, probability, (2.0,), None)
        drawn = sum(explorer.explore({"x": 0.25}, rng(seed))["x"] != 0.5 for seed in range(2000))
        assert abs(drawn / 2000 - probability) < 4 * math.sqrt(probability * (1 - probability) / 2000) + 1e-9


def test_factors_by_path() -> None:
    mutations = {
        "lr": uniform(0.0, 100.0),
        "other": uniform(0.0, 100.0),
        "model": {"deep": {"width": randint(1, 1000)}},
        "optimizer": choice([{"name": "sgd", "momentum": uniform(0.0, 100.0)}, {"momentum": uniform(0.0, 100.0)}]),
        "auto": choice(["auto", uniform(0.0, 100.0)]),
        "drawn": lambda: 1.0,
    }
    factors = {
        "lr": (2.0,),
        "model/deep/width": (3.0, 5.0),
        "optimizer/momentum": (7.0,),
        "auto": (11.0,),
        "drawn": (13.0,),
    }
    config: dict[str, Any] = {"lr": 1.0, "other": 1.0, "model": {"deep": {"width": 10}}, "auto": 1.0, "drawn": 1.0}
    config["optimizer"] = {"name": "sgd", "momentum": 1.0}
    found = [explored(mutations, config, seed, factors=factors) for seed in range(40)]
    assert {each["lr"] for each in found} == {2.0}
    assert {each["other"] for each in found} == {1.2, 0.8}, "those that are not named have the usual ones"
    assert {each["model"]["deep"]["width"] for each in found} == {30, 50}
    assert {each["optimizer"]["momentum"] for each in found} == {7.0}
    assert {each["auto"] for each in found} == {11.0}
    assert {each["drawn"] for each in found} == {13.0}
    assert explored(mutations, {"optimizer": {"momentum": 2.0}}, factors=factors) == {"optimizer": {"momentum": 14.0}}
    with pytest.raises(ValueError, match=r"perturbation_factors: 'momentum', 'lr/x' is no number of hyperparam_mut"):
        Explorer(mutations, 0.0, {**factors, "momentum": (1.0,), "lr/x": (1.0,)}, None)
    with pytest.raises(ValueError, match="'widths' is no number"):
        Explorer({"widths": [1, 2]}, 0.0, {"widths": (1.2,)}, None)


# ------------------------------------------------------------------------------------- lists, choices, functions


@pytest.mark.parametrize(
    ("values", "was", "expected"),
    [
        ([8, 16, 32, 64], 16, [8, 32]),
        ([8, 16, 32, 64], 8, [8, 16]),  # at an end it may stay
        ([8, 16, 32, 64], 64, [32, 64]),
        ((8, 16, 32), 16, [8, 32]),
        ([8, 16, 32], 12, [8, 16, 32]),  # it is none of them
        (["low", "mid", "high"], "mid", ["low", "high"]),
        ([True, 1, 1.0], 1, [True, 1.0]),  # told apart by type
        ([[1], [1, 2], [3]], [1, 2], [[1], [3]]),
        ([5], 5, [5]),
        ([None, 0.1], None, [None, 0.1]),
        ([math.nan, 1.0, 2.0], 1.0, [math.nan, 2.0]),
        (ordinal(["low", "mid", "high"]), "mid", ["low", "high"]),
        (ordinal([1, 2.0, None]), 1, [1, 2.0]),
    ],
)
def test_a_list_moves_to_a_neighbour(values: Any, was: Any, expected: list[Any]) -> None:
    found = [explored({"x": values}, {"x": was}, seed)["x"] for seed in range(40)]
    assert set(map(repr, found)) == set(map(repr, expected))


def test_a_list_is_drawn_from_all_its_values() -> None:
    found = outcomes({"x": [1, 2, 3, 4, 5]}, {"x": 1}, resample_probability=1.0)
    assert found == {1, 2, 3, 4, 5}


def test_a_choice_is_kept_unless_it_is_drawn() -> None:
    options = ["relu", "tanh", 3, (1, 2)]
    for option in options:
        assert outcomes({"x": choice(options)}, {"x": option}) == {option}
        assert outcomes({"x": choice(options)}, {"x": option}, resample_probability=1.0) == set(options)
    assert outcomes({"x": choice(options)}, {"x": "gelu"}) == set(options), "it is none of them"
    assert outcomes({"x": choice([0.5, uniform(1.0, 2.0)])}, {"x": 1.5}) == {1.5 * 1.2, 1.5 * 0.8}
    assert outcomes({"x": choice([0.5, uniform(1.0, 2.0)])}, {"x": 0.5}) == {0.5}
    assert outcomes({"x": choice([choice([1, 2]), choice([uniform(3.0, 9.0)])])}, {"x": 5.0}) == {6.0, 4.0}


def test_a_branch_is_explored_where_it_is() -> None:
    sgd = {"name": "sgd", "momentum": uniform(0.0, 1.0), "schedule": {"warmup": randint(0, 100)}, "sizes": [1, 2]}
    mutations = {"optimizer": choice([sgd, {"name": "adam", "beta": uniform(0.0, 1.0)}])}
    was = {"name": "sgd", "momentum": 0.5, "schedule": {"warmup": 10}, "sizes": [1, 2]}
    for seed in range(20):
        found = explored(mutations, {"optimizer": was}, seed)["optimizer"]
        assert found["name"] == "sgd"
        assert found["momentum"] in (0.6, 0.4)
        assert found["schedule"]["warmup"] in (12, 8)
        assert found["sizes"] == [1, 2], "a list inside a choice is a constant"
    drawn = [explored(mutations, {"optimizer": was}, seed, resample_probability=1.0) for seed in range(40)]
    assert {each["optimizer"]["name"] for each in drawn} == {"sgd", "adam"}


def test_mutations_of_another_branch_are_passed_over() -> None:
    """The mutations name each branch's entries; the configuration has those of one."""
    mutations = {"optimizer": {"momentum": uniform(0.0, 1.0), "beta": uniform(0.0, 1.0)}, "absent": [1, 2]}
    assert explored(mutations, {"optimizer": {"name": "sgd", "momentum": 0.5}}, factors=(2.0,)) == {
        "optimizer": {"name": "sgd", "momentum": 1.0}
    }
    assert explored(mutations, {"optimizer": "lbfgs", "seed": 3}) == {"optimizer": "lbfgs", "seed": 3}


def test_functions() -> None:
    """As in Ray: called, or multiplied if it is a number, a whole one then rounded."""
    assert outcomes({"x": lambda: 100}, {"x": 50}) == {60, 40}
    assert outcomes({"x": lambda: 100}, {"x": 3}) == {4, 2}
    assert outcomes({"x": lambda: 100}, {"x": 0.5}) == {0.6, 0.4}
    assert outcomes({"x": lambda: 100}, {"x": 50}, resample_probability=1.0) == {100}
    assert outcomes({"x": lambda: "b"}, {"x": "a"}) == {"b"}
    assert outcomes({"x": lambda config: 7}, {"x": "a"}) == {7}
    assert outcomes({"x": sample_from(lambda: 7)}, {"x": "a"}) == {7}
    found = outcomes({"x": lambda: random.random() + np.random.random()}, {"x": None})  # noqa: NPY002
    assert len(found) == 40, "global generators are seeded, each time anew"


def test_a_function_that_fails_is_named() -> None:
    def broken() -> float:
        raise KeyError("rate")

    with pytest.raises(ValueError, match=r"hyperparam_mutations: the function of 'optimizer/lr' failed: .*'rate'"):
        explored({"optimizer": {"lr": broken}}, {"optimizer": {"lr": None}})
    with pytest.raises(TypeError, match=r"value is <object object at .*, expected None, bool, int"):
        explored({"lr": object}, {"lr": None})


# ------------------------------------------------------------------------------------------- the custom function


def test_the_custom_function_is_called_last() -> None:
    def custom(config: dict[str, Any]) -> dict[str, Any]:
        assert config == {"x": 1.0, "y": [5]}, "it has been explored"
        config["y"].append(config.pop("x") * 3)
        return config

    config = {"x": 0.5, "y": [5]}
    assert explored({"x": uniform(0.0, 9.0)}, config, factors=(2.0,), custom=custom) == {"y": [5, 3.0]}
    assert config == {"x": 0.5, "y": [5]}
    assert explored({}, config, custom=lambda given: {"z": given["x"]}) == {"z": 0.5}, "there need be no mutations"


MIXED = {
    "x": uniform(0.0, 1.0),
    "n": qrandint(8, 64, 8),
    "width": [8, 16],
    "optimizer": choice([{"momentum": uniform(0.0, 1.0)}, {"beta": randint(0, 5)}, "none"]),
    "model": {"rate": loguniform(1e-4, 1.0)},
    "free": lambda: 1,
}


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ({"x": 7, "n": 21}, {"x": 1.0, "n": 24}),
        ({"x": -3.5, "n": 1e9}, {"x": 0.0, "n": 64}),
        ({"x": np.float64(0.25), "n": np.int64(9)}, {"x": 0.25, "n": 8}),
        ({"width": 16, "other": (1, None)}, {"width": 16, "other": (1, None)}),
        ({"optimizer": {"momentum": 3.0}}, {"optimizer": {"momentum": 1.0}}),
        ({"optimizer": {"beta": 2.6}}, {"optimizer": {"beta": 3}}),
        ({"optimizer": "none"}, {"optimizer": "none"}),
        ({"model": {"rate": 0.0}}, {"model": {"rate": 1e-4}}),
        ({"model": "linear", "free": "anything"}, {"model": "linear", "free": "anything"}),
        ({}, {}),
    ],
)
def test_what_the_custom_function_returns_is_settled(returned: Any, expected: Any) -> None:
    found = explored(MIXED, {"x": 0.5}, custom=lambda config: returned)
    assert same(found, expected)


@pytest.mark.parametrize(
    ("returned", "kind", "message"),
    [
        (None, TypeError, "custom_explore_fn must return the configuration, a dict; it returned None"),
        (0.5, TypeError, "custom_explore_fn must return the configuration, a dict; it returned 0.5"),
        ({"x": "much"}, ValueError, r"x is 'much', expected a number of uniform\(0.0, 1.0\)"),
        ({"x": math.nan}, ValueError, "x is nan, expected a number"),
        ({"x": 10**400}, ValueError, "x is 1000*, expected a number"),
        ({"x": True}, ValueError, "x is True, expected a number"),
        ({"width": 12}, ValueError, r"width is 12, expected one of \[8, 16\]"),
        ({"optimizer": {"momentum": "a"}}, ValueError, "optimizer/momentum is 'a', expected a number of uniform"),
        ({"optimizer": {"gamma": 1}}, ValueError, r"optimizer is \{'gamma': 1\}, expected one of Space"),
        ({"model": {"rate": None}}, ValueError, "model/rate is None, expected a number of loguniform"),
        ({"x": {1, 2}}, TypeError, r"what custom_explore_fn returned/x is \{1, 2\} \(set\)"),
        ({"y": max}, TypeError, r"what custom_explore_fn returned/y is <built-in function max>"),
        ({3: 1.0}, TypeError, "what custom_explore_fn returned: key 3 is of type int, expected str"),
    ],
)
def test_what_the_custom_function_must_not_return(returned: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        explored(MIXED, {"x": 0.5}, custom=lambda config: returned)


def test_the_custom_function_may_draw() -> None:
    """Global generators start anew from the turn's own seed, and go on afterwards as if nothing had been."""

    def custom(config: dict[str, Any]) -> dict[str, Any]:
        return {"a": random.random(), "b": float(np.random.random())}  # noqa: NPY002

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    found = [explored({}, {}, seed, custom=custom) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]  # noqa: NPY002


def test_an_error_of_the_custom_function_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError):
        explored({}, {}, custom=lambda config: {"x": 1 / 0})


# ----------------------------------------------------------------------------------------------------- at the door


@pytest.mark.parametrize(
    ("mutations", "kind", "message"),
    [
        ({"lr": 0.1}, TypeError, r"hyperparam_mutations: 'lr' is 0.1; expected a domain such as uniform\(0, 1\)"),
        ({"lr": "uniform"}, TypeError, "hyperparam_mutations: 'lr' is 'uniform'; expected a domain"),
        ({"lr": None}, TypeError, "hyperparam_mutations: 'lr' is None; expected a domain"),
        ({"a": {"b": {"c": 3}}}, TypeError, "hyperparam_mutations: 'a/b/c' is 3; expected a domain"),
        ({"a": {"b": []}}, ValueError, "hyperparam_mutations: 'a/b' is an empty list"),
        ({"a": ()}, ValueError, "hyperparam_mutations: 'a' is an empty list"),
        ({"a": [uniform(0, 1), 2]}, TypeError, r"a\[0\] is Float\("),
        ({"a": [max, min]}, TypeError, r"a\[0\] is <built-in function max>"),
        ({"a": {"b": choice([max, min])}}, TypeError, "'a/b' holds <built-in function max>; expected plain values and"),
        ({"a": choice([{"act": max}, {}])}, TypeError, "'a' holds <built-in function max>; expected plain values"),
        ({"a": lambda one, two: 1}, TypeError, "expected a function of one argument"),
        ({"a": choice([sample_from(lambda: 1)])}, ValueError, "option 0 is a sample_from"),
    ],
)
def test_what_may_not_be_a_mutation(mutations: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Explorer(mutations, 0.25, FACTORS, None)
    with pytest.raises(kind, match=message):
        PopulationBasedTraining(hyperparam_mutations=mutations)


# ------------------------------------------------------------------------------------------------- first values


def test_mutations_as_a_space() -> None:
    """A list is drawn from as a choice, a function is called."""
    mutations = {
        "a": [1, 2, 3],
        "b": lambda: 4,
        "c": {"d": (5, 6)},
        "e": uniform(7.0, 8.0),
        "f": sample_from(lambda: 9),
    }
    drawn = [Space(as_space(mutations)).sample(rng(seed)) for seed in range(40)]
    assert Counter(each["a"] for each in drawn).keys() == {1, 2, 3}
    assert {each["c"]["d"] for each in drawn} == {5, 6}
    assert {(each["b"], each["f"]) for each in drawn} == {(4, 9)}
    assert all(7 <= each["e"] <= 8 for each in drawn)


def test_what_the_space_lacks_is_taken_from_the_mutations() -> None:
    lr, width = uniform(0.0, 1.0), randint(1, 9)
    mutations = {"lr": lr, "model": {"width": width, "depth": [1, 2]}, "optimizer": choice(["sgd", "adam"])}
    assert completed({}, mutations)["lr"] is lr
    assert completed({"lr": 0.5, "seed": 3}, mutations).items() >= {"lr": 0.5, "seed": 3}.items()
    assert completed({"model": {"width": 4}}, mutations)["model"] == {"width": 4, "depth": choice([1, 2])}
    assert completed({"model": "linear"}, mutations)["model"] == "linear"
    assert completed({"model": {"grid_search": [1, 2]}}, mutations)["model"] == {"grid_search": [1, 2]}
    assert completed({"model": choice([{"width": 1}])}, mutations)["model"] == choice([{"width": 1}])
    space = {"model": {"width": 4}}
    completed(space, mutations)
    assert space == {"model": {"width": 4}}, "the user's own is left alone"
    assert completed(space, {}) == space
