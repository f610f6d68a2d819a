"""Searchers' and schedulers' settings as plain JSON, and back: how ``study.json`` tells one from another.

Settings are dataclasses. What `dataclasses.asdict` does not make JSON of, they spell themselves: ``to_json()`` returns
their arguments, and the class method ``from_json`` takes them; it raises ValueError if there is code among them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any


def spell(settings: object, registry: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON: ``{"name": …, "args": …}``. Of one that is not in the registry as much as tells it apart."""
    kind = type(settings)
    if registry.get(kind.__name__) is not kind or not is_dataclass(settings):
        # A repr that tells objects apart, as object's own does, would make every run another study.
        args = None if kind.__repr__ is object.__repr__ else repr(settings)
        return {"name": f"{kind.__module__}.{kind.__qualname__}", "args": args}
    to_json: Callable[[], Any] = getattr(settings, "to_json", lambda: asdict(settings))  # type: ignore[arg-type]
    spelled: dict[str, Any] = json.loads(json.dumps({"name": kind.__name__, "args": to_json()}))
    return spelled


def make(spelled: Mapping[str, Any], registry: Mapping[str, Any]) -> Any:
    """The settings again. ValueError if they are none of the registry's, or have code in them."""
    kind = registry.get(spelled["name"])
    if kind is None:
        raise ValueError(f"{spelled['name']} is not raytuner's own")
    from_json: Callable[[Mapping[str, Any]], Any] = getattr(kind, "from_json", lambda args: kind(**args))
    return from_json(spelled["args"])


def current(spelled: Any, registry: Mapping[str, Any]) -> Any:
    """A spelling as this version spells the same settings: an older one may lack what has come since."""
    try:
        return spell(make(spelled, registry), registry)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError):
        return spelled
