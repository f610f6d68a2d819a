"""The executor for a debugger: a lease may be ended at any moment, also between two that all of `Runner` looks at.

What it shares with the others is in test_contract.py.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raytuner import session
from raytuner.events import Ended, How
from raytuner.executors.inline import Inline
from raytuner.mailbox import Leases
from raytuner.session import Session
from raytuner.trial import END, Lease
from tests.executors.test_contract import Behaviour, Stage, on_inline, steps

pytestmark = pytest.mark.timeout(60)

FOR_EVER = Behaviour(saves=False)


def test_a_lease_may_be_unwound_before_its_session_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, told = threading.Event(), threading.Event()

    class Late(Session):
        def __init__(self, *args: Any) -> None:
            taken.set()
            assert told.wait(20)
            super().__init__(*args)

    monkeypatch.setattr(session, "Session", Late)

    def scenario(stage: Stage) -> None:
        stage.opened().run(0, until=END)
        assert taken.wait(20)
        stage.executor.unwind(0, 1)
        told.set()
        last = stage.until(lambda event: isinstance(event, Ended), limit_s=20)[-1]
        assert isinstance(last, Ended)
        assert (last.how, last.step) == (How.UNWOUND, 1)

    on_inline(tmp_path, scenario, FOR_EVER)


def test_the_driver_may_be_over_before_a_session_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = threading.Event()

    class Late(Session):
        def __init__(self, train: Any, lease: Lease, rules: Any, place: Any, outbox: Any, leases: Leases, *more: Any):
            taken.set()
            deadline = time.monotonic() + 20
            while not leases.closed:
                assert time.monotonic() < deadline
            super().__init__(train, lease, rules, place, outbox, leases, *more)

    monkeypatch.setattr(session, "Session", Late)

    def scenario(stage: Stage) -> str:
        stage.opened().run(0, until=END)
        assert taken.wait(20)
        return "over"

    assert on_inline(tmp_path, scenario, FOR_EVER) == "over"


def test_a_trial_may_be_unwound_while_it_is_parked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parks, told = threading.Event(), threading.Event()
    next_of = Leases.next_of

    def late(self: Leases, trial: int) -> Lease | None:
        parks.set()
        assert told.wait(20)
        return next_of(self, trial)

    monkeypatch.setattr(Leases, "next_of", late)

    def scenario(stage: Stage) -> None:
        stage.opened()
        stage.to_end(stage.run(0, until=1))
        assert parks.wait(20)
        stage.executor.unwind(0, 1)
        told.set()
        reports, last = stage.to_end(stage.run(0, until=2))
        assert (steps(reports), last.how) == ([1, 2], How.REACHED), "it starts again"

    on_inline(tmp_path, scenario, FOR_EVER)


def test_what_the_driver_raises_is_raised(tmp_path: Path) -> None:
    """And what runs ends, though it would report for ever."""

    def scenario(stage: Stage) -> None:
        stage.opened().run(0, until=END)
        stage.until(lambda event: True)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        on_inline(tmp_path, scenario, FOR_EVER)


def test_a_function_that_waits_for_the_driver_to_listen_ends_with_it(tmp_path: Path) -> None:
    """Too many reports are unread for it to make more, and nobody will read them."""

    def scenario(stage: Stage) -> None:
        inline = stage.executor
        assert isinstance(inline, Inline)
        stage.opened().run(0, until=END)
        outbox = inline._runner.outbox
        deadline = time.monotonic() + 20
        while not outbox._crowded:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        on_inline(tmp_path, scenario, FOR_EVER)
