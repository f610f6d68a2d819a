"""The record in an object store: one immutable object for each turn that holds decisions.

    journal/<epoch>-<number>.arrow          epoch: 000003-9f2c61aa, the name of its driver's claim (`lock`)

An object is written whole or not at all, and never again; nothing is appended. It holds the turn's rows of both tables,
so a turn is never half there, and before them the reports of turns that held nothing else: those are gathered, for
`GATHER_S` seconds at most, since nothing was decided that depends on them. Each schema in it says, sealed like all its
messages (`raytuner.record.segments`), which table it is of, which object this is and how many batches it has::

    raytuner-object: {"epoch": "000003-9f2c61aa", "number": 17, "batches": 3, "table": "reports"}

An epoch's first object also says what counted when it began: how many objects of each epoch before it (``"after"``);
of none if they were `MANY`, since it then holds all that was in them. Readers go by the highest epoch that has one:
what an older one wrote beyond that does not count. Numbers have no gaps.

Why nothing is lost: a driver's claim is written before it lists what is there; a turn is acknowledged only if no higher
claim is listed after it was written. Of two drivers, either the later one lists that turn, and it counts, or the
earlier one lists the later one's claim, and stops.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raytuner.record.lock import Hold, ObjectLock, StudyTaken
from raytuner.record.segments import DamagedSegment, Messages, Turn, read_streams
from raytuner.record.storage import Place

_log = logging.getLogger(__name__)

GATHER_S = 2.0
"""For how long reports on which nothing was decided may wait for company."""

MANY = 1000
"""Of more objects than these a new driver writes one that holds all of them."""

_KEY = b"raytuner-object"
_NAME = re.compile(r"(\d{6,18}-[0-9a-f]{8})-(\d{8})\.arrow")
_AT_ONCE = 32  # objects that are fetched at the same time


class ObjectLog:
    """The writing side of a record in an object store: both tables of it. ``hold``: as in `journal.Journal`.

    ``before``: the turns of the journal and of the reports that were there.
    """

    def __init__(self, root: Place, hold: Hold | None) -> None:
        self._hold = hold
        self._folder = root / "journal"
        self.events, self.reports = ObjectTable(self, "journal"), ObjectTable(self, "reports")
        found = _Found(self._folder)
        fresh = f"{found.highest + 1:06d}-{secrets.token_hex(4)}"
        self._epoch = hold.name if isinstance(hold, ObjectLock) else fresh
        if found.counts and max(found.counts) >= self._epoch:
            raise StudyTaken(f"the study in {root} was taken over by epoch {max(found.counts)}; this is {self._epoch}")
        self._after = found.counts
        self.before = found.read()
        self._number = 0  # of the next object
        self._gathered: list[_Batch] = []
        if sum(found.counts.values()) > MANY:
            self._gather_anew()
        self._stuck: bytes | None = None  # an object that could not be written
        self._last_turn = -1  # in it, or in the last one that was written
        self._unsure = False  # whether decisions were written since it was last asked who has the study
        self._lock = threading.RLock()
        self._alarm: threading.Timer | None = None

    def _gather_anew(self) -> None:
        """Let the first object hold all that was there, so that whoever reads need not fetch the old ones."""
        self._after = {}
        for table, turns in zip(("journal", "reports"), self.before, strict=True):
            self._gathered += [_Batch(table, turn.batch, turn.number, turn.joint) for turn in turns]

    def append(self, batch: _Batch) -> None:
        with self._lock:
            if batch.turn > self._last_turn:  # else a turn is tried again that is in an object already
                self._gathered.append(batch)

    def flush(self) -> None:
        """Make durable what was appended, if it holds decisions. Raises `StudyTaken` where it does not count."""
        with self._lock:
            self._unsure |= any(batch.table == "journal" for batch in self._gathered)
            if self._stuck is None and not self._unsure:
                if self._gathered and self._alarm is None:
                    self._alarm = threading.Timer(GATHER_S, self._flush_reports)
                    self._alarm.daemon = True
                    self._alarm.start()
                return
            self._write()
            if self._hold is not None:
                self._hold.check()
            self._unsure = False

    def _flush_reports(self) -> None:
        with self._lock:
            self._alarm = None
            try:
                self._write()
            except OSError as error:
                _log.warning("reports cannot be written to %s, and are tried again: %s", self._folder, error)

    def _write(self) -> None:
        """Write an object of all that was gathered. One that failed is written again as it was, since it may be there
        all the same, and may have been read."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._stuck or self._gathered:
            if self._stuck is None:
                self._stuck = self._object(self._gathered)
                self._last_turn = max(batch.turn for batch in self._gathered)
                self._gathered = []
            (self._folder / _name(self._epoch, self._number)).write(self._stuck)
            self._stuck = None
            self._number += 1

    def _object(self, batches: Sequence[_Batch]) -> bytes:
        what: dict[str, Any] = {"epoch": self._epoch, "number": self._number, "batches": len(batches)}
        if self._number == 0:
            what["after"] = self._after
        parts = []
        for table in ("reports", "journal"):
            messages, schema = None, None
            for batch in batches:
                if batch.table != table:
                    continue
                if messages is None or batch.rows.schema != schema:
                    schema = batch.rows.schema
                    messages = Messages(schema, {_KEY: json.dumps({**what, "table": table}).encode()})
                    parts.append(messages.head)
                parts.append(messages.batch(batch.rows, batch.turn, batch.joint))
        return b"".join(parts)

    def close(self) -> None:
        """Write what was gathered, unless the last write failed."""
        with self._lock:
            if self._stuck is None and not self._unsure:
                self._write()


