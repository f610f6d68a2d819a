"""Trials whose checkpoints say where they come from, and processes to run them in that are killed.

``python pbt_driver.py <address>`` is a nursery: for each line on its input, with `work`'s arguments, it forks a worker,
in milliseconds. A worker connects to the address (of a `multiprocessing.connection.Listener`) and runs there
what a trial actor runs: leases come in, and what its trials say goes out. While it publishes a checkpoint, each of its
system calls is, with these odds, its last: a write may be torn, and nothing is tidied up.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from raytuner.checkpoints import Checkpoint, Store
from raytuner.session import Rules, Runner, get_checkpoint, get_context, report
from raytuner.trainable import Trainable

# ------------------------------------------------------------------------------------------------------- the trials

Entry = Sequence[Any]
"""A step of training as the weights remember it: trial, step, learning rate."""


def chain(before: str, entry: Entry) -> str:
    """A hash of all that weights went through, in order."""
    return hashlib.sha256(f"{before} {entry[0]} {entry[1]} {entry[2]!r}".encode()).hexdigest()


class Weights:
    """What is trained: it remembers each step, of its own trial and of those that it goes on from."""

    def __init__(self) -> None:
        self.lineage: list[Entry] = []
        self.chain = ""

    def train(self, trial: int, lr: float) -> dict[str, Any]:
        """One step; what to report of it. The score is about the mean learning rate: so there is always a worst."""
        entry = trial, len(self.lineage) + 1, lr
        self.lineage.append(entry)
        self.chain = chain(self.chain, entry)
        noise = random.Random(self.chain).uniform(-0.2, 0.2)
        mean = sum(each[2] for each in self.lineage) / len(self.lineage)
        return {"score": mean + noise, "chain": self.chain, "pid_seen": os.getpid(), "said_at": time.time()}

    def save(self, folder: str | Path) -> None:
        """Two files which belong together, and which no other attempt writes alike."""
        nonce = os.urandom(4).hex()
        Path(folder, "deep").mkdir()
        Path(folder, "state.json").write_text(
            json.dumps({"lineage": self.lineage, "chain": self.chain, "nonce": nonce})
        )
        Path(folder, "deep", "weights").write_text(f"{self.chain} {nonce}\n" * 100)

    def load(self, folder: str | Path) -> None:
        state = json.loads(Path(folder, "state.json").read_text())
        assert Path(folder, "deep", "weights").read_text() == f"{state['chain']} {state['nonce']}\n" * 100
        self.lineage, self.chain = state["lineage"], ""
        for entry in self.lineage:
            self.chain = chain(self.chain, entry)
        assert self.chain == state["chain"], "these weights are a mixture"


def train(config: Mapping[str, Any], killed: Path | None = None) -> None:
    """A training function that saves at every step; see `may_die`."""
    weights, trial = Weights(), int(get_context().get_trial_id())
    if checkpoint := get_checkpoint():
        weights.load(checkpoint.path)
    while True:
        may_die(weights, killed)
        said = weights.train(trial, config["lr"])
        with tempfile.TemporaryDirectory() as folder:
            weights.save(folder)
            report(said, checkpoint=Checkpoint(folder))


class Model(Trainable):
    """The same as a class."""

    def setup(self, config: dict[str, Any], killed: Path | None = None) -> None:
        self.killed = killed
        self.reset_config(config)

    def step(self) -> dict[str, Any]:
        may_die(self.weights, self.killed)
        return {**self.weights.train(int(self.trial_id), self.lr), "should_checkpoint": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.weights.save(checkpoint_dir)

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.weights.load(checkpoint)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.weights, self.lr = Weights(), new_config["lr"]
        return True


def may_die(weights: Weights, killed: Path | None) -> None:
    """The first process that saves a seventh step is killed when all is written and nothing published; then there is a
    file."""
    if killed is not None and len(weights.lineage) == 6 and not killed.exists():
        killed.touch()
        os.rename = lambda *args: os.kill(os.getpid(), signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------- the processes

CALLS = ("open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir")
"""All that changes files goes through these, `shutil.rmtree` included."""


def mortal(seed: int, odds: float) -> None:
    """From now on this process may die at each system call of its store."""
    chance, publish, publishing = random.Random(seed), Store.publish, threading.Event()

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if publishing.is_set() and chance.random() < odds:
                if name == "write":
                    call(args[0], args[1][: chance.randrange(len(args[1]) + 1)])
                elif chance.random() < 0.5:
                    call(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    def publishes(*args: Any) -> str:
        publishing.set()
        try:
            return publish(*args)
        finally:
            publishing.clear()

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))
    Store.publish = publishes  # type: ignore[method-assign, assignment]


def work(boss: Connection, checkpoints: str, steps: int, seed: int, odds: float) -> None:
    """A trial actor without Ray; trials end after so many steps."""
    mortal(seed, odds)
    boss.send(os.getpid())
    runner = Runner(train, Rules(Path(checkpoints), {"training_iteration": steps}), {"pid": os.getpid()})

    def run() -> None:
        while (lease := runner.leases.next()) is not None:
            runner.run(lease)

    def speak() -> None:
        while True:
            if said := runner.outbox.take():
                boss.send(said)

    for target in (run, speak):
        threading.Thread(target=target, daemon=True).start()
    try:
        while True:
            match boss.recv():
                case "take", lease:
                    runner.leases.add([lease])
                case "unwind", trial, attempt, parked:
                    runner.unwind(trial, attempt, parked)
    except (EOFError, OSError):
        os._exit(0)  # nobody is there any more


def nurse(address: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            checkpoints, steps, seed, odds = line.split("\t")
            work(Client(address, "AF_UNIX"), checkpoints, int(steps), int(seed), float(odds))


if __name__ == "__main__":
    nurse(sys.argv[1])
