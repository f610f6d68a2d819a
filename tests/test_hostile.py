"""A study's folder from a stranger: loading it runs no code, and reads, writes and deletes nothing outside of it.

Each hostile thing is planted in a copy of a study that is not over, with checksums that are right; then the study is
opened by all doors. Python's audit events tell what was opened, renamed or unpickled meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

import raytuner as tune
from raytuner.checkpoints import MANIFEST, DamagedCheckpoint
from raytuner.cli import main
from raytuner.driver import ReplayDiffers
from raytuner.history import History
from raytuner.record import folder
from raytuner.record.journal import FORMAT, JOURNAL, REPORTS
from raytuner.record.segments import DamagedSegment, Epoch, _mark, _seal, read_segment
from tests.test_damage import QUIET, Known, seen, studies, train

__all__ = ["studies"]  # a fixture


class Payload:
    """Whoever unpickles it runs its code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder outside of the study, in which nothing may happen."""
    made = tmp_path / "precious"
    made.mkdir()
    (made / "data").write_text("precious")
    (made / "000000.arrow").write_text("precious")
    (made / "study.json").write_text('{"format": 2}')
    (made / "000004").mkdir()
    (made / "000004" / "weights.json").write_text("[1, 2.0]")
    return made


@pytest.fixture
def root(tmp_path: Path, studies: dict[str, Known]) -> Path:
    """The copy in which things are planted."""
    made = tmp_path / "storage" / "study"
    shutil.copytree(studies["early sweep"].root, made)
    return made


# -------------------------------------------------------------------------------------------------- what happened

_watched: list[tuple[Path, list[str]]] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _watched:
        return
    outside, found = _watched[-1]
    if event == "pickle.find_class":
        found.append(f"unpickled {args}")
    elif event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.listdir", "os.scandir"):
        for each in args[:2]:
            if isinstance(each, str | bytes) and os.fsdecode(each).startswith(str(outside)):
                found.append(f"{event} {os.fsdecode(each)}")


sys.addaudithook(_audit)


@contextmanager
def nothing_happens_to(outside: Path) -> Iterator[None]:
    before = content(outside)
    found: list[str] = []
    _watched.append((outside, found))
    try:
        yield
    finally:
        _watched.pop()
    assert not found
    assert content(outside) == before


def content(path: Path) -> dict[str, bytes | None]:
    return {str(each): each.read_bytes() if each.is_file() else None for each in sorted(path.rglob("*"))}


def refusals(root: Path, precious: Path) -> list[str]:
    """What the doors say against a study. Anything that is no error of ours is not caught."""
    restored = lambda: tune.Tuner.restore(root, train, run_config=QUIET, executor="inline")  # noqa: E731
    doors: Sequence[Callable[[], Any]] = (
        lambda: seen(root),
        lambda: tune.Tuner.can_restore(root),
        lambda: restored().get_results(),
        lambda: History.from_study(root),
        lambda: list(restored().fit().errors),
    )
    said: list[str] = []
    with nothing_happens_to(precious):
        command = CliRunner().invoke(main, ["plan", str(root), "--workers", "2"])
        assert command.exception is None or isinstance(command.exception, SystemExit), command.exception
        for door in doors:
            try:
                found = door()
            except (ValueError, *REFUSED) as error:
                said.append(str(error))
            else:
                said += [str(each) for each in found] if isinstance(found, list) else []
    return said


REFUSED = (DamagedSegment, DamagedCheckpoint, ReplayDiffers)


# ------------------------------------------------------------------------------------------------ how it is planted


def segment(schema: pa.Schema, batches: Sequence[tuple[int, bool, pa.RecordBatch]]) -> bytes:
    """A segment with right checksums, whatever is in it."""
    marked = schema.with_metadata({**(schema.metadata or {}), b"raytuner": _mark(-1, False)})
    raw = _seal(marked.serialize().to_pybytes())
    for turn, joint, batch in batches:
        sink = pa.BufferOutputStream()
        writer = pa.ipc.new_stream(sink, schema)
        head = sink.tell()
        writer.write_batch(batch, custom_metadata={b"raytuner": _mark(turn, joint)})
        raw += _seal(sink.getvalue().to_pybytes()[max(head, schema.serialize().size) :])
    return raw


def add_rows(root: Path, *rows: dict[str, Any]) -> None:
    """Rows at the end of a journal."""
    turns = read_segment(root / "journal" / "000000.arrow", last=True)[0]
    others = read_segment(sorted((root / "reports").glob("*"))[-1], last=True)[0]
    turn = max(turns[-1].number, others[-1].number) + 1
    full = [dict.fromkeys(JOURNAL.names) | {"turn": turn} | row for row in rows]
    batch = pa.RecordBatch.from_pylist(full, schema=JOURNAL)
    (root / "journal" / "000001.arrow").write_bytes(segment(JOURNAL, [(turn, False, batch)]))


def rewrite(root: Path, **what: Any) -> None:
    """Change ``study.json``, with a right checksum."""
    path = root / "study.json"
    said = {**json.loads(path.read_text()), **what}
    del said["sha256"]
    path.write_text(json.dumps({**said, "sha256": folder._digest(said)}))


def replace_by_link(path: Path, target: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(target)


def a_checkpoint(root: Path) -> Path:
    return sorted((root / "checkpoints").glob("*/*"))[0]


def rewrite_manifest(root: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the manifests of all checkpoints, of which one will be looked at."""
    for path in sorted((root / "checkpoints").glob(f"*/*/{MANIFEST}")):
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))
    return path


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


