"""Reading a record as it grows: what `read` gives at once, nothing twice, nothing that is not durable."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from raytuner.events import Opened, Ticked
from raytuner.record.cursor import Cursor, Happened
from raytuner.record.journal import Journal, read
from raytuner.record.segments import DamagedSegment
from raytuner.schedulers import ASHAScheduler, HyperBandScheduler
from raytuner.searchers import RandomSearch
from raytuner.trial import Report, Reports
from tests.lives import SPACE, Case, Fate, Life, fate, live_through

__all__ = ["fate"]  # a fixture

CASES = [
    Case(RandomSearch(), HyperBandScheduler(max_t=9), SPACE),
    Case(RandomSearch(), ASHAScheduler(max_t=9), SPACE, trials=12),
]


def said(trial: int, step: int, **metrics: float) -> Reports:
    return Reports.of(trial, 1, [Report(step, float(step), metrics, float(step))])


def check(found: list[Happened], root: Path) -> None:
    record = read(root)
    assert [each.turn for each in found] == list(range(len(found)))
    assert [row for each in found for row in each.rows] == list(record.rows)
    reports = [
        (row["trial"], row["step"])
        for each in found
        if each.reports is not None
        for row in each.reports.select(["trial", "step"]).to_pylist()
    ]
    assert reports == list(zip(record.reports["trial"].to_pylist(), record.reports["step"].to_pylist(), strict=True))


@pytest.mark.parametrize("case", CASES, ids=["hyperband", "asha"])
@pytest.mark.parametrize("seed", range(4))
def test_one_cursor_through_all_lives_of_a_driver(
    case: Case, seed: int, fast_path: Path, fate: Fate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads after every turn, while drivers die in the middle of writes and their successors cut off the rest."""
    cursor, found = Cursor(fast_path), list[Happened]()
    commit = Life.commit

    def commit_and_read(life: Life, rows: object, reports: object) -> None:
        commit(life, rows, reports)  # type: ignore[arg-type]
        found.extend(cursor.read(life.journal.turn))

    monkeypatch.setattr(Life, "commit", commit_and_read)
    fate.rng = random.Random(seed)
    _, checks = live_through(case, fast_path, fate, gap=60 if seed else None, power=seed % 2 == 1)
    assert (checks.deaths > 2) == (seed > 0)
    assert len(found) > 10
    check(found, fast_path)


@pytest.mark.parametrize("seed", range(3))
def test_in_leaps(seed: int, fast_path: Path, fate: Fate) -> None:
    live_through(CASES[0], fast_path, fate, gap=None)
    chance = random.Random(seed)
    journal = Journal(fast_path)
    journal.close()
    cursor, found, end = Cursor(fast_path), list[Happened](), 0
    while end < journal.turn:
        end = min(journal.turn, end + chance.choice([1, 2, 50, 400]))
        found += cursor.read(end)
        assert len(found) == end, "nothing beyond what it was told of"
        assert list(cursor.read(end)) == []
    check(found, fast_path)


def test_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    """What stands before the place it has come to may be destroyed."""
    journal, cursor = Journal(tmp_path), Cursor(tmp_path)
    for turn in range(3):
        journal.commit([Ticked(float(turn))], [said(0, turn + 1, loss=1.0)])
    assert [each.turn for each in cursor.read(3)] == [0, 1, 2]
    for path in tmp_path.glob("*/000000.arrow"):
        with open(path, "r+b") as file:
            file.write(b"\0" * path.stat().st_size)
    journal.commit([Ticked(3.0)], [said(0, 4, loss=2.0)])
    (happened,) = cursor.read(4)
    assert happened.rows == [Ticked(3.0)]
    assert happened.reports is not None
    assert happened.reports.column("metric:loss").to_pylist() == [2.0]
    journal.close()


def test_new_segments_and_one_whose_writer_died_at_once(tmp_path: Path) -> None:
    journal, cursor = Journal(tmp_path), Cursor(tmp_path)
    journal.commit([], [said(0, 1, loss=1.0)])
    journal.commit([], [said(0, 2, loss=1.0, accuracy=2.0)])  # a new metric, a new segment
    journal.close()
    with open(tmp_path / "reports" / "000001.arrow", "rb") as file:
        whole = file.read()
    journal = Journal(tmp_path)
    journal.commit([], [said(0, 3, loss=1.0)])
    journal.close()
    # A writer made a segment, wrote its schema, and died.
    schema = whole[: int(whole[whole.index(b"size=") + 5 :][:10])]
    (tmp_path / "reports" / "000003.arrow").write_bytes(schema)
    journal = Journal(tmp_path)
    assert [each.turn for each in cursor.read(3)] == [0, 1, 2]
    journal.commit([Opened(1.0, 2)], [said(0, 4, loss=1.0)])
    journal.close()
    assert len(list(tmp_path.glob("reports/*"))) == 5
    (last,) = cursor.read(4)
    assert last.rows == [Opened(1.0, 2)]
    check([*Cursor(tmp_path).read(4)], tmp_path)


def test_what_is_not_durable_may_be_made_anew(tmp_path: Path) -> None:
    """Turns that it was not told of are cut off, one of them with its whole segment, and written otherwise."""
    journal, cursor = Journal(tmp_path), Cursor(tmp_path)
    journal.commit([Ticked(0.0)], [said(0, 1, loss=1.0)])
    sizes = {path: path.stat().st_size for path in tmp_path.glob("*/*.arrow")}
    journal.commit([Ticked(1.0)], [said(0, 2, loss=1.0, gone=2.0)])
    journal.close()
    assert [each.turn for each in cursor.read(1)] == [0]
    for path in tmp_path.glob("*/*.arrow"):
        if path in sizes:
            os.truncate(path, sizes[path])
        else:
            path.unlink()
    journal = Journal(tmp_path)
    journal.commit([Ticked(9.0)], [said(0, 2, loss=3.0)])
    journal.close()
    (happened,) = cursor.read(2)
    assert happened.rows == [Ticked(9.0)]
    assert happened.reports is not None
    assert happened.reports.select(["metric:loss"]).to_pylist() == [{"metric:loss": 3.0}]
    assert happened.reports.num_columns == 7


def test_damage_and_what_is_not_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for turn in range(3):
        journal.commit([Ticked(float(turn))], [])
    journal.close()
    path = tmp_path / "journal" / "000000.arrow"
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes(raw)
    cursor = Cursor(tmp_path)
    assert [each.turn for each in cursor.read(2)] == [0, 1]
    with pytest.raises(DamagedSegment, match=r"turn 2 was written, but .*000000.arrow from byte \d+ on"):
        list(cursor.read(3))
    assert list(Cursor(tmp_path / "nothing").read(0)) == []
