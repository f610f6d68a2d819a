"""Objects in a ``param_space`` that are no plain values: datasets, functions, classes, instances of anything.

Such an object is *held*: in configurations, in ``study.json`` and in the journal stands a token of it (`Held`), with
its name, its kind and a digest of its content. The object stays in memory; `supply` puts it back where the training
function is called. On resume the user's script gives the object again, and the digest says whether it is the same.

So a digest must be equal in another process, with another hash seed, for what a person would call the same object.
Where this cannot be had, less is compared: that a change goes unnoticed does less harm than a study that cannot be
resumed. What counts:

- modules, and what belongs to an installed package or to the standard library: the name;
- functions and classes of the user's own files: the name and the code, by source without comments and layout, else
  (lambdas, code typed into a prompt) by bytecode, which another minor version of Python has differently; the defaults
  too, and what a closure holds. Not: global variables, and functions that are called by these;
- arrays, tensors, frames, series: type and values, neither memory layout nor device;
- containers: their elements; a dict's or set's in any order;
- every other object: the name of its class (not its code), and its state as pickle would see it;
- what belongs to a running Ray cluster (`ObjectRef`, actors, datasets), what cannot be taken apart, and what is nested
  deeper than 100 levels or too entangled with itself: the name of its class only.

An object whose state holds something made afresh in every process (a random identity, unseeded weights) is another
object in every process, by digest as by content.

`hold` refuses what no process but this one can have: locks, open files, generators, sockets.
"""

from __future__ import annotations

import functools
import hashlib
import io
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pickle import PickleBuffer
from typing import Any


@dataclass(frozen=True, slots=True, repr=False)
class Held:
    """What stands for an object in configurations.

    ``name``: where it stands in ``param_space``. ``kind``: the name of its type; of a function, class or module its
    own. ``digest``: 16 hexadecimal digits.
    """

    name: str
    kind: str
    digest: str

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r} {self.digest[:8]}>"


def hold(value: Any, name: str) -> Held:
    """The token of an object at a place of ``param_space``. TypeError if it cannot be sent to another process."""
    _check_can_travel(value, name)
    return Held(name, _kind(value), _digest(value))


def supply(config: Any, objects: Mapping[Held, Any]) -> Any:
    """A copy of a configuration, or of a piece of one, with the objects in place of their tokens."""
    if isinstance(config, Held):
        if config not in objects:
            raise ValueError(
                f"{config!r} stands for an object, which is not at hand; give param_space again, with the object in it"
            )
        return objects[config]
    if isinstance(config, dict):
        return {key: supply(value, objects) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)([supply(value, objects) for value in config])
    return config


def _kind(value: Any) -> str:
    if callable(value) or isinstance(value, types.ModuleType):
        for attribute in ("__qualname__", "__name__"):
            name = getattr(value, attribute, None)
            if isinstance(name, str):
                return name.replace("<locals>.", "").replace("<lambda>", "lambda")
    return type(value).__qualname__


# -------------------------------------------------------------------------------------- may it leave this process?

_DEEPEST_PART = 8
_MOST_PARTS = 1000


def _check_can_travel(value: Any, name: str) -> None:
    reason = _why_not(value)
    if reason is None:
        return
    where, culprit, reason = _culprit(value, name, _DEEPEST_PART, {}) or (name, value, reason)
    because = "" if culprit is value else f"{where}, which is {_a(culprit)}: "
    raise TypeError(
        f"{name} is {_a(value)}, which cannot be sent to another process: {because}{reason}. "
        "Make it in the training function, or let the object's __getstate__ leave it out."
    )


def _why_not(value: Any) -> Exception | None:
    """What pickling the value says against it. Nothing is kept, and large data is not copied."""
    try:
        _pickler()(_Nowhere(), protocol=5, buffer_callback=lambda buffer: None).dump(value)
    except Exception as error:  # whatever the objects' own methods raise
        return error
    return None


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)


@functools.cache
def _pickler() -> Any:
    return type("_DryPickler", (_cloud_pickler(),), {"persistent_id": _persistent_id})


def _cloud_pickler() -> Any:
    from cloudpickle import CloudPickler  # type: ignore[import-untyped]

    return CloudPickler


def _persistent_id(pickler: Any, value: Any) -> str | None:
    """Pass over what can surely be pickled and is large; refuse open files, of which cloudpickle sends the text."""
    if type(value) is io.TextIOWrapper and value not in (sys.stdout, sys.stderr, sys.stdin):
        raise TypeError("cannot pickle an open file")
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and type(value) is numpy.ndarray:
        return None if value.dtype.hasobject else "array"
    return "tensor" if torch is not None and type(value) is torch.Tensor else None


