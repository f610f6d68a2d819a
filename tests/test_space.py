"""Laws of `Space`, on random nested spaces; what it refuses; and that its domains have the values Ray's have."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from raytuner.prior import Bump, Prior
from raytuner.space import (
    Choice,
    Float,
    Normal,
    Numeric,
    Ordinal,
    Space,
    choice,
    grid_search,
    lograndint,
    loguniform,
    ordinal,
    pack,
    plain,
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
    unpack,
)

laws = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

# ------------------------------------------------------------------------------------------------- random spaces

_reals = st.floats(-1e6, 1e6, allow_subnormal=False)
_quanta = st.sampled_from([0.1, 0.25, 0.05, 1e-4, 2.5, 1.0, 3.0, 1 / 3, 5e-7])
_scalars = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from([0.0, 1.0, 0.1, math.inf]) | st.text(max_size=3)
)
_constants = _scalars | st.lists(_scalars, max_size=3) | st.lists(_scalars, max_size=3).map(tuple)
_keys = st.text("abcdxyz_$", min_size=1, max_size=3)


@st.composite
def floats(draw: st.DrawFn) -> Float:
    if draw(st.booleans()):
        low = 10.0 ** draw(st.floats(-12, 6))
        return loguniform(low, low * 10.0 ** draw(st.floats(0.01, 12)))
    low = draw(_reals)
    return uniform(low, low + 10.0 ** draw(st.floats(-3, 6)))


@st.composite
def integers(draw: st.DrawFn) -> Numeric:
    q, log = draw(st.integers(1, 7)), draw(st.booleans())
    low = draw(st.integers(1, 2**20) if log else st.integers(-(2**40), 2**40) | st.integers(-20, 20))
    high = low + draw(st.integers(q, 2**34) | st.integers(q, 40))
    assume(high // q >= -(-low // q))
    if q > 1:
        return qlograndint(low, high, q) if log else qrandint(low, high, q)
    return lograndint(low, high) if log else randint(low, high)


@st.composite
def quantized(draw: st.DrawFn) -> Numeric:
    q, log = draw(_quanta), draw(st.booleans())
    first = draw(st.integers(1, 1000) if log else st.integers(-1000, 1000))
    last = first + draw(st.integers(1, 10_000))
    return (qloguniform if log else quniform)(first * q, last * q, q)


@st.composite
def normals(draw: st.DrawFn) -> Numeric:
    mean, sd = draw(_reals), 10.0 ** draw(st.floats(-2, 4))
    return qrandn(mean, sd, sd * draw(st.floats(1e-4, 10))) if draw(st.booleans()) else randn(mean, sd)


@st.composite
def ordinals(draw: st.DrawFn) -> Ordinal:
    return ordinal(draw(st.lists(_constants, min_size=1, max_size=5, unique_by=lambda v: json.dumps(pack(v)))))


numerics = floats() | integers() | quantized() | normals()


@st.composite
def nodes(draw: st.DrawFn, depth: int) -> Any:
    kind = draw(st.sampled_from(["number", "constant", "dict", "choice", "choice", "list"] if depth else ["number"]))
    match kind:
        case "number":
            return draw(numerics | ordinals())
        case "constant":
            return draw(_constants)
        case "dict":
            return draw(st.dictionaries(_keys, nodes(depth - 1), max_size=3))
        case "choice":
            branches = st.dictionaries(_keys, nodes(depth - 1), max_size=2)
            return choice(draw(st.lists(branches | nodes(depth - 1) | _constants, min_size=1, max_size=3)))
    return draw(st.lists(nodes(depth - 1), min_size=1, max_size=2).map(draw(st.sampled_from([list, tuple]))))


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    return draw(st.dictionaries(_keys, nodes(3), max_size=4))


seeds = st.integers(0, 2**32 - 1)


def grain(domain: Numeric | Choice) -> float:
    """How far the rounding of a value may move its coordinate: far from 0 there are few floats in a range."""
    match domain:
        case Float(lower, upper, False):
            return 1e-12 + 8 * float(np.spacing(max(abs(lower), abs(upper)))) / (upper - lower)
        case Float():
            return 1e-9
        case Normal(mean, sd):
            return 1e-12 + 8 * float(np.spacing(abs(mean) + 6 * sd)) / sd
    return 0.0


def scales(space: Space) -> dict[str, float]:
    """For each float parameter the size of its range: what rounding errors are measured by."""
    sizes: dict[str, float] = {}
    for param in space.params:
        match param.domain:
            case Float(lower, upper, log):
                size = 0.0 if log else max(abs(lower), abs(upper))
            case Normal(mean, sd):
                size = max(abs(mean), sd)
            case _:
                continue
        sizes[param.name] = max(size, sizes.get(param.name, 0.0))
    return sizes


def assert_close(a: Any, b: Any, space: Space) -> None:
    """Equal, but for the last digits of continuous parameters."""
    left, right, sizes = leaves(a), leaves(b), scales(space)
    assert left.keys() == right.keys()
    for name in left:
        if name in sizes and type(left[name]) is float:
            assert math.isclose(left[name], right[name], rel_tol=1e-9, abs_tol=1e-9 * sizes[name]), name
        else:
            assert same(left[name], right[name]), name


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """All scalars of a configuration, lists spread, by name."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        prefix = f"{name}/" if name else ""
        found = {f"{name}:{type(value).__name__}": len(value)}
        for key, inner in items:
            found |= leaves(inner, f"{prefix}{key}")
        return found
    return {name: value}


def assert_plain(value: Any) -> None:
    if type(value) in (dict, list, tuple):
        for inner in value.values() if type(value) is dict else value:
            assert_plain(inner)
    else:
        assert value is None or type(value) in (bool, int, float, str), type(value)


# ---------------------------------------------------------------------------------------------------------- laws


@laws
@given(spaces(), seeds)
@example({}, 0)
def test_a_sample_is_in_the_space_and_plain(raw: dict[str, Any], seed: int) -> None:
    space = Space(raw)
    config = space.sample(np.random.default_rng(seed))
    space.check(config)
    assert space.contains(config)
    assert_plain(config)
    assert list(config) == list(raw)  # the user's order


