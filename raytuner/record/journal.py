"""A study's durable record: what happened and what was decided (``journal/``), and what trials said (``reports/``).

Both are folders of numbered `segments` that only ever grow; in an object store, which appends to nothing, they are
`objects`. `Journal.commit` writes one *turn* of the driver's loop: when it returns, the turn is on the disk. Where a
turn wrote to both tables, neither half counts without the other: an unfinished turn leaves no trace. `read` is for
everybody else, while a driver writes too.

Journal rows are the events and decisions of `raytuner.events`, one each, in the order in which the study handled and
made them. Configurations, notes and the metrics that decisions used are JSON; everything else has a column. There is
no pickle. Report columns are typed by what trials report; a new metric begins a new segment.
"""

from __future__ import annotations

import gc
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import count, groupby, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raytuner.actions import Answer, Exhausted, Fork, Proposal, Resume, Start, Wait
from raytuner.events import (
    Checkpointed,
    Damaged,
    Decision,
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
from raytuner.record.durable import make_folders, not_a_folder, sync_file, sync_folder
from raytuner.record.lock import Hold
from raytuner.record.objects import ObjectLog, ObjectTable, read_last_object, read_objects
from raytuner.record.segments import (
    DamagedSegment,
    Epoch,
    SegmentWriter,
    Turn,
    epoch_of,
    last_turn,
    read_bytes,
    read_segment,
    truncate,
)
from raytuner.record.storage import Place
from raytuner.space import pack, unpack_value
from raytuner.trial import Failure, Report, Reports, Slot, State, Why

FORMAT = 3

JOURNAL = pa.schema(
    [
        pa.field("turn", pa.int64(), nullable=False),  # of the driver's loop
        pa.field("kind", pa.string(), nullable=False),  # which event or decision
        pa.field("at", pa.float64()),  # events: seconds since the epoch
        pa.field("trial", pa.int64()),
        pa.field("attempt", pa.int64()),  # which lease of the trial
        pa.field("step", pa.int64()),
        pa.field("until", pa.int64()),  # the rung
        pa.field("level", pa.float64()),  # value of the time attribute
        pa.field("spent", pa.float64()),  # seconds of slot time
        pa.field("source", pa.int64()),  # fork: the trial it continues; loaded: the checkpoint's
        # opened: epoch; slots, extended: how many; checkpointed: bytes; stop_asked, finish: 1 for good; fork: replaces
        pa.field("number", pa.int64()),
        pa.field("what", pa.string()),  # ended: how; failed: failure; over: state; proposed: kind of answer
        pa.field("why", pa.string()),  # over: the reason's name
        pa.field("config", pa.string()),  # proposed, start, fork: JSON
        pa.field("data", pa.string()),  # ended, checkpointed, reported: metrics, proposed: note, slots: nodes; JSON
        pa.field("text", pa.string()),  # messages; checkpointed, loaded: the manifest's hash
    ]
)

REPORTS = pa.schema(
    [
        pa.field("trial", pa.int64(), nullable=False),
        pa.field("attempt", pa.int64(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("level", pa.float64(), nullable=False),
        pa.field("at", pa.float64(), nullable=False),
        pa.field("checkpoint", pa.bool_(), nullable=False),
    ]
)
"""The columns every report has; its metrics follow, each under its own name."""

METRIC = "metric:"
"""Prefix of the metrics' columns on disk, so that none can hide a column of ours."""

_WORTH_A_THREAD_S = 0.0005

Row = Event | Decision


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: of the hundred thousands of objects that a long record becomes none is, and to
    look at all of them again and again takes longer than to make them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Journal:
    """The writing side. One at a time: whoever opens it holds the study's lock (`raytuner.record.folder`).

    Opening repairs: torn tails and half-written turns are cut off, durably, before anything is read or written.
    Raises `DamagedSegment` if the record is damaged elsewhere.

    ``hold``: the right to write (`lock`). It is asked before and after each turn: a driver that lost the study
    writes no more, and what it may have written meanwhile does not count. None: nobody else can have opened it.
    """

    @uncollected()
    def __init__(self, root: Path | Place, hold: Hold | None = None) -> None:
        place = Place.of(root)
        self._events: _Table | ObjectTable
        self._reports: _Table | ObjectTable
        if place.local is None:
            log = ObjectLog(place, hold)  # asks by itself
            self._events, self._reports, self._before = log.events, log.reports, log.before
            _must_be_whole(*self._before)
        else:
            tables = self._events, self._reports = _tables(place.local)
            self._before = _repair(*tables)
        self._hold = None if place.local is None else hold
        self.turn = max((turns[-1].number for turns in self._before if turns), default=-1) + 1
        self._seen: dict[str, pa.DataType] = {}
        self._schema: pa.Schema | None = None  # of reports, made of what was seen
        self._broken = False
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="raytuner-sync")  # has no thread before it is needed
        self._sync_s = 0.0  # how long an fsync takes

    def rows(self) -> Iterator[Row]:
        """What was recorded before this journal was opened, in order."""
        return rows_of(self._before[0])

    def last_steps(self) -> dict[int, int]:
        """The highest step that each trial had reported when this journal was opened."""
        steps: dict[int, int] = {}
        trials, seen = _numbers(self._before[1], "trial"), _numbers(self._before[1], "step")
        for trial, step in zip(trials, seen, strict=True):
            if step > steps.get(trial, 0):
                steps[trial] = step
        return steps

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        """Write one turn; when this returns it is durable, whole. Nothing to write: nothing happens.

        Rows that cannot be written raise before anything is. After a failed write (a full disk) nothing is written any
        more: what stands in the files is unknown until they are opened anew, or `recover` cuts it off.
        """
        if self._broken:
            raise RuntimeError(f"an earlier turn could not be written to {self._events.folder.parent}; open it again")
        if not rows and not reports:
            return
        self._before = [], []
        self._ask_hold()
        batches: list[tuple[_Table | ObjectTable, pa.RecordBatch]] = []
        if reports:  # before the events: whoever reads these first then finds the reports of all he has seen
            batches.append((self._reports, self._report_batch(reports)))
        if rows:
            batches.append((self._events, self._event_batch(rows)))
        self._broken = True
        for table, batch in batches:
            table.append(batch, self.turn, joint=len(batches) == 2)
        self._sync([table for table, _ in batches])
        self._ask_hold()  # whoever has it now may have read the record before these rows were in it
        for table, _ in batches:
            table.note()
        self._broken = False
        self.turn += 1

    def recover(self) -> None:
        """After a failed write: cut off, durably, whatever that turn left, so that it can be written again."""
        self._ask_hold()  # what lies there may be another driver's by now
        for table in (self._events, self._reports):
            table.recover()
        self._broken = False

    def _ask_hold(self) -> None:
        """Raise if another driver has the study."""
        if self._hold is not None:
            self._hold.check()

    def _sync(self, tables: Sequence[_Table | ObjectTable]) -> None:
        """Bring tables to disk. A file system that is asked for two at once often needs one flush for them; but a fast
        one is not worth a thread."""
        first, *others = tables
        under_way = []
        if self._sync_s > _WORTH_A_THREAD_S:
            under_way = [self._helper.submit(table.sync) for table in others]
        else:
            for table in others:
                table.sync()
        begun = time.perf_counter()
        try:
            first.sync()
        finally:
            wait(under_way)
        for each in under_way:
            each.result()
        self._sync_s += 0.2 * (time.perf_counter() - begun - self._sync_s)

    def close(self) -> None:
        """Close the files; everything committed is durable already."""
        self._helper.shutdown()
        self._events.close()
        self._reports.close()

    def _event_batch(self, rows: Sequence[Row]) -> pa.RecordBatch:
        columns: dict[str, list[Any]] = {"turn": [self.turn] * len(rows)}
        for place, row in enumerate(rows):
            for name, value in _encode(row).items():
                columns.setdefault(name, [None] * len(rows))[place] = value
        arrays = [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(rows), field.type)
            for field in JOURNAL
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=JOURNAL)

    def _report_batch(self, blocks: Sequence[Reports]) -> pa.RecordBatch:
        size = sum(map(len, blocks))
        metrics: dict[str, list[Any]] = {}
        begun = 0
        for block in blocks:
            for name, values in block.metrics.items():
                _extend(metrics, name, begun, values)
            for name, value in block.constants.items():
                _extend(metrics, name, begun, [value] * len(block))
            begun += len(block)
        floats = set()
        for name, values in metrics.items():
            values += [None] * (size - len(values))
            types = set(map(type, values))
            if types == {float}:
                floats.add(name)
            for kind in _kinds(types, values):
                seen = self._seen.get(name)
                wide = kind if seen is None else _wider(seen, kind)
                if wide != seen:
                    self._seen[name] = wide
                    self._schema = None
        if self._schema is None:
            self._schema = pa.schema(
                [*REPORTS, *(pa.field(METRIC + _utf8(name), kind) for name, kind in self._seen.items())]
            )
        columns: list[pa.Array] = [
            pa.array([block.trial for block in blocks for _ in block.steps], pa.int64()),
            pa.array([block.attempt for block in blocks for _ in block.steps], pa.int64()),
            pa.array([step for block in blocks for step in block.steps], pa.int64()),
            pa.array([level for block in blocks for level in block.levels], pa.float64()),
            pa.array([at for block in blocks for at in block.at], pa.float64()),
            pa.array([bool(digest) for block in blocks for digest in block.checkpoints], pa.bool_()),
        ]
        for name, kind in self._seen.items():
            if name not in metrics:
                columns.append(pa.nulls(size, kind))
            elif name in floats and pa.types.is_floating(kind):
                columns.append(pa.array(metrics[name], kind))
            else:
                columns.append(_column(metrics[name], kind))
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


def is_complete(root: Path | Place) -> bool:
    """Whether a study's record ends with the study's end; only its last pages are looked at."""
    place = Place.of(root)
    if place.local is None:
        turns, sure = read_last_object(place), True
    else:
        journal = _tables(place.local)[0]
        segments = journal.segments()
        last = last_turn(segments[-1]) if segments else None
        known = last is not None and last.batch.schema.equals(JOURNAL)
        turns = [last] if last and known else journal.read_one(segments[-1], last=True)[0] if segments else []
        # Else the other half of a turn may be missing, or what stands there was written by a driver that had lost it.
        sure = bool(turns) and not turns[-1].joint and turns[-1].epoch >= max(map(epoch_of, segments))
    if not turns:
        return False
    rows = list(rows_of(turns[-1:]))
    if not (isinstance(rows[-1], Finish) and rows[-1].complete):
        return False
    return sure or bool(read(root).rows[-1:] == rows[-1:])


def extensions(root: Path | Place) -> list[Extended]:
    """How a study was extended since it began, in order."""
    place = Place.of(root)
    if place.local is not None:
        segments = _tables(place.local)[0].segments()
        if not any(b"extended" in read_bytes(path) for path in segments):  # few are, and to read a record takes seconds
            return []
    found: list[Extended] = []
    for turn in _whole_turns(root)[0]:
        if pc.any(pc.equal(turn.batch.column("kind"), "extended")).as_py():
            found += [row for row in rows_of([turn]) if isinstance(row, Extended)]
    return found


@dataclass(frozen=True, slots=True)
class Record:
    """What a study's folder holds at one moment: the rows of its journal, and its reports as one table."""

    rows: Sequence[Row]
    reports: pa.Table


@uncollected()
def read(root: Path | Place) -> Record:
    """Read a study's record, also while a driver writes it; changes nothing. Needs neither Ray nor the user's code.

    ``reports``: the columns of `REPORTS` and one column per metric, named as it was reported; of a step that was
    reported twice the first row. Raises `DamagedSegment`.
    """
    events, reports = _whole_turns(root)
    return Record(list(rows_of(events)), _one_table([turn.batch for turn in reports]))


def _whole_turns(root: Path | Place) -> tuple[list[Turn], list[Turn]]:
    """The turns of both tables that count."""
    place = Place.of(root)
    if place.local is None:
        events, reports = read_objects(place)
        whole = _must_be_whole(events, reports)
    else:
        tables = _tables(place.local)
        events, reports = _counted([table.read()[0] for table in tables])
        whole = _whole(events, reports)
        _may_be_torn(tables, whole)
        _may_be_cut([turn for turn in events if turn.number >= whole], whole)  # the reports may have grown meanwhile
    return [turn for turn in events if turn.number < whole], [turn for turn in reports if turn.number < whole]


def _numbers(turns: Sequence[Turn], column: str) -> list[int]:
    """One of the columns of `REPORTS`."""
    found: list[int] = []
    for _, segment in groupby(turns, key=lambda turn: turn.path):
        found += pa.Table.from_batches([turn.batch for turn in segment])[column].to_numpy().tolist()
    return found


def rows_of(turns: Sequence[Turn]) -> Iterator[Row]:
    """The rows of turns of the journal, in order."""
    table = pa.Table.from_batches([turn.batch for turn in turns], JOURNAL).combine_chunks()
    folder = turns[0].path.parent if turns else Path()
    return (_decode(row, folder) for row in table.to_pylist())


# ------------------------------------------------------------------------------------------- tables of segments


class _Table:
    """A folder of numbered segments, read in order and appended to at the end."""

    def __init__(self, folder: Path, fits: Callable[[pa.Schema], bool]) -> None:
        self.folder = folder
        self._fits = fits
        self.epoch: Epoch | None = None  # of what is appended
        self.torn: list[tuple[int, DamagedSegment]] = []
        """Of segments of older epochs whose tails are torn: from which turn on it does not matter, and the error."""
        self.epochs: list[Epoch] = []
        """Of each segment that was read."""
        self._writer: SegmentWriter | None = None
        self._number = 0  # of segments, with the writer's
        self._kept = 0, 0  # segments, and bytes of the last of them, that are durable

    def segments(self) -> list[Path]:
        if what := not_a_folder(self.folder):
            raise DamagedSegment(f"{self.folder} is {what}")
        return sorted(self.folder.glob("[0-9]*.arrow"))

    def read_one(self, path: Path, last: bool) -> tuple[list[Turn], int]:
        """`read_segment`, of this table's schema."""
        turns, good = read_segment(path, last)
        if turns and not self._fits(turns[0].batch.schema):
            found = ", ".join(f"{field.name:.40}: {field.type!s:.40}" for field in turns[0].batch.schema)
            raise DamagedSegment(f"{path} has other columns than belong into a {self.folder.name} table: {found:.500}")
        return turns, good

    def read(self) -> tuple[list[Turn], int]:
        """All turns, and the byte at which the last segment's torn tail begins, if it has one."""
        turns: list[Turn] = []
        good = 0
        segments = self.segments()
        tails: list[tuple[Path, int]] = []
        self.epochs = []
        for number, path in enumerate(segments):
            if path.name != _segment(number):
                raise DamagedSegment(f"{self.folder} lacks {_segment(number)}: next in it is {path.name}")
            found, good = self.read_one(path, last=True)
            epoch = found[0].epoch if found else epoch_of(path)
            if epoch == Epoch() and self.epochs:  # an older version's
                epoch = self.epochs[-1]
                found = [replace(turn, epoch=epoch) for turn in found]
            self.epochs.append(epoch)
            tails.append((path, good))
            turns += found
        for number, (path, end) in enumerate(tails[:-1]):
            if end < path.stat().st_size:
                error = DamagedSegment(f"{path} is damaged at byte {end}: what stands there is not what was written")
                newer = [later.since for later in self.epochs[number + 1 :] if later > self.epochs[number]]
                if not newer:
                    raise error
                self.torn.append((min(newer), error))
        return turns, good

    def append(self, batch: pa.RecordBatch, turn: int, joint: bool) -> None:
        if self._writer is None or self._writer.schema != batch.schema:
            self.close()
            number = len(self.segments())
            self._writer = SegmentWriter(self.folder / _segment(number), batch.schema, self.epoch)
            self._number = number + 1
            sync_folder(self.folder)
        self._writer.append(batch, turn, joint)

    def sync(self) -> None:
        assert self._writer is not None
        self._writer.sync()

    def note(self) -> None:
        """What was written is whole and durable."""
        assert self._writer is not None
        self._kept = self._number, self._writer.size

    def note_found(self) -> None:
        """What was found is whole and durable."""
        segments = self.segments()
        self._kept = len(segments), segments[-1].stat().st_size if segments else 0

    def recover(self) -> None:
        """Put it back to what it was at the last `note`, durably. What an fsync that failed was to write can be read,
        and may yet never come to the disk: so all of it goes, whole or not."""
        self.close()
        number, size = self._kept
        names = os.listdir(self.folder)
        for name in names:
            if name.endswith(".arrow") and name >= _segment(number):
                (self.folder / name).unlink()
        sync_folder(self.folder)
        if number:
            truncate(self.folder / _segment(number - 1), size)

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):  # what counts was brought to disk before
                writer.close()