# ------------------------------------------------------------------------------------------------------- pickles


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("where", ["study.json", "journal/000000.arrow", "reports/000000.arrow", MANIFEST, "lock"])
def test_a_pickle_is_not_read(where: str, protocol: int, root: Path, precious: Path) -> None:
    marker = precious / "pwned"
    path = a_checkpoint(root) / MANIFEST if where == MANIFEST else root / where
    path.write_bytes(pickle.dumps(Payload(marker), protocol=protocol))
    said = refusals(root, precious)
    assert not marker.exists()
    if where != "lock":  # whose content nobody needs
        assert any(str(path) in each or path.parent.name in each for each in said), said
        assert said


@pytest.mark.parametrize("table", ["journal", "reports"])
@pytest.mark.parametrize("name", ["arrow.py_extension_type", "ray.data.arrow_pickled_object", "somebody's"])
def test_an_arrow_extension_type_is_not_read(name: str, table: str, root: Path, precious: Path) -> None:
    payload = pickle.dumps(Payload(precious / "pwned"))
    plain = JOURNAL if table == "journal" else REPORTS
    metadata = {b"ARROW:extension:name": name.encode(), b"ARROW:extension:metadata": payload}
    schema = pa.schema([*plain, pa.field("metric:x", pa.binary(), metadata=metadata)])
    (root / table / "000000.arrow").write_bytes(segment(schema, []))
    said = refusals(root, precious)
    assert f"{root / table / '000000.arrow'} has a column of an Arrow extension type, which is never read" in said


def test_the_metadata_of_pandas_is_not_looked_at(root: Path, precious: Path, studies: dict[str, Known]) -> None:
    path = root / "reports" / "000000.arrow"
    turns, _ = read_segment(path, last=True)
    hostile = {b"pandas": pickle.dumps(Payload(precious / "pwned")), Epoch.KEY: turns[0].epoch.spelt()}
    schema = turns[0].batch.schema.remove_metadata().with_metadata(hostile)
    path.write_bytes(segment(schema, [(turn.number, turn.joint, turn.batch) for turn in turns]))
    with nothing_happens_to(precious):
        grid = tune.ResultGrid(root)
        assert len(grid.get_dataframe()) == len(grid)
        assert len(grid[0].metrics_dataframe)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("journal", pa.field("more", pa.string())),
        ("reports", pa.field("metric:x", pa.binary())),
        ("reports", pa.field("metric:x", pa.list_(pa.int64()))),
        ("reports", pa.field("metric:x", pa.dictionary(pa.int32(), pa.string()))),
        ("reports", pa.field("x", pa.int64())),
        ("reports", pa.field("trial", pa.int64())),
    ],
    ids=str,
)
def test_other_columns_are_not_read(table: str, column: pa.Field, root: Path, precious: Path) -> None:
    plain = JOURNAL if table == "journal" else REPORTS
    schema = pa.schema([*plain, column])
    path = root / table / "000000.arrow"
    turn = read_segment(path, last=True)[0][0].number
    batch = pa.RecordBatch.from_arrays(
        [pa.nulls(1, kind) if (kind := field.type) else None for field in schema], schema=schema
    )
    path.write_bytes(segment(schema, [(turn, False, batch)]))
    said = refusals(root, precious)
    assert any(str(path) in each or str(path.parent) in each for each in said), said


# ------------------------------------------------------------------------------------------------------- text

YAML = '!!python/object/apply:os.mkdir ["{}"]'


def test_yaml_is_no_language_of_a_study(root: Path, precious: Path) -> None:
    text = YAML.format(precious / "pwned")
    add_rows(root, {"kind": "proposed", "at": 1.0, "trial": 0, "what": "config", "config": text, "data": "{}"})
    assert any(f"{root / 'journal'}: this version" in each and "!!python" in each for each in refusals(root, precious))
    for path in (a_checkpoint(root) / MANIFEST, root / "study.json"):
        path.write_text(text)
    said = refusals(root, precious)
    assert f"{root / 'study.json'} is damaged: Expecting value: line 1 column 1 (char 0)" in said


