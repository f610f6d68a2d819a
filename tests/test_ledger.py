"""Which trial is in which state: every change that is legal, and every one that is not."""

from __future__ import annotations

from itertools import product

import pytest

from raytuner.ledger import IllegalChange, Ledger
from raytuner.trial import LEGAL, Pending, State, Trial, Why

RUNNING, PAUSED, DONE, STOPPED, FAILED = State

TO: dict[State, list[State]] = {  # a way to each state
    RUNNING: [],
    PAUSED: [PAUSED],
    DONE: [DONE],
    STOPPED: [STOPPED],
    FAILED: [FAILED],
}

ALLOWED = {
    (RUNNING, PAUSED),
    (RUNNING, DONE),
    (RUNNING, STOPPED),
    (RUNNING, FAILED),
    (PAUSED, RUNNING),
    (PAUSED, DONE),
    (PAUSED, STOPPED),
}


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_every_change(before: State, after: State) -> None:
    ledger = Ledger()
    ledger.open(Trial(0, {}), 9)
    ledger.open(Trial(1, {}), 9)
    for state in TO[before]:
        ledger.move(0, state)
    assert ((before, after) in ALLOWED) == (after in LEGAL[before])
    counts = dict(ledger.counts())
    if (before, after) in ALLOWED:
        entry = ledger.move(0, after)
        assert entry.state is ledger[0].state is after
        counts[before] -= 1
        counts[after] += 1
    else:
        with pytest.raises(IllegalChange, match=f"trial 0 is {before.value} and cannot become {after.value}"):
            ledger.move(0, after)
        assert ledger[0].state is before
    assert ledger.counts() == counts
    assert sum(counts.values()) == len(ledger) == 2
    assert list(ledger.live) == ([1] if ledger[0].state.over else [0, 1])


def test_which_states_are_over() -> None:
    assert [state for state in State if state.over] == [DONE, STOPPED, FAILED]
    assert LEGAL[None] == {RUNNING}


@pytest.mark.parametrize("why", Why)
def test_why_a_trial_is_over_says_its_last_state(why: Why) -> None:
    assert why.state.over
    done = {Why.RETURNED, Why.STOP_RULE, Why.FULL_BUDGET}
    stopped = {Why.NOT_PROMOTED, Why.NO_PROMISE, Why.REPLACED, Why.SCHEDULER_DONE, Why.STUDY_STOPPED}
    assert why.state is (DONE if why in done else STOPPED if why in stopped else FAILED)


def test_unknown_and_known_trials() -> None:
    ledger = Ledger()
    with pytest.raises(IllegalChange, match="there is no trial 3"):
        ledger.move(3, PAUSED)
    ledger.open(Trial(3, {}), 1)
    with pytest.raises(IllegalChange, match="trial 3 exists already"):
        ledger.open(Trial(3, {}), 1)
    assert (3 in ledger, list(ledger), len(ledger)) == (True, [3], 1)
    assert ledger.get(4) is None


def test_the_checkpoint_to_start_from() -> None:
    ledger = Ledger()
    assert ledger.open(Trial(0, {}), 9).newest is None
    fork = ledger.open(Trial(1, {}, 0), 9, donor=(0, 4))
    assert (fork.newest, fork.step, fork.origin) == ((0, 4), 4, 4)
    fork.checkpoints.update({7: None, 6: 0.5})
    assert fork.newest == (1, 7)


def test_pending_is_made_when_it_is_looked_at() -> None:
    ledger = Ledger()
    pending = ledger.pending()
    assert len(pending) == 0
    for trial in range(3):
        ledger.open(Trial(trial, {"x": trial}), 9)
    ledger.move(0, DONE)
    ledger.move(1, PAUSED)
    ledger[1].step = 5
    assert list(pending) == [Pending(1, {"x": 1}, 5, 9), Pending(2, {"x": 2}, 0, 9)]
    assert pending[-1].trial == 2
    assert [one.trial for one in pending[:1]] == [1]
    assert Pending(1, {"x": 1}, 5, 9) in pending