def _tables(root: Path) -> tuple[_Table, _Table]:
    """Events and reports."""
    return _Table(root / "journal", JOURNAL.equals), _Table(root / "reports", _is_of_reports)


def _is_of_reports(schema: pa.Schema) -> bool:
    """Whether it is `REPORTS`, and columns of metrics of the types that these have."""
    own = len(REPORTS)
    metrics = [schema.field(place) for place in range(own, len(schema))]
    kinds = (pa.bool_(), pa.int64(), pa.float64(), pa.string())
    return (
        pa.schema([schema.field(place) for place in range(min(own, len(schema)))]).equals(REPORTS)
        and all(field.name.startswith(METRIC) and field.type in kinds for field in metrics)
        and len(set(schema.names)) == len(schema)
    )


def _segment(number: int) -> str:
    return f"{number:06d}.arrow"


def _counted(tables: Sequence[Sequence[Turn]]) -> list[list[Turn]]:
    """Without what older epochs wrote after newer ones began: by drivers that had lost the study."""
    epochs = sorted({turn.epoch for turns in tables for turn in turns})
    ends: dict[Epoch, float] = {}
    end = math.inf
    for epoch in reversed(epochs):
        ends[epoch] = end
        end = min(end, epoch.since)
    counted = [[turn for turn in turns if turn.number < ends[turn.epoch]] for turns in tables]
    for turns in counted:
        for before, after in pairwise(turns):
            if after.number <= before.number:
                raise DamagedSegment(
                    f"{after.path} is damaged at byte {after.offset}: turn {after.number} follows {before.number}"
                )
    return counted