@pytest.mark.parametrize(
    "row",
    [
        {"kind": "start", "trial": -1, "until": 1},
        {"kind": "start", "until": 1},
        {"kind": "drop", "trial": 0, "step": -4},
        {"kind": "fork", "trial": 9, "source": 0, "until": 1, "config": '"../../x"'},
        {"kind": "over", "trial": 0, "what": "../../x", "why": "STOPPED", "text": ""},
        {"kind": "../../x"},
        {"kind": "ticked"},
        {"kind": "proposed", "at": 1.0, "trial": 0, "what": "config", "config": deep(100_000), "data": "{}"},
        {"kind": "proposed", "at": 1.0, "trial": 0, "what": "config", "config": '{"$uniform": [0, 1]}', "data": "{}"},
        {"kind": "proposed", "at": 1.0, "trial": 0, "what": "config", "config": '{"$import": "os"}', "data": "{}"},
        {"kind": "proposed", "at": 1.0, "trial": 0, "what": "config", "config": f'{{"a": {"9" * 5000}}}', "data": "{}"},
        {"kind": "slots", "at": 1.0, "number": 1, "data": '[{"__class__": "os"}]'},
    ],
    ids=lambda row: str(row)[:60],
)
def test_a_row_that_makes_no_sense_is_refused(row: dict[str, Any], root: Path, precious: Path) -> None:
    add_rows(root, row)
    said = refusals(root, precious)
    assert any(f"{root / 'journal'}: this version (format {FORMAT}) cannot read a row" in each for each in said), said
    assert all(len(each) < 5000 for each in said)


@pytest.mark.parametrize(
    "row",
    [
        {"kind": "resume", "trial": 2**62, "until": 3},
        {"kind": "fork", "trial": 2**62, "source": 2**61, "until": 3, "config": "{}", "number": 5},
        {"kind": "ended", "at": 1.0, "trial": 77, "attempt": 1, "what": "REACHED", "step": 1, "level": 1.0}
        | {"data": "{}", "spent": 0.0},
    ],
    ids=lambda row: str(row)[:60],
)
def test_rows_of_trials_that_never_were_are_refused(row: dict[str, Any], root: Path, precious: Path) -> None:
    add_rows(root, {"kind": "ticked", "at": 1.0}, row)
    said = refusals(root, precious)
    assert any("its rows make no study" in each or "replaying the journal" in each for each in said), said


DEEP: Any = []
for _ in range(450):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"search_alg": {"name": "os.system", "args": {"command": "true"}}}, "os.system is not raytuner's own"),
        ({"search_alg": {"name": "../../x", "args": {}}}, "../../x is not raytuner's own"),
        ({"search_alg": {"name": ["BOHB"], "args": {}}}, "unhashable type"),
        ({"search_alg": {"args": {}}}, "'name'"),
        ({"scheduler": {"name": "FIFOScheduler", "args": {"build": "x"}}}, "'build'"),
        ({"space": {"lr": {"$import": ["os"]}}}, "'$import' is no kind of domain"),
        ({"space": {"lr": {"$uniform": "os"}}}, "study.json cannot be understood: "),
        ({"space": {"lr": DEEP}}, "study.json cannot be understood: RecursionError"),
        ({"space": "lr"}, "study.json is damaged: 'space' cannot be 'lr'"),
        ({"seed": "1"}, "study.json is damaged: 'seed' cannot be '1'"),
        ({"mode": "../.."}, "study.json is damaged: 'mode' cannot be '../..'"),
        ({"stop": [1]}, "study.json is damaged: 'stop' cannot be [1]"),
        ({"stop": {"loss": "x" * 5000}}, "study.json cannot be understood: "),
        ({"resources": {"cpu": 1, "open": "/etc/passwd"}}, "study.json cannot be understood: "),
        ({"failure_config": {"__init__": 1}}, "study.json cannot be understood: "),
        ({"checkpoint_config": {"num_to_keep": -1}}, "study.json cannot be understood: "),
        ({"default_config": {"centre": 1}}, "study.json cannot be understood: "),
        ({"points_to_evaluate": [{"$prior": 1}]}, "study.json cannot be understood: "),
    ],
    ids=lambda case: str(case)[:60],
)
def test_settings_that_make_no_sense_are_refused(
    what: dict[str, Any], message: str, root: Path, precious: Path
) -> None:
    rewrite(root, **what)
    said = refusals(root, precious)
    assert any(message in each and str(root / "study.json") in each for each in said), said


