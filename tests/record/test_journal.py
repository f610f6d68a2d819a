"""What is committed is read, whole, once and in order; what was not is not there."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytuner.actions import Exhausted, Fork, Proposal, Resume, Start, Wait
from raytuner.events import (
    Checkpointed,
    Damaged,
    Drop,
    Ended,
    Event,
    Extended,
    Failed,
    Finish,
    How,
    Loaded,
    Opened,
    Over,
    Proposed,
    Quarantine,
    Reported,
    Retry,
    Slots,
    StopAsked,
    Ticked,
)
from raytuner.record import segments
from raytuner.record.journal import JOURNAL, Journal, Row, events_of, metric_column, read
from raytuner.record.segments import DamagedSegment, SegmentWriter, read_segment, truncate
from raytuner.trial import END, Failure, Report, Reports, Slot, State, Why

# ------------------------------------------------------------------------------------------ every kind of row

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
NESTED = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.sampled_from(["$float", "$tuple", "$dict", "lr"]), inner, max_size=3)
    ),
    max_leaves=6,
)
CONFIGS = st.dictionaries(st.text() | st.sampled_from(["$tuple", "$uniform"]), NESTED, max_size=4)
METRICS = st.dictionaries(st.text(), st.booleans() | st.integers() | st.floats() | st.text(), max_size=4)
TIMES = st.floats(allow_nan=False)
NUMBERS = st.integers(0, 2**40)
STEPS = st.integers(0, END)
DIGESTS = st.just("") | st.text("0123456789abcdef", min_size=64, max_size=64)
AMOUNTS = st.floats(0, 2**20)
SLOT = st.builds(Slot, AMOUNTS, AMOUNTS, AMOUNTS, st.dictionaries(st.text(), AMOUNTS, max_size=2))
REPORT = st.builds(Report, STEPS, TIMES, METRICS, TIMES, DIGESTS, NUMBERS)

KINDS: dict[type, st.SearchStrategy[Any]] = {
    Opened: st.builds(Opened, TIMES, NUMBERS, st.booleans()),
    Slots: st.builds(Slots, TIMES, NUMBERS, st.none() | st.lists(SLOT, max_size=3).map(tuple)),
    Proposed: st.builds(
        Proposed,
        TIMES,
        NUMBERS,
        st.builds(Proposal, CONFIGS, CONFIGS) | st.just(Wait()) | st.just(Exhausted()),
    ),
    Reported: st.builds(Reported, TIMES, NUMBERS, NUMBERS, st.lists(REPORT, max_size=3).map(tuple)),
    Checkpointed: st.builds(Checkpointed, TIMES, NUMBERS, NUMBERS, STEPS, METRICS, DIGESTS, NUMBERS),
    Loaded: st.builds(Loaded, TIMES, NUMBERS, NUMBERS, NUMBERS, STEPS, DIGESTS),
    Ended: st.builds(Ended, TIMES, NUMBERS, NUMBERS, st.sampled_from(How), STEPS, TIMES, METRICS, TIMES),
    Failed: st.builds(Failed, TIMES, NUMBERS, NUMBERS, st.sampled_from(Failure), st.text(), TIMES, st.none() | CONFIGS),
    Damaged: st.builds(Damaged, TIMES, NUMBERS, NUMBERS, NUMBERS, STEPS, st.text(), TIMES),
    Ticked: st.builds(Ticked, TIMES),
    StopAsked: st.builds(StopAsked, TIMES, st.text(), st.booleans()),
    Extended: st.builds(Extended, TIMES, st.none() | NUMBERS, st.none() | STEPS, st.booleans(), CONFIGS),
    Start: st.builds(Start, NUMBERS, STEPS, st.none() | CONFIGS),
    Resume: st.builds(Resume, NUMBERS, STEPS),
    Fork: st.builds(Fork, NUMBERS, NUMBERS, CONFIGS, STEPS, st.none() | NUMBERS),
    Over: st.builds(Over, NUMBERS, st.sampled_from(State), st.sampled_from(Why), st.text()),
    Retry: st.builds(Retry, NUMBERS, st.none() | STEPS),
    Drop: st.builds(Drop, NUMBERS, STEPS),
    Quarantine: st.builds(Quarantine, NUMBERS, STEPS),
    Finish: st.builds(Finish, st.booleans(), st.text()),
}


def write(root: Path, *turns: tuple[Sequence[Row], Sequence[Reports]]) -> None:
    journal = Journal(root)
    for rows, reports in turns:
        journal.commit(rows, reports)
    journal.close()


def reopened(root: Path) -> list[Row]:
    journal = Journal(root)
    rows = list(journal.rows())
    journal.close()
    return rows


def said(trial: int, step: int, /, attempt: int = 1, **metrics: Any) -> Reports:
    return Reports.of(trial, attempt, [Report(step, float(step), metrics, at=100.0 + step)])


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_every_kind_of_row_is_tried() -> None:
    """A new event or decision joins by standing in `KINDS`."""
    assert set(KINDS) == set(Row.__args__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=20)
@given(data=st.data())
def test_rows_come_back_as_they_were(kind: type, data: st.DataObject) -> None:
    rows = data.draw(st.lists(KINDS[kind], min_size=1, max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, (rows, []))
        for found in (read(root).rows, reopened(root)):
            # repr tells 1 from 1.0 and True, a list from a tuple, and holds NaN equal to itself.
            assert [repr(row) for row in found] == [repr(row) for row in rows]


@settings(max_examples=25)
@given(st.lists(st.lists(st.one_of(*KINDS.values()), max_size=4), max_size=5))
def test_order_holds_over_turns_and_reopenings(turns: list[list[Row]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for turn in turns:
            write(root, (turn, []))
        expected = [repr(row) for turn in turns for row in turn]
        assert [repr(row) for row in read(root).rows] == expected
        assert [repr(row) for row in reopened(root)] == expected


def test_a_journal_keeps_no_rows_in_memory_once_it_writes(fast_path: Path) -> None:
    write(fast_path, ([Ticked(1.0)], [said(0, 1)]))
    journal = Journal(fast_path)
    assert (list(journal.rows()), journal.last_steps()) == ([Ticked(1.0)], {0: 1})
    journal.commit([Ticked(2.0)], [])
    assert (list(journal.rows()), journal.last_steps()) == ([], {})
    journal.close()


def test_text_that_is_no_unicode_does_not_stop_a_study(fast_path: Path) -> None:
    """A traceback may name a file whose name nobody can decode."""
    write(fast_path, ([Failed(1.0, 0, 1, Failure.ERROR, "no file caf\udce9")], [said(0, 1, **{"caf\udce9": "\udce9"})]))
    (failed,) = read(fast_path).rows
    assert isinstance(failed, Failed)
    assert failed.message == "no file caf\\udce9"
    assert read(fast_path).reports["caf\\udce9"].to_pylist() == ["\\udce9"]


def test_nothing_to_write_is_no_turn(fast_path: Path) -> None:
    write(fast_path, ([], []), ([Ticked(1.0)], []), ([], []))
    assert len(files(fast_path)) == 1
    assert read(fast_path).rows == [Ticked(1.0)]


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"kind": "promoted"}, "promoted"),
        ({"kind": "ended", "what": "VANISHED"}, "VANISHED"),
        ({"kind": "failed", "what": "BORED"}, "BORED"),
        ({"kind": "over", "what": "DONE", "why": "WHIM"}, "WHIM"),
        ({"kind": "proposed", "what": "later"}, "later"),
        ({"kind": "proposed", "what": "config", "config": "{", "data": "{}"}, "{"),
        ({"kind": "proposed", "what": "config", "data": "{}"}, "config"),
        ({"kind": "fork", "config": '{"$pickle": 1}'}, "pickle"),
        ({"kind": "start", "config": '{"$pickle": 1}'}, "pickle"),
    ],
)
def test_a_row_of_another_version_is_an_error(change: dict[str, Any], shown: str, fast_path: Path) -> None:
    """Never skipped, and never taken for something else."""
    row = {"turn": 0, "at": 1.0, "trial": 0, "attempt": 1, "step": 1, "level": 1.0, "spent": 0.0, "text": ""} | change
    row |= {"data": row.get("data", "{}")}
    write(fast_path)
    writer = SegmentWriter(fast_path / "journal" / "000000.arrow", JOURNAL)
    writer.append(pa.RecordBatch.from_pylist([row], schema=JOURNAL), 0, False)
    writer.close()
    with pytest.raises(DamagedSegment, match=rf"cannot read a row of the journal: .*{shown}"):
        read(fast_path)
    with pytest.raises(DamagedSegment, match="cannot read a row"):
        reopened(fast_path)


def test_a_row_of_format_1_says_nothing_of_what_came_later(fast_path: Path) -> None:
    rows = [
        {"kind": "start", "trial": 0, "until": 9},
        {"kind": "fork", "trial": 1, "source": 0, "config": "{}", "until": 9},
        {"kind": "checkpointed", "at": 1.0, "trial": 0, "attempt": 1, "step": 3, "data": "{}"},
    ]
    write(fast_path)
    writer = SegmentWriter(fast_path / "journal" / "000000.arrow", JOURNAL)
    writer.append(pa.RecordBatch.from_pylist([{"turn": 0, **row} for row in rows], schema=JOURNAL), 0, False)
    writer.close()
    assert read(fast_path).rows == [Start(0, 9, None), Fork(1, 0, {}, 9, None), Checkpointed(1.0, 0, 1, 3, {}, "")]


def test_events_are_grouped_with_what_followed() -> None:
    rows: list[Row] = [Opened(0.0, 1), Slots(1.0, 2), Start(0, 3), Start(1, 3), Ticked(2.0)]
    grouped = list(events_of(rows))
    assert grouped == [(rows[0], []), (rows[1], rows[2:4]), (rows[4], [])]
    assert all(isinstance(event, Event) for event, _ in grouped)


# ------------------------------------------------------------------------------------------- crashes in a turn


FIRST: tuple[list[Row], list[Reports]] = ([Opened(1.0, 1), Start(0, 3)], [said(0, 1, loss=0.5)])
SECOND: tuple[list[Row], list[Reports]] = ([Ticked(2.0)], [said(0, 2, loss=0.25)])
THIRD: tuple[list[Row], list[Reports]] = ([Ticked(3.0)], [said(0, 2, loss=0.75), said(0, 3, loss=0.125)])


def losses(root: Path) -> list[Any]:
    reports = read(root).reports
    return reports["loss"].to_pylist() if "loss" in reports.column_names else []


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize("table", ["journal", "reports"])
def test_half_a_turn_is_none(table: str, reopen: bool, fast_path: Path) -> None:
    """Whichever half a crash takes, at whatever byte: the other half, whole on the disk, does not count either."""
    write(fast_path / "whole", FIRST)
    if reopen:
        write(fast_path / "whole", SECOND)
    else:
        (fast_path / "whole").rename(fast_path / "one")
        write(fast_path / "whole", FIRST, SECOND)
    segment = sorted((fast_path / "whole" / table).glob("*"))[-1]
    turns, size = read_segment(segment, last=True)
    for number, cut in enumerate([turns[-1].offset, turns[-1].offset + 1, size - 1, *([0, 7] if reopen else [])]):
        root = fast_path / f"cut {number}"
        for path, raw in files(fast_path / "whole").items():
            (root / path.parent.name).mkdir(parents=True, exist_ok=True)
            (root / path.parent.name / path.name).write_bytes(raw)
        truncate(root / table / segment.name, cut)
        before = files(root)
        assert read(root).rows == FIRST[0]
        assert losses(root) == [0.5]
        assert files(root) == before, "reading changed a file"
        assert reopened(root) == FIRST[0]
        assert losses(root) == [0.5]
        write(root, THIRD)  # takes the number of the turn that never was
        assert read(root).rows == FIRST[0] + THIRD[0]
        assert losses(root) == [0.5, 0.75, 0.125]


def test_opening_what_was_repaired_changes_nothing_more(fast_path: Path) -> None:
    write(fast_path, FIRST, SECOND)
    (segment,) = (fast_path / "reports").glob("*")
    truncate(segment, segment.stat().st_size - 3)
    assert reopened(fast_path) == FIRST[0]
    after = files(fast_path)
    assert reopened(fast_path) == FIRST[0]
    assert files(fast_path) == after


@pytest.mark.parametrize("table", ["journal", "reports"])
def test_a_first_turn_that_is_torn_leaves_an_empty_study(table: str, fast_path: Path) -> None:
    write(fast_path, FIRST)
    (segment,) = (fast_path / table).glob("*")
    truncate(segment, segment.stat().st_size - 1)
    assert read(fast_path).rows == []
    assert read(fast_path).reports.num_rows == 0
    assert reopened(fast_path) == []
    write(fast_path, SECOND)
    assert read(fast_path).rows == SECOND[0]
    assert losses(fast_path) == [0.25]


@pytest.mark.parametrize("gone", ["journal", "reports"])
def test_more_than_one_turn_missing_is_damage(gone: str, fast_path: Path) -> None:
    """No crash takes two turns: each is on the disk before the next one is begun."""
    write(fast_path, FIRST, SECOND, THIRD)
    (segment,) = (fast_path / gone).glob("*")
    truncate(segment, read_segment(segment, last=True)[0][1].offset)
    with pytest.raises(DamagedSegment, match=r"has turn 2 at byte \d+, but of turn 1 a part is missing"):
        Journal(fast_path)
    if gone == "reports":  # a reader cannot tell a lost journal from one that is written while it reads
        with pytest.raises(DamagedSegment, match="but of turn 1 a part is missing"):
            read(fast_path)
    else:
        assert read(fast_path).rows == FIRST[0]
        assert losses(fast_path) == [0.5]


def test_a_missing_segment_is_damage(fast_path: Path) -> None:
    for turn in (FIRST, SECOND, THIRD):
        write(fast_path, turn)
    (fast_path / "journal" / "000001.arrow").unlink()
    for look in (read, Journal):
        with pytest.raises(DamagedSegment, match=r"journal lacks 000001\.arrow: next in it is 000002\.arrow"):
            look(fast_path)


def test_a_segment_twice_is_damage(fast_path: Path) -> None:
    write(fast_path, FIRST)
    (segment,) = (fast_path / "journal").glob("*")
    (segment.parent / "000001.arrow").write_bytes(segment.read_bytes())
    for look in (read, Journal):
        with pytest.raises(DamagedSegment, match=r"000001\.arrow is damaged at byte \d+: turn 0 follows 0"):
            look(fast_path)


def test_what_cannot_be_written_leaves_no_trace(fast_path: Path) -> None:
    """The row is refused before its turn's reports are written."""
    journal = Journal(fast_path)
    journal.commit(*FIRST)
    with pytest.raises(TypeError):
        journal.commit([Proposed(1.0, 0, Proposal({"f": object()}))], [said(0, 2, loss=9.0)])
    journal.commit(*SECOND)
    journal.close()
    assert read(fast_path).rows == FIRST[0] + SECOND[0]
    assert losses(fast_path) == [0.5, 0.25]


