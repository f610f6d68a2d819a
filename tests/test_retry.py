"""Which failures are tried again, how often."""

from __future__ import annotations

from typing import Any

import pytest

from raytuner.retry import Retries
from raytuner.trial import Failure


@pytest.mark.parametrize(
    ("allowed", "failure", "count", "again"),
    [
        (0, Failure.ERROR, 1, False),
        (1, Failure.ERROR, 1, True),
        (1, Failure.ERROR, 2, False),
        (2, Failure.ERROR, 2, True),
        (2, Failure.ERROR, 3, False),
        (-1, Failure.ERROR, 1, True),
        (-1, Failure.ERROR, 10**6, True),
        *((allowed, Failure.LOST, 3, True) for allowed in (0, 1, -1)),
        *((allowed, Failure.LOST, 4, False) for allowed in (0, 9, -1)),
        *((allowed, Failure.NO_METRIC, 1, False) for allowed in (0, 9, -1)),
        *((allowed, Failure.NOT_FINITE, 1, False) for allowed in (0, 9, -1)),
    ],
)
def test_allowances(allowed: int, failure: Failure, count: int, again: bool) -> None:
    retries = Retries(max_failures=allowed, max_losses=3)
    others = 10**6  # of the other kind: each has its own allowance
    errors, losses = (others, count) if failure is Failure.LOST else (count, others)
    assert retries.again(failure, errors, losses) is again


def test_no_loss_may_be_allowed() -> None:
    assert not Retries(max_losses=0).again(Failure.LOST, 0, 1)


@pytest.mark.parametrize("wrong", [-2, 1.0, "1", None, True])
def test_wrong_allowances(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"max_failures must be an integer, -1 \(for ever\) or more, got"):
        Retries(max_failures=wrong)


@pytest.mark.parametrize("wrong", [-1, 1.0, "1", None, True])
def test_wrong_allowances_of_losses(wrong: Any) -> None:
    with pytest.raises(ValueError, match="max_losses must be an integer, 0 or more, got"):
        Retries(max_losses=wrong)


@pytest.mark.parametrize("failure", [Failure.NO_METRIC, Failure.NOT_FINITE, Failure.NO_RESOURCES])
def test_what_would_be_the_same_again_is_not_tried_again(failure: Failure) -> None:
    assert not Retries(max_failures=-1).again(failure, 1, 0)