def test_names_in_study_json_lead_nowhere(root: Path, precious: Path, studies: dict[str, Known]) -> None:
    """Where a study is, is known without it."""
    rewrite(root, name=f"../../{precious.name}", trainable=str(precious / "data"))
    with nothing_happens_to(precious):
        assert seen(root) == studies["early sweep"].seen
        results = tune.Tuner.restore(root, train, run_config=QUIET, executor="inline").fit()
    assert results.experiment_path == str(root)
    assert [path.name for path in root.parent.iterdir()] == ["study"]


def test_a_study_json_nested_too_deep(root: Path, precious: Path) -> None:
    (root / "study.json").write_text(deep(200_000))
    said = refusals(root, precious)
    assert any(each.startswith(f"{root / 'study.json'} is damaged: ") for each in said), said


# ------------------------------------------------------------------------------------------------ names and links


@pytest.mark.parametrize(
    "name",
    ["../../../../precious/data", "/etc/hostname", "a/../../x", ".", "", "a//b", "a\0b", "x" * 300, "a/" + "ü" * 200],
    ids=lambda name: repr(name)[:30],
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_manifest_names_files_of_its_checkpoint(name: str, as_folder: bool, root: Path, precious: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        content = (precious / "data").read_bytes()
        if as_folder:
            manifest["folders"].append(name)
        else:
            manifest["files"].append(
                {"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            )

    rewrite_manifest(root, change)
    said = refusals(root, precious)
    wrong = ("is not a path inside the checkpoint", "is longer than a file's name can be")
    assert any(f"{MANIFEST}: bad manifest: " in each and each.endswith(wrong) for each in said), said


def test_a_mark_with_a_number_that_no_machine_holds(root: Path, precious: Path) -> None:
    path = root / "journal" / "000000.arrow"
    marked = JOURNAL.with_metadata({b"raytuner": b"size=0000000000 crc32=00000000 turn=%s joint=0" % (b"9" * 5000)})
    path.write_bytes(marked.serialize().to_pybytes() + path.read_bytes())
    assert any(f"{path} is damaged at byte 0" in each for each in refusals(root, precious))


@pytest.mark.parametrize(
    "where",
    ["study.json", "journal", "reports", "journal/000000.arrow", "reports/000000.arrow", "lock"],
)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_the_place_of_a_record_is_not_followed(
    where: str, dangling: bool, root: Path, precious: Path
) -> None:
    path = root / where
    target = precious if path.is_dir() else precious / "000000.arrow"
    replace_by_link(path, precious / "nothing" if dangling else target)
    said = refusals(root, precious)
    assert any(f"{path} is a symbolic link" in each for each in said), said


@pytest.mark.parametrize("where", ["root", "trial", "step", "file"])
def test_a_link_in_the_place_of_a_checkpoint_is_not_followed(where: str, root: Path, precious: Path) -> None:
    for step in sorted((root / "checkpoints").glob("*/*")):
        match where:
            case "root":
                path = root / "checkpoints"
            case "trial":
                path = step.parent
            case "step":
                path = step
            case _:
                path = step / "weights.json"
        if not path.is_symlink():
            replace_by_link(path, precious / "data" if where == "file" else precious)
    said = refusals(root, precious)
    assert any("is damaged: " in each and "is a symbolic link" in each for each in said), said
    assert path.is_symlink() or where in ("step", "file")


@pytest.mark.parametrize("where", ["artifacts", "a trial's", "stdout"])
def test_a_link_in_the_place_of_a_trials_own_folder_is_not_followed(where: str, root: Path, precious: Path) -> None:
    shutil.rmtree(root / "artifacts", ignore_errors=True)
    for number in range(4):
        path = root / "artifacts" if where == "artifacts" else root / "artifacts" / f"{number:06d}"
        if where == "stdout":
            path.mkdir(parents=True)
            path = path / "stdout"
        if not path.is_symlink():
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(precious / "data" if where == "stdout" else precious)
    run = tune.RunConfig(verbose=0, log_to_file=True)
    with nothing_happens_to(precious):
        results = tune.Tuner.restore(root, train, run_config=run, executor="inline").fit()
    said = [str(error) for error in results.errors]
    assert any("symbolic link" in each and str(root / "artifacts") in each for each in said), said


def test_a_torn_file_that_is_linked_from_elsewhere_is_not_cut(root: Path, precious: Path) -> None:
    path = root / "journal" / "000000.arrow"
    path.unlink()
    os.link(precious / "data", path)
    for each in (root / "reports").iterdir():
        each.unlink()
    said = refusals(root, precious)
    assert any(f"{path} is damaged at byte 0, and not cut off there: it has another hard link" in each for each in said)