@laws
@given(spaces(), seeds)
@example({}, 0)
def test_encoding_and_back_gives_the_configuration(raw: dict[str, Any], seed: int) -> None:
    space = Space(raw)
    config = space.sample(np.random.default_rng(seed))
    x, active = space.encode(config)
    assert x.shape == active.shape == space.categories.shape == (space.dim,) == (len(space),)
    assert x.dtype == np.float64
    assert active.dtype == np.bool_
    assert ((x >= 0) & (x <= 1)).all()
    assert_close(space.decode(x), config, space)


@laws
@given(spaces(), seeds)
def test_the_encoding_is_stable(raw: dict[str, Any], seed: int) -> None:
    space = Space(raw)
    once, active = space.encode(space.decode(np.random.default_rng(seed).random(space.dim)))
    twice, again = space.encode(space.decode(once))
    assert (active == again).all()
    for i, param in enumerate(space.params):
        assert abs(once[i] - twice[i]) <= grain(param.domain), param


@laws
@given(spaces(), seeds, st.data())
def test_every_point_decodes(raw: dict[str, Any], seed: int, data: st.DataObject) -> None:
    space = Space(raw)
    edge = st.sampled_from([-math.inf, -1.0, 0.0, 5e-324, 0.5, 1 - 2**-53, 1.0, 2.0, math.inf])
    x = np.array(data.draw(st.lists(edge, min_size=space.dim, max_size=space.dim)), dtype=np.float64)
    config = space.decode(x)
    space.check(config)
    assert_plain(config)
    assert same(config, space.decode(np.clip(x, 0, 1)))


@laws
@given(spaces(), seeds)
def test_a_parameter_is_active_when_its_branch_is_chosen(raw: dict[str, Any], seed: int) -> None:
    space = Space(raw)
    rng = np.random.default_rng(seed)
    config = space.sample(rng)
    x, active = space.encode(config)
    for i, param in enumerate(space.params):
        if param.condition is None:
            assert active[i]
        else:
            parent, option = param.condition
            assert parent < i
            decider = space.params[parent].domain
            assert isinstance(decider, Choice)
            assert active[i] == (active[parent] and decider.option(x[parent]) == option)
        assert param.categories == space.categories[i]
    assert (x[~active] == 0).all()
    assert same(space.decode(np.where(active, x, rng.random(space.dim))), space.decode(x))


@laws
@given(spaces(), seeds)
def test_the_description_survives_json(raw: dict[str, Any], seed: int) -> None:
    space = Space(raw)
    text = json.dumps(space.to_json(), allow_nan=False)
    again = Space.from_json(json.loads(text))
    assert again == space
    assert hash(again) == hash(space)
    assert again.differences(space) == []
    a, b = (s.sample(np.random.default_rng(seed)) for s in (space, again))
    assert same(a, b)
    assert same(unpack(json.loads(json.dumps(pack(a), allow_nan=False))), a)


@laws
@given(ordinals(), st.floats(0, 1))
def test_ordered_options_are_equal_steps(domain: Ordinal, u: float) -> None:
    space = Space({"x": domain})
    value = domain.decode(u)
    assert domain.contains(value)
    assert same(domain.decode(domain.encode(value)), value)
    assert space.categories.tolist() == [0]
    n = len(domain.options)
    assert [domain.encode(option) for option in domain.options] == pytest.approx([(i + 0.5) / n for i in range(n)])
    assert space.snap(np.array([[u]]))[0][0] == pytest.approx(space.encode({"x": value})[0])


