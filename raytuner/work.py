"""What a study's trials run: the user's trainable, what is bound to it, and the objects its configurations speak of.

`Work` is made in the driver and travels to each process that runs trials once; large values go ahead of it through the
object store (`Work.stored`). There it becomes a `Running`: a function of the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raytuner.held import Held, hold, supply
from raytuner.trainable import Bound, runnable
from raytuner.trial import Config


@dataclass(frozen=True, slots=True)
class Work:
    """``trainable``: a function of the configuration, or a class. ``parameters``: what `with_parameters` bound to it.
    ``objects``: what stands for the tokens in configurations."""

    trainable: Any
    parameters: Mapping[str, Any] = field(default_factory=dict)
    objects: Mapping[Held, Any] = field(default_factory=dict)

    def check_portable(self) -> None:
        """TypeError that names what keeps this from being sent to another process, if anything does."""
        for name, value in [("trainable", self.trainable), *self.parameters.items()]:
            _check_portable(name, value)

    def stored(self, put: Callable[[Any], Any]) -> Work:
        """The same with references to each value, wrapped, for a value may be a reference itself."""
        parameters = {name: put((value,)) for name, value in self.parameters.items()}
        return replace(
            self, parameters=parameters, objects={held: put((value,)) for held, value in self.objects.items()}
        )

    def loaded(self, get: Callable[[Any], Any] | None = None) -> Running:
        """What runs trials in this process; ``get`` turns references that `stored` made into what they refer to."""
        parameters, objects = dict(self.parameters), dict(self.objects)
        if get is not None:
            parameters = {name: get(reference)[0] for name, reference in parameters.items()}
            objects = {held: get(reference)[0] for held, reference in objects.items()}
        return Running(runnable(Bound(self.trainable, parameters) if parameters else self.trainable), objects)


class Running:
    """Runs trials, one at a time: ``running(config)`` in the thread of a `raytuner.session.Session`."""

    def __init__(self, run: Callable[[Any], Any], objects: Mapping[Held, Any]) -> None:
        self._run = run
        self._objects = objects

    def __call__(self, config: Config) -> Any:
        return self._run(supply(config, self._objects) if self._objects else config)

    def close(self) -> None:
        """Let go of what the trainable keeps between trials."""
        close = getattr(self._run, "close", None)
        if callable(close):
            close()


def _check_portable(name: str, value: Any) -> None:
    from ray import cloudpickle

    try:
        cloudpickle.dumps(value, protocol=5, buffer_callback=lambda buffer: None)  # large data is not copied
    except Exception as error:  # whatever the objects' own methods raise
        reason = error
    else:
        return
    hold(value, name)  # says which part of it is to blame, if it can tell
    raise TypeError(f"{name} cannot be sent to another process: {reason}") from reason
