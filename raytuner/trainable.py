"""What users give a `Tuner` to run: a function of the configuration or a class, with what is bound and reserved.

`Trainable` is Ray's class API. A subclass of Ray's own ``ray.tune.Trainable`` runs as well, as does any class with the
same methods; Ray is not imported for it. `runnable` turns each of them into a function of the configuration that a
`raytuner.session.Session` runs in its thread.

What it does not do: name a trainable by a registered string, start gangs of workers, ask a class for its
``default_resource_request``, count ``timesteps_total`` and ``episodes_total``.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import pickle
import re
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from raytuner.checkpoints import Checkpoint
from raytuner.session import (
    Context,
    TrialEnded,
    get_checkpoint,
    get_context,
    report_step,
    standing,
    takes_config,
)
from raytuner.trial import Config, Slot, slot_of

_log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------- the class API


class _InTrial:
    """What an instance knows of the trial it runs, by Ray's names. It may run several, one after the other."""

    _raytuner_context: Context | None = None

    @property
    def trial_id(self) -> str:
        """The trial's number; ``"default"`` outside of a Tuner, as in Ray."""
        context = self._raytuner_context
        return "default" if context is None else context.get_trial_id()

    @property
    def trial_name(self) -> str:
        context = self._raytuner_context
        return "default" if context is None else context.get_trial_name()

    @property
    def trial_resources(self) -> dict[str, float] | None:
        """What the trial reserves now, as it would be given to `with_resources`; None outside of a Tuner."""
        context = self._raytuner_context
        return None if context is None else context.get_trial_resources()

    @property
    def logdir(self) -> str:
        """The folder for the trial's own files; made when it is first asked for."""
        if self._raytuner_context is None:
            raise RuntimeError(f"{type(self).__name__}.logdir is a trial's folder; no Tuner made this instance")
        return self._raytuner_context.get_trial_dir()

    @property
    def trial_dir(self) -> str:
        """The same as `logdir`."""
        return self.logdir


class Trainable(_InTrial):
    """A trial as a class, as in Ray: implement `setup` and `step`; to be paused, also `save_checkpoint` and
    `load_checkpoint`; to serve one trial after the other without being built anew, also `reset_config`.
    """

    _iteration = 0

    def __init__(self, config: Config | None = None) -> None:
        self.config: dict[str, Any] = dict(config or {})
        self._raytuner_context = _context()
        self.setup(_fresh(self.config))

    @property
    def iteration(self) -> int:
        """How many steps are done; within the first `step` it is 0."""
        return self._iteration

    @property
    def training_iteration(self) -> int:
        """The same as `iteration`."""
        return self._iteration

    def setup(self, config: dict[str, Any]) -> None:
        """Build what `step` needs. `with_parameters` adds keyword arguments."""

    def step(self) -> Mapping[str, Any]:
        """Train for one step and return its metrics. ``done=True`` among them ends the trial;
        ``should_checkpoint=True`` has it saved."""
        raise NotImplementedError(f"{type(self).__name__} does not implement step()")

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any] | None:
        """Write all that is needed to go on into this directory, or return it as a dict.

        A class that does not implement it never saves; a trial of it that is set back starts from the beginning.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement save_checkpoint()")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from the dict that `save_checkpoint` returned or, if it returned none, a directory with its files.

        The directory is to be read and left as it is.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement load_checkpoint()")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become what a new instance with this configuration would be, and return True; or return False, to be cleaned
        up and built anew."""
        return False

    def log_result(self, result: dict[str, Any]) -> None:
        """Hear of each step's metrics, in the trial's process, just before they are reported."""

    def cleanup(self) -> None:
        """Let go of files, processes and the like: called once, when the instance runs no more trials."""


# ----------------------------------------------------------------------------------- what is bound and what reserved


@dataclass(frozen=True)
class Bound:
    """A trainable with parameters for ``train(config, **parameters)`` or ``setup(config, **parameters)``."""

    trainable: Any
    parameters: Mapping[str, Any] = field(repr=False)  # data sets