@laws
@given(spaces(), spaces())
def test_spaces_are_equal_when_nothing_differs(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (Space(one) == Space(other)) == (Space(one).differences(Space(other)) == [])


@laws
@given(spaces(), seeds)
def test_the_order_of_keys_does_not_matter(raw: dict[str, Any], seed: int) -> None:
    backwards = Space({key: raw[key] for key in reversed(raw)})
    space = Space(raw)
    assert space == backwards
    assert same(space.sample(np.random.default_rng(seed)), backwards.sample(np.random.default_rng(seed)))


@laws
@given(st.lists(numerics | nodes(1), min_size=1, max_size=4), seeds)
def test_many_are_encoded_like_one(values: list[Any], seed: int) -> None:
    space = Space({"a": choice([{"b": value} for value in values]), "c": uniform(0, 1)})
    rng = np.random.default_rng(seed)
    configs = [space.sample(rng) for _ in range(5)]
    X, active = space.encode_many(configs)
    assert X.shape == active.shape == (5, space.dim)
    for config, row, on in zip(configs, X, active, strict=True):
        x, a = space.encode(config)
        assert (x == row).all()
        assert (a == on).all()
    assert [part.shape for part in space.encode_many([])] == [(0, space.dim)] * 2


@laws
@given(integers() | quantized(), seeds)
def test_stepped_values_come_back_exactly(domain: Numeric, seed: int) -> None:
    steps = domain.steps  # type: ignore[attr-defined]
    for u in [0.0, 1.0, *np.random.default_rng(seed).random(20).tolist()]:
        value = domain.decode(u)
        assert domain.contains(value)
        assert same(domain.decode(domain.encode(value)), value)
        assert domain.decode(domain.encode(value)) == value
    ends = [steps.decode(steps.encode(k)) for k in (steps.first, steps.last)]
    assert ends == [steps.first, steps.last]


@pytest.mark.parametrize(
    "domain",
    [lograndint(2**40 - 1000, 2**40), lograndint(1, 2**40), randint(-(2**49), 2**49), randint(2**62, 2**62 + 99)],
    ids=str,
)
def test_the_finest_steps_are_told_apart(domain: Numeric) -> None:
    steps = domain.steps  # type: ignore[attr-defined]
    for k in [*range(steps.first, steps.first + 50), *range(steps.last - 50, steps.last + 1)]:
        assert steps.decode(steps.encode(k)) == k


@pytest.mark.parametrize("value", [0.1, 0.2, 0.3, 0.6, 0.7, 1.1])
def test_quantised_floats_are_the_decimals_one_would_write(value: float) -> None:
    domain = quniform(0, 1.2, 0.1)
    assert domain.decode(domain.encode(value)) == value
    assert domain.contains(round(value / 0.1) * 0.1)  # as other tools compute it: 0.30000000000000004
    assert not domain.contains(value + 1e-6)


def test_types_are_strict() -> None:
    space = Space({"a": choice([1, 1.0, True, "1", None, (1,), [1]])})
    for i, option in enumerate([1, 1.0, True, "1", None, (1,), [1]]):
        x, _ = space.encode({"a": option})
        assert x == pytest.approx([(i + 0.5) / 7])
        assert same(space.decode(x), {"a": option})
    assert Space({"x": uniform(0, 1)}).contains({"x": 1})
    for wrong in (True, "0.5", None, math.nan, np.float64(0.5), 10**400):
        assert not Space({"x": uniform(0, 1)}).contains({"x": wrong})
        assert not Space({"x": randn()}).contains({"x": wrong})
        assert not Space({"x": qrandn(0, 1, 0.5)}).contains({"x": wrong})
    for wrong in (True, 3.0, np.int64(3)):
        assert not Space({"x": randint(0, 9)}).contains({"x": wrong})


def test_numpy_scalars_become_plain_and_constants_are_copied() -> None:
    space = Space({"a": np.float32(0.5), "b": choice(np.array(["x", "y"])), "c": [1, [2]], "d": {"e": (1, [2])}})
    one = space.sample(np.random.default_rng(0))
    assert_plain(one)
    one["c"][1].append(3)
    one["d"]["e"][1].append(3)
    assert space.sample(np.random.default_rng(0))["c"] == [1, [2]]
    assert space.sample(np.random.default_rng(0))["d"] == {"e": (1, [2])}


# ------------------------------------------------------------------------------------------------------- chance

OPTIMISERS = {
    "lr": loguniform(1e-5, 1e-1),
    "opt": choice([{"name": "sgd", "momentum": uniform(0, 0.99)}, {"name": "adamw"}]),
    "batch": qrandint(16, 128, 16),
    "size": {"layers": randint(1, 5), "width": qlograndint(8, 512, 8)},
    "act": choice(["relu", "gelu"]),
    "warm": sample_from(lambda config: config["lr"] * np.random.rand() + random.random()),  # noqa: NPY002
    "seed": 7,
}


def test_a_seed_gives_the_same_configurations_in_another_process() -> None:
    code = (
        "import json, numpy as np\n"
        "from tests.test_space import OPTIMISERS\n"
        "from raytuner.space import Space\n"
        "space = Space(OPTIMISERS)\n"
        "rng = np.random.default_rng(3)\n"
        "print(json.dumps([[space.sample(rng) for _ in range(20)], space.decode(np.full(space.dim, 0.3))]))\n"
    )
    root = os.path.dirname(os.path.dirname(__file__))
    answers = []
    for hash_seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": root}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
    assert answers[0] == answers[1]
    assert len({json.dumps(config) for config in json.loads(answers[0])[0]}) == 20


@pytest.mark.parametrize(
    ("domain", "count"),
    [(randint(3, 13), 10), (qrandint(3, 30, 5), 6), (quniform(-0.5, 0.5, 0.25), 5), (choice(list("abcdefg")), 7)],
    ids=str,
)
def test_every_value_has_the_same_mass(domain: Any, count: int) -> None:
    space = Space({"x": domain})
    each = 100
    points = (np.arange(count * each) + 0.5) / (count * each)
    assert sorted(Counter(space.decode([u])["x"] for u in points).values()) == [each] * count


@pytest.mark.parametrize(
    ("domain", "law"),
    [
        (uniform(-2, 3), stats.uniform(-2, 5)),
        (loguniform(1e-5, 1e-1), stats.loguniform(1e-5, 1e-1)),
        (randn(3, 2), stats.norm(3, 2)),
    ],
    ids=["uniform", "loguniform", "randn"],
)
def test_samples_follow_the_law(domain: Numeric, law: Any) -> None:
    """Kolmogorov-Smirnov at 1e-6: with another seed each of these fails once in a million times."""
    rng = np.random.default_rng(11)
    values = [domain.sample(rng) for _ in range(5000)]
    assert stats.kstest(values, law.cdf).pvalue > 1e-6


@pytest.mark.parametrize("domain", [lograndint(1, 1000), qlograndint(8, 512, 8), qloguniform(0.1, 10, 0.1)], ids=str)
def test_stepped_log_domains_are_uniform_in_the_logarithm(domain: Numeric) -> None:
    """A value's mass is what lies half a step around it, in the logarithm. Exact, but for 20,001 points' grain."""
    q = domain.q  # type: ignore[attr-defined]
    points = np.linspace(0, 1, 20_001)
    counts = Counter(domain.decode(u) for u in points.tolist())
    low, high = math.log(min(counts) - q / 2), math.log(max(counts) + q / 2)
    for value, count in counts.items():
        mass = (math.log(value + q / 2) - math.log(value - q / 2)) / (high - low)
        assert count / len(points) == pytest.approx(mass, abs=1e-4)


def test_normal_is_clipped_far_out() -> None:
    domain = randn(10, 2)
    assert domain.decode(0.5) == 10
    assert domain.decode(0.0) == pytest.approx(10 - 2 * 5.612, abs=1e-3)
    assert domain.decode(1.0) == pytest.approx(10 + 2 * 5.612, abs=1e-3)
    assert Space({"x": domain}).contains({"x": 1000.0})
    assert Space({"x": domain}).encode({"x": 1000.0})[0] == pytest.approx([1 - 1e-8])
    for z in (-5.6, -3, 0.1, 4, 5.6):
        assert domain.encode(10 + 2 * z) == pytest.approx(stats.norm.cdf(z), rel=1e-9)


# --------------------------------------------------------------------------------------------------------- grids


def test_the_grid_is_walked_as_ray_walks_it() -> None:
    raw = {
        "b": {"z": grid_search([1, 2, 3]), "a": {"grid_search": ["x", "y"]}},
        "a": grid_search([True, {"k": None}]),
        "r": uniform(0, 1),
    }
    space = Space(raw)
    assert space.has_grid
    assert space.grid_size == 12
    rng = np.random.default_rng(0)
    ours = [space.sample(rng, grid=i) for i in range(space.grid_size)]
    assert len({config["r"] for config in ours}) == 12  # drawn afresh
    with quiet_ray() as (_, variants):
        theirs = [spec for _, spec in variants.generate_variants({**raw, "r": 0.5})]
    assert [{**config, "r": 0.5} for config in ours] == theirs
    assert space.grid_point(7) == {"a": {"k": None}, "b/a": "y", "b/z": 2}
    for config in ours:
        x, active = space.encode(config)
        assert active.all()
        assert_close(space.decode(x), config, space)


def test_a_space_without_a_grid_has_one_grid_point() -> None:
    space = Space({"x": uniform(0, 1)})
    assert not space.has_grid
    assert (space.grid_size, space.grid_point(0)) == (1, {})
    assert space.sample(np.random.default_rng(5), grid=0) == space.sample(np.random.default_rng(5))
    with pytest.raises(ValueError, match="grid is 1, expected a number from 0 to 0"):
        space.sample(np.random.default_rng(5), grid=1)


# --------------------------------------------------------------------------------------------------- sample_from


def test_functions_see_what_was_sampled() -> None:
    space = Space(
        {
            "first": sample_from(lambda config: config["opt"]["lr"] * 2),
            "second": sample_from(lambda spec: spec.config.first + spec.config.opt.lr),
            "attribute": sample_from(lambda config: config.const + config["layers"][1]),
            "nothing": sample_from(lambda: [1, (2,)]),
            "opt": choice([{"lr": uniform(1, 2), "half": sample_from(lambda config: config.opt.lr / 2)}]),
            "layers": [randint(0, 3), 5, {"n": sample_from(lambda config: len(config["layers"]))}],
            "const": 1,
        }
    )
    config = space.sample(np.random.default_rng(0))
    lr = config["opt"]["lr"]
    assert config["opt"] == {"lr": lr, "half": lr / 2}
    assert (config["first"], config["second"]) == (2 * lr, 3 * lr)
    assert (config["attribute"], config["nothing"], config["layers"][2]) == (6, [1, (2,)], {"n": 3})
    assert [p.name for p in space.params] == ["layers/0", "opt", "opt/lr"]
    assert_plain(config)
    assert_close(space.decode(space.encode(config)[0]), config, space)
    assert list(config) == ["first", "second", "attribute", "nothing", "opt", "layers", "const"]


def test_functions_that_draw_from_global_generators_follow_the_seed_and_leave_no_trace() -> None:
    space = Space({"x": sample_from(lambda _: np.random.randint(10**9)), "y": sample_from(random.random)})  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    a, b, c = (space.sample(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert a == b
    assert a["x"] != c["x"]
    assert a["y"] != c["y"]
    assert space.decode([]) == space.decode([])
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_functions_are_described_by_name_and_cannot_be_read_back() -> None:
    space = Space({"x": sample_from(lambda config: 1), "y": uniform(0, 1)})
    assert space == Space({"x": sample_from(lambda spec: 2), "y": uniform(0, 1)})
    assert "sample_from(" in space.lines()["x"]
    with pytest.raises(ValueError, match="cannot be read back from a description; give param_space again"):
        Space.from_json(space.to_json())


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda config: config["later"],
            ValueError,
            "x: its sample_from function failed with KeyError.*'later' is not",
        ),
        (lambda config: config.later, ValueError, "x: its sample_from function failed with AttributeError.*'later'"),
        (lambda: 1 / 0, ValueError, "x: its sample_from function failed with ZeroDivisionError"),
        (lambda: np.zeros(3), TypeError, r"x is array\(\[0., 0., 0.\]\) \(numpy.ndarray\), expected None, bool"),
    ],
)
def test_functions_that_fail_are_named(function: Any, error: type[Exception], message: str) -> None:
    space = Space({"x": sample_from(function), "later": sample_from(lambda: 1)})
    with pytest.raises(error, match=message):
        space.sample(np.random.default_rng(0))


