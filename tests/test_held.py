"""Objects in configurations: digests that hold in another process, tokens that survive, and what cannot be held."""

from __future__ import annotations

import collections
import datetime
import enum
import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import threading
import tracemalloc
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytuner.held import Held, hold, supply
from raytuner.space import Space, choice, grid_search, pack, plain, same, sample_from, uniform, unpack

laws = settings(max_examples=60, deadline=None, derandomize=True)
ROOT = os.path.dirname(os.path.dirname(__file__))


def digest(value: Any) -> str:
    return hold(value, "x").digest


class Thing:
    """Anything with attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__ |= attributes

    def method(self) -> None:
        pass

    @classmethod
    def maker(cls) -> Thing:
        return cls()


class Slotted:
    __slots__ = ("part",)

    def __init__(self, part: Any) -> None:
        self.part = part


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


Pair = collections.namedtuple("Pair", "a b")


def scaled(factor: Any) -> Callable[[Any], Any]:
    def inner(x: Any, shift: int = 0) -> Any:
        return x * factor + shift

    return inner


@functools.cache
def cached(x: int) -> int:
    return x + 1


def ring(size: int) -> list[Thing]:
    """Things that know each other, in sets: in an order by address."""
    things = [Thing(number=i) for i in range(size)]
    for thing in things:
        thing.others = set(things)
    return things


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "int": range(4),
            "text": ["a", "b", None, "d"],
            "kind": pd.Categorical(list("xyxy")),
            "time": pd.date_range("2020", periods=4, tz="UTC"),
            "masked": pd.array([1, None, 3, 4], dtype="Int64"),
            "mixed": [{"a", "b"}, None, 1, "x"],
        },
        index=pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["k", None]),
    )


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())


def objects() -> dict[str, Any]:
    words = {"one", "two", "three", "four", ("five", 6), frozenset({"seven", "eight"})}
    return {
        "array": np.arange(6.0).reshape(2, 3)[:, ::2],
        "objects": np.array(["a", None, words], dtype=object),
        "strings": np.array(["short", "long" * 20], dtype=np.dtypes.StringDType()),  # type: ignore[attr-defined]
        "records": np.array([(1.0, 2)], dtype=[("a", "<f4"), ("b", "i8")]),
        "masked": np.ma.array([1, 2], mask=[False, True]),
        "time": np.datetime64("2020-01-01"),
        "generator": np.random.default_rng(3),
        "frame": frame(),
        "series": pd.Series([1.5, 2.5], name="s"),
        "index": pd.Index(["a", "b"]),
        "table": pa.table({"a": [1, None, 3], "b": ["x", None, "z"]}),
        "timestamp": pd.Timestamp("2020"),
        "tensor": torch.arange(6).reshape(2, 3).T,
        "bfloat": torch.ones(3, dtype=torch.bfloat16),
        "sparse": torch.eye(3).to_sparse(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "model": model(),
        "dtype": torch.float32,
        "module": json,
        "builtin": len,
        "ufunc": np.sin,
        "torch function": torch.relu,
        "library function": torch.nn.functional.cross_entropy,
        "library class": torch.nn.ReLU,
        "function": scaled,
        "cached": cached,
        "lambda": lambda x: x in {"a", "b", "c"},
        "closure": scaled(words),
        "partial": functools.partial(scaled, factor=words),
        "class": Thing,
        "method": Thing.method,
        "bound": Thing(words=words).method,
        "class method": Thing.maker,
        "instance": Thing(words=words, nested=[Thing(a=1)], slots=Slotted(words)),
        "member": Colour.RED,
        "enum": Colour,
        "named": Pair(1, words),
        "ring": ring(4)[0],
        "set": words,
        "deque": collections.deque([1, words]),
        "ordered": collections.OrderedDict(a=words).items(),
        "bytes": b"abc",
        "complex": 1j,
        "path": pathlib.Path("a/b"),
        "date": datetime.datetime(2020, 1, 1),
        "pattern": re.compile("a+"),
        "nothing": object(),
    }


def test_digests_are_equal_in_another_process() -> None:
    code = "import json\nfrom tests.test_held import *\nprint(json.dumps({k: digest(v) for k, v in objects().items()}))"
    here = {name: digest(value) for name, value in objects().items()}
    assert len(set(here.values())) == len(here)
    assert run(code, "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1") == here


def run(code: str, hash_seed: str, cwd: Path | str = ROOT) -> Any:
    """What Python code, or a script in a file, prints as JSON."""
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ROOT}
    arguments = [code] if code.endswith(".py") else ["-c", code]
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------- the user's own code

HELPER = """
import functools