@dataclass(frozen=True, slots=True)
class _Batch:
    table: str
    rows: pa.RecordBatch
    turn: int
    joint: bool


class ObjectTable:
    """One of a log's two tables, as `raytuner.record.journal` writes a table."""

    def __init__(self, log: ObjectLog, name: str) -> None:
        self.folder = log._folder
        self._log = log
        self._name = name

    def append(self, batch: pa.RecordBatch, turn: int, joint: bool) -> None:
        self._log.append(_Batch(self._name, batch, turn, joint))

    def sync(self) -> None:
        """What was appended to both tables is durable when this returns, if there are decisions in it."""
        self._log.flush()

    def note(self) -> None:
        """What was written is there as a whole."""

    def recover(self) -> None:
        """After a failed write. There is nothing to cut off: an object that may be there is written again as it was."""

    def close(self) -> None:
        self._log.close()


# ------------------------------------------------------------------------------------------------------- reading


def read_objects(root: Place) -> tuple[list[Turn], list[Turn]]:
    """The turns of the journal and of the reports that count. Raises `DamagedSegment`."""
    return _Found(root / "journal").read()


def read_last_object(root: Place) -> list[Turn]:
    """The journal's turns in the last object that counts and has any."""
    found = _Found(root / "journal")
    for name in reversed(found.names()):
        if turns := found.fetch(name)[0]:
            return turns
    return []


@dataclass
class _Found:
    """What is there when it is made: ``counts``, how many objects of each epoch count."""

    folder: Place
    counts: dict[str, int] = field(init=False)
    highest: int = field(init=False, default=0)
    """The largest number of an epoch of which anything is there."""

    def __post_init__(self) -> None:
        there: dict[str, set[int]] = {}
        for name in self.folder.listed():
            if found := _NAME.fullmatch(name):
                there.setdefault(found[1], set()).add(int(found[2]))
        self.counts = {}
        if not there:
            return
        self.highest = max(int(epoch.partition("-")[0]) for epoch in there)
        for epoch, numbers in there.items():
            if 0 not in numbers:
                raise DamagedSegment(f"{self.folder} lacks {_name(epoch, 0)}: there is {_name(epoch, min(numbers))}")
        newest = max(there)
        self.counts = {**self._said_after(newest), newest: len(there[newest])}
        for epoch, count in self.counts.items():
            missing = next((number for number in range(count) if number not in there.get(epoch, ())), None)
            if missing is not None:
                raise DamagedSegment(f"{self.folder} lacks {_name(epoch, missing)}")

    def _said_after(self, epoch: str) -> dict[str, int]:
        """What counted when an epoch began."""
        name = _name(epoch, 0)
        said = _said(read_streams((self.folder / name).read(), self.folder / name), self.folder / name)
        after = said.get("after")
        if not isinstance(after, dict) or not all(
            isinstance(count, int) and before < epoch for before, count in after.items()
        ):
            raise DamagedSegment(f"{self.folder / name} does not say what came before it: {after!r:.80}")
        return after

    def names(self) -> list[str]:
        return [_name(epoch, number) for epoch in sorted(self.counts) for number in range(self.counts[epoch])]

    def read(self) -> tuple[list[Turn], list[Turn]]:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="raytuner-read") as threads:
            found = list(threads.map(self.fetch, self.names()))
        return [turn for events, _ in found for turn in events], [turn for _, reports in found for turn in reports]

    def fetch(self, name: str) -> tuple[list[Turn], list[Turn]]:
        """The turns in one object: of the journal, and of the reports."""
        place = self.folder / name
        streams = read_streams(place.read(), place)
        said = _said(streams, place)
        expected = _NAME.fullmatch(name)
        assert expected is not None
        batches = sum(len(turns) for _, turns in streams)
        if (said.get("epoch"), said.get("number")) != (expected[1], int(expected[2])) or said.get("batches") != batches:
            raise DamagedSegment(f"{place} is damaged: it has {batches} batches, and says of itself: {said!r:.200}")
        tables: dict[str, list[Turn]] = {"journal": [], "reports": []}
        for schema, turns in streams:
            tables[_metadata(schema, place)["table"]] += turns
        return tables["journal"], tables["reports"]


def _said(streams: Sequence[tuple[pa.Schema, Sequence[Turn]]], place: Place) -> Mapping[str, Any]:
    """What an object says of itself."""
    if not streams:
        raise DamagedSegment(f"{place} is damaged: it is empty")
    return _metadata(streams[0][0], place)


def _metadata(schema: pa.Schema, place: Place) -> Mapping[str, Any]:
    try:
        said = json.loads((schema.metadata or {})[_KEY])
    except (KeyError, ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or said.get("table") not in ("journal", "reports"):
        raise DamagedSegment(f"{place} is damaged: it does not say what it is")
    return said


def _name(epoch: str, number: int) -> str:
    return f"{epoch}-{number:08d}.arrow"
