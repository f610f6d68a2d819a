"""A segment gives back what was written, says that it is damaged, or ends where it was torn: nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytuner.record import segments
from raytuner.record.segments import DamagedSegment, SegmentWriter, Turn, last_turn, read_segment, truncate

SCHEMA = pa.schema([("n", pa.int64()), ("x", pa.float64()), ("name", pa.string()), ("flag", pa.bool_())])
Content = list[tuple[int, bool, list[dict[str, object]]]]


def batch(rows: int, start: int = 0) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [{"n": start + n, "x": n / 3, "name": f"row {n}", "flag": n % 2 == 0} for n in range(rows)], schema=SCHEMA
    )


def write(path: Path, batches: Sequence[pa.RecordBatch]) -> list[int]:
    """A segment of these batches, each a turn, every third of them joint; where each message ends, the schema's too."""
    writer = SegmentWriter(path, batches[0].schema)
    for turn, each in enumerate(batches):
        writer.append(each, turn, turn % 3 == 0)
    writer.sync()
    writer.close()
    turns, end = read_segment(path, last=False)
    return [*(turn.offset for turn in turns), end]


def content(turns: Sequence[Turn]) -> Content:
    return [(turn.number, turn.joint, turn.batch.to_pylist()) for turn in turns]


@pytest.fixture
def segment(fast_path: Path) -> Path:
    """Three batches, the middle one empty."""
    path = fast_path / "000000.arrow"
    write(path, [batch(4), batch(0), batch(3, 100)])
    return path


def test_round_trip(segment: Path) -> None:
    turns, end = read_segment(segment, last=True)
    assert content(turns) == [
        (0, True, batch(4).to_pylist()),
        (1, False, []),
        (2, False, batch(3, 100).to_pylist()),
    ]
    assert all(turn.batch.schema.equals(SCHEMA) for turn in turns)
    assert end == segment.stat().st_size
    assert content(read_segment(segment, last=False)[0]) == content(turns)


VALUES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(),
    pa.bool_(): st.booleans(),
}


@given(st.data())
@settings(max_examples=40)
def test_round_trip_of_any_schema(data: st.DataObject) -> None:
    import tempfile

    kinds = data.draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=5))
    names = data.draw(st.lists(st.text(), min_size=len(kinds), max_size=len(kinds), unique=True))
    schema = pa.schema(list(zip(names, kinds, strict=True)))
    columns = st.integers(0, 5).flatmap(
        lambda rows: st.tuples(
            *(st.lists(st.none() | VALUES[kind], min_size=rows, max_size=rows) for kind in kinds),
        )
    )
    tables = data.draw(st.lists(columns, min_size=1, max_size=3))
    batches = [
        pa.RecordBatch.from_arrays([pa.array(v, k) for v, k in zip(table, kinds, strict=True)], schema=schema)
        for table in tables
    ]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "a.arrow"), batches)
        turns, _ = read_segment(Path(folder, "a.arrow"), last=True)
    assert [turn.batch for turn in turns] == batches


def test_arrow_itself_reads_a_segment(segment: Path) -> None:
    with pa.OSFile(str(segment)) as file, pa.ipc.open_stream(file) as reader:
        table = reader.read_all()
    assert table.to_pylist() == batch(4).to_pylist() + batch(3, 100).to_pylist()


def test_the_mark_of_a_batch_is_readable_by_all(segment: Path) -> None:
    with pa.OSFile(str(segment)) as file, pa.ipc.open_stream(file) as reader:
        _, metadata = reader.read_next_batch_with_custom_metadata()
    assert dict(metadata)[b"raytuner"].endswith(b" turn=0 joint=1")


def test_every_bit_flip_is_noticed(fast_path: Path) -> None:
    """A flip is an error, or, in the last message of the last segment, a torn tail. Never other content."""
    path = fast_path / "000000.arrow"
    ends = write(path, [batch(2), batch(1, 7)])
    good = content(read_segment(path, last=True)[0])
    raw = path.read_bytes()
    for place, bit in itertools.product(range(len(raw)), (0, 3, 5, 7)):
        hurt = bytearray(raw)
        hurt[place] ^= 1 << bit
        path.write_bytes(hurt)
        with pytest.raises(DamagedSegment):
            read_segment(path, last=False)
        if place < ends[1]:  # in the schema or the first batch, with a good one behind
            with pytest.raises(DamagedSegment):
                read_segment(path, last=True)
        else:
            found, end = read_segment(path, last=True)
            assert content(found) == good[:-1]
            assert end == ends[1]


def test_every_truncation_leaves_a_prefix(segment: Path) -> None:
    turns, size = read_segment(segment, last=True)
    ends = [turn.offset for turn in turns] + [size]  # of the schema, then of each batch
    for cut in range(size - 1, -1, -1):
        truncate(segment, cut)
        whole = sum(end <= cut for end in ends)
        found, end = read_segment(segment, last=True)
        assert content(found) == content(turns)[: max(whole - 1, 0)]
        assert end == (ends[whole - 1] if whole else 0)
        if cut in (0, *ends):
            assert read_segment(segment, last=False)[1] == cut
        else:
            with pytest.raises(DamagedSegment, match=f"at byte {end}:"):
                read_segment(segment, last=False)