def helps(x):
    return x + 1

@functools.cache
def cached(x):
    return x - 1

class Helper:
    def method(self):
        return 1
"""
SCRIPT = """
import json
import helper
from raytuner.held import hold

def plain(x, factor=2):
    return x * factor

def make(words):
    def inner(x):
        return words
    return inner

class Net:
    size = 3
    def forward(self, x):
        return x + self.size

objects = {
    "plain": plain,
    "closure": make({"a", "b", "c"}),
    "lambda": lambda x: x in {"a", "b"},
    "class": Net,
    "instance": Net(),
    "bound": Net().forward,
    "helps": helper.helps,
    "cached": helper.cached,
    "Helper": helper.Helper,
    "Helper instance": helper.Helper(),
    "method": helper.Helper.method,
}
print(json.dumps({name: hold(value, name).digest for name, value in objects.items()}))
"""


@pytest.mark.parametrize("prompt", [False, True], ids=["script", "prompt"])
def test_code_is_compared_and_layout_is_not(tmp_path: Path, prompt: bool) -> None:
    """Of a script and of what it imports; of code that is in no file."""

    def digests(script: str, helper: str, hash_seed: str) -> dict[str, str]:
        for cache in tmp_path.glob("__pycache__/*"):
            cache.unlink()  # it may be of the same second and size
        (tmp_path / "helper.py").write_text(helper)
        (tmp_path / "script.py").write_text(script)
        found = run(script if prompt else "script.py", hash_seed, tmp_path)
        assert isinstance(found, dict)
        return found

    before = digests(SCRIPT, HELPER, "1")
    assert len(set(before.values())) == len(before)
    moved = "# a remark\n\n\n" + SCRIPT.replace("return x * factor", "return (x  *  factor)  # twice")
    assert digests(moved, HELPER.replace("return x + 1", "\n    return (x + 1)  # one more"), "2") == before
    for changes, noticed in (
        (
            {
                "x * factor": "x + factor",
                '"a", "b", "c"': '"a", "b", "d"',
                'x in {"a", "b"}': 'x in {"a", "c"}',
                "x + self.size": "x - self.size",
                "x + 1": "x + 2",
            },
            {"plain", "closure", "lambda", "class", "bound", "helps"},
        ),
        (
            {
                "factor=2": "factor=3",
                "        return words": "        return [words]",
                "size = 3": "size = 4",
                "x - 1": "x - 2",
                "        return 1": "        return 2",
            },
            {"plain", "closure", "class", "cached", "Helper", "method"},
        ),
    ):
        script, helper = SCRIPT, HELPER
        for old, new in changes.items():
            assert (script + helper).count(old) == 1
            script, helper = script.replace(old, new), helper.replace(old, new)
        after = digests(script, helper, "1")
        assert {name for name in before if before[name] != after[name]} == noticed


def test_a_library_may_be_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its functions and classes the names count, neither source nor defaults."""
    function, kind = torch.nn.functional.cross_entropy, torch.nn.ReLU
    before = digest(function), digest(kind)
    other = types.FunctionType(torch.nn.functional.mse_loss.__code__, {}, "cross_entropy", (1,))
    other.__module__, other.__qualname__ = function.__module__, function.__qualname__
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", other)
    assert (digest(other), digest(type("ReLU", (), {"__module__": kind.__module__, "f": 1}))) == before


# --------------------------------------------------------------------------------------------------- same, other