@dataclass(frozen=True)
class Reserved:
    """A trainable, perhaps `Bound`, with what each of its trials reserves; made by `with_resources`."""

    train: Any
    slot: Slot | Callable[[Config], Slot]


@overload
def with_parameters(trainable: Reserved, /, **parameters: Any) -> Reserved: ...
@overload
def with_parameters(trainable: Any, /, **parameters: Any) -> Bound: ...
def with_parameters(trainable: Any, /, **parameters: Any) -> Bound | Reserved:
    """Hand objects such as data sets to every trial.

    A function is called ``train(config, **parameters)``, a class's ``setup(config, **parameters)``. They travel to each
    process once, not with every trial. Given twice, the later value counts.
    """
    if isinstance(trainable, Reserved):
        return replace(trainable, train=with_parameters(trainable.train, **parameters))
    if isinstance(trainable, Bound):
        _check_names(trainable.trainable, parameters)
        return Bound(trainable.trainable, {**trainable.parameters, **parameters})
    _check_kind(trainable)
    _check_names(trainable, parameters)
    return Bound(trainable, parameters)


def with_resources(trainable: Any, resources: Mapping[str, float] | Callable[[Any], Mapping[str, float]]) -> Reserved:
    """Say what each trial reserves: ``{"cpu": 2, "gpu": 0.5, "memory": bytes, "<custom>": amount}``, or a function of
    its configuration that returns this."""
    slot: Slot | Callable[[Config], Slot]
    if isinstance(resources, Mapping):
        slot = slot_of(resources)
    elif _is_gang(resources) or not callable(resources):
        raise _no_resources("resources", resources)
    elif not takes_config(resources):
        raise TypeError(f"resources must take one argument, the configuration; {qualified_name(resources)} does not")
    else:
        slot = ResourcesOf(resources)
    return Reserved(trainable.train if isinstance(trainable, Reserved) else trainable, slot)


@dataclass(frozen=True)
class ResourcesOf:
    """The slot of a configuration, as the user's function says."""

    resources: Callable[[Any], Mapping[str, float]]

    def __call__(self, config: Config) -> Slot:
        said = self.resources(_fresh(config))
        where = f"what the resources function {qualified_name(self.resources)} returned"
        if not isinstance(said, Mapping):
            raise _no_resources(where, said)
        try:
            return slot_of(said)
        except (TypeError, ValueError) as error:
            error.add_note(f"This is {where} for the configuration {dict(config)!r:.200}")
            raise


_GANGS = frozenset({"PlacementGroupFactory", "ScalingConfig"})


def _is_gang(resources: object) -> bool:
    return any(kind.__name__ in _GANGS for kind in type(resources).__mro__)  # by name: Ray need not be imported


def _no_resources(what: str, got: object) -> TypeError:
    expected = f"{what} must be a dict such as {{'cpu': 1, 'gpu': 0.5}}, what one trial reserves in one process"
    if _is_gang(got):
        return TypeError(f"{expected}; gangs of workers, as a {type(got).__name__} describes, are not there yet")
    return TypeError(f"{expected}; got {type(got).__name__}")


# ------------------------------------------------------------------------------------------------------- at the door

_METHODS = ("step", "save_checkpoint", "load_checkpoint", "reset_config", "cleanup")


def check(trainable: object) -> None:
    """TypeError if trials cannot be run of this."""
    if isinstance(trainable, Reserved):
        check(trainable.train)
        return
    train, parameters = _unbound(trainable)
    _check_kind(train)
    if isinstance(train, type):
        _check_class(train, parameters)
    elif not takes_config(functools.partial(train, **parameters) if parameters else train):
        bound = f" with {', '.join(parameters)} bound" if parameters else ""
        raise TypeError(
            f"trainable must take one argument, the configuration; {name_of(train)}{_shown(train)}{bound} does not. "
            "with_parameters binds the others"
        )


