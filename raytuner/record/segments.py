"""Append-only files of Arrow batches that know when they are damaged.

A segment is an Arrow IPC *stream* (no footer to lose): any Arrow library reads it. Arrow has no checksums there, so
each message, the schema's included, carries in its custom metadata its own length and the CRC-32 of all its bytes::

    raytuner: "size=0000001234 crc32=89abcdef turn=17 joint=1"

The CRC is taken with its own eight digits as zeros. Nothing is given to Arrow before it is verified. A schema may say
more: of which driver's life the segment is (`Epoch`), and in an object store what the object is (`objects`).

A crash may leave a message half-written: a *torn tail*, which is cut off when a writer opens the folder and passed over
by readers. A bad message with good ones behind it is no torn tail but damage, and an error that names file and offset.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from raytuner.record.durable import open_plain
from raytuner.record.storage import Place

_KEY = b"raytuner"
_MARK = re.compile(rb"size=(\d{10}) crc32=([0-9a-f]{8}) turn=(-?\d{1,18}) joint=([01])")
_EPOCH = re.compile(rb"number=(\d{1,18}) nonce=([0-9a-f]{0,64}) since=(\d{1,18})")
_START = b"\xff\xff\xff\xff"
_ZEROS = b"0" * 8
_EXTENSION = b"\x14\0\0\0ARROW:extension:name"  # as a key of a column's metadata: its length comes first
_BUFFER = 1 << 16
_TAIL = 1 << 20  # of a segment, so much is looked at for its last message
_ONE_THREAD = pa.ipc.IpcReadOptions(
    use_threads=False
)  # batches are small: to share one out takes longer than to read it


class DamagedSegment(Exception):
    """A file of the record is not what was written."""


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """One driver's life, as its segments say it: the ``number``-th, begun when ``since`` turns were on record.

    What an older epoch wrote from there on was written by a driver that had lost the study, and does not count.
    ``nonce``: tells lives apart that began at once, each without knowing of the other.
    """

    number: int = 0
    nonce: str = ""
    since: int = 0

    KEY: ClassVar[bytes] = b"raytuner-epoch"

    def spelt(self) -> bytes:
        return f"number={self.number} nonce={self.nonce} since={self.since}".encode()

    @classmethod
    def of(cls, schema: pa.Schema) -> Epoch:
        """What a segment's schema says; the first of all epochs where it says nothing, as it once did."""
        found = _EPOCH.fullmatch((schema.metadata or {}).get(cls.KEY, b""))
        return cls(int(found[1]), found[2].decode(), int(found[3])) if found else cls()


@dataclass(frozen=True, slots=True)
class Turn:
    """One batch as written: which turn of the driver's loop it belongs to, and where it stands in its file.

    ``joint``: the same turn wrote to both of a study's tables; neither half counts without the other.
    """

    number: int
    joint: bool
    batch: pa.RecordBatch
    path: Path | Place
    offset: int
    epoch: Epoch = Epoch()


class Messages:
    """Batches of one schema as the sealed messages of a stream, of which ``head`` is the first.

    ``said``: what the schema's metadata says beside its seal.
    """

    def __init__(self, schema: pa.Schema, said: Mapping[bytes, bytes]) -> None:
        self._sink = _Sink()
        self._buffer = pa.BufferedOutputStream(pa.PythonFile(self._sink, mode="w"), _BUFFER)  # for many small writes
        marked = schema.with_metadata({_KEY: _mark(turn=-1, joint=False), **said})
        self._writer = pa.ipc.new_stream(self._buffer, marked)
        head = marked.serialize().to_pybytes()
        self._said_again = len(head)  # Arrow's writer holds it back, and says it again with the first batch
        self.head = _seal(head)

    def batch(self, batch: pa.RecordBatch, turn: int, joint: bool) -> bytes:
        self._writer.write_batch(batch, custom_metadata={_KEY: _mark(turn, joint)})
        self._buffer.flush()
        raw = self._sink.take()[self._said_again :]
        self._said_again = 0
        return _seal(raw)


class SegmentWriter:
    """Appends batches of one schema to a new file. Each append is one write; `sync` makes what was appended durable."""

    def __init__(self, path: Path, schema: pa.Schema, epoch: Epoch | None = None) -> None:
        self.path = path
        self.schema = schema
        self._messages = Messages(schema, {} if epoch is None else {Epoch.KEY: epoch.spelt()})
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        # The schema is durable before the first batch follows: of all that may be torn there is then one message, the
        # last.
        self.size = 0
        """Bytes of whole messages; a write that failed may have left more."""
        try:
            self._append(self._messages.head)
            self.sync()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, batch: pa.RecordBatch, turn: int, joint: bool) -> None:
        """Write one batch; not durable before `sync`."""
        self._append(self._messages.batch(batch, turn, joint))

    def _append(self, message: bytes) -> None:
        _write(self._file, message)
        self.size += len(message)

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
    raw = read_bytes(path)
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
    epoch = Epoch.of(batches[0].schema) if batches else Epoch()
    turns = [
        Turn(turn, joint, batch, path, begin, epoch)
        for (begin, turn, joint), batch in zip(marks[1:], batches, strict=True)
    ]
    return turns, offset