def _culprit(value: Any, where: str, deep: int, seen: dict[int, Any]) -> tuple[str, Any, Exception] | None:
    """The innermost part that cannot be pickled: its place, itself, and why. None if there is none, or if it is one
    of ``seen``: so a part that fails only because it refers back to the whole is not blamed."""
    reason = _why_not(value)
    if reason is None:
        return None
    seen[id(value)] = value
    refers_back = False
    if deep:
        for place, part in islice(_parts(value, where), _MOST_PARTS):
            if id(part) in seen:
                refers_back = True
            elif found := _culprit(part, place, deep - 1, seen):
                return found
    return None if refers_back else (where, value, reason)


def _parts(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """What pickling the value would pickle next, and where that stands."""
    if isinstance(value, dict):
        yield from ((f"{where}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from ((f"{where}[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, types.FunctionType):
        yield from ((f"the variable {name} of {where}", part) for name, part in _variables(value))
        yield from ((f"a default of {where}", part) for part in value.__defaults__ or ())
    elif isinstance(value, types.MethodType):
        yield f"{where}.__self__", value.__self__
        yield f"{where}.__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield from ((f"{where}.{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, type):
        yield from ((f"{where}.{name}", part) for name, part in vars(value).items() if not name.startswith("__"))
    else:
        yield from ((f"{where}.{name}", part) for name, part in _attributes(value).items())
        yield f"{where}.__class__", type(value)


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The variables from outside that a function uses: of its closure, and global ones."""
    yield from _closure(function)
    names = function.__code__.co_names
    yield from ((name, function.__globals__[name]) for name in names if name in function.__globals__)


def _closure(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes that pickle would see: what __getstate__ leaves out is not among them."""
    try:
        reduced = _reduced(value)
    except Exception:
        return dict(getattr(value, "__dict__", {}))
    if isinstance(reduced, str):
        return {}
    args, state = reduced[1], reduced[2] if len(reduced) > 2 else None
    found = {f"__reduce__()[1][{i}]": part for i, part in enumerate(args) if not isinstance(part, type)}
    for names in state if isinstance(state, tuple) else (state,):  # with slots it is a pair
        if isinstance(names, dict):
            found |= {str(name): part for name, part in names.items()}
        elif names is not None:
            found["__getstate__()"] = names
    return found


def _a(value: Any) -> str:
    kind = type(value)
    return f"a {kind.__qualname__}" if kind.__module__ == "builtins" else f"a {kind.__module__}.{kind.__qualname__}"


# ------------------------------------------------------------------------------------------------------ the digest

_DEEPEST = 100  # levels, each of up to four calls; Python allows 1000 of these
_MOST_RETURNS = 10_000
_SLAB = 2**24  # bytes of an array that are copied at a time

_CLUSTER = ("ray._raylet", "ray.actor", "ray.data", "ray.remote_function", "ray.util.placement_group")


def _digest(value: Any) -> str:
    """16 hexadecimal digits that say what the value is; the head of this file says in which respects."""
    try:
        content = _Digester().of(value)
    except (_Tangled, RecursionError):
        content = _sha256(_opaque(value))
    return hashlib.sha256(content).hexdigest()[:16]


class _Tangled(Exception):
    """Nested too deep, or parts that refer to one another in too many ways."""


class _Digester:
    """Digests the parts of a value from the leaves up.

    The digest of a part is a function of what the part is, never of the order in which parts are met: sets have
    another order in another process. A part that is met again within itself is written as the number of levels up to
    it. So a part that refers to something around it has as many digests as there are ways to it, and only a closed
    part's may be kept.
    """

    def __init__(self) -> None:
        self._closed: dict[int, bytes] = {}
        self._entered: dict[int, int] = {}  # the level of each part that is being digested
        self._met: dict[int, Any] = {}  # all parts so far: none may go and leave its id to another
        self._lowest = _DEEPEST  # the lowest level that was referred to from the part being digested
        self._returns = 0

    def of(self, value: Any) -> bytes:
        """Bytes of which nothing that follows can seem a part: a scalar itself, a digest of anything else."""
        if (scalar := _scalar(value)) is not None:
            return scalar
        key, level = id(value), len(self._entered)
        if key in self._closed:
            return self._closed[key]
        if key in self._entered:
            self._lowest = min(self._lowest, self._entered[key])
            return b"up %d;" % (level - self._entered[key])
        self._returns += key in self._met
        if level == _DEEPEST or self._returns > _MOST_RETURNS:
            raise _Tangled
        around, self._lowest = self._lowest, _DEEPEST
        self._met[key], self._entered[key] = value, level
        try:
            digest = b"#" + _sha256(self._content(value))
        except (_Tangled, RecursionError):
            raise
        except Exception:  # of the object's own methods
            digest = b"#" + _sha256(_opaque(value))
        finally:
            del self._entered[key]
        if self._lowest >= level:
            self._closed[key] = digest
        self._lowest = min(self._lowest, around)
        return digest

    def _content(self, value: Any) -> Iterator[Any]:
        """What the value is, in pieces for a hash."""
        kind = type(value)
        if kind.__module__ == "ray" or kind.__module__.startswith(_CLUSTER):
            return _opaque(value)
        if kind in (list, tuple):
            return self._sequence(value)
        if kind is dict:
            return self._dict(value)
        numpy = sys.modules.get("numpy")  # a trial's process that has no need of it does without
        if numpy is not None and kind in (numpy.ndarray, numpy.memmap):
            return self._array(value)
        for types_, content in self._kinds():
            if isinstance(value, types_):
                return content(value)
        return self._object(value)

    def _kinds(self) -> Iterator[tuple[Any, Callable[[Any], Iterator[Any]]]]:
        yield (bytes, bytearray, PickleBuffer), self._bytes
        yield (set, frozenset), self._set
        yield types.ModuleType, self._module
        yield types.FunctionType, self._function
        yield type, self._class
        if pandas := sys.modules.get("pandas"):
            yield pandas.DataFrame, self._frame
            yield pandas.Series, self._series
            yield pandas.Index, self._index
            yield pandas.api.extensions.ExtensionArray, self._extension_array
        if torch := sys.modules.get("torch"):
            yield torch.Tensor, self._tensor

    # --------------------------------------------------------------------------------------------- containers

    def _sequence(self, value: Any) -> Iterator[bytes]:
        yield from _opaque(value)
        for item in value:
            yield self.of(item)

    def _dict(self, value: Any) -> Iterator[bytes]:
        yield b"dict "
        yield from sorted(self.of(key) + self.of(item) for key, item in value.items())

    def _set(self, value: Any) -> Iterator[bytes]:
        yield from _opaque(value)
        yield from sorted(map(self.of, value))

    def _bytes(self, value: Any) -> Iterator[Any]:
        yield from _opaque(value)
        yield value.raw() if isinstance(value, PickleBuffer) else value

    # ------------------------------------------------------------------------------------- modules and code

    def _module(self, value: Any) -> Iterator[bytes]:
        yield b"module "
        yield value.__name__.encode()

    def _function(self, value: Any) -> Iterator[bytes]:
        yield b"function "
        yield _full_name(value)
        if not _is_installed(value.__module__):
            yield self.of(_source(value) or self._code(value.__code__))
            yield self.of(value.__defaults__)
            yield self.of(value.__kwdefaults__)
        if not _is_importable(value):
            yield self.of(dict(_closure(value)))

    def _class(self, value: Any) -> Iterator[bytes]:
        yield b"class "
        yield _full_name(value)
        if not _is_installed(value.__module__):
            yield self.of(_source(value) or self._members(value))

    def _members(self, value: type) -> dict[str, Any]:
        """The methods and plain values of a class without source; what Python adds for itself is in no fixed order."""
        found: dict[str, Any] = {"": [_full_name(base) for base in value.__bases__]}
        for name, member in vars(value).items():
            member = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(member, types.FunctionType) or (not name.startswith("__") and _scalar(member) is not None):
                found[name] = member
        return found

    def _code(self, code: types.CodeType) -> list[Any]:
        """What a function does, wherever it stands."""
        constants = [self._code(each) if isinstance(each, types.CodeType) else each for each in code.co_consts]
        counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
        return [code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, counts]

    # --------------------------------------------------------------------------------------------- data

    def _array(self, value: Any) -> Iterator[Any]:
        yield b"array "
        yield self.of([str(value.dtype), list(value.shape)])
        if value.dtype.hasobject:  # its bytes are addresses
            yield self.of(value.tolist())
        elif value.size:
            yield from _slabs(value)

    def _frame(self, value: Any) -> Iterator[bytes]:
        yield b"frame "
        yield self.of(value.index)
        yield self.of(value.columns)
        for i in range(value.shape[1]):
            yield self.of(_values(value.iloc[:, i]))

    def _series(self, value: Any) -> Iterator[bytes]:
        yield b"series "
        yield self.of(value.name)
        yield self.of(value.index)
        yield self.of(_values(value))

    def _index(self, value: Any) -> Iterator[bytes]:
        yield b"index "
        yield self.of(list(value.names))
        for i in range(value.nlevels):
            yield self.of(_values(value.get_level_values(i)))

    def _extension_array(self, value: Any) -> Iterator[bytes]:
        yield b"extension array "
        yield self.of(str(value.dtype))
        try:
            yield self.of(sys.modules["pandas"].util.hash_array(value))  # (n,) uint64, functions of the values
        except TypeError:  # lists, structs
            yield self.of(list(value))

    def _tensor(self, value: Any) -> Iterator[Any]:
        torch = sys.modules["torch"]
        if value.layout != torch.strided or value.is_quantized:
            yield from self._object(value)  # made of tensors that are not
            return
        yield b"tensor "
        yield self.of([str(value.dtype), list(value.shape)])
        if not value.is_meta:
            values = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            yield from _slabs(values.view(torch.uint8).numpy())

    # --------------------------------------------------------------------------------------- all other objects

    def _object(self, value: Any) -> Iterator[bytes]:
        reduced = _reduced(value)
        if isinstance(reduced, str):
            yield f"{getattr(value, '__module__', None) or type(value).__module__}.{reduced}".encode()
            yield self.of(getattr(value, "__wrapped__", None))  # what `functools.cache` caches
            return
        # Not the function that puts them together again: its name changes from version to version of a library.
        _, args, state, items, pairs = (*reduced, None, None, None)[:5]
        yield from _opaque(value)
        for arg in args:
            yield self._reference(arg)
        yield self.of(state)
        yield self.of(list(items or ()))
        yield self.of(dict(pairs or ()))

    def _reference(self, value: Any) -> bytes:
        """A class by name: that of an object, whose code is not what the object holds."""
        return _full_name(value) if isinstance(value, type) else self.of(value)


def _sha256(pieces: Iterable[Any]) -> bytes:
    sha = hashlib.sha256()
    for piece in pieces:
        sha.update(piece)
    return sha.digest()


def _scalar(value: Any) -> bytes | None:
    """A plain value in bytes that cannot be mistaken for another's; None if it is none."""
    if value is None or value is ... or value is NotImplemented:
        return b"%r;" % value
    kind = type(value)
    if kind is str:
        text = value.encode("utf-8", "surrogatepass")
    elif kind is int:
        text = b"%x" % value
    elif kind in (bool, float, complex):
        text = repr(value).encode()
    else:
        return None
    return b"%s %d:%s" % (kind.__name__.encode(), len(text), text)


def _opaque(value: Any) -> Iterator[bytes]:
    """An object of which only the type is known."""
    yield b"a "
    yield _full_name(type(value))


def _full_name(value: Any) -> bytes:
    return f"{value.__module__}.{value.__qualname__};".encode()


def _values(column: Any) -> Any:
    """The values of a series or an index without levels: an array of NumPy's, or of pandas' own."""
    return column.to_numpy() if isinstance(column.dtype, sys.modules["numpy"].dtype) else column.array


def _slabs(array: Any) -> Iterator[Any]:
    """The bytes of an array with at least one element, in C order, copied piece by piece."""
    array = array.reshape(1) if array.ndim == 0 else array
    step = max(1, _SLAB * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step].tobytes()


def _reduced(value: Any) -> Any:
    """The parts that pickle would make the value of, as `object.__reduce_ex__` describes them."""
    reduce = _cloud_pickler().dispatch_table.get(type(value))  # copyreg's are among these
    return reduce(value) if reduce else value.__reduce_ex__(5)


def _is_importable(value: Any) -> bool:
    """Whether another process finds it under its name."""
    found: Any = sys.modules.get(value.__module__) if value.__module__ != "__main__" else None
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return getattr(found, "__func__", found) is value


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Whether a module is of an installed package or the standard library: its code is not the user's to change."""
    import sysconfig
    from pathlib import Path

    if module == "__main__":
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if not isinstance(file, str):
        return True
    path = Path(file)
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or path.is_relative_to(
        sysconfig.get_path("stdlib")
    )


def _source(value: Any) -> str | None:
    """The source of a function or class without comments and layout, if there is one of its own."""
    import ast
    import inspect
    import textwrap

    if value.__name__ == "<lambda>":  # its lines hold other things, too
        return None
    try:
        text = inspect.getsource(value)
    except Exception:  # of many kinds: no file, another file, not Python
        return None
    try:
        return ast.unparse(ast.parse(textwrap.dedent(text)))
    except Exception:  # a method with a multi-line string at the margin
        return text