def name_of(trainable: object) -> str:
    """A short name, fit for a folder's."""
    train = _innermost(trainable)
    name = getattr(train, "__name__", None)
    kept = re.sub(r"[^\w.-]", "", name) if isinstance(name, str) else ""  # <lambda>
    return kept if kept.strip(".") else type(train).__name__


def qualified_name(trainable: object) -> str:
    """Module and name, as ``study.json`` has it."""
    train = _innermost(trainable)
    named = train if isinstance(getattr(train, "__qualname__", None), str) else type(train)
    return f"{getattr(named, '__module__', '?')}.{getattr(named, '__qualname__', '?')}"


def _innermost(trainable: object) -> Any:
    return _unbound(trainable.train if isinstance(trainable, Reserved) else trainable)[0]


def _unbound(trainable: object) -> tuple[Any, Mapping[str, Any]]:
    return (trainable.trainable, trainable.parameters) if isinstance(trainable, Bound) else (trainable, {})


def _check_kind(train: object) -> None:
    if isinstance(train, str):
        raise TypeError(f"trainable is {train!r}: registered names are not supported: pass the function or class")
    if not callable(train):
        hint = f"; pass the class {type(train).__name__} itself" if hasattr(train, "step") else ""
        raise TypeError(
            "trainable must be a function of one argument, the configuration, or a subclass of raytuner.Trainable; "
            f"got {train!r:.80}{hint}"
        )


def _check_class(kind: type, parameters: Mapping[str, Any]) -> None:
    lacks = [name for name in _METHODS if not callable(getattr(kind, name, None))]
    if "step" not in lacks and not _implements(kind, "step"):
        lacks.insert(0, "step")
    lacks += sorted(getattr(kind, "__abstractmethods__", frozenset()) - set(lacks))
    if lacks:
        cure = "implement it" if issubclass(kind, Trainable) or _is_rays(kind) else "derive it from raytuner.Trainable"
        raise TypeError(f"trainable {kind.__qualname__} is a class that lacks {', '.join(lacks)}: {cure}")
    if not takes_config(kind):
        raise TypeError(f"trainable {kind.__qualname__} must be made with one argument, the configuration; it is not")
    setup = getattr(kind, "setup", None)
    if setup is not None and not takes_config(functools.partial(setup, None, **parameters)):
        bound = f" with {', '.join(parameters)} bound" if parameters else ""
        raise TypeError(
            f"{kind.__qualname__}.setup must take one argument, the configuration; setup{_shown(setup)}{bound} does "
            "not. with_parameters binds the others"
        )