def _may_be_torn(tables: Sequence[_Table], whole: int) -> None:
    """Raise if the tail of an older epoch's segment is missing that was there when the next epoch began."""
    for since, error in (torn for table in tables for torn in table.torn):
        if whole < since:
            raise error


def _must_be_whole(events: Sequence[Turn], reports: Sequence[Turn]) -> int:
    """How many turns there are; raise if one is missing, or a half of one, or is of other columns."""
    for turns, own in ((events, JOURNAL), (reports, REPORTS)):
        for turn in turns:
            schema = turn.batch.schema
            metrics = schema.names[len(own) :]
            known = all(name.startswith(METRIC) for name in metrics) and not (metrics and own is JOURNAL)
            if not known or list(schema)[: len(own)] != list(own):
                raise DamagedSegment(f"{turn.path} has other columns than belong there: {', '.join(schema.names):.500}")
    whole = _whole(events, reports)
    if late := [turn for turn in (*events, *reports) if turn.number >= whole]:
        raise DamagedSegment(f"{late[0].path} has turn {late[0].number}, but of turn {whole} a part is missing")
    return whole


def _whole(events: Sequence[Turn], reports: Sequence[Turn]) -> int:
    """How many turns, from the first on, are there, each with both its halves if it has two."""
    tables = [{turn.number: turn.joint for turn in table} for table in (events, reports)]
    for number in count():
        halves = [table[number] for table in tables if number in table]
        if halves not in ([False], [True, True]):
            return number
    raise AssertionError("a table has no end")


