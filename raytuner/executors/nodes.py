"""The nodes of the cluster, as Ray tells of them: those that are there to stay, those that are to go, those that are
gone.

Ray announces that a node is to go, because it is preempted or somebody drains it (``ray drain-node``, its autoscaler,
SIGTERM to ``ray start --block``), in one place only: `get_draining_nodes` of its global state, which Ray Train and Ray
Serve poll as well (seen on Ray 2.60). ``ray.nodes()`` does not tell, nor does the state API. Until such a node is idle,
or is killed, what runs there goes on, and Ray places nothing new there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from enum import Enum

import ray
from ray.exceptions import ActorUnavailableError, NodeDiedError, RayActorError

_log = logging.getLogger(__name__)
_EVERY_S = 1.0  # a look takes about a millisecond on a small cluster


class Home(Enum):
    """What becomes of a node."""

    STAYS = "it is there"
    GOING = "it is to go"
    GONE = "it is dead, or was never there"


class Nodes:
    """What Ray said when it was last asked.

    ``staying``: what each node has that is there to stay. ``known``: what each node had that was ever seen.
    """

    def __init__(self) -> None:
        self.staying: list[Mapping[str, float]] = []
        self.known: list[Mapping[str, float]] = []
        self.due = 0.0  # when it is time to look again, as `time.monotonic` has it
        self._homes: dict[str, Home] = {}
        self._resources: dict[str, Mapping[str, float]] = {}
        self._tells_of_going = True
        self.look()

    def look(self) -> bool:
        """Ask Ray; whether there is news."""
        self.due = time.monotonic() + _EVERY_S
        resources = {node["NodeID"]: _own(node["Resources"]) for node in ray.nodes() if node["Alive"]}
        going = self._going() if resources else set()
        homes = {node: Home.GOING if node in going else Home.STAYS for node in resources}
        if (homes, resources) == (self._homes, self._resources):
            return False
        self._homes, self._resources = homes, resources
        self.staying = [resources[node] for node in sorted(homes) if homes[node] is Home.STAYS]
        self.known += [each for each in resources.values() if each not in self.known]
        return True

    def home(self, node: str) -> Home:
        """What becomes of a node, given by its number."""
        return self._homes.get(node, Home.GONE)

    def _going(self) -> set[str]:
        if not self._tells_of_going:
            return set()
        try:
            return set(ray._private.state.state.get_draining_nodes())
        except Exception as error:  # it is no public part of Ray
            self._tells_of_going = False
            _log.warning("this Ray does not tell which nodes are to go: %s: %s", type(error).__name__, error)
            return set()


def is_of_a_node(error: BaseException) -> bool:
    """Whether an actor was lost with its node, by what Ray says of it.

    A process that dies on a node that lives is told at once, by that node's raylet. Where there is none any more, Ray
    says at first, and for some 15 s, that the actor cannot be reached.
    """
    if isinstance(error, ActorUnavailableError | NodeDiedError):
        return True
    return isinstance(error, RayActorError) and (error.preempted or "its node has died" in str(error))


def _own(resources: Mapping[str, float]) -> Mapping[str, float]:
    """What a node has, without what Ray names its nodes by."""
    return {name: amount for name, amount in resources.items() if ":" not in name}