# --------------------------------------------------------------------------------------- names, tables, messages


def test_flat_names() -> None:
    space = Space({**OPTIMISERS, "dims": [randint(0, 2), 4], "const": [1, 2], "empty": {}})
    config = space.decode(np.zeros(space.dim))
    flat = space.flat(config)
    assert list(flat) == [
        "lr", "opt/name", "opt/momentum", "batch", "size/layers", "size/width", "act", "warm", "seed",
        "dims/0", "dims/1", "const",
    ]  # fmt: skip
    assert flat["const"] == [1, 2]
    assert [p.name for p in space.params] == [
        "act", "batch", "dims/0", "lr", "opt", "opt/momentum", "size/layers", "size/width",
    ]  # fmt: skip
    assert space.categories.tolist() == [2, 0, 0, 0, 2, 0, 0, 0]
    assert space.params[5].condition == (4, 0)


def test_differences_are_sentences() -> None:
    old = Space({"lr": loguniform(1e-5, 0.1), "a": 1, "opt": choice([{"m": uniform(0, 1)}, {}]), "act": choice(["x"])})
    new = Space(
        {"lr": loguniform(1e-4, 0.1), "b": 1.0, "opt": choice([{"m": uniform(0, 2)}, {}]), "act": choice(["y"])}
    )
    assert old.differences(new) == [
        "a: 1 is gone",
        "act: choice(['x']) became choice(['y'])",
        "b: 1.0 is new",
        "lr: loguniform(1e-05, 0.1) became loguniform(0.0001, 0.1)",
        "opt[0]/m: uniform(0.0, 1.0) became uniform(0.0, 2.0)",
    ]
    assert repr(Space({"x": choice([(1,), randint(0, 3)])})) == "Space({'x': choice([(1,), randint(0, 3)])})"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (3, r"config is 3 \(int\), expected a dict with \['lr', 'n', 'opt'\]"),
        ({"n": 3, "opt": {"name": "adamw"}}, "lr is missing"),
        ({"lr": 0.1, "n": 3, "opt": {"name": "adamw"}, "k": 1}, "k is unknown, expected only"),
        ({"lr": 1.0, "n": 3, "opt": {"name": "adamw"}}, r"lr is 1.0 \(float\), expected a value of loguniform"),
        ({"lr": "0.1", "n": 3, "opt": {"name": "adamw"}}, r"lr is '0.1' \(str\), expected"),
        ({"lr": 0.1, "n": 4, "opt": {"name": "adamw"}}, r"n is 4 \(int\), expected 3"),
        ({"lr": 0.1, "n": 3, "opt": {"name": "sgd", "m": 2.0}}, r"number 0: opt/m is 2.0 \(float\), expected a value"),
        ({"lr": 0.1, "n": 3, "opt": "adamw"}, r"opt is 'adamw' \(str\), expected one of \[\{'m': uniform"),
    ],
)
def test_check_names_what_is_wrong(config: Any, message: str) -> None:
    space = Space(
        {"lr": loguniform(1e-3, 0.5), "n": 3, "opt": choice([{"name": "sgd", "m": uniform(0, 1)}, {"name": "adamw"}])}
    )
    assert not space.contains(config)
    with pytest.raises(ValueError, match=f"not in this space: .*{message}"):
        space.check(config)
    with pytest.raises(ValueError, match=message):
        space.encode(config)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: uniform(1, 1), ValueError, "uniform: lower is 1.0, expected less than upper, which is 1.0"),
        (lambda: uniform(2, 1), ValueError, "uniform: lower is 2.0, expected less than upper, which is 1.0"),
        (lambda: uniform("0", 1), TypeError, r"uniform: lower is '0' \(str\), expected a number"),
        (lambda: uniform(0, True), TypeError, r"uniform: upper is True \(bool\), expected a number"),
        (lambda: uniform(0, None), TypeError, r"uniform: upper is None \(NoneType\), expected a number"),
        (lambda: uniform(0, math.nan), ValueError, "uniform: upper is nan, expected a finite number"),
        (lambda: uniform(-math.inf, 0), ValueError, "uniform: lower is -inf, expected a finite number"),
        (lambda: uniform(0, 10**400), ValueError, "uniform: upper is 1000.*, expected a finite number"),
        (lambda: uniform(-1e308, 1e308), ValueError, "uniform: from lower -1e.308 to upper 1e.308 is farther than"),
        (lambda: loguniform(0, 1), ValueError, "loguniform: lower is 0.0, expected a number above 0 on a log scale"),
        (lambda: loguniform(-5, -1), ValueError, "loguniform: lower is -5.0, expected a number above 0 on a log"),
        (lambda: loguniform(1e10, np.nextafter(1e10, 2e10)), ValueError, "loguniform: lower is .* expected less than"),
        (lambda: lograndint(0, 8), ValueError, "lograndint: lower is 0, expected a number above 0"),
        (lambda: randint(0, 1.5), ValueError, "randint: upper is 1.5, expected a whole number"),
        (lambda: randint(0, "8"), TypeError, r"randint: upper is '8' \(str\), expected a number"),
        (lambda: randint(5, 5), ValueError, "randint: lower is 5, expected less than upper, which is 5"),
        (lambda: randint(0, 2**51), ValueError, r"randint: more than 2\*\*50 steps"),
        (lambda: lograndint(1, 2**41), ValueError, r"lograndint: more than 2\*\*40 steps"),
        (lambda: qrandint(0, 8, 0), ValueError, "qrandint: q is 0, expected a number above 0"),
        (lambda: qrandint(0, 8, 0.5), ValueError, "qrandint: q is 0.5, expected a whole number"),
        (lambda: qrandint(0, 8, 9), ValueError, "qrandint: q is 9, expected at most upper - lower, which is 8"),
        (lambda: quniform(0, 1, -0.1), ValueError, "quniform: q is -0.1, expected a number above 0"),
        (lambda: quniform(0, 1, 2), ValueError, "quniform: q is 2.0, expected at most upper - lower"),
        (lambda: quniform(0.05, 1, 0.1), ValueError, "quniform: lower is 0.05, expected a multiple of q=0.1, such as"),
        (lambda: quniform(0, 1e308, 1e-9), ValueError, r"quniform: more than 2\*\*50 steps"),
        (lambda: quniform(0, 0.95, 0.1), ValueError, "quniform: upper is 0.95, expected a multiple of q=0.1, such as"),
        (lambda: qloguniform(0, 1, 0.1), ValueError, "qloguniform: lower is 0.0, expected a number above 0"),
        (lambda: randn(0, 0), ValueError, "randn: sd is 0, expected a number above 0"),
        (lambda: randn(math.nan), ValueError, "randn: mean is nan, expected a finite number"),
        (lambda: qrandn(0, 1, 0), ValueError, "qrandn: q is 0, expected a number above 0"),
        (lambda: qrandn(0, 1, 1e-9), ValueError, "qrandn: q is 1e-09, too fine for mean 0.0 and sd 1.0"),
        (lambda: choice([]), ValueError, "choice: categories is empty, expected at least one option"),
        (lambda: choice("abc"), TypeError, r"choice: categories is 'abc' \(str\), expected a list of options"),
        (lambda: choice({1, 2}), TypeError, r"choice: categories is \{1, 2\} \(set\), expected a list of options"),
        (lambda: choice(3), TypeError, r"choice: categories is 3 \(int\), expected a list of options"),
        (lambda: sample_from(3), TypeError, r"sample_from: func is 3 \(int\), expected a function of config"),
        (lambda: sample_from(lambda a, b: 1), TypeError, "sample_from: func is .* expected a function of one argument"),
        (lambda: sample_from(dict), TypeError, "sample_from: the signature of .* is unknown; wrap it in a lambda"),
        (lambda: Space([1]), TypeError, r"param_space is \[1\] \(list\), expected a dict of names"),
        (lambda: Space({3: 1}), TypeError, "key 3 is of type int, expected str"),
        (lambda: Space({"a": {"b/c": 1}}), ValueError, "a: key 'b/c', expected a name without '/'"),
        (lambda: Space({"": 1}), ValueError, "key '', expected a name"),
        (lambda: Space({"a": grid_search([])}), ValueError, "a: grid_search: values is empty"),
        (lambda: Space({"a": grid_search([uniform(0, 1)])}), ValueError, "a: grid_search value 0 holds a domain"),
        (lambda: Space({"a": grid_search([1, {"x": randn()}])}), ValueError, "a: grid_search value 1 holds a domain"),
        (lambda: Space({"a": choice([{"g": grid_search([1])}])}), ValueError, "a/g: grid_search inside an option"),
        (lambda: Space({"a": choice([sample_from(dict.fromkeys)])}), ValueError, "a: option 0 is a sample_from"),
        (lambda: Space({"a": [sample_from(lambda: 1)]}), ValueError, "a: sample_from inside a list"),
        (lambda: Space({"a": {"f": (i for i in "x")}}), TypeError, "a/f is a generator, which cannot be sent"),
        (lambda: Space({"x": uniform(0, 1)}).decode([0.1, 0.2]), ValueError, r"x has shape \(2,\), expected \(1,\)"),
        (lambda: Space({"x": uniform(0, 1)}).decode([math.nan]), ValueError, r"x is nan at \['x'\]"),
        (lambda: ordinal([1, 2, 1]), ValueError, r"ordinal: option 2 is 1 \(int\), which is there already"),
        (lambda: ordinal([]), ValueError, "ordinal: categories is empty, expected at least one option"),
        (lambda: ordinal("abc"), TypeError, r"ordinal: categories is 'abc' \(str\), expected a list of options"),
        (lambda: ordinal([1, uniform(0, 1)]), TypeError, "ordinal: option 1 is Float.* expected None, bool, int"),
        (lambda: ordinal([1, {"x": uniform(0, 1)}]), TypeError, "ordinal: option 1/x is Float.* expected None"),
        (lambda: uniform(0, 1, prior=(2, 0.5)), ValueError, r"uniform: prior's centre is 2 \(int\), expected"),
        (lambda: randint(0, 9, prior=(1.5, 0.5)), ValueError, r"randint: prior's centre is 1.5 \(float\), expected"),
        (lambda: uniform(0, 1, prior=0.5), TypeError, r"uniform: prior is 0.5 \(float\), expected a pair"),
        (lambda: uniform(0, 1, prior=(0.5, 1)), ValueError, r"uniform: prior's confidence is 1 \(int\), expected"),
        (lambda: randn(prior=(0, math.nan)), ValueError, r"randn: prior's confidence is nan \(float\), expected"),
        (lambda: choice([1, 2], prior=(True, 0.5)), ValueError, r"choice: prior's centre is True \(bool\), expected"),
        (lambda: ordinal([1, 2], prior=(3, 0.5)), ValueError, r"ordinal: prior's centre is 3 \(int\), expected"),
        (lambda: Space({}, [3]), TypeError, r"constraints\[0\] is 3 \(int\), expected a function"),
        (lambda: Space({}, "ab"), TypeError, r"constraints is 'ab' \(str\), expected a list of functions"),
        (lambda: Space({"x": 1}, (), {"y": 1}), ValueError, "default_config is not in this space: y is unknown"),
        (lambda: Space({"x": 1}, (), {"x": 1}, 0), ValueError, r"default_confidence is 0 \(int\), expected a number"),
        (lambda: Space.from_json({"x": {"$beta": [1, 2]}}), ValueError, r"'\$beta' is no kind of domain"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_at_the_door(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_plain_names_the_place() -> None:
    with pytest.raises(TypeError, match=r"x\[1\]/a\[0\] is <function"):
        plain([1, {"a": [test_plain_names_the_place]}], "x")


# ----------------------------------------------------------------------------------------------------------- Ray


class quiet_ray:
    """Ray's domains and its variant generator; what importing Ray warns of is not ours to fix."""

    def __enter__(self) -> tuple[Any, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ray.tune.search import sample, variant_generator
        return sample, variant_generator

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("randint", (-2, 5)),
        ("randint", (0, 1)),
        ("randint", (1, 1e1)),
        ("lograndint", (1, 9)),
        ("lograndint", (3, 4)),
        ("qrandint", (3, 26, 5)),
        ("qrandint", (-10, 10, 5)),
        ("qrandint", (2, 7)),
        ("qrandint", (2, 7, 1)),
        ("qlograndint", (3, 26, 5)),
        ("qlograndint", (2, 16, 2)),
        ("qlograndint", (2, 7, 1)),
        ("quniform", (0, 1, 0.1)),
        ("quniform", (-1, 2, 0.5)),
        ("qloguniform", (0.1, 1, 0.1)),
        ("qloguniform", (1e-4, 5e-4, 5e-5)),
    ],
)
def test_stepped_domains_have_the_values_of_rays(name: str, arguments: tuple[float, ...]) -> None:
    """The rarest value has a mass above 1/100: 5,000 draws of Ray's miss it once in 1e21 times."""
    with quiet_ray() as (theirs, _):
        ray_domain = getattr(theirs, name)(*arguments)
        drawn = {round(value, 9) for value in ray_domain.sample(size=5000, random_state=np.random.default_rng(0))}
    domain = globals()[name](*arguments)
    ours = {domain.decode(u) for u in np.linspace(0, 1, 5001).tolist()}
    assert {round(value, 9) for value in ours} == drawn
    assert {type(value) for value in ours} == {type(ray_domain.sample())}


@pytest.mark.parametrize(("name", "arguments"), [("uniform", (-2, 5)), ("loguniform", (1e-5, 1e-1))])
def test_float_domains_have_the_bounds_of_rays(name: str, arguments: tuple[float, float]) -> None:
    with quiet_ray() as (theirs, _):
        ray_domain = getattr(theirs, name)(*arguments)
    domain = globals()[name](*arguments)
    assert (domain.decode(0.0), domain.decode(1.0)) == (ray_domain.lower, ray_domain.upper)
    assert all(domain.contains(ray_domain.sample()) for _ in range(100))


@pytest.mark.parametrize(("name", "arguments"), [("randn", ()), ("randn", (3, 2)), ("qrandn", (3, 2, 0.5))])
def test_normal_domains_have_the_law_of_rays(name: str, arguments: tuple[float, ...]) -> None:
    """Two-sample Kolmogorov-Smirnov at 1e-6, seeded."""
    with quiet_ray() as (theirs, _):
        drawn = getattr(theirs, name)(*arguments).sample(size=3000, random_state=np.random.default_rng(0))
    domain = globals()[name](*arguments)
    rng = np.random.default_rng(1)
    ours = [domain.sample(rng) for _ in range(3000)]
    assert stats.ks_2samp(ours, drawn).pvalue > 1e-6
    assert all(domain.contains(float(value)) for value in drawn)


def test_choices_and_lists_resolve_as_in_ray() -> None:
    """Conditional branches, and domains in lists and as options, are what Ray makes of its own domains there."""

    def raw(tune: Any) -> dict[str, Any]:
        return {
            "opt": tune.choice([{"name": "sgd", "m": tune.uniform(0, 1)}, {"name": "adamw"}, None]),
            "dims": [tune.randint(1, 4), (tune.choice([8, "auto"]), 3)],
            "wd": tune.choice([tune.uniform(1, 2), 0]),
        }

    space = Space(raw(sys.modules[__name__]))
    with quiet_ray() as (theirs, variants):
        rng = np.random.default_rng(0)
        drawn = [next(variants.generate_variants(raw(theirs), random_state=rng))[1] for _ in range(50)]
    for config in drawn:
        config["wd"] = plain(config["wd"], "wd")
        space.check(config)
    assert {config["opt"] and config["opt"]["name"] for config in drawn} == {"sgd", "adamw", None}


@pytest.mark.parametrize(
    "make",
    [
        lambda: loguniform(1, 10, 10),
        lambda: qloguniform(1, 10, 1, base=2),
        lambda: lograndint(1, 10, 10),
        lambda: qlograndint(1, 10, 2, 2),
    ],
)
def test_base_is_ignored_as_in_ray(make: Any) -> None:
    with pytest.warns(DeprecationWarning, match="base has no effect"):
        domain = make()
    assert domain.decode(0.0) in (1, 2)


SNAPPED = Space(
    {
        "a": choice([{"lr": loguniform(1e-4, 1), "head": choice([{"width": randint(8, 64)}, "linear"])}, {"q": 1}, 3]),
        "b": quniform(0, 1, 0.25),
        "c": lograndint(1, 1000),
        "d": qlograndint(8, 512, 8),
        "e": randn(0.0, 1.0),
        "f": qrandn(0.0, 1.0, 0.5),
        "g": qloguniform(0.1, 10, 0.1),
        "h": ordinal(["low", 2, (3,), None]),
    }
)


@given(st.integers(0, 2**32 - 1))
def test_points_snap_to_where_their_configurations_are_encoded(seed: int) -> None:
    points = np.random.default_rng(seed).random((20, len(SNAPPED)))
    points[0], points[1] = 0.0, 1.0
    X, active = SNAPPED.snap(points)
    expected, expected_active = SNAPPED.encode_many([SNAPPED.decode(point) for point in points])
    np.testing.assert_array_equal(active, expected_active)
    np.testing.assert_allclose(X, expected, atol=1e-9)


# -------------------------------------------------------------------------------------------------------- priors


@st.composite
def believed(draw: st.DrawFn) -> Numeric | Ordinal:
    domain = draw(numerics | ordinals())
    centre, confidence = domain.decode(draw(st.floats(0, 1))), draw(st.floats(0.01, 0.98))
    return replace(domain, prior=Prior(centre, confidence))  # type: ignore[type-var]


CHOICES = st.builds(
    lambda n, i, confidence: choice(list(range(n)), prior=(i % n, confidence)),
    st.integers(1, 9),
    st.integers(0, 8),
    st.floats(0.01, 0.98),
)


@laws
@given(believed() | CHOICES)
def test_a_prior_is_a_density_relative_to_uniform(domain: Any) -> None:
    """By the trapezoid rule, which is good to 1e-6 where the narrowest bump is 1/100 wide; a mass by its options."""
    space = Space({"x": domain})
    n = 200_000
    points = (
        np.linspace(0, 1, n + 1)[:, None] if domain.categories == 0 else space.snap(np.linspace(0, 1, 2521)[:, None])[0]
    )
    density = np.exp(space.log_prior(points, np.ones(points.shape, dtype=np.bool_)))
    if domain.categories:
        options = dict(zip(points[:, 0].tolist(), density.tolist(), strict=True))
        assert len(options) == domain.categories
        assert math.fsum(options.values()) / domain.categories == pytest.approx(1, abs=1e-12)
    else:
        assert (density.sum() - (density[0] + density[-1]) / 2) / n == pytest.approx(1, abs=1e-6)
    assert space.has_prior
    peak = domain.coordinate(domain.prior.centre) if domain.categories else domain.encode(domain.prior.centre)
    best = space.log_prior(np.array([[min(max(peak, 0.0), 1.0)]]), np.array([[True]]))
    assert best[0] >= np.log(density).max() - 1e-9


@laws
@given(believed() | CHOICES)
def test_quantiles_are_those_of_the_density(domain: Any) -> None:
    belief = domain.belief()
    p = np.linspace(0.001, 0.999, 201)
    u = [belief.quantile(each) for each in p.tolist()]
    assert u == sorted(u)
    if isinstance(belief, Bump):
        low, high = -belief.centre / belief.sd, (1 - belief.centre) / belief.sd
        assert u == pytest.approx(stats.truncnorm(low, high, belief.centre, belief.sd).ppf(p), abs=1e-9)
        return
    cells = (np.arange(belief.options * 1000) + 0.5) / (belief.options * 1000)
    density = np.exp(belief.log_density(cells))
    below = [(density[cells < each].sum() + 1e-9) / len(cells) for each in u]
    assert below == pytest.approx(p, abs=1e-2)


def test_draws_from_the_prior_follow_it() -> None:
    """Kolmogorov-Smirnov and a binomial test at 1e-6, seeded."""
    space = Space({"x": loguniform(1e-4, 1, prior=(1e-2, 0.6)), "c": choice(["a", "b", "c", "d"], prior=("c", 0.5))})
    rng = np.random.default_rng(0)
    drawn = [space.sample_prior(rng) for _ in range(4000)]
    u = [space.encode(config)[0][1] for config in drawn]
    assert stats.kstest(u, stats.truncnorm(-2.5, 2.5, 0.5, 0.2).cdf).pvalue > 1e-6
    assert stats.binomtest(sum(config["c"] == "c" for config in drawn), 4000, 0.25 + 0.5 * 0.75).pvalue > 1e-6
    assert stats.kstest([space.encode(space.sample(rng))[0][1] for _ in range(4000)], "uniform").pvalue > 1e-6


@laws
@given(spaces(), seeds)
def test_without_priors_nothing_is_believed(raw: dict[str, Any], seed: int) -> None:
    space = Space(raw)
    assert not space.has_prior
    one, other = (np.random.default_rng(seed) for _ in range(2))
    assert same(space.sample(one), space.sample_prior(other))
    X, active = space.snap(np.random.default_rng(seed).random((5, space.dim)))
    assert (space.log_prior(X, active) == 0).all()


@laws
@given(spaces(), seeds, st.floats(0.1, 0.9))
def test_the_default_is_the_likeliest(raw: dict[str, Any], seed: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    default = Space(raw).sample(rng)
    space = Space(raw, default_config=default, default_confidence=confidence)
    x, active = space.encode(default)
    others, on = space.snap(rng.random((20, space.dim)))
    others, on = np.where(active, others, 0.0), np.tile(active, (20, 1))  # in the same branches
    assert (space.log_prior(others, on) <= space.log_prior(x[None], active[None]) + 1e-9).all()
    assert space.contains(space.sample_prior(rng))
    assert space == Space(raw)


def test_a_domains_own_prior_goes_before_the_default() -> None:
    space = Space(
        {"x": uniform(0, 1, prior=(0.9, 0.9)), "y": uniform(0, 1), "z": uniform(0, 1)}, (), {"x": 0.1, "y": 0.1}
    )
    points = np.array([[0.9, 0.1, 0.3], [0.1, 0.1, 0.3], [0.9, 0.9, 0.3], [0.9, 0.1, 0.7]])
    found = space.log_prior(points, np.ones(points.shape, dtype=np.bool_))
    assert found[0] > found[1]
    assert found[0] > found[2]
    assert found[0] == found[3]
    off = space.log_prior(points, np.zeros(points.shape, dtype=np.bool_))
    assert (off == 0).all()


@laws
@given(believed() | CHOICES)
def test_priors_survive_json_and_show(domain: Any) -> None:
    space = Space({"x": domain, "y": choice([{"x": domain}, 1])})
    again = Space.from_json(json.loads(json.dumps(space.to_json(), allow_nan=False)))
    assert again == space
    assert again.differences(space) == []
    points, active = space.snap(np.random.default_rng(0).random((9, space.dim)))
    assert (again.log_prior(points, active) == space.log_prior(points, active)).all()
    plain_one = Space({"x": replace(domain, prior=None), "y": choice([{"x": domain}, 1])})
    assert [sentence.partition(":")[0] for sentence in space.differences(plain_one)] == ["x"]
    assert ", prior=(" in space.lines()["x"]


def test_priors_as_text() -> None:
    space = Space({"a": uniform(0, 1, prior=(0.5, 0.7)), "b": choice(["x", "y"], prior=("y", 0.5))})
    assert repr(space) == "Space({'a': uniform(0.0, 1.0, prior=(0.5, 0.7)), 'b': choice(['x', 'y'], prior=('y', 0.5))})"
    assert repr(Space({"o": ordinal(["x", 1])})) == "Space({'o': ordinal(['x', 1])})"


# --------------------------------------------------------------------------------------------------- constraints


@laws
@given(st.floats(0.05, 1.5), seeds)
def test_samples_meet_the_constraints(most: float, seed: int) -> None:
    raw = {"a": uniform(0, 1), "b": uniform(0, 1), "c": choice([{"d": uniform(0, 1)}, 7])}
    free = Space(raw)
    space = Space(raw, [lambda c: c["a"] + c["b"] < most, lambda c: c["c"] == 7 or c["c"]["d"] > c["a"]])
    config = space.sample(np.random.default_rng(seed))
    assert space.feasible(config)
    assert space.contains(config)
    first = free.sample(np.random.default_rng(seed))
    assert space.feasible(first) == same(first, config), "the first that is feasible"
    assert space.feasible(space.completed({"b": 0.01}, np.random.default_rng(seed)))


def test_feasibility_is_the_share_that_is_feasible() -> None:
    """Three standard deviations of 2,000 draws."""
    assert Space({"a": uniform(0, 1), "b": uniform(0, 1)}, [lambda c: c["a"] < c["b"]]).feasibility() == pytest.approx(
        0.5, abs=0.034
    )
    assert Space({"a": uniform(0, 1)}).feasibility() == 1.0


def test_constraints_see_what_trials_get() -> None:
    seen: list[dict[str, Any]] = []

    def constraint(config: dict[str, Any]) -> bool:
        seen.append(config)
        return config["loss"] is object and config["y"] == 2 * config["x"]

    raw = {"x": uniform(0, 1), "loss": choice([object, "none"]), "y": sample_from(lambda c: c["x"] * 2)}
    space = Space(raw, [constraint])
    config = space.sample(np.random.default_rng(0))
    assert type(seen[-1]) is dict
    assert seen[-1]["x"] == config["x"]


def test_where_nothing_is_feasible() -> None:
    space = Space({"x": uniform(0, 1)}, [lambda c: c["x"] > 2])
    with pytest.raises(ValueError, match=r"^of 100,000 draws none is feasible; constraints: .*<lambda>$"):
        space.sample(np.random.default_rng(0))
    assert space.feasibility() == 0


def test_only_feasible_points_of_a_grid_count() -> None:
    space = Space(
        {"a": grid_search([1, 2, 3]), "b": grid_search([1, 2, 3]), "x": uniform(0, 4)},
        [lambda c: c["a"] + c["b"] < c["x"]],
    )
    assert [space.grid_point(point) for point in space.grid_points] == [
        {"a": 1, "b": 1},
        {"a": 2, "b": 1},
        {"a": 1, "b": 2},
    ]
    for point in space.grid_points:
        assert space.feasible(space.sample(np.random.default_rng(1), point))
    assert list(Space({"a": grid_search([1, 2])}).grid_points) == [0, 1]


# ------------------------------------------------------------------------------------------- parts of configurations


@laws
@given(spaces(), seeds, st.data())
def test_parts_are_completed_as_given(raw: dict[str, Any], seed: int, data: st.DataObject) -> None:
    space = Space(raw)
    rng = np.random.default_rng(seed)
    whole = space.sample(rng)
    names = data.draw(st.sets(st.sampled_from(sorted(whole)))) if whole else set()
    part = space.partial({name: whole[name] for name in names}, "point")
    config = space.completed(part, rng)
    assert space.contains(config)
    assert all(same(config[name], whole[name]) for name in names), "to the last digit"
    assert list(config) == list(raw)
    assert space.lacking(space.partial(whole, "point")) == []


def test_what_a_part_lacks() -> None:
    space = Space(OPTIMISERS)
    assert space.lacking({"opt": {"name": "adamw"}, "lr": 0.01}) == ["act", "batch", "size/layers", "size/width"]
    assert space.lacking({"opt": {"name": "sgd"}, "lr": 0.01, "batch": 16, "act": "relu"}) == [
        "opt/momentum", "size/layers", "size/width",
    ]  # fmt: skip
    config = space.completed({"opt": {"name": "sgd"}, "warm": 5.0, "size": {"width": 8}}, np.random.default_rng(0))
    assert (config["opt"]["name"], config["warm"], config["size"]["width"]) == ("sgd", 5.0, 8)
    with pytest.raises(ValueError, match=r"^point is not in this space: opt is \{'name': 'lion'\} "):
        space.partial({"opt": {"name": "lion"}}, "point")


def test_objects_in_a_part_are_those_of_the_space() -> None:
    def flip() -> None: ...

    space = Space({"a": choice([None, flip]), "b": choice([flip, 1])})
    part = space.partial({"a": flip, "b": flip}, "point")
    assert (part["a"].name, part["b"].name) == ("a[1]", "b[0]")
    assert space.contains(space.completed(part, np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"^a is .*, which is none of the objects of param_space"):
        space.partial({"a": print}, "point")