def _may_be_cut(rest: Sequence[Turn], whole: int) -> None:
    """A crash leaves one half of the turn after the ``whole`` ones at most; raise if there is more, or another."""
    if [turn.number for turn in rest] not in ([], [whole]):
        late = max(rest, key=lambda turn: turn.number)
        raise DamagedSegment(
            f"{late.path} has turn {late.number} at byte {late.offset}, but of turn {whole} a part is missing, in "
            + " or ".join(str(late.path.parent.parent / table) for table in ("journal", "reports"))
        )


def _repair(events: _Table, reports: _Table) -> tuple[list[Turn], list[Turn]]:
    """Cut off what a crash left half-written; return the whole turns of both tables."""
    found: list[list[Turn]] = []
    for table in (events, reports):
        make_folders(table.folder)
        turns, good = table.read()
        segments = table.segments()
        if segments and good < segments[-1].stat().st_size:
            truncate(segments[-1], good)
        found.append(turns)
    found = _counted(found)
    whole = _whole(*found)
    _may_be_torn((events, reports), whole)
    _may_be_cut([turn for turns in found for turn in turns if turn.number >= whole], whole)
    for turns in found:
        if turns and turns[-1].number >= whole:
            assert isinstance(turns[-1].path, Path)
            truncate(turns[-1].path, turns[-1].offset)
            turns.pop()
    for table in (events, reports):
        for last in table.segments()[-1:]:
            sync_file(last)  # its writer may have died before it could, and what follows will build on it
        table.note_found()
    known = [epoch.number for table in (events, reports) for epoch in table.epochs]
    nonce = f"{time.time_ns():016x}{secrets.token_hex(2)}"  # the later the larger, where two begin at once
    events.epoch = reports.epoch = Epoch(max(known, default=0) + 1, nonce, whole)
    return found[0], found[1]


