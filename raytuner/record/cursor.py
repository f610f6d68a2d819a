"""Reading a study's record as it grows, turn by turn: what was read is not read again.

The other way to read is `journal.read`, all at once. A `Cursor` is told how many turns are durable and looks
at no others: of what follows a part may be half-written, or be cut off by whoever repairs the record. That number is
the driver's to say (`Journal.turn`); who is no driver takes the study's lock, opens its `Journal` and closes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from raytuner.record.journal import Row, rows_of
from raytuner.record.segments import DamagedSegment, SegmentReader, Turn, epoch_of

_DECODED_AT_ONCE = 256  # turns: Arrow is slow to begin and fast to go on


@dataclass(frozen=True, slots=True)
class Happened:
    """One turn of the driver's loop: the events and decisions in their order, and what trials reported, as on disk."""

    turn: int
    rows: Sequence[Row]
    reports: pa.RecordBatch | None


class Cursor:
    """Reads a record from its beginning on. Raises `DamagedSegment` where a durable turn is not there whole."""

    def __init__(self, root: Path) -> None:
        self._events = _Tail(root / "journal")
        self._reports = _Tail(root / "reports")
        self._next = 0  # turn to be read

    def read(self, before: int) -> Iterator[Happened]:
        """The turns that were not read yet, up to ``before`` (without it); all of these are durable."""
        if before <= self._next:
            return
        for table in (self._events, self._reports):
            table.read(before)
        while self._next < before:
            chunk = [self._take() for _ in range(min(_DECODED_AT_ONCE, before - self._next))]
            rows = rows_of([events for _, events, _ in chunk if events is not None])
            for turn, events, reports in chunk:
                own = [next(rows) for _ in range(events.batch.num_rows)] if events is not None else []
                yield Happened(turn, own, reports.batch if reports is not None else None)

    def _take(self) -> tuple[int, Turn | None, Turn | None]:
        """The two halves of the next turn."""
        turn = self._next
        events, reports = self._events.take(turn), self._reports.take(turn)
        halves = [half.joint for half in (events, reports) if half is not None]
        if halves not in ([False], [True, True]):
            raise DamagedSegment(
                f"turn {turn} was written, but {self._events.where()} and {self._reports.where()} do not hold it whole"
            )
        self._next += 1
        return turn, events, reports


class _Tail:
    """A table's segments, read one after the other as they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._segment = SegmentReader(self._path(0))
        self._turns: deque[Turn] = deque()  # read, not taken

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.arrow"

    def read(self, before: int) -> None:
        while True:
            self._turns += self._segment.more(before)
            following = self._path(self._number + 1)
            if not following.exists():
                return
            self._turns += self._segment.more(before)  # now that there is a next one, it grows no more
            if not self._segment.exhausted:
                return
            since = epoch_of(following).since  # what was there when its writer took the study; else as it is
            if since:
                self._turns = deque(turn for turn in self._turns if turn.number < since)
            self._number += 1
            self._segment = SegmentReader(following)

    def take(self, turn: int) -> Turn | None:
        return self._turns.popleft() if self._turns and self._turns[0].number == turn else None

    def where(self) -> str:
        return f"{self._segment.path} from byte {self._segment.offset} on"