def _check_names(train: Any, parameters: Mapping[str, Any]) -> None:
    """Whether a function, or a class's ``setup``, takes parameters of these names besides the configuration."""
    what, receiver, places = name_of(train), train, 1
    if isinstance(train, type):
        what, receiver, places = f"{train.__qualname__}.setup", getattr(train, "setup", None), 2
        if receiver is None:
            raise TypeError(f"with_parameters: {train.__qualname__} has no setup() to give {', '.join(parameters)} to")
    try:
        takes = list(inspect.signature(receiver).parameters.values())
    except ValueError:  # some builtins have no signature to look at
        return
    kinds = inspect.Parameter
    positional = [each for each in takes if each.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    named = [each for each in takes if each.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    if len(positional) < places and not any(each.kind is kinds.VAR_POSITIONAL for each in takes):
        raise TypeError(
            f"with_parameters: {what}{_shown(receiver)} must take the configuration as its first argument, "
            "and the parameters by name"
        )
    first = [each.name for each in named if each in positional[:places]]
    names = [each.name for each in named if each.name not in first]
    others = any(each.kind is kinds.VAR_KEYWORD for each in takes)
    for name in parameters:
        if name in first:
            raise TypeError(f"with_parameters: {name!r} is where {what}{_shown(receiver)} takes the configuration")
        if name not in names and not others:
            known = ", ".join(names) or "none besides the configuration"
            raise TypeError(f"with_parameters: {what} takes no parameter {name!r}; it takes {known}")


def _shown(train: Any) -> str:
    try:
        return str(inspect.signature(train))
    except (TypeError, ValueError):
        return "(...)"


def _implements(kind: type, method: str) -> bool:
    """Whether a class has more of a method than a base class's placeholder."""
    home = next((each for each in kind.__mro__ if method in vars(each)), None)
    return home is not None and home is not Trainable and not _is_rays_own(home)


def _is_rays(kind: type) -> bool:
    """Whether a class is a subclass of ``ray.tune.Trainable``."""
    return any(map(_is_rays_own, kind.__mro__))


def _is_rays_own(kind: type) -> bool:
    return (kind.__module__, kind.__qualname__) == ("ray.tune.trainable.trainable", "Trainable")


# ------------------------------------------------------------------------------------------------------------ running


def runnable(trainable: Any) -> Callable[[Any], Any]:
    """A function of the configuration that a `raytuner.session.Session` can run, from what `check` lets pass.

    If it has a ``close`` method, this is called when no more trials come.
    """
    train, parameters = _unbound(trainable)
    if isinstance(train, type):
        return ClassRunner(train, parameters)
    run: Callable[[Any], Any] = functools.partial(train, **parameters) if parameters else train
    return run


class ClassRunner:
    """Runs trials of a class, one at a time; each call is a trial's run in the thread of its session.

    An instance whose trial ended is kept for the next if its class implements ``reset_config``, else cleaned up at
    once. While a trial is parked inside `report_step` its instance is the trial's alone.
    """

    def __init__(self, kind: type, parameters: Mapping[str, Any]) -> None:
        self._kind = _placed(kind, parameters)
        self._resets, self._saves, self._logs = (
            _implements(kind, method) for method in ("reset_config", "save_checkpoint", "log_result")
        )
        self._kept: Any = None

    def __call__(self, config: Config) -> None:
        instance = self._instance(config)
        try:
            self._train(instance)
        except TrialEnded:
            if self._resets:
                self._kept = instance
            else:
                _clean(instance)
            raise
        except BaseException:
            _clean(instance)  # who knows what state it is in
            raise

    def close(self) -> None:
        """Clean up the instance that waits for a trial."""
        kept, self._kept = self._kept, None
        if kept is not None:
            _clean(kept)

    def _instance(self, config: Config) -> Any:
        """An instance for a trial: the one that waits, if it can be reset to it; else a new one."""
        kept, self._kept = self._kept, None
        if kept is not None:
            try:
                if _reset(kept, config):
                    return kept
            except BaseException:
                _clean(kept)
                raise
            _clean(kept)
            del kept  # before another is made: both may not fit on the GPU
        made = self._kind(_fresh(config))
        made._raytuner_context = get_context()
        return made

    def _train(self, instance: Any) -> None:
        """Step after step, until `report_step` raises `TrialEnded`."""
        instance._iteration = standing()
        checkpoint = get_checkpoint()
        if checkpoint is not None:
            instance.load_checkpoint(_read(checkpoint))
        save: Callable[[], AbstractContextManager[Checkpoint | None]]
        save = functools.partial(_saved, instance) if self._saves else nullcontext
        while True:
            result = instance.step()
            if not isinstance(result, Mapping):
                name = type(instance).__qualname__
                raise TypeError(
                    f"{name}.step() must return a dict of metrics, got {type(result).__name__}: {result!r:.80}"
                )
            instance._iteration += 1
            if self._logs:
                result = {"training_iteration": instance._iteration, **result}
                instance.log_result(result)
            report_step(result, save, bool(result.get("done")), bool(result.get("should_checkpoint")))


class _InRaysTrial(_InTrial):
    """Goes before a subclass of Ray's class: its folder is the trial's, not a new one in ``~/ray_results``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._raytuner_context = _context()
        super().__init__(*args, **kwargs)

    def _setup_logdir(self) -> None:
        self._logdir = None if self._raytuner_context is None else str(self._raytuner_context.trial_dir)


def _placed(kind: type, parameters: Mapping[str, Any]) -> type:
    """The class with its parameters bound, which knows its trial."""
    bases = (_InRaysTrial, kind) if _is_rays(kind) else (kind,)
    if bases == (kind,) and not parameters:
        return kind

    def fill(body: dict[str, Any]) -> None:
        body.update(__module__=kind.__module__, __qualname__=kind.__qualname__, __doc__=kind.__doc__)
        if parameters:
            body["setup"] = setup

    def setup(self: Any, config: Any, **more: Any) -> Any:
        return super(made, self).setup(config, **{**parameters, **more})

    made: Any = types.new_class(kind.__name__, bases, exec_body=fill)
    assert isinstance(made, type)
    return made


def _reset(instance: Any, config: Config) -> bool:
    """Whether an instance is ready for another trial. If not, all is as it was: it cleans up after its own trial."""
    before = getattr(instance, "config", None), instance._raytuner_context
    instance.config, instance._raytuner_context = _fresh(config), get_context()
    if instance.reset_config(_fresh(config)):
        return True
    instance.config, instance._raytuner_context = before
    return False


def _clean(instance: Any) -> None:
    """Have an instance clean up; an error there must neither hide another nor fail the next trial."""
    try:
        instance.cleanup()
    except (Exception, TrialEnded):
        _log.warning("%s.cleanup() raised an error", type(instance).__qualname__, exc_info=True)


def _context() -> Context | None:
    """The trial of this thread; None where there is none: users may try their classes by hand."""
    try:
        return get_context()
    except RuntimeError:
        return None


def _fresh(value: Any) -> Any:
    """A copy in which users may change dicts and lists; what is in them may be large, and is the same."""
    if isinstance(value, Mapping):
        return {name: _fresh(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_fresh(each) for each in value]
    return value


# -------------------------------------------------------------------------------------------------------- checkpoints

_AS_JSON = "_dict_checkpoint.json"
_AS_PICKLE = "_dict_checkpoint.pkl"  # Ray's name for it


@contextmanager
def _saved(instance: Any) -> Iterator[Checkpoint]:
    """A checkpoint of an instance, for as long as it takes to publish it."""
    with tempfile.TemporaryDirectory(prefix="raytuner-checkpoint-", ignore_cleanup_errors=True) as folder:
        saved = instance.save_checkpoint(folder)
        if isinstance(saved, dict):
            _write(Path(folder), saved)
        elif saved is not None and saved != folder:
            raise TypeError(
                f"{type(instance).__qualname__}.save_checkpoint() must return None, a dict, or the directory it was "
                f"given ({folder}); got {type(saved).__name__}: {saved!r:.80}"
            )
        yield Checkpoint(folder)


def _write(folder: Path, saved: dict[Any, Any]) -> None:
    """A dict as a file: JSON where this gives the same dict back, else a pickle."""
    try:
        text = json.dumps(saved, allow_nan=False)
        plain = _alike(saved, json.loads(text))
    except (TypeError, ValueError, RecursionError):
        plain = False
    if plain:
        (folder / _AS_JSON).write_text(text, encoding="utf-8")
        return
    from ray import cloudpickle  # by value, what the user's script defines: where it is read that is another module

    with open(folder / _AS_PICKLE, "wb") as file:
        cloudpickle.dump(saved, file)


def _read(checkpoint: Checkpoint) -> Any:
    """What ``load_checkpoint`` is given: the dict, or the directory."""
    as_json, as_pickle = (os.path.join(checkpoint.path, name) for name in (_AS_JSON, _AS_PICKLE))
    if os.path.exists(as_json):
        with open(as_json, encoding="utf-8") as text:
            return json.load(text)
    if os.path.exists(as_pickle):
        with open(as_pickle, "rb") as file:
            return pickle.load(file)
    return checkpoint.path


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, and of the same types throughout."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)