# ------------------------------------------------------------------------------------------------ metric columns


def _extend(columns: dict[str, list[Any]], name: str, begun: int, values: list[Any]) -> None:
    """Add to a column that may have missed some of the ``begun`` rows before."""
    column = columns.setdefault(name, [])
    if len(column) < begun:
        column += [None] * (begun - len(column))
    column += values


def _kinds(types: set[type], values: Sequence[Any]) -> set[pa.DataType]:
    """The Arrow types of a metric's values, whose Python types these are; without those that were not reported."""
    if types == {int}:
        return {_arrow_type(min(values)), _arrow_type(max(values))}
    if len(types) == 1 and types != {type(None)}:
        return {_arrow_type(values[0])}
    return {_arrow_type(value) for value in values if value is not None}


def _arrow_type(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else pa.float64()
    return pa.float64() if isinstance(value, float) else pa.string()


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A type that holds the values of both: whole numbers become floats, any other mixture text."""
    if one == other:
        return one
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A metric's values in a type that is wide enough for all of them."""
    if pa.types.is_string(kind):
        return pa.array([None if value is None else text_of(value) for value in values], kind)
    if pa.types.is_floating(kind):
        return pa.array([None if value is None else _float(value) for value in values], kind)
    return pa.array(values, kind)


def _float(value: float) -> float:
    """The nearest float: Arrow refuses whole numbers that no float equals."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def text_of(value: Any) -> str:
    """A value as it stands in a column of text."""
    return _utf8(value if isinstance(value, str) else json.dumps(value))


def _utf8(text: str) -> str:
    """Text that UTF-8 can hold: the lone surrogates of an undecodable file name become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _one_table(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    kinds: dict[str, pa.DataType] = {field.name: field.type for field in REPORTS}
    for batch in batches:
        for field in batch.schema:
            kinds[field.name] = _wider(kinds.get(field.name, field.type), field.type)
    schema = pa.schema(list(kinds.items()))
    tables = []
    for batch in batches:
        columns = [
            _cast(batch.column(name), kind) if name in batch.schema.names else pa.nulls(batch.num_rows, kind)
            for name, kind in kinds.items()
        ]
        tables.append(pa.Table.from_arrays(columns, schema=schema))
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    return _first_of_each_step(table).rename_columns([_shown(name) for name in kinds])


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    return column if column.type == kind else _column(column.to_pylist(), kind)


def _shown(column: str) -> str:
    """A metric goes by its own name, unless that is one of `REPORTS`, or looks like one of those on disk."""
    name = column.removeprefix(METRIC)
    return column if name in REPORTS.names or name.startswith(METRIC) else name


def metric_column(reports: pa.Table, metric: str) -> pa.ChunkedArray | None:
    """A metric's column in a table of reports, None if it was never reported."""
    name = _shown(METRIC + metric)
    return reports[name] if name in reports.column_names else None


def _first_of_each_step(table: pa.Table) -> pa.Table:
    table = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    first = table.group_by(["trial", "step"]).aggregate([("row", "min")]).column("row_min")
    if len(first) < table.num_rows:
        table = table.take(first.combine_chunks().sort())
    return table.drop_columns(["row"])


# --------------------------------------------------------------------------------------------- rows to and from


def _json(value: Any) -> str:
    """Strict JSON, from which `_value` makes exactly the value: tuples and NaN survive."""
    return json.dumps(pack(value), separators=(",", ":"), allow_nan=False)


def _value(text: str) -> Any:
    packed = json.loads(text)
    return unpack_value(packed) if '"$' in text else packed  # only what has a tag is packed


def _fields(text: str) -> dict[str, Any]:
    """The same of a dict."""
    value = _value(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def _encode(row: Row) -> dict[str, Any]:
    """One event or decision as columns of `JOURNAL`."""
    match row:
        case Opened(at, epoch, in_order):
            return {"kind": "opened", "at": at, "number": epoch, **({"what": "in order"} if in_order else {})}
        case Slots(at, slots, nodes):
            there = {} if nodes is None else {"data": _json([asdict(node) for node in nodes])}
            return {"kind": "slots", "at": at, "number": slots, **there}
        case Proposed(at, trial, Proposal(config, note)):
            return {
                "kind": "proposed",
                "at": at,
                "trial": trial,
                "what": "config",
                "config": _json(dict(config)),
                "data": _json(dict(note)),
            }
        case Proposed(at, trial, answer):
            return {
                "kind": "proposed",
                "at": at,
                "trial": trial,
                "what": "exhausted" if isinstance(answer, Exhausted) else "wait",
            }
        case Reported(at, trial, attempt, reports):
            said = [
                [report.step, report.level, dict(report.metrics), report.at, report.checkpoint, report.nbytes]
                for report in reports
            ]
            return {"kind": "reported", "at": at, "trial": trial, "attempt": attempt, "data": _json(said)}
        case Checkpointed(at, trial, attempt, step, metrics, digest, nbytes):
            return {
                "kind": "checkpointed",
                "at": at,
                "trial": trial,
                "attempt": attempt,
                "step": step,
                "number": nbytes,
                "data": _json(dict(metrics)),
                "text": digest,
            }
        case Loaded(at, trial, attempt, source, step, digest):
            return {
                "kind": "loaded",
                "at": at,
                "trial": trial,
                "attempt": attempt,
                "source": source,
                "step": step,
                "text": digest,
            }
        case Ended(at, trial, attempt, how, step, level, metrics, spent):
            return {
                "kind": "ended",
                "at": at,
                "trial": trial,
                "attempt": attempt,
                "what": how.name,
                "step": step,
                "level": level,
                "data": _json(dict(metrics)),
                "spent": spent,
            }
        case Failed(at, trial, attempt, failure, message, spent, remedy):
            changed = {} if remedy is None else {"data": _json(dict(remedy))}
            return {
                "kind": "failed",
                "at": at,
                "trial": trial,
                "attempt": attempt,
                "what": failure.name,
                "text": _utf8(message),
                "spent": spent,
                **changed,
            }
        case Damaged(at, trial, attempt, source, step, message, spent):
            return {
                "kind": "damaged",
                "at": at,
                "trial": trial,
                "attempt": attempt,
                "source": source,
                "step": step,
                "text": _utf8(message),
                "spent": spent,
            }
        case Ticked(at):
            return {"kind": "ticked", "at": at}
        case StopAsked(at, reason, for_good):
            return {"kind": "stop_asked", "at": at, "text": _utf8(reason), "number": int(for_good)}
        case Extended(at, trials, max_t, respaced, changes):
            further = {"max_t": max_t, "respaced": respaced, "changes": dict(changes)}
            return {"kind": "extended", "at": at, "number": trials, "data": _json(further)}
        case Start(trial, until, config):
            given = {} if config is None else {"config": _json(dict(config))}
            return {"kind": "start", "trial": trial, "until": until, **given}
        case Resume(trial, until):
            return {"kind": "resume", "trial": trial, "until": until}
        case Fork(trial, source, config, until, replaces):
            return {
                "kind": "fork",
                "trial": trial,
                "source": source,
                "config": _json(dict(config)),
                "until": until,
                "number": replaces,
            }
        case Over(trial, state, why, message):
            return {"kind": "over", "trial": trial, "what": state.name, "why": why.name, "text": _utf8(message)}
        case Retry(trial, checkpoint):
            return {"kind": "retry", "trial": trial, "step": checkpoint}
        case Drop(trial, step):
            return {"kind": "drop", "trial": trial, "step": step}
        case Quarantine(trial, step):
            return {"kind": "quarantine", "trial": trial, "step": step}
        case Finish(complete, reason):
            return {"kind": "finish", "number": int(complete), "text": _utf8(reason)}


_NEEDS: Mapping[str, Sequence[str]] = {
    "opened": ("at", "number"),
    "slots": ("at", "number"),
    "proposed": ("at", "trial"),
    "reported": ("at", "trial", "attempt"),
    "checkpointed": ("at", "trial", "attempt", "step"),
    "loaded": ("at", "trial", "attempt", "source", "step", "text"),
    "ended": ("at", "trial", "attempt", "step", "level", "spent"),
    "failed": ("at", "trial", "attempt", "text", "spent"),
    "damaged": ("at", "trial", "attempt", "source", "step", "text", "spent"),
    "ticked": ("at",),
    "stop_asked": ("at", "text"),
    "extended": ("at", "data"),
    "start": ("trial", "until"),
    "resume": ("trial", "until"),
    "fork": ("trial", "source", "until"),
    "over": ("trial", "text"),
    "retry": ("trial",),
    "drop": ("trial", "step"),
    "quarantine": ("trial", "step"),
    "finish": ("number", "text"),
}
"""The columns that a row of a kind has, besides those that are looked at anyway."""

_COUNTS = ("trial", "attempt", "step", "source", "until", "number")


def _decode(row: Mapping[str, Any], folder: Path | Place) -> Row:
    """The event or decision that a row of the journal stands for."""
    try:
        for name in _NEEDS.get(row["kind"], ()):
            if row[name] is None:
                raise ValueError(name)
        for name in _COUNTS:
            if (number := row[name]) is not None and number < 0:
                raise ValueError(name)
        return _known(row)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        shown = {name: value for name, value in row.items() if value is not None}
        raise DamagedSegment(
            f"{folder}: this version (format {FORMAT}) cannot read a row of the journal: {shown!r:.1000}"
        ) from None


def _known(row: Mapping[str, Any]) -> Row:
    at, trial, attempt, step = row["at"], row["trial"], row["attempt"], row["step"]
    match row["kind"]:
        case "opened":
            return Opened(at, row["number"], row["what"] == "in order")
        case "slots":
            nodes = tuple(Slot(**node) for node in _value(row["data"])) if row["data"] else None
            return Slots(at, row["number"], nodes)
        case "proposed":
            return Proposed(at, trial, _answer(row))
        case "reported":
            reports = tuple(Report(*said) for said in _value(row["data"]))
            return Reported(at, trial, attempt, reports)
        case "checkpointed":
            return Checkpointed(at, trial, attempt, step, _fields(row["data"]), row["text"] or "", row["number"] or 0)
        case "loaded":
            return Loaded(at, trial, attempt, row["source"], step, row["text"])
        case "ended":
            metrics = _fields(row["data"])
            return Ended(at, trial, attempt, How[row["what"]], step, row["level"], metrics, row["spent"])
        case "failed":
            remedy = _fields(row["data"]) if row["data"] else None
            return Failed(at, trial, attempt, Failure[row["what"]], row["text"], row["spent"], remedy)
        case "damaged":
            return Damaged(at, trial, attempt, row["source"], step, row["text"], row["spent"])
        case "ticked":
            return Ticked(at)
        case "stop_asked":
            return StopAsked(at, row["text"], bool(row["number"]))
        case "extended":
            return Extended(at, row["number"], **_fields(row["data"]))
        case "start":
            return Start(trial, row["until"], _fields(row["config"]) if row["config"] else None)
        case "resume":
            return Resume(trial, row["until"])
        case "fork":
            return Fork(trial, row["source"], _fields(row["config"]), row["until"], row["number"])
        case "over":
            return Over(trial, State[row["what"]], Why[row["why"]], row["text"])
        case "retry":
            return Retry(trial, step)
        case "drop":
            return Drop(trial, step)
        case "quarantine":
            return Quarantine(trial, step)
        case "finish":
            return Finish(bool(row["number"]), row["text"])
        case kind:
            raise ValueError(kind)


def _answer(row: Mapping[str, Any]) -> Answer:
    match row["what"]:
        case "config":
            return Proposal(_fields(row["config"]), _fields(row["data"]))
        case "exhausted":
            return Exhausted()
        case "wait":
            return Wait()
        case what:
            raise ValueError(what)


def events_of(rows: Iterable[Row]) -> Iterator[tuple[Event, list[Decision]]]:
    """Group a record: each event with the decisions that followed from it."""
    current: Event | None = None
    decisions: list[Decision] = []
    for row in rows:
        if isinstance(row, Event):
            if current is not None:
                yield current, decisions
            current, decisions = row, []
        else:
            decisions.append(row)
    if current is not None:
        yield current, decisions