def test_the_last_turn_is_seen_from_the_end(segment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every beginning of a file: the last batch if its message ends there, else nothing, and never another one."""
    raw, (turns, _) = segment.read_bytes(), read_segment(segment, last=False)
    ends = [*(turn.offset for turn in turns[1:]), len(raw)]
    for tail in (64, 1 << 20):
        monkeypatch.setattr(segments, "_TAIL", tail)
        for size in range(len(raw) + 1):
            segment.write_bytes(raw[:size])
            found = last_turn(segment)
            if found is None:
                assert tail == 64 or size not in ends
            else:
                expected = turns[ends.index(size)]
                assert content([found]) == content([expected])
                assert (found.offset, found.epoch) == (expected.offset, expected.epoch)


def test_damage_in_the_middle_names_file_and_byte(segment: Path) -> None:
    turns, _ = read_segment(segment, last=True)
    raw = bytearray(segment.read_bytes())
    raw[turns[2].offset - 1] ^= 1  # the last byte of the second batch
    segment.write_bytes(raw)
    with pytest.raises(DamagedSegment) as caught:
        read_segment(segment, last=True)
    assert str(segment) in str(caught.value)
    assert f"at byte {turns[1].offset}:" in str(caught.value)


@pytest.mark.parametrize("tail", [bytes(1), bytes(4096), b"\xff" * 7, b"\xff" * 200_000, b"garbage" * 50])
def test_what_a_power_failure_leaves_behind_is_a_torn_tail(segment: Path, tail: bytes) -> None:
    """A file that was lengthened but not filled; a run of -1, each byte of which looks like a message's start."""
    turns, size = read_segment(segment, last=True)
    segment.write_bytes(segment.read_bytes() + tail)
    found, end = read_segment(segment, last=True)
    assert content(found) == content(turns)
    assert end == size
    with pytest.raises(DamagedSegment, match=f"at byte {size}:"):
        read_segment(segment, last=False)


def test_a_torn_batch_of_minus_ones_is_cut(fast_path: Path) -> None:
    path = fast_path / "000000.arrow"
    ones = pa.RecordBatch.from_pydict({"n": pa.array([-1] * 50_000, pa.int64())})
    ends = write(path, [ones, ones])
    truncate(path, ends[2] - 8)
    found, end = read_segment(path, last=True)
    assert len(found) == 1
    assert end == ends[1]


def test_a_hole_in_the_last_message_is_a_torn_tail(segment: Path) -> None:
    """A power failure may keep a message's end and lose its beginning."""
    turns, _ = read_segment(segment, last=True)
    raw = bytearray(segment.read_bytes())
    raw[turns[2].offset : turns[2].offset + 64] = bytes(64)
    segment.write_bytes(raw)
    found, end = read_segment(segment, last=True)
    assert content(found) == content(turns)[:2]
    assert end == turns[2].offset


@pytest.mark.parametrize("last", [True, False])
def test_an_empty_file_and_one_with_a_schema_only(segment: Path, last: bool) -> None:
    """A driver died before its first batch; later its successor cut off what it had begun."""
    first = read_segment(segment, last=True)[0][0].offset
    truncate(segment, first)
    assert read_segment(segment, last=last) == ([], first)
    truncate(segment, 0)
    assert read_segment(segment, last=last) == ([], 0)


def test_a_writer_that_wrote_nothing_leaves_a_schema(fast_path: Path) -> None:
    """On the disk before the first batch: whatever of that a power failure loses, it is the last message's."""
    path = fast_path / "000000.arrow"
    writer = SegmentWriter(path, SCHEMA)
    assert read_segment(path, last=False) == ([], path.stat().st_size)
    size = path.stat().st_size
    writer.append(batch(100), 0, joint=False)
    writer.close()
    whole = path.read_bytes()
    for sector in range(size // 512, len(whole) // 512 + 1):
        torn = bytearray(whole)
        start = max(size, sector * 512)
        torn[start : (sector + 1) * 512] = bytes(len(torn[start : (sector + 1) * 512]))
        path.write_bytes(torn)
        if torn != whole:
            assert read_segment(path, last=True) == ([], size)


def test_an_existing_file_is_never_written_over(segment: Path) -> None:
    before = segment.read_bytes()
    with pytest.raises(FileExistsError):
        SegmentWriter(segment, SCHEMA)
    assert segment.read_bytes() == before


def test_good_messages_in_the_wrong_place_are_damage(segment: Path) -> None:
    """Each bears a right checksum; they are still not what was written."""
    turns, _ = read_segment(segment, last=True)
    raw = segment.read_bytes()
    segment.write_bytes(raw[turns[0].offset :])
    with pytest.raises(DamagedSegment, match="at byte 0: a schema belongs there, not record batch"):
        read_segment(segment, last=True)
    segment.write_bytes(raw + raw)
    with pytest.raises(DamagedSegment, match=f"at byte {len(raw)}: a record batch belongs there, not schema"):
        read_segment(segment, last=True)
