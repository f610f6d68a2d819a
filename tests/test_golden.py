"""Studies that older versions wrote are read by this one, for ever.

Each folder ``golden/format_<n>`` was written by the version that had format ``n`` (``golden/make.py``), with what that
version read from it. THESE FILES ARE NEVER REWRITTEN. If this test fails, the reader is wrong, or the format has
changed: a new format adds a folder, and the reader goes on reading the old ones.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

import raytuner as tune
from raytuner.actions import Fork, Start
from raytuner.checkpoints import Store
from raytuner.driver import Driver
from raytuner.events import Checkpointed, Drop, Failed, Loaded, Opened, Over, Retry
from raytuner.executors.simulate import Simulation, Workload, World
from raytuner.record.folder import FORMAT, Folder
from raytuner.record.journal import Journal, Row, read
from raytuner.record.segments import read_segment
from raytuner.results import ResultGrid
from raytuner.study import Study

GOLDEN = Path(__file__).parent / "golden"
FORMATS = sorted(GOLDEN.glob("format_*"))
STUDIES = sorted(path.parent for path in GOLDEN.glob("format_*/*/study.json"))


def seen(folder: Path) -> dict[str, Any]:
    """All that can be read of a golden folder, as plain JSON, wherever the folder stands."""
    found = seen_of(folder / "study") | {"every kind of row": [plain(row) for row in read(folder / "rows").rows]}
    if (folder / "population").exists():
        found["population"] = seen_of(folder / "population")
    as_read_back: dict[str, Any] = json.loads(json.dumps(found))
    return as_read_back


def seen_of(root: Path) -> dict[str, Any]:
    """The same of one study."""
    grid = ResultGrid(root)

    def relative(path: str) -> str:
        return Path(path).relative_to(root).as_posix()

    best = {scope: grid.get_best_result(scope=scope).trial_id for scope in ("last", "all", "avg", "last-5-avg")}
    return {
        "study": {name: value for name, value in Folder(root).read().items() if name not in ("created", "versions")},
        "trials": [
            {name: value for name, value in row.items() if name != "why"} | {"logdir": relative(row["logdir"])}
            for row in grid.to_arrow("trials").to_pylist()  # `why` is a sentence of the code, not of the record
        ],
        "reports": grid.to_arrow("reports").to_pylist(),
        "types": {field.name: str(field.type) for field in grid.to_arrow("reports").schema},
        "configs": [plain(result.config) for result in grid.trials],
        "schedules": [plain(result.schedule) for result in grid.trials],
        "members": [result.trial_id for result in grid],
        "errors": [str(error) for error in grid.errors],
        "checkpoints": [
            [[relative(checkpoint.path), metrics] for checkpoint, metrics in result.best_checkpoints]
            for result in grid.trials
        ],
        "weights": [
            Path(result.checkpoint.path, "weights.txt").read_text() if result.checkpoint else None
            for result in grid.trials
        ],
        "best": best,
        "rows": [plain(row) for row in read(root).rows],
    }


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


def name_of(root: Path) -> str:
    return root.relative_to(GOLDEN).as_posix()


@pytest.mark.parametrize("golden", STUDIES, ids=name_of)
def test_a_golden_study_can_be_opened_to_be_written(golden: Path, tmp_path: Path) -> None:
    """Its record is whole: opening it repairs nothing, and it can be written on."""
    root = tmp_path / "study"
    shutil.copytree(golden, root)
    journal = Journal(root)
    assert [repr(row) for row in journal.rows()] == [repr(row) for row in read(golden).rows]
    assert files(root) == files(golden)
    journal.commit([Opened(2e9, 9)], [])
    journal.close()
    assert read(root).rows[-1] == Opened(2e9, 9)


def replay(root: Path) -> Study:
    """The study of a folder, where its record ends. Raises if it would not take the recorded decisions."""
    tuner, seed = tune.Tuner.restore(root, goes_on), Folder(root).read()["seed"]
    study, searcher = tuner._study(seed), tuner._searcher.build(tuner._space, seed)
    journal = Journal(root)
    world = World()
    Driver(study, searcher, journal, world, Simulation(world, Workload(lambda trial, step: {}), 1))
    journal.close()
    return study


@pytest.mark.parametrize("golden", [root for root in STUDIES if root.name == "study"], ids=name_of)
def test_a_golden_study_is_replayed(golden: Path, tmp_path: Path) -> None:
    """By today's study, searcher and scheduler, made as its ``study.json`` says: they take the recorded decisions."""
    root = tmp_path / "study"
    shutil.copytree(golden, root)
    study = replay(root)
    assert study.finished is not None
    assert study.finished.complete
    assert files(root) == files(golden)


def goes_on(config: Any) -> None:
    """Trains from where the golden trials' checkpoints left off."""
    checkpoint = tune.get_checkpoint()
    step = 0
    if checkpoint is not None:
        step = int(Path(checkpoint.path, "weights.txt").read_text().split()[-1])
    with tempfile.TemporaryDirectory() as folder:
        while True:
            step += 1
            Path(folder, "weights.txt").write_text(f"somebody's weights at step {step}\n")
            tune.report({"loss": config["lr"] + 1 / step, "epoch": step}, checkpoint=tune.Checkpoint(folder))