def changed(frame: pd.DataFrame, column: str, value: Any) -> pd.DataFrame:
    frame = frame.copy()
    frame[column] = value
    return frame


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(3), np.array([0.0, 0.0, 1e-300])),
        (np.zeros(3), np.zeros(3, dtype=np.float32)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(2**21), np.concatenate([np.zeros(2**21 - 1), [1]])),
        (np.zeros(0), np.zeros((0, 1))),
        (np.array([1, None], dtype=object), np.array([2, None], dtype=object)),
        (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0])),
        (frame(), changed(frame(), "int", [0, 1, 2, 4])),
        (frame(), changed(frame(), "text", ["a", "b", "c", "d"])),
        (frame(), changed(frame(), "kind", pd.Categorical(list("xyyx")))),
        (frame(), changed(frame(), "time", pd.date_range("2021", periods=4, tz="UTC"))),
        (frame(), changed(frame(), "masked", pd.array([1, 2, 3, 4], dtype="Int64"))),
        (frame(), changed(frame(), "mixed", [{"a", "c"}, None, 1, "x"])),
        (frame(), frame().rename(columns={"int": "INT"})),
        (frame(), frame().set_index(pd.Index([0, 1, 2, 3]))),
        (frame(), frame().set_index(frame().index.set_levels([[1, 3]], level=[1]))),
        (frame(), frame().rename_axis(["k", "l"])),
        (pd.Series([1.0]), pd.Series([1.0], name="x")),
        (pd.Series([1.0]), pd.Series([1])),
        (pa.table({"a": [1, None]}), pa.table({"a": [1, 2]})),
        (torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
        (torch.zeros(3), torch.zeros(3, 1)),
        (torch.eye(3).to_sparse(), torch.eye(3).mul(2).to_sparse()),
        (torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)),  # other weights
        (torch.nn.ReLU, torch.nn.GELU),
        (torch.nn.ReLU, torch.nn.ReLU()),
        (torch.relu, torch.sigmoid),
        (np.sin, np.cos),
        (len, sum),
        (json, re),
        (scaled(2), scaled(3)),
        (scaled(np.zeros(3)), scaled(np.ones(3))),
        (lambda x: x, lambda x: -x),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x, y=1: x, lambda x, y=2: x),
        (lambda x, *, y=1: x, lambda x, *, y=2: x),
        (lambda x: lambda: x + 1, lambda x: lambda: x + 2),
        (lambda x: x.real, lambda x: x.imag),
        (functools.partial(scaled, 1), functools.partial(scaled, 2)),
        (functools.partial(scaled, 1), functools.partial(digest, 1)),
        (functools.partial(scaled, factor=1), functools.partial(scaled, shift=1)),
        (Thing(a=1), Thing(a=2)),
        (Thing(a=1), Thing(b=1)),
        (Thing(a=1), Thing(a=True)),
        (Thing(a=1), Thing(a=1.0)),
        (Thing(a="1"), Thing(a=b"1")),
        (Thing(a=["ab", "c"]), Thing(a=["a", "bc"])),
        (Thing(a=[1, [2]]), Thing(a=[[1], 2])),
        (Thing(a=[1, 2]), Thing(a=(1, 2))),
        (Thing(a=[1, 2]), Thing(a=[2, 1])),
        (Thing(a={"k": 1}), Thing(a={"k": 2})),
        (Thing(a=0.0), Thing(a=-0.0)),
        (Slotted(1), Slotted(2)),
        (Thing(x=1).method, Thing(x=2).method),
        (Thing.method, Thing.maker),
        (Colour.RED, Colour.BLUE),
        ({1, 2}, {1, 3}),
        ({1, 2}, frozenset({1, 2})),
        (Pair(1, 2), Pair(2, 1)),
        (collections.deque([1, 2]), collections.deque([2, 1])),
        (b"abc", bytearray(b"abc")),
        (pathlib.Path("a"), pathlib.Path("b")),
        (ring(3)[0], ring(3)[1]),
        (ring(3)[0], ring(4)[0]),
        (np.datetime64("2020"), np.datetime64("2021")),
        (np.random.default_rng(1), np.random.default_rng(2)),
    ],
)
def test_changes_are_noticed(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)


def fragmented() -> pd.DataFrame:
    frame = pd.DataFrame({"a": [1, 2]})
    frame["b"] = [3, 4]
    return frame


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
        (np.arange(3), np.arange(6)[::2] // 2),
        (fragmented(), pd.DataFrame({"a": [1, 2], "b": [3, 4]})),
        (frame(), frame().iloc[::-1].iloc[::-1]),
        (pd.RangeIndex(3), pd.Index([0, 1, 2])),
        (torch.arange(6).reshape(2, 3), torch.arange(6).reshape(2, 3).T.contiguous().T),
        (torch.ones(2), torch.ones(2, requires_grad=True)),
        ({1, 2, 70_000, "a"}, {"a", 70_000, 2, 1}),
        (Thing(a=1, b=2), Thing(b=2, a=1)),
        (Thing(a=[x := [1], x]), Thing(a=[[1], [1]])),
        (Thing(a=(x := Thing(b=[]), x)), Thing(a=(Thing(b=[]), Thing(b=[])))),
        (scaled(2), scaled(2)),
        (model(), model()),
        (ring(4)[0], ring(4)[0]),
        (object(), object()),
    ],
)
def test_equal_objects_have_equal_digests(one: Any, other: Any) -> None:
    assert digest(one) == digest(other)


