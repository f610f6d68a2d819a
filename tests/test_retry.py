"""Which failures are tried again, how often; and which are the same."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest

from raytuner.retry import SAME, Remedies, Retries, Tally, fingerprint, merged, out_of_memory
from raytuner.trial import Failure

NEVER = (Failure.NOT_REPORTABLE, Failure.NO_METRIC, Failure.NOT_FINITE, Failure.NO_RESOURCES)


def tally(failure: Failure, count: int, message: Callable[[int], str] = str) -> Tally:
    """So many failures of a class, behind others without end of each other class that has an allowance of its own."""
    found = Tally()
    ours = {Failure.ERROR, Failure.OUT_OF_MEMORY}, {Failure.LOST, Failure.HOST_OUT_OF_MEMORY}
    for other in Failure:
        if not any(failure in group and other in group for group in ours) and other is not failure:
            found.total[other] = found.in_a_row[other] = 10**6
    for number in range(count):
        found.add(failure, f"{'x' * (number + 1)} {message(number)}")
    return found


@pytest.mark.parametrize(
    ("allowed", "failure", "count", "again"),
    [
        (0, Failure.ERROR, 1, False),
        (1, Failure.ERROR, 1, True),
        (1, Failure.ERROR, 2, False),
        (2, Failure.ERROR, 2, True),
        (2, Failure.ERROR, 3, False),
        (-1, Failure.ERROR, 1, True),
        (-1, Failure.ERROR, 100, True),
        (0, Failure.OUT_OF_MEMORY, 1, False),
        (2, Failure.OUT_OF_MEMORY, 2, True),
        (2, Failure.OUT_OF_MEMORY, 3, False),
        *((allowed, Failure.LOST, 3, True) for allowed in (0, 1, -1)),
        *((allowed, Failure.LOST, 4, False) for allowed in (0, 9, -1)),
        *((allowed, Failure.HOST_OUT_OF_MEMORY, 3, True) for allowed in (0, 9, -1)),
        *((allowed, Failure.HOST_OUT_OF_MEMORY, 4, False) for allowed in (0, 9, -1)),
        *((allowed, Failure.NODE, 1000, True) for allowed in (0, 9, -1)),
        *((allowed, Failure.HUNG, 1, True) for allowed in (0, 9, -1)),
        *((allowed, Failure.HUNG, 2, False) for allowed in (0, 9, -1)),
        *((allowed, failure, 1, False) for allowed in (0, 9, -1) for failure in NEVER),
    ],
)
def test_allowances(allowed: int, failure: Failure, count: int, again: bool) -> None:
    assert Retries(max_failures=allowed, max_losses=3).again(failure, tally(failure, count)) is again


def test_a_lost_node_says_nothing_about_the_trial() -> None:
    """The same error, with nodes lost in between, is still the same so often in a row; lost nodes are no losses."""
    found = Tally()
    for _ in range(SAME):
        found.add(Failure.ERROR, raised(1))
        found.add(Failure.NODE, "the node is dead")
    assert not Retries(max_failures=-1).again(Failure.ERROR, found)
    found.add(Failure.LOST, "")
    assert Retries(max_losses=1).again(Failure.LOST, found)


def test_every_class_has_an_allowance() -> None:
    for failure in Failure:
        assert Retries().again(failure, tally(failure, 1), remedied=True)
        assert isinstance(Retries(max_failures=1).again(failure, tally(failure, 1)), bool)


def test_losses_of_both_kinds_are_counted_together() -> None:
    found = Tally()
    for failure in (Failure.LOST, Failure.HOST_OUT_OF_MEMORY, Failure.LOST):
        found.add(failure, "")
    assert Retries(max_losses=3).again(Failure.LOST, found)
    assert not Retries(max_losses=2).again(Failure.LOST, found)


def test_progress_forgives_losses_and_hangs_but_no_errors() -> None:
    found = Tally()
    for failure in (Failure.LOST, Failure.HUNG, Failure.ERROR):
        found.add(failure, "")
    found.progressed()
    found.add(Failure.LOST, "")
    assert Retries(max_losses=1).again(Failure.LOST, found)
    found.add(Failure.HUNG, "")
    assert Retries(max_hangs=1).again(Failure.HUNG, found)
    found.add(Failure.ERROR, "")
    assert not Retries(max_failures=1).again(Failure.ERROR, found)


def test_no_loss_may_be_allowed() -> None:
    assert not Retries(max_losses=0).again(Failure.LOST, tally(Failure.LOST, 1))


def raised(config: int, kind: type[Exception] = ValueError) -> str:
    """A traceback of here whose message depends on the configuration."""
    try:
        raise kind(f"width {config} is no good")
    except kind:
        return traceback.format_exc()


def elsewhere() -> str:
    try:
        raise ValueError("width 1 is no good")
    except ValueError:
        return traceback.format_exc()


def test_the_same_error_in_a_row_would_be_raised_for_ever() -> None:
    retries, found = Retries(max_failures=-1), Tally()
    for number in range(SAME - 1):
        found.add(Failure.ERROR, raised(number))
        assert retries.again(Failure.ERROR, found)
    found.add(Failure.ERROR, elsewhere())
    assert retries.again(Failure.ERROR, found), "another error lies between"
    for number in range(SAME - 1):
        found.add(Failure.ERROR, raised(number))
        assert retries.again(Failure.ERROR, found)
    found.progressed()
    for number in range(SAME):
        assert retries.again(Failure.ERROR, found)
        found.add(Failure.ERROR, raised(number))
    assert not retries.again(Failure.ERROR, found)


def test_what_makes_two_failures_the_same() -> None:
    one = fingerprint(Failure.ERROR, raised(1))
    assert one == fingerprint(Failure.ERROR, raised(2)), "what the error says may differ"
    assert one != fingerprint(Failure.ERROR, elsewhere()), "the place may not"
    assert one != fingerprint(Failure.ERROR, raised(1, KeyError)), "nor the kind"
    assert one != fingerprint(Failure.HUNG, raised(1)), "nor the class"
    assert fingerprint(Failure.LOST, "pid 12 at 0xabc") == fingerprint(Failure.LOST, "pid 7 at 0x1")
    assert fingerprint(Failure.LOST, "") == fingerprint(Failure.LOST, "\n")


def test_a_message_of_several_lines_is_no_other_kind_of_error() -> None:
    def of(text: str) -> str:
        try:
            raise RuntimeError(text)
        except RuntimeError:
            return fingerprint(Failure.ERROR, traceback.format_exc())

    assert of("sizes differ:\n  3 and 4\nexpected: equal") != ""
    assert of("no\nsuch luck 1") == of("no\nsuch luck 2")


class OutOfMemoryError(RuntimeError):
    """By the name that PyTorch gives it."""


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Failure.OUT_OF_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 MiB (GPU 0; ...)"), Failure.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory"), Failure.OUT_OF_MEMORY),
        (RuntimeError("HIP out of memory. Tried"), Failure.OUT_OF_MEMORY),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes."), Failure.OUT_OF_MEMORY),
        (MemoryError(), Failure.HOST_OUT_OF_MEMORY),
        (MemoryError("Unable to allocate 8 EiB"), Failure.HOST_OUT_OF_MEMORY),
        (RuntimeError("the shop is out of memory cards"), None),
        (ValueError("CUDA is not available"), None),
        (KeyboardInterrupt("CUDA out of memory"), None),
    ],
)
def test_out_of_whose_memory(error: BaseException, failure: Failure | None) -> None:
    assert out_of_memory(error) is failure


def test_numpy_says_so_too() -> None:
    np = pytest.importorskip("numpy")
    with pytest.raises(MemoryError) as caught:
        np.empty(2**59)
    assert out_of_memory(caught.value) is Failure.HOST_OUT_OF_MEMORY


def test_a_part_of_a_configuration_is_changed() -> None:
    config = {"batch": 64, "net": {"width": 8, "depth": 2}, "lr": 0.1}
    assert merged(config, {"net": {"width": 4}, "batch": 32}) == {
        "batch": 32,
        "net": {"width": 4, "depth": 2},
        "lr": 0.1,
    }
    assert config["net"] == {"width": 8, "depth": 2}


def test_a_remedy_is_asked_for_and_only_news_is_one() -> None:
    asked: list[tuple[Any, ...]] = []

    def halve(config: dict[str, Any], error: str, times: int) -> dict[str, Any]:
        asked.append((config["batch"], error, times))
        return {"batch": max(1, config.pop("batch") // 2)}

    found, config = Tally(), {"batch": 4}
    remedies = Remedies(halve)
    assert remedies.find(config, "CUDA out of memory", found) == {"batch": 2}
    assert config == {"batch": 4}, "what it was given is its own"
    found.add(Failure.OUT_OF_MEMORY, "")
    assert remedies.find({"batch": 1}, "again", found) is None
    assert asked == [(4, "CUDA out of memory", 0), (1, "again", 1)]


@pytest.mark.parametrize("answer", [None, 3, {"batch": object()}, ZeroDivisionError()])
def test_a_remedy_that_is_none(answer: Any) -> None:
    def on_oom(config: dict[str, Any], error: str, times: int) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert Remedies(on_oom).find({"batch": 1}, "", Tally()) is None


@pytest.mark.parametrize("wrong", [-2, 1.0, "1", None, True])
def test_wrong_allowances(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"max_failures must be an integer, -1 \(for ever\) or more, got"):
        Retries(max_failures=wrong)


@pytest.mark.parametrize("wrong", [-1, 1.0, "1", None, True])
@pytest.mark.parametrize("name", ["max_losses", "max_hangs"])
def test_wrong_allowances_in_a_row(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer, 0 or more, got"):
        Retries(**{name: wrong})


@pytest.mark.parametrize("wrong", [0, -1, 1.0, "1", True])
def test_wrong_numbers_of_trials_that_fail_in_the_same_way(wrong: Any) -> None:
    with pytest.raises(ValueError, match="max_same_failures must be an integer, 1 or more, or None, got"):
        Retries(max_same=wrong)