@pytest.mark.parametrize("golden", [root for root in STUDIES if root.name == "study"], ids=name_of)
def test_a_golden_study_goes_on_where_its_first_driver_died(golden: Path, tmp_path: Path) -> None:
    """With real trials. What is written now is of today's format, in a folder that says it is of the old one."""
    root = tmp_path / "study"
    shutil.copytree(golden, root)
    as_its_first_driver_left_it(root)
    before, described = [repr(row) for row in read(root).rows], (root / "study.json").read_bytes()
    results = tune.Tuner.restore(root, goes_on, run_config=tune.RunConfig(verbose=0), executor="inline").fit()
    rows = list(read(root).rows)
    assert [repr(row) for row in rows[: len(before)]] == before
    assert (root / "study.json").read_bytes() == described
    fresh = rows[len(before) :]
    digests = {(row.trial, row.step): row.digest for row in fresh if isinstance(row, Checkpointed)}
    dropped = {(row.trial, row.step) for row in fresh if isinstance(row, Drop)}
    store = Store(root / "checkpoints")
    assert digests
    assert all(digests.values())
    assert {where: store.verify(*where) for where in digests.keys() - dropped} == {
        where: digest for where, digest in digests.items() if where not in dropped
    }
    loaded = [row for row in fresh if isinstance(row, Loaded)]
    assert any((row.source, row.step) not in digests for row in loaded), "one that the first driver's trials saved"
    assert sum(isinstance(row, Over) for row in rows) == len(results) == 9
    assert all(result.state.over for result in results)
    study = replay(root)
    assert study.finished is not None
    assert study.finished.complete


def as_its_first_driver_left_it(root: Path) -> None:
    """Take away what a golden study's second driver wrote, and put back the checkpoints that were there then."""
    second = next(
        turn.number
        for path in sorted((root / "journal").glob("*.arrow"))[1:]
        for turn in read_segment(path, last=False)[0]
    )
    for table in ("journal", "reports"):
        for path in sorted((root / table).glob("*.arrow")):
            turns = read_segment(path, last=False)[0]
            if turns[0].number >= second:
                path.unlink()
            else:
                assert turns[-1].number < second
    shutil.rmtree(root / "checkpoints")
    rows = read(root).rows
    kept = {(row.trial, row.step) for row in rows if isinstance(row, Checkpointed)}
    kept -= {(row.trial, row.step) for row in rows if isinstance(row, Drop)}
    for trial, step in kept:
        publish(Store(root / "checkpoints"), trial, step)


def publish(store: Store, trial: int, step: int) -> str:
    """A checkpoint of a golden trial; its manifest's hash."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "weights.txt").write_text(f"weights of trial {trial} at step {step}\n")
        return store.publish(folder, trial, step, attempt=1)


@pytest.mark.parametrize("golden", STUDIES, ids=name_of)
def test_a_golden_study_holds_what_it_is_for(golden: Path) -> None:
    rows = read(golden).rows
    population = golden.name == "population"
    least = {Opened: 2, Failed: 2, Retry: 2, Drop: 3} | ({Fork: 2, Loaded: 2} if population else {})
    for kind, number in least.items():
        assert sum(isinstance(row, kind) for row in rows) >= number, kind
    table = ResultGrid(golden).to_arrow("reports")
    assert 0 < table["val/accuracy"].null_count < table.num_rows, "a late metric"
    for name in ("journal", "reports"):
        segments = sorted((golden / name).glob("*.arrow"))
        assert len(segments) >= 2
        turns = [turn for path in segments for turn in read_segment(path, last=False)[0]]
        assert any(turn.joint for turn in turns)
        assert not all(turn.joint for turn in turns) or name == "reports"


@pytest.mark.parametrize("golden", [root for root in STUDIES if root.parent.name != "format_1"], ids=name_of)
def test_a_golden_journal_names_the_checkpoints_that_are_there(golden: Path) -> None:
    rows, store = read(golden).rows, Store(golden / "checkpoints")
    digests = {(row.trial, row.step): row.digest for row in rows if isinstance(row, Checkpointed)}
    dropped = {(row.trial, row.step) for row in rows if isinstance(row, Drop)}
    assert digests.keys() > dropped
    for trial, step in digests.keys() - dropped:
        assert store.verify(trial, step) == digests[trial, step]
    loaded = [row for row in rows if isinstance(row, Loaded)]
    assert loaded
    assert all(digests[row.source, row.step] == row.digest for row in loaded)


def test_format_1_knew_no_hashes_and_nothing_to_replace() -> None:
    rows = [*read(GOLDEN / "format_1" / "rows").rows, *read(GOLDEN / "format_1" / "study").rows]
    assert {row.digest for row in rows if isinstance(row, Checkpointed)} == {""}
    assert {row.replaces for row in rows if isinstance(row, Fork)} == {None}
    assert {row.config is None for row in rows if isinstance(row, Start)} == {True}


def test_every_kind_of_row_is_in_the_golden_journal() -> None:
    assert {type(row) for row in read(GOLDEN / f"format_{FORMAT}" / "rows").rows} == set(Row.__args__)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