def test_of_what_is_too_entangled_the_type_is_compared() -> None:
    """And this is known soon: there are 29! ways through such a ring."""
    assert digest(ring(30)[0]) == digest(ring(31)[7])
    deep = functools.reduce(lambda inner, _: [inner], range(150), [])
    assert digest(Thing(a=deep)) == digest(Thing(a=[deep]))
    assert digest(Thing(a=deep)) != digest(Slotted(deep))


def test_of_what_belongs_to_a_cluster_the_type_is_compared() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        @ray.remote
        def one() -> None:
            pass

        @ray.remote
        def other() -> None:
            pass

    assert digest(ray.ObjectRef(bytes(28))) == digest(ray.ObjectRef(bytes([1] * 28)))
    assert digest(one) == digest(other)


class Treacherous:
    """Can be pickled, but not twice."""

    def __init__(self) -> None:
        self.asked = 0

    def __reduce__(self) -> Any:
        self.asked += 1
        if self.asked > 1:
            raise RuntimeError
        return Treacherous, ()


def test_of_what_cannot_be_taken_apart_the_type_is_compared() -> None:
    assert hold(Treacherous(), "x").digest == hold(Treacherous(), "x").digest
    assert digest(Thing(a=Treacherous(), b=1)) != digest(Thing(a=Treacherous(), b=2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros(2**23),
        lambda: Thing(data=np.zeros((2**10, 2**14))[:, ::2]),
        lambda: pd.DataFrame(np.zeros((2**13, 2**10))),
        lambda: pa.table({"a": np.zeros(2**23)}),
    ],
    ids=["array", "instance", "frame", "table"],
)
def test_large_data_is_not_copied(make: Any) -> None:
    value = make()  # 64 MiB
    hold(Thing(), "x")  # imports what it needs
    tracemalloc.start()
    try:
        hold(value, "x")
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()


# -------------------------------------------------------------------------------------------------- refused


class Loader:
    def __init__(self, handle: Any) -> None:
        self.name = "data"
        self.handle = handle


class Careful(Loader):
    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name}


class Child:
    def __init__(self, parent: Any) -> None:
        self.parent = parent


def generator() -> Iterator[int]:
    yield 1


def family() -> Thing:
    """The child fails, too, but only because of its parent."""
    parent = Thing()
    parent.child = Child(parent)
    parent.lock = threading.Lock()
    return parent


def partly() -> Thing:
    """The lock that stands first is one that is left out."""
    return Thing(careful=Careful(threading.Lock()), loader=Loader([1, {"k": threading.Lock()}]))


def using(lock: Any) -> Callable[[], Any]:
    return lambda: lock


def test_what_cannot_be_sent_is_refused_with_the_culprit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    lock = threading.Lock()
    with path.open() as reading, path.open("rb") as binary:
        cases: list[tuple[Any, str]] = [
            (lock, r"data is a _thread.lock, which cannot be sent to another process: cannot pickle '_thread.lock'"),
            (generator(), "data is a generator, which .*: cannot pickle 'generator' object"),
            (reading, "data is a _io.TextIOWrapper, which .*: cannot pickle an open file"),
            (binary, "data is a _io.BufferedReader, which .*: cannot pickle"),
            (
                Loader(reading),
                r"data is a tests.test_held.Loader, which cannot be sent to another process: "
                r"data.handle, which is a _io.TextIOWrapper: cannot pickle an open file. Make it in the training",
            ),
            (Loader(Loader(lock)), r".* process: data.handle.handle, which is a _thread.lock: "),
            (partly(), r".* process: data.loader.handle\[1\]\['k'\], which is a _thread.lock: "),
            (family(), r".* process: data.lock, which is a _thread.lock: "),
            (Slotted(lock), r".* process: data.part, which is a _thread.lock: "),
            (using(lock), r"data is a function, .* process: the variable lock of data, which is a _thread.lock: "),
            (functools.partial(scaled, lock), r".* process: data.args\[0\], which is a _thread.lock: "),
            (Loader(lock).__str__, r".* process: data"),
            (collections.deque([lock]), r".* process: data\[0\], which is a _thread.lock: "),
            (np.array([lock], dtype=object), r"data is a numpy.ndarray, which .*: cannot pickle '_thread.lock'"),
            ({lock}, r"data is a set, .* process: data\[0\], which is a _thread.lock: "),
        ]
        for value, message in cases:
            with pytest.raises(TypeError, match=f"^{message}"):
                Space({"data": value})
        with pytest.raises(TypeError, match=r"^opt\[1\]/d\[0\] is a tests.test_held.Loader.*: opt\[1\]/d\[0\]\.handle"):
            Space({"opt": choice([1, {"d": [Loader(lock)]}])})
    assert Space({"data": Careful(lock)}).objects


