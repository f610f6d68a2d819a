"""Append-only files of Arrow batches that know when they are damaged.

A segment is an Arrow IPC *stream* (no footer to lose): any Arrow library reads it. Arrow has no checksums there, so
each message, the schema's included, carries in its custom metadata its own length and the CRC-32 of all its bytes::

    raytuner: "size=0000001234 crc32=89abcdef turn=17 joint=1"

The CRC is taken with its own eight digits as zeros. Nothing is given to Arrow before it is verified.

A crash may leave a message half-written: a *torn tail*, which is cut off when a writer opens the folder and passed over
by readers. A bad message with good ones behind it is no torn tail but damage, and an error that names file and offset.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from raytuner.durable import open_plain

_KEY = b"raytuner"
_MARK = re.compile(rb"size=(\d{10}) crc32=([0-9a-f]{8}) turn=(-?\d{1,18}) joint=([01])")
_START = b"\xff\xff\xff\xff"
_ZEROS = b"0" * 8
_EXTENSION = b"\x14\0\0\0ARROW:extension:name"  # as a key of a column's metadata: its length comes first
_BUFFER = 1 << 16
_ONE_THREAD = pa.ipc.IpcReadOptions(
    use_threads=False
)  # batches are small: to share one out takes longer than to read it


class DamagedSegment(Exception):
    """A file of the record is not what was written."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One batch as written: which turn of the driver's loop it belongs to, and where it stands in its file.

    ``joint``: the same turn wrote to both of a study's tables; neither half counts without the other.
    """

    number: int
    joint: bool
    batch: pa.RecordBatch
    path: Path
    offset: int


class SegmentWriter:
    """Appends batches of one schema to a new file. Each append is one write; `sync` makes what was appended durable."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self._sink = _Sink()
        self._buffer = pa.BufferedOutputStream(pa.PythonFile(self._sink, mode="w"), _BUFFER)  # for many small writes
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        marked = schema.with_metadata({_KEY: _mark(turn=-1, joint=False)})
        self._writer = pa.ipc.new_stream(self._buffer, marked)
        # The schema is durable before the first batch follows: of all that may be torn there is then one message, the
        # last. Arrow's writer holds it back, and says it again with the first batch.
        self._said_again = marked.serialize().size
        _write(self._file, _seal(marked.serialize().to_pybytes()))
        self.sync()

    def append(self, batch: pa.RecordBatch, turn: int, joint: bool) -> None:
        """Write one batch; not durable before `sync`."""
        self._writer.write_batch(batch, custom_metadata={_KEY: _mark(turn, joint)})
        self._buffer.flush()
        raw = self._sink.take()[self._said_again :]
        self._said_again = 0
        _write(self._file, _seal(raw))

    def sync(self) -> None:
        """Return when all that was appended is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file. It has no end mark: a closed segment and one whose writer died read the same."""
        os.close(self._file)


def read_segment(path: Path, last: bool) -> tuple[list[Turn], int]:
    """The batches of a segment in order, each verified, and the byte at which what is good of it ends.

    ``last``: nothing was written after this file, so that its tail may be torn; the torn part is passed over.
    Raises `DamagedSegment` for anything else that is not as written.
    """
    try:
        with open_plain(path) as file:
            raw = file.read()
    except ValueError as error:
        raise DamagedSegment(str(error)) from None
    marks: list[tuple[int, int, bool]] = []  # of the messages: where each begins, its turn, whether that is joint
    offset = 0
    while offset < len(raw):
        found = _message(raw, offset)
        if found is None:
            if last and not _anything_good(raw, offset + 1):
                break
            raise DamagedSegment(f"{path} is damaged at byte {offset}: what stands there is not what was written")
        size, turn, joint = found
        marks.append((offset, turn, joint))
        offset += size
    batches = _batches(path, pa.py_buffer(raw), [begin for begin, _, _ in marks] + [offset])
    turns = [
        Turn(turn, joint, batch, path, begin) for (begin, turn, joint), batch in zip(marks[1:], batches, strict=True)
    ]
    return turns, offset


def _batches(path: Path, raw: pa.Buffer, bounds: Sequence[int]) -> list[pa.RecordBatch]:
    """What the messages between these bounds hold: a schema, and batches of it."""
    if len(bounds) < 2:
        return []
    if _EXTENSION in raw.slice(0, bounds[1]).to_pybytes():  # before Arrow reads it: some are pickles
        raise DamagedSegment(f"{path} has a column of an Arrow extension type, which is never read")
    try:
        batches = list(pa.ipc.open_stream(raw.slice(0, bounds[-1]), options=_ONE_THREAD))
        for batch in batches:
            batch.validate(full=True)  # a checksum does not say that what it covers makes sense
    except (pa.ArrowException, OSError) as error:
        wrong = str(error)
    else:
        if len(batches) == len(bounds) - 2:
            return batches
        wrong = f"it holds {len(batches)} batches"
    for place, (begin, end) in enumerate(pairwise(bounds)):
        message = pa.ipc.read_message(raw.slice(begin, end - begin))
        expected = "schema" if place == 0 else "record batch"
        if message.type != expected:
            raise DamagedSegment(f"{path} is damaged at byte {begin}: a {expected} belongs there, not {message.type}")
    raise DamagedSegment(f"{path} is damaged: {wrong}")


def truncate(path: Path, size: int) -> None:
    """Cut a file off, durably."""
    file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        if os.fstat(file).st_nlink > 1:
            raise DamagedSegment(f"{path} is damaged at byte {size}, and not cut off there: it has another hard link")
        os.ftruncate(file, size)
        os.fsync(file)
    finally:
        os.close(file)


class _Sink:
    """Where Arrow writes its messages, so that they can be sealed before they go to the file."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def flush(self) -> None:
        """Nothing lies below."""

    def close(self) -> None:
        """Nothing to close."""

    def take(self) -> bytes:
        raw = b"".join(self._parts)
        self._parts.clear()
        return raw


def _mark(turn: int, joint: bool) -> bytes:
    return b"size=%010d crc32=%s turn=%d joint=%d" % (0, _ZEROS, turn, joint)


def _seal(raw: bytes) -> bytes:
    """Fill in a message's length and checksum."""
    place = _MARK.search(raw)
    assert place is not None
    message = bytearray(raw)
    message[place.start(1) : place.end(1)] = b"%010d" % len(raw)
    message[place.start(2) : place.end(2)] = b"%08x" % zlib.crc32(message)
    return bytes(message)


def _message(raw: bytes, offset: int) -> tuple[int, int, bool] | None:
    """Length, turn and jointness of the message that stands at ``offset``; None if none stands there unhurt."""
    if raw[offset : offset + 4] != _START:
        return None
    header = 8 + int.from_bytes(raw[offset + 4 : offset + 8], "little")
    if offset + header > len(raw):  # before the search: a torn column of -1 looks like a start at every byte
        return None
    place = _MARK.search(raw, offset, offset + header)
    if place is None:
        return None
    size = int(place[1])
    if size < header or offset + size > len(raw):
        return None
    crc = zlib.crc32(raw[offset : place.start(2)])
    crc = zlib.crc32(_ZEROS, crc)
    crc = zlib.crc32(memoryview(raw)[place.end(2) : offset + size], crc)
    if crc != int(place[2], 16):
        return None
    return size, int(place[3]), place[4] == b"1"


def _anything_good(raw: bytes, offset: int) -> bool:
    while (offset := raw.find(_START, offset)) >= 0:
        if _message(raw, offset) is not None:
            return True
        offset += 1
    return False


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