def last_turn(path: Path) -> Turn | None:
    """The last batch of a segment whose last message is whole, by a look at its beginning and its end; None where that
    does not show it. What lies between is not looked at."""
    with _plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        if head[:4] == _START:
            head += file.read(int.from_bytes(head[4:], "little"))
        begin = max(len(head), size - _TAIL)
        file.seek(begin)
        tail = file.read()
    schema = _message(head, 0)
    offset = len(tail)
    while schema is not None and (offset := tail.rfind(_START, 0, offset)) >= 0:
        found = _message(tail, offset)
        if found is None or offset + found[0] != len(tail):
            continue
        length, number, joint = found
        message = pa.py_buffer(tail).slice(offset, length)
        _expect("record batch", pa.ipc.read_message(message), path, begin + offset)
        stream = pa.py_buffer(head[: schema[0]] + message.to_pybytes())
        (batch,) = _batches(path, stream, [0, schema[0], stream.size])
        return Turn(number, joint, batch, path, begin + offset, Epoch.of(batch.schema))
    return None


def epoch_of(path: Path) -> Epoch:
    """The epoch of a segment, by a look at its beginning; the first one where that is torn."""
    with _plain(path) as file:
        raw = file.read(8)
        if raw[:4] == _START:
            raw += file.read(int.from_bytes(raw[4:], "little"))
    if (found := _message(raw, 0)) is None:
        return Epoch()
    return Epoch.of(_schema(path, pa.py_buffer(raw).slice(0, found[0])))


def read_streams(raw: bytes, place: Place) -> list[tuple[pa.Schema, list[Turn]]]:
    """The streams that an object holds one after the other, each verified: their schemas and their batches.

    Raises `DamagedSegment` for anything that is not as written: an object is there as a whole or not at all.
    """
    streams: list[tuple[pa.Schema, list[Turn]]] = []
    offset = 0
    while offset < len(raw):
        found = _message(raw, offset)
        if found is None:
            raise DamagedSegment(f"{place} is damaged at byte {offset}: what stands there is not what was written")
        size, turn, joint = found
        try:
            message = pa.ipc.read_message(pa.py_buffer(raw).slice(offset, size))
            if message.type == "schema":
                streams.append((_schema(place, pa.py_buffer(raw).slice(offset, size)), []))
            elif message.type == "record batch" and streams:
                schema, turns = streams[-1]
                batch = pa.ipc.read_record_batch(message, schema)
                batch.validate(full=True)  # a checksum does not say that what it covers makes sense
                turns.append(Turn(turn, joint, batch, place, offset))
            else:
                raise DamagedSegment(f"{place} is damaged at byte {offset}: a schema belongs there, not {message.type}")
        except (pa.ArrowException, OSError) as error:
            raise DamagedSegment(f"{place} is damaged at byte {offset}: {error}") from None
        offset += size
    return streams


class SegmentReader:
    """Reads a segment while its writer appends: each time from where it stopped the last time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        """Of the first byte behind what was read."""
        self.exhausted = False
        """Whether nothing stood behind that when it was last looked at."""
        self._schema: pa.Schema | None = None

    def more(self, before: int) -> list[Turn]:
        """The batches of turns below ``before``, each verified, that were not read yet.

        What stands behind them is not looked at: it may be half-written, and may yet be cut off. So whoever expects
        a turn must see whether it came.
        """
        try:
            with _plain(self.path) as file:
                file.seek(self.offset)
                raw = file.read()
        except FileNotFoundError:
            self.exhausted = False
            return []
        schema, turns, place, end = self._schema, [], 0, 0
        while (found := _message(raw, place)) is not None and found[1] < before:
            size, turn, joint = found
            message = pa.ipc.read_message(pa.py_buffer(raw).slice(place, size))
            _expect("schema" if schema is None else "record batch", message, self.path, self.offset + place)
            if schema is None:
                schema = _schema(self.path, pa.py_buffer(raw).slice(place, size))
            else:
                batch = pa.ipc.read_record_batch(message, schema)
                turns.append(Turn(turn, joint, batch, self.path, self.offset + place))
                end = place + size
            place += size
        self.exhausted = place == len(raw)
        if turns:  # else the file may be made anew, with another schema
            self.offset, self._schema = self.offset + end, schema
        return turns


def _plain(path: Path) -> BufferedReader:
    """The file, open; what is no plain file is no segment."""
    try:
        return open_plain(path)
    except ValueError as error:
        raise DamagedSegment(str(error)) from None


def read_bytes(path: Path) -> bytes:
    """What a segment's file holds. Raises `DamagedSegment` for what is no plain file."""
    with _plain(path) as file:
        return file.read()


def _schema(where: Path | Place, message: pa.Buffer) -> pa.Schema:
    """The schema that a message holds, unless a column is of a type that is code."""
    if _EXTENSION in message.to_pybytes():  # before Arrow reads it: some are pickles
        raise DamagedSegment(f"{where} has a column of an Arrow extension type, which is never read")
    return pa.ipc.read_schema(pa.ipc.read_message(message))


def _expect(kind: str, message: pa.Message, path: Path, offset: int) -> None:
    if message.type != kind:
        raise DamagedSegment(f"{path} is damaged at byte {offset}: a {kind} belongs there, not {message.type}")


def _batches(path: Path, raw: pa.Buffer, bounds: Sequence[int]) -> list[pa.RecordBatch]:
    """What the messages between these bounds hold: a schema, and batches of it."""
    if len(bounds) < 2:
        return []
    _expect("schema", pa.ipc.read_message(raw.slice(0, bounds[1])), path, 0)
    _schema(path, raw.slice(0, bounds[1]))
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
    for begin, end in pairwise(bounds[1:]):
        _expect("record batch", pa.ipc.read_message(raw.slice(begin, end - begin)), path, begin)
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