@pytest.mark.parametrize("place", [lambda d: d, lambda d: [1, d], lambda d: choice([{"a": d}]), lambda d: {"a": d}])
def test_domains_of_rays_are_refused(place: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.tune.search import sample
    for theirs in (sample.uniform(0, 1), sample.choice([1]), sample.sample_from(lambda: 1)):
        with pytest.raises(TypeError, match=r"^x.* is .*\(ray.tune.search.sample.*, a domain of Ray's own; use the f"):
            Space({"x": place(theirs)})


def test_importing_is_cheap() -> None:
    code = (
        "import sys, json, raytuner.space as s\n"
        "s.Space({'x': s.uniform(0, 1), 'y': [1, 'a']})\n"
        "names = ('cloudpickle', 'ray', 'torch', 'pandas', 'pyarrow')\n"
        "print(json.dumps([name for name in names if name in sys.modules]))"
    )
    assert run(code, "0") == []


# -------------------------------------------------------------------------------------------------- in a space


def swish(x: float) -> float:
    return x


def param_space() -> dict[str, Any]:
    return {
        "data": np.arange(3.0),
        "act": choice([math.tanh, swish, "relu"]),
        "opt": choice([{"name": "sgd", "hook": Thing(a=1)}, {"name": "adam", "hook": Thing(a=2)}]),
        "fixed": [1, (swish, {"k": Thing(a=3)})],
        "grid": grid_search([torch.nn.ReLU, None]),
        "lr": uniform(0, 1),
        "spread": [uniform(0, 1), swish],
    }


def test_objects_are_held_by_place() -> None:
    raw = param_space()
    space = Space(raw)
    assert {token.name: token.kind for token in space.objects} == {
        "data": "ndarray",
        "act[0]": "tanh",
        "act[1]": "swish",
        "opt[0]/hook": "Thing",
        "opt[1]/hook": "Thing",
        "fixed[1][0]": "swish",
        "fixed[1][1]/k": "Thing",
        "grid[0]": "ReLU",
        "spread/1": "swish",
    }
    data = next(token for token in space.objects if token.name == "data")
    assert space.objects[data] is raw["data"]
    assert data == hold(np.arange(3.0), "data")
    assert re.fullmatch(r"[0-9a-f]{16}", data.digest)
    assert repr(data) == f"<ndarray 'data' {data.digest[:8]}>" == space.lines()["data"]
    assert space.flat(space.decode(np.zeros(space.dim)))["data"] == data


def test_configurations_have_tokens_and_trials_get_the_objects() -> None:
    raw = param_space()
    space = Space(raw)
    rng = np.random.default_rng(0)
    acts = set()
    for _ in range(20):
        config = space.sample(rng)
        space.check(config)
        x, active = space.encode(config)
        assert active.sum() == 5
        assert same(space.decode(x), config)
        assert same(plain(config, "x"), config)
        full = supply(config, space.objects)
        assert full["data"] is raw["data"]
        assert full["act"] == raw["act"].options[int(x[0] * 3)]
        assert full["opt"]["hook"].a == {"sgd": 1, "adam": 2}[full["opt"]["name"]]
        assert full["fixed"] == raw["fixed"]
        assert full["grid"] in (torch.nn.ReLU, None)
        assert full["spread"][1] is swish
        assert isinstance(config["data"], Held), "a copy"
        acts.add(full["act"])
    assert acts == {math.tanh, swish, "relu"}
    assert not space.contains(supply(config, space.objects))


def test_tokens_survive_json() -> None:
    space = Space(param_space())
    again = Space.from_json(json.loads(json.dumps(space.to_json(), allow_nan=False)))
    assert again == space == Space(param_space())
    assert hash(again) == hash(space)
    assert again.differences(space) == []
    assert repr(again) == repr(space)
    assert again.objects == {}
    config = again.sample(np.random.default_rng(1))
    assert same(config, space.sample(np.random.default_rng(1)))
    assert supply(config, space.objects)["spread"][1] is swish
    with pytest.raises(ValueError, match=r"^<ndarray 'data' \w{8}> stands for an object.* give param_space again"):
        supply({"data": config["data"]}, again.objects)


def test_a_dict_that_looks_like_a_token_is_a_dict() -> None:
    space = Space({"x": {"$held": ["a", "b", "c"]}})
    assert space.objects == {}
    assert Space.from_json(space.to_json()).sample(np.random.default_rng(0)) == {"x": {"$held": ["a", "b", "c"]}}


def test_another_object_is_a_difference() -> None:
    old = Space({"data": np.zeros(3), "act": choice([math.sin, swish])})
    new = Space({"data": np.ones(3), "act": choice([math.sin, math.cos])})
    assert old != new
    act, data = old.differences(new)
    assert re.fullmatch(r"data: <ndarray 'data' \w{8}> became <ndarray 'data' \w{8}>", data)
    pattern = r"choice\(\[<sin 'act\[0\]' (\w{8})>, <%s 'act\[1\]' \w{8}>\]\)"
    assert re.fullmatch(rf"act: {pattern % 'swish'} became {pattern % 'cos'}", act)


@pytest.mark.parametrize(
    "raw",
    [
        {"a": choice([{"d": Thing()}, {"d": Thing()}])},
        {"a": choice([{"b": choice([Thing(), 1])}, {"b": choice([Thing(), 1])}])},
        {"a": choice([Thing(), Thing()])},
        {"a": choice([Thing(), 2]), "a[0]": Thing()},
        {"a": [Thing(), [Thing()]]},
    ],
)
def test_equal_digests_are_told_apart_by_place(raw: dict[str, Any]) -> None:
    """They may be of objects of which only the type is known."""
    space = Space(raw)
    assert len(space.objects) == len({id(value) for value in space.objects.values()}) == 2
    assert space == Space(raw)
    for x in np.ndindex(*space.categories):
        config = space.decode((np.array(x) + 0.5) / np.maximum(space.categories, 1))
        assert same(space.decode(space.encode(config)[0]), config)


def test_sample_from_sees_objects_and_answers_plain_values() -> None:
    space = Space(
        {
            "data": np.arange(3.0),
            "n": sample_from(lambda config: len(config["data"]) + config.opt.pair.b),
            "opt": {"pair": Pair(1, 2)},
        }
    )
    assert space.sample(np.random.default_rng(0))["n"] == 5
    assert space.decode([])["n"] == 5
    space = Space({"data": np.arange(3.0), "x": sample_from(lambda config: config["data"])})
    message = r"^x is array.*, expected None, bool.* in the training function, or put it into choice\(\[\.\.\.\]\)"
    with pytest.raises(TypeError, match=message):
        space.sample(np.random.default_rng(0))


# ---------------------------------------------------------------------------------------------------- laws

_OBJECTS = [np.arange(3), {1, 2}, swish, Thing(a=1), b"bytes", torch.nn.ReLU, Pair(1, 2)]
_scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from([0.5, math.inf]) | st.text(max_size=3)
_leaves = _scalars | st.sampled_from(_OBJECTS)
_keys = st.text("abcx_$[]0", min_size=1, max_size=3)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=3)
    return lists | lists.map(tuple) | st.dictionaries(_keys, inner, max_size=3)


configs = st.dictionaries(_keys, st.recursive(_leaves, _nested, max_leaves=8), max_size=4)


def identical(a: Any, b: Any) -> bool:
    """Equal in structure and types, with the same objects at the leaves."""
    if type(a) is not type(b) or type(a) not in (dict, list, tuple):
        return a is b or same(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(identical(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(identical, a, b))


@laws
@given(configs, st.booleans())
def test_objects_go_and_come_back(raw: dict[str, Any], in_a_choice: bool) -> None:
    space = Space({"x": choice([raw])} if in_a_choice else {"x": raw})
    config = space.decode(np.zeros(space.dim))
    text = json.dumps(pack(config), allow_nan=False)
    back = unpack(json.loads(text))
    assert same(back, config)
    assert space.contains(back)
    assert identical(supply(back, space.objects), {"x": raw})
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
