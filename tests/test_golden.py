"""Studies that older versions wrote are read by this one, for ever.

Each folder ``golden/format_<n>`` was written by the version that had format ``n`` (``golden/make.py``), with what that
version read from it. THESE FILES ARE NEVER REWRITTEN. If this test fails, the reader is wrong, or the format has
changed: a new format adds a folder, and the reader goes on reading the old ones.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from raytuner.events import Drop, Failed, Opened, Retry
from raytuner.folder import FORMAT, Folder
from raytuner.journal import Journal, Row, read
from raytuner.results import ResultGrid
from raytuner.segments import read_segment

GOLDEN = Path(__file__).parent / "golden"
FORMATS = sorted(GOLDEN.glob("format_*"))


def seen(folder: Path) -> dict[str, Any]:
    """All that can be read of a golden folder, as plain JSON, wherever the folder stands."""
    root = folder / "study"
    grid = ResultGrid(root)

    def relative(path: str) -> str:
        return Path(path).relative_to(root).as_posix()

    best = {scope: grid.get_best_result(scope=scope).trial_id for scope in ("last", "all", "avg", "last-5-avg")}
    found = {
        "study": {name: value for name, value in Folder(root).read().items() if name not in ("created", "versions")},
        "trials": [
            {name: value for name, value in row.items() if name != "why"} | {"logdir": relative(row["logdir"])}
            for row in grid.to_arrow("trials").to_pylist()  # `why` is a sentence of the code, not of the record
        ],
        "reports": grid.to_arrow("reports").to_pylist(),
        "types": {field.name: str(field.type) for field in grid.to_arrow("reports").schema},
        "configs": [plain(result.config) for result in grid],
        "errors": [str(error) for error in grid.errors],
        "checkpoints": [
            [[relative(checkpoint.path), metrics] for checkpoint, metrics in result.best_checkpoints] for result in grid
        ],
        "weights": [
            Path(result.checkpoint.path, "weights.txt").read_text() if result.checkpoint else None for result in grid
        ],
        "best": best,
        "rows": [plain(row) for row in read(root).rows],
        "every kind of row": [plain(row) for row in read(folder / "rows").rows],
    }
    as_read_back: dict[str, Any] = json.loads(json.dumps(found))
    return as_read_back


def plain(value: Any) -> Any:
    """A row of the journal as JSON, in which a tuple is no list and an enum's member goes by its name."""
    if is_dataclass(value):
        return {"is a": type(value).__name__} | {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    match value:
        case Enum():
            return value.name
        case tuple():
            return {"is a": "tuple", "of": [plain(item) for item in value]}
        case list():
            return [plain(item) for item in value]
        case dict():
            return {name: plain(item) for name, item in value.items()}
    return value


def differences(expected: Any, found: Any, where: str) -> list[str]:
    """Where what was expected is not found. There may be more: columns and fields that later versions add."""
    if isinstance(expected, dict) and isinstance(found, dict):
        missing = [f"{where} lacks {name!r}" for name in expected.keys() - found.keys()]
        return missing + [
            wrong
            for name in expected.keys() & found.keys()
            for wrong in differences(expected[name], found[name], f"{where}/{name}")
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [wrong for number, pair in pairs for wrong in differences(*pair, f"{where}/{number}")]
    # As text: NaN equals itself, and 1 is neither 1.0 nor True.
    return (
        [] if json.dumps(expected) == json.dumps(found) else [f"{where}: {found!r} was read, {expected!r} was written"]
    )


def test_this_versions_format_is_there() -> None:
    assert GOLDEN / f"format_{FORMAT}" in FORMATS


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_a_golden_study_reads_as_it_did(folder: Path) -> None:
    before = files(folder)
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    assert differences(expected, seen(folder), folder.name) == []
    assert files(folder) == before, "reading changed a golden file"


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_a_golden_study_can_be_opened_to_be_written(folder: Path, tmp_path: Path) -> None:
    """Its record is whole: opening it repairs nothing, and it can be written on."""
    root = tmp_path / "study"
    shutil.copytree(folder / "study", root)
    journal = Journal(root)
    assert [repr(row) for row in journal.rows()] == [repr(row) for row in read(folder / "study").rows]
    assert files(root) == files(folder / "study")
    journal.commit([Opened(2e9, 9)], [])
    journal.close()
    assert read(root).rows[-1] == Opened(2e9, 9)


def test_the_golden_study_holds_what_it_is_for() -> None:
    root = GOLDEN / "format_1" / "study"
    rows = read(root).rows
    for kind, least in ((Opened, 2), (Failed, 2), (Retry, 2), (Drop, 3)):
        assert sum(isinstance(row, kind) for row in rows) >= least, kind
    table = ResultGrid(root).to_arrow("reports")
    assert 0 < table["val/accuracy"].null_count < table.num_rows, "a late metric"
    for name in ("journal", "reports"):
        segments = sorted((root / name).glob("*.arrow"))
        assert len(segments) >= 2
        turns = [turn for path in segments for turn in read_segment(path, last=False)[0]]
        assert any(turn.joint for turn in turns)
        assert not all(turn.joint for turn in turns) or name == "reports"


def test_every_kind_of_row_is_in_the_golden_journal() -> None:
    assert {type(row) for row in read(GOLDEN / f"format_{FORMAT}" / "rows").rows} == set(Row.__args__)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
