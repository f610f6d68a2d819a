"""What a study is, as ``study.json`` has it: written, compared with another, read back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from raytuner.config import FailureConfig
from raytuner.record.folder import Folder
from raytuner.schedulers import SCHEDULERS
from raytuner.searchers import SEARCHERS
from raytuner.space import Space, code_name, unpack
from raytuner.spelling import current, make
from raytuner.stopper import StopRule
from raytuner.trial import Config, Slot

_IDENTITY = (
    *("space", "metric", "mode", "num_samples", "search_alg", "scheduler", "stop"),
    *("failure_config", "checkpoint_config"),
    *("constraints", "default_config", "points_to_evaluate", "evaluated_rewards"),
)
"""What a study must share with the one in its folder to go on with it: everything its decisions depend on."""

_FIRST_RULES: Mapping[str, Any] = {"on_nan": "fail"}
"""Of `FailureConfig`, as studies of the first version had it, which did not record it."""

_LATER: Mapping[str, Mapping[str, Any]] = {
    "checkpoint_config": {
        "num_to_keep_in_study": None,
        "quota_count": None,
        "quota_bytes": None,
        "checkpoint_interval_s": None,
    },
}
"""Settings that studies of earlier versions did not have, as they were then."""

_ABSENT: Mapping[str, Any] = {
    "constraints": [],
    "default_config": None,
    "points_to_evaluate": [],
    "evaluated_rewards": [],
}
"""What records had nothing of before these came."""


def differences(known: Mapping[str, Any], what: Mapping[str, Any], space: Space) -> list[str]:
    """In what two studies differ that one must share with the other to go on with it. ``known``: what is recorded of
    one; ``what``, ``space``: what the other is."""
    known = {**_ABSENT, **known}
    for name, registry in (("search_alg", SEARCHERS), ("scheduler", SCHEDULERS)):
        known[name] = current(known.get(name), registry)
    found = []
    for name in _IDENTITY:
        if name == "space" and known.get("space") != what["space"]:
            found += _space_differences(known.get("space"), space)
        elif name == "failure_config" and isinstance(known.get(name), dict):
            rules = {**what[name], **_FIRST_RULES, **known[name]}
            found += [
                f"{each}: {rules[each]!r} became {now!r}" for each, now in what[name].items() if rules[each] != now
            ]
        elif (was := {**_LATER.get(name, {}), **known[name]} if name in _LATER else known.get(name)) != what[name]:
            found.append(f"{name}: {_brief(was)} became {_brief(what[name])}")
    return found


def stop_rule(stop: Mapping[str, float] | StopRule | None) -> dict[str, Any]:
    """A stop rule as JSON; of one that is code the name, which is the same in a script and where that is imported."""
    if stop is None or isinstance(stop, Mapping):
        return dict(stop or {})
    return {"function": code_name(stop)}


def failure_rules(config: FailureConfig) -> dict[str, Any]:
    """What to do with failing trials, as JSON; of what is code the name."""
    rules = {each.name: getattr(config, each.name) for each in fields(config)}
    return rules | {"on_oom": None if config.on_oom is None else code_name(config.on_oom)}


def failure_config(recorded: Mapping[str, Any], given: FailureConfig) -> FailureConfig:
    """The recorded rules; what is code, as it is given again."""
    rules = {**_FIRST_RULES, "max_same_failures": None, **recorded}
    return FailureConfig(**{**rules, "on_oom": given.on_oom if rules.get("on_oom") else None})


def resources(slot: Slot | Callable[[Config], Slot]) -> dict[str, Any]:
    if isinstance(slot, Slot):
        return {**asdict(slot), "custom": dict(slot.custom)}
    return {"function": code_name(getattr(slot, "resources", slot))}


def read_search(what: Mapping[str, Any]) -> dict[str, Any]:
    """What `Tuner` recorded of the search besides the space and the searcher, but for constraints, as arguments."""
    found: dict[str, Any] = {}
    if (default := what.get("default_config")) is not None:
        found |= {"default_config": unpack(default["config"]), "default_confidence": default["confidence"]}
    if points := what.get("points_to_evaluate"):
        found |= {"points_to_evaluate": [unpack(point) for point in points]}
        found |= {"evaluated_rewards": what.get("evaluated_rewards") or None}
    return found


def rebuilt(argument: str, what: Mapping[str, Any], registry: Mapping[str, Any], folder: Folder) -> Any:
    try:
        return make(what, registry)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"tune_config must be given again, for the {argument} in {folder.record}: {error!s:.1000}"
        ) from error


def objects_in(described: Any) -> Iterator[str]:
    """The names of the objects in a space, as ``study.json`` has it."""
    match described:
        case {"$held": [name, _, _]}:
            yield name
        case {"$dict": dict(fields)}:  # it only looks like something else
            for each in fields.values():
                yield from objects_in(each)
        case dict() | list():
            for each in described.values() if isinstance(described, dict) else described:
                yield from objects_in(each)


def _brief(value: Any) -> str:
    """As much of a setting as a message can hold: a warm start has hundreds of rows."""
    text = repr(value)
    return text if len(text) <= 1000 else f"{text[:900]} … ({len(text)} characters)"


def _space_differences(known: Any, space: Space) -> list[str]:
    try:
        return Space.from_json(known).differences(space)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        return ["the space is another"]