def test_nothing_is_written_behind_a_failed_write(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full disk took is not known; a good turn behind half a turn would look like damage for ever."""
    journal = Journal(fast_path)
    journal.commit(*FIRST)
    write_ = segments._write

    def full(file: int, data: bytes) -> None:
        write_(file, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments, "_write", full)
    with pytest.raises(OSError, match="No space"):
        journal.commit(*SECOND)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match=r"an earlier turn could not be written to .*; open it again"):
        journal.commit(*SECOND)
    journal.close()
    write(fast_path, THIRD)
    assert read(fast_path).rows == FIRST[0] + THIRD[0]


def test_turns_are_numbered_on_over_reopenings(fast_path: Path) -> None:
    turns = [FIRST, ([], [said(0, 2, loss=1.0)]), SECOND, ([Ticked(9.0)], []), ([], [said(0, 4, loss=2.0)]), THIRD]
    for number, turn in enumerate(turns):
        journal = Journal(fast_path)
        assert journal.turn == number
        journal.commit(*turn)
        assert journal.turn == number + 1
        journal.close()
    found = read(fast_path)
    assert found.rows == [row for rows, _ in turns for row in rows]
    table = pa.concat_tables(pa.ipc.open_stream(path).read_all() for path in sorted((fast_path / "journal").glob("*")))
    assert table["turn"].to_pylist() == [0, 0, 2, 3, 5]


# ----------------------------------------------------------------------------------- readers beside the writer


def test_reading_while_a_driver_writes(fast_path: Path) -> None:
    journal = Journal(fast_path)
    assert read(fast_path).rows == []
    for number in range(5):
        journal.commit([Ticked(float(number))], [said(0, number + 1, loss=float(number))])
        before = files(fast_path)
        assert read(fast_path).rows == [Ticked(float(n)) for n in range(number + 1)]
        assert losses(fast_path) == [float(n) for n in range(number + 1)]
        assert files(fast_path) == before
    journal.close()


def test_a_reader_sees_whole_turns_at_every_byte_of_a_write(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(fast_path)
    journal.commit(*FIRST)
    write_ = segments._write
    seen = []

    def slowly(file: int, data: bytes) -> None:
        for start in range(0, len(data), 97):
            seen.append((len(read(fast_path).rows), losses(fast_path)))
            write_(file, data[start : start + 97])
        seen.append((len(read(fast_path).rows), losses(fast_path)))

    monkeypatch.setattr(segments, "_write", slowly)
    journal.commit([Ticked(2.0)], [said(0, 2, loss=0.25, late=1)])  # a new column: a new segment
    journal.close()
    assert [before for before, _ in itertools.groupby(seen)] == [(2, [0.5]), (3, [0.5, 0.25])]


def test_turns_written_between_reading_the_two_tables_are_left_for_next_time(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(fast_path)
    journal.commit(*FIRST)

    def overtaken(path: Path, last: bool) -> Any:
        found = read_segment(path, last)
        if path.parent.name == "journal":
            journal.commit(*SECOND)
            journal.commit(*THIRD)
        return found

    monkeypatch.setattr("raytuner.record.journal.read_segment", overtaken)
    record = read(fast_path)
    assert record.rows == FIRST[0]
    assert record.reports["loss"].to_pylist() == [0.5]
    monkeypatch.undo()
    assert losses(fast_path) == [0.5, 0.25, 0.125]
    journal.close()


def test_reading_where_nothing_is(fast_path: Path) -> None:
    record = read(fast_path / "nowhere")
    assert record.rows == []
    assert record.reports.num_rows == 0
    assert record.reports.column_names == ["trial", "attempt", "step", "level", "at", "checkpoint"]
    assert not (fast_path / "nowhere").exists()


# ------------------------------------------------------------------------------------------- columns of reports


def test_columns_of_reports(fast_path: Path) -> None:
    """Of a checkpoint, whether there is one: its hash is in the journal."""
    metrics = {"loss": 0.5, "epoch": 7, "note": "good", "flag": True}
    reports = [Report(3, 30.0, metrics, 12.5, checkpoint="e3b0c4"), Report(4, 40.0, metrics, 13.5)]
    write(fast_path, ([], [Reports.of(4, 2, reports)]))
    table = read(fast_path).reports
    assert table.to_pylist() == [
        {"trial": 4, "attempt": 2, "step": 3, "level": 30.0, "at": 12.5, "checkpoint": True} | metrics,
        {"trial": 4, "attempt": 2, "step": 4, "level": 40.0, "at": 13.5, "checkpoint": False} | metrics,
    ]
    kinds = {field.name: field.type for field in table.schema}
    assert (kinds["loss"], kinds["epoch"], kinds["note"]) == (pa.float64(), pa.int64(), pa.string())
    assert kinds["flag"] == pa.bool_()


def test_a_late_metric_is_null_before(fast_path: Path) -> None:
    write(
        fast_path,
        ([], [said(0, 1, loss=1.0)]),
        ([], [said(0, 2, loss=0.5, val=3.0), said(1, 1, loss=2.0)]),
        ([], [said(0, 3, loss=0.25)]),
    )
    table = read(fast_path).reports
    assert table["val"].to_pylist() == [None, 3.0, None, None]
    assert table["loss"].to_pylist() == [1.0, 0.5, 2.0, 0.25]
    assert len(list((fast_path / "reports").glob("*"))) == 2


def test_whole_numbers_widen_to_floats(fast_path: Path) -> None:
    write(fast_path, ([], [said(0, 1, x=1)]), ([], [said(0, 2, x=0.5), said(0, 3, x=2)]))
    write(fast_path, ([], [said(0, 4, x=4)]))  # a new writer, which has seen whole numbers only
    table = read(fast_path).reports
    assert table["x"].type == pa.float64()
    assert table["x"].to_pylist() == [1.0, 0.5, 2.0, 4.0]


def test_mixed_kinds_become_text(fast_path: Path) -> None:
    """The same value has the same text, whether the kinds met in a turn, in a driver's life, or in the reader."""
    values = [True, 3, 1.0, math.nan, "yes", None, False, 7, -math.inf]
    expected = ["true", "3", "1.0", "NaN", "yes", None, "false", "7", "-Infinity"]
    reports = [said(0, step, x=value) for step, value in enumerate(values, 1)]
    write(fast_path / "turn", ([], reports))
    write(fast_path / "life", *(([], [report]) for report in reports))
    for report in reports:
        write(fast_path / "reader", ([], [report]))
    for folder in ("turn", "life", "reader"):
        assert read(fast_path / folder).reports["x"].to_pylist() == expected


def test_a_metric_that_is_none_says_nothing_about_its_kind(fast_path: Path) -> None:
    write(fast_path, ([], [said(0, 1, x=None, y=None)]), ([], [said(0, 2, x=0.5)]))
    table = read(fast_path).reports
    assert table["x"].to_pylist() == [None, 0.5]
    assert "y" not in table.column_names


@pytest.mark.parametrize("apart", [False, True])
def test_large_whole_numbers(apart: bool, fast_path: Path) -> None:
    """None of them stops a study; what int64 or a float cannot hold is rounded."""
    rows = [said(0, 1, a=2**63 - 1, b=2**60 + 1, c=1), said(0, 2, a=-(2**63), b=0.5, c=2**70)]
    rows.append(said(0, 3, c=-(10**400)))
    write(fast_path, *([([], [row]) for row in rows] if apart else [([], rows)]))
    table = read(fast_path).reports
    assert table["a"].to_pylist() == [2**63 - 1, -(2**63), None]
    assert table["b"].to_pylist() == [float(2**60), 0.5, None]
    assert table["c"].to_pylist() == [1.0, float(2**70), -math.inf]


def test_metrics_named_like_columns_of_ours(fast_path: Path) -> None:
    names = ["step", "at", "trial", "checkpoint", "row", "metric:step", "metric:x", "x", "", "a/b", "naïve 学"]
    write(fast_path, ([], [said(5, 1, **{name: n + 0.5 for n, name in enumerate(names)})]))
    table = read(fast_path).reports
    assert len(set(table.column_names)) == len(table.column_names)
    assert (table["step"].to_pylist(), table["trial"].to_pylist()) == ([1], [5])
    for n, name in enumerate(names):
        column = metric_column(table, name)
        assert column is not None
        assert column.to_pylist() == [n + 0.5]
    assert table["x"].to_pylist() == [7.5]
    assert metric_column(table, "y") is None
    assert metric_column(table, "level") is None, "ours is no metric"


def test_a_step_that_was_reported_twice_counts_once(fast_path: Path) -> None:
    """The first report of a step counts, also when the second came in another driver's life."""
    write(fast_path, ([], [said(0, 1, x=1.0), said(1, 1, x=10.0), said(0, 2, x=2.0)]))
    write(fast_path, ([], [said(0, 2, attempt=2, x=-2.0), said(0, 1, attempt=2, x=-1.0), said(0, 3, attempt=2, x=3.0)]))
    table = read(fast_path).reports
    assert list(zip(*(table[name].to_pylist() for name in ("trial", "step", "attempt", "x")), strict=True)) == [
        (0, 1, 1, 1.0),
        (1, 1, 1, 10.0),
        (0, 2, 1, 2.0),
        (0, 3, 2, 3.0),
    ]


def test_last_steps(fast_path: Path) -> None:
    write(fast_path, ([], [said(0, 1), said(1, 4), said(0, 5)]), ([], [said(0, 3, attempt=2), said(2, 2, x=1)]))
    journal = Journal(fast_path)
    assert journal.last_steps() == {0: 5, 1: 4, 2: 2}
    journal.close()


VALUES_OF_METRICS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@settings(max_examples=30)
@given(st.lists(st.lists(st.dictionaries(st.sampled_from("abc"), VALUES_OF_METRICS), max_size=3), max_size=4))
def test_any_metrics_can_be_written_and_read(turns: list[list[dict[str, Any]]]) -> None:
    """Whatever kinds are mixed in whatever turns: one table, a row per report, null where nothing was said."""
    steps = itertools.count(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, *(([], [said(0, next(steps), **metrics) for metrics in turn]) for turn in turns))
        table = read(root).reports
    reported = [metrics for turn in turns for metrics in turn]
    assert table.num_rows == len(reported)
    for name in "abc":
        values = [metrics.get(name) for metrics in reported]
        column = metric_column(table, name)
        if column is None:
            assert values == [None] * len(values)
            continue
        for value, found in zip(values, column.to_pylist(), strict=True):
            if value is None or isinstance(value, str):
                assert found == value
            elif isinstance(found, str):
                assert found in (json.dumps(value), json.dumps(float(value)))  # it may have met a float before
            elif isinstance(value, float) or isinstance(found, int):
                assert found == value or (found != found and value != value)
            else:
                assert found == pytest.approx(value) or math.isinf(found)


# ---------------------------------------------------------------------------------------- a writer that is killed

WRITER = """
import itertools, sys
from pathlib import Path
from raytuner.events import Ticked
from raytuner.record.journal import Journal
from raytuner.trial import Report, Reports

journal = Journal(Path(sys.argv[1]))
for turn in itertools.count(journal.turn):
    rows = [Ticked(float(turn))] * (turn % 3 != 1)
    metrics = {"n": turn, f"late {turn // 7}": "x" * (turn % 5 * 400)}
    reports = [Reports.of(0, 1, [Report(turn + 1, turn + 1.0, metrics, 0.0)])] * (turn % 3 != 2)
    journal.commit(rows, reports)
    print(turn, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_acknowledged(fast_path: Path) -> None:
    """Turns are of the journal, of the reports, or of both in turn; new columns keep beginning new segments."""
    chance = random.Random(0)
    acknowledged = -1
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(fast_path)], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
        ) as writer:
            assert writer.stdout is not None
            for _ in range(chance.randint(1, 40)):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        record = read(fast_path)
        ticks = [row.at for row in record.rows if isinstance(row, Ticked)]
        turns = record.reports["n"].to_pylist()
        assert len(ticks) == len(set(ticks))
        assert len(turns) == len(set(turns))
        last = max(int(ticks[-1]), turns[-1])
        assert last in (acknowledged, acknowledged + 1), "a turn may be durable whose acknowledgement came too late"
        assert ticks == [float(turn) for turn in range(last + 1) if turn % 3 != 1]
        assert turns == [turn for turn in range(last + 1) if turn % 3 != 2]
