"""Every file of a study is truncated, altered or taken away, one at a time; then the study is opened by all doors.

Allowed are an error that says which file is wrong, and results exactly as they were. And, where the last thing written
is hurt, what a crash may leave, too: the study as it stood a turn before, which goes on and ends as it did.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import raytuner as tune
from raytuner.checkpoints import DamagedCheckpoint
from raytuner.cli import main
from raytuner.events import Damaged
from raytuner.history import History
from raytuner.record.folder import NoStudy
from raytuner.record.journal import read
from raytuner.record.segments import DamagedSegment
from raytuner.schedulers import ASHAScheduler, PopulationBasedTraining
from tests.conftest import CHAOS_CASES

STEPS = 4
QUIET = tune.RunConfig(verbose=0)
TIMES = {"timestamp", "date", "time_this_iter_s", "time_total_s", "time_since_restore", "pid", "hostname", "node_ip"}


def train(config: dict[str, Any], dies: tuple[int, int] | None = None) -> None:
    """Weights are the sum of the learning rates; a metric appears late, so that there are several segments."""
    checkpoint = tune.get_checkpoint()
    step, weights = 0, 0.0
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            step, weights = json.loads(Path(folder, "weights.json").read_text())
    while step < STEPS:
        if dies == (int(tune.get_context().get_trial_id()), step):
            raise KeyboardInterrupt
        step, weights = step + 1, weights + config["lr"]
        said = {"loss": 1 / (1 + weights), "step": step} | ({"late": f"at {step}"} if step > 2 else {})
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "weights.json").write_text(json.dumps([step, weights]))
            tune.report(said, checkpoint=tune.Checkpoint.from_directory(folder))


def tuner(root: Path, kind: str, function: Callable[..., None] = train) -> tune.Tuner:
    scheduler: Any = ASHAScheduler(max_t=STEPS, grace_period=1, reduction_factor=2)
    if kind == "population":
        scheduler = PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=1,
            quantile_fraction=0.5,
            hyperparam_mutations={"lr": tune.uniform(0.1, 1.0)},
        )
    return tune.Tuner(
        function,
        param_space={"lr": tune.uniform(0.1, 1.0)},
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=4, scheduler=scheduler, seed=3),
        run_config=tune.RunConfig(
            name=root.name,
            storage_path=root.parent,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
        ),
        executor="inline",
    )


@dataclass(frozen=True)
class Known:
    """A study, and what is known of it while it is whole."""

    root: Path
    complete: bool
    rows: Sequence[str]
    seen: dict[str, Any]
    ended: dict[str, Any]
    """How it ends, whenever that is: times do not count."""


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    """One of each kind that is over, after its first driver died; and, as that left it, one that is not."""
    made: dict[str, Known] = {}
    for kind, dies in (("sweep", (3, 0)), ("population", (5, 3))):
        root = tmp_path_factory.mktemp(kind) / "study"
        with pytest.raises(SystemExit, match=r"^130$"):
            tuner(root, kind, functools.partial(train, dies=dies)).fit()
        early = tmp_path_factory.mktemp(f"early-{kind}") / "study"
        shutil.copytree(root, early)
        results = tuner(root, kind).fit()
        assert all(result.state.over for result in results.trials)
        for name, folder, complete in ((kind, root, True), (f"early {kind}", early, False)):
            rows = [repr(row) for row in read(folder).rows]
            made[name] = Known(folder, complete, rows, seen(folder), decisions(results))
    return made


# ------------------------------------------------------------------------------------------------- what is seen


def seen(root: Path) -> dict[str, Any]:
    """All that reading a study gives, wherever it stands."""
    grid = tune.ResultGrid(root)
    found: dict[str, Any] = {
        "reports": grid.to_arrow("reports").to_pylist(),
        "decisions": grid.to_arrow("decisions").to_pylist(),
        "trials": [
            [each.trial_id, each.config, each.metrics, each.state, each.why, each.parent, each.chain, str(each.error)]
            for each in grid.trials
        ],
        "checkpoints": [],
    }
    for each in grid.trials:
        for checkpoint, _ in each.best_checkpoints:
            with checkpoint.as_directory() as folder:
                weights = Path(folder, "weights.json").read_text()
            found["checkpoints"].append([each.trial_id, Path(checkpoint.path).name, weights])
    return found


def decisions(grid: tune.ResultGrid) -> dict[str, Any]:
    """What a study came to; not when."""
    return {
        each.trial_id: [
            each.config,
            each.state,
            each.why,
            each.parent,
            each.chain,
            {name: value for name, value in each.metrics.items() if name not in TIMES},
        ]
        for each in grid.trials
    }


# ------------------------------------------------------------------------------------------------------- damage


Damage = Callable[[Path, random.Random], None]


def cut(share: float) -> Damage:
    return lambda path, rng: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def cut_somewhere(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def cut_last_byte(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def alter_digit(path: Path, rng: random.Random) -> None:
    """What a text may suffer and still be a text."""
    raw = bytearray(path.read_bytes())
    places = [place for place, byte in enumerate(raw) if byte in b"0123456789"]
    place = rng.choice(places)
    raw[place] = rng.choice([digit for digit in b"0123456789" if digit != raw[place]])
    path.write_bytes(raw)


def zero_page(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    begin = rng.randrange(len(raw))
    raw[begin : begin + 64] = bytes(len(raw[begin : begin + 64]))
    path.write_bytes(raw)


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def append_garbage(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(40))


def append_itself(path: Path, rng: random.Random) -> None:
    path.write_bytes(2 * path.read_bytes())


def be_a_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def neighbour(path: Path, rng: random.Random) -> Path:
    """Another file that might be taken for this one."""
    of_a_kind = sorted(each for each in path.parents[1 if path.suffix == ".arrow" else 2].rglob(f"*{path.suffix}"))
    return rng.choice([each for each in of_a_kind if each != path and each.is_file()] or [path])


def be_its_neighbour(path: Path, rng: random.Random) -> None:
    shutil.copy(neighbour(path, rng), path)


def be_there_twice(path: Path, rng: random.Random) -> None:
    stem = f"{int(path.stem) + 1:06d}" if path.stem.isdecimal() else f"{path.stem} (copy)"
    shutil.copy(path, path.with_name(stem + path.suffix))


QUICK: Sequence[Damage] = (cut(0.5), flip, remove, append_garbage)
ALL: Sequence[Damage] = (
    *(cut(0), cut(0.25), cut(0.5), cut(0.9), cut_last_byte, cut_somewhere, cut_somewhere, cut_somewhere),
    *([flip] * 12 + [alter_digit] * 6 + [zero_page] * 3),
    *(remove, append_garbage, append_itself, be_a_folder, be_its_neighbour, be_there_twice),
)


def files(root: Path) -> list[Path]:
    """The files that a study's answer is in, relative to its folder."""
    found = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return [path for path in found if path.name != "lock" and path.parts[0] != "artifacts"]


# -------------------------------------------------------------------------------------------------------- doors


def told(known: Known, root: Path, act: Callable[[], Any]) -> Any:
    """What a door gives; or the error, if it is one that says where the study is hurt."""
    try:
        return act()
    except (NoStudy, DamagedSegment, DamagedCheckpoint, ValueError) as error:
        if str(root) not in str(error):
            raise AssertionError(f"{error!r} names no file") from error
        return error


def check(known: Known, root: Path) -> str:
    """Open a damaged study by all doors; says what became of it."""
    restored = functools.partial(tune.Tuner.restore, root, train, run_config=QUIET, executor="inline")
    found = told(known, root, lambda: seen(root))
    hurt = isinstance(found, Exception)
    if not hurt and found != known.seen:
        rows = [repr(row) for row in read(root).rows]
        assert rows == known.rows[: len(rows)], "other rows than were written"
        assert len(rows) < len(known.rows), "the same rows, but another answer"
    assert told(known, root, lambda: tune.Tuner.can_restore(root)) in (True, False)
    again = told(known, root, lambda: restored().get_results())
    assert isinstance(again, Exception) <= hurt, f"not by restore: {again!r}"
    history = told(known, root, lambda: History.from_study(root))
    whole = History.from_study(known.root)
    assert isinstance(history, ValueError | DamagedSegment) or found != known.seen or history.rows == whole.rows
    said = CliRunner().invoke(main, ["plan", str(root), "--workers", "2"])
    assert said.exception is None or isinstance(said.exception, SystemExit), said.exception
    assert said.exit_code in (0, 1, 2)
    if said.exit_code:
        assert said.output.startswith("Error: ")
        assert "Traceback" not in said.output
    ended = told(known, root, lambda: restored().fit())
    if isinstance(ended, Exception):
        return f"refused: {type(ended).__name__}"
    if decisions(ended) == known.ended:
        return "whole" if found == known.seen else "refused where it is looked at" if hurt else "went on"
    if any(isinstance(row, Damaged) for row in read(root).rows):
        return "went on from an older checkpoint"
    errors = [str(each.error) for each in ended.trials if each.error is not None]
    assert any("is damaged: " in error for error in errors), "it ended otherwise, and nobody said why"
    return "a trial could not go on"


def try_all(known: Known, folder: Path, cases: Iterator[tuple[Path, Damage, int]]) -> dict[str, int]:
    """Damage and check copies of a study; how often each thing came of it."""
    came: dict[str, int] = {}
    for number, (file, damage, seed) in enumerate(cases):
        root = folder / f"{number}" / "study"
        shutil.copytree(known.root, root)
        damage(root / file, random.Random(f"{file} {seed}"))
        try:
            outcome = check(known, root)
        except Exception as error:
            raise AssertionError(f"{known.root}: {file}, {damage}, seed {seed}") from error
        came[outcome] = came.get(outcome, 0) + 1
        shutil.rmtree(folder / f"{number}")
    return came


KINDS = ("sweep", "early sweep", "population", "early population")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_an_error_or_makes_no_difference(
    kind: str, studies: dict[str, Known], fast_path: Path
) -> None:
    known = studies[kind]
    there = files(known.root)
    record = [file for file in there if file.parts[0] != "checkpoints"]
    saved = [file for file in there if file not in record]
    cases = [(file, damage, 0) for file in record for damage in QUICK]
    cases += [(file, QUICK[place % len(QUICK)], 0) for place, file in enumerate(saved[:8])]
    cases += [(Path("study.json"), alter_digit, seed) for seed in range(3)]
    came = try_all(known, fast_path, iter(cases))
    assert sum(came.values()) == len(cases)
    assert came["refused: DamagedSegment"] > 3
    assert came["refused: NoStudy"] > 3


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_and_every_damage(kind: str, studies: dict[str, Known], fast_path: Path) -> None:
    known = studies[kind]
    """Of `CHAOS_CASES` below 10,000 accordingly fewer."""
    cases = [(file, damage, seed) for file in files(known.root) for seed, damage in enumerate(ALL)]
    cases = cases[:: max(1, 10_000 // CHAOS_CASES)]
    came = try_all(known, fast_path, iter(cases))
    print(f"{kind}: {len(cases)} damaged copies: {came}")
    assert sum(came.values()) == len(cases)


def test_the_studies_are_what_they_are_for(studies: dict[str, Known]) -> None:
    for name, known in studies.items():
        there = files(known.root)
        for folder, least in (("journal", 2 if known.complete else 1), ("reports", 2), ("checkpoints", 4)):
            assert sum(path.parts[0] == folder for path in there) >= least, (name, folder)
        assert known.seen["checkpoints"]
    assert any("Fork(" in row for row in studies["population"].rows)
    assert any("Drop(" in row for row in studies["sweep"].rows)


def test_a_study_that_lost_its_study_json_is_not_begun_anew(studies: dict[str, Known], tmp_path: Path) -> None:
    """With another seed drawn, its record would be read as that of a study it is not."""
    root = tmp_path / "study"
    shutil.copytree(studies["sweep"].root, root)
    (root / "study.json").unlink()
    with pytest.raises(NoStudy, match=r"/study holds a study's journal, but no study\.json"):
        tuner(root, "sweep").fit()


def test_what_is_no_part_of_the_answer_may_be_anything(studies: dict[str, Known], tmp_path: Path) -> None:
    known, root = studies["early sweep"], tmp_path / "study"
    shutil.copytree(known.root, root)
    (root / "lock").write_bytes(b"\x80\x04garbage")
    (root / "artifacts").mkdir(exist_ok=True)
    (root / "artifacts" / "strange").write_bytes(bytes(100))
    (root / "notes.txt").write_text("a user's")
    (root / "journal" / "notes.txt").write_text("a user's")
    assert seen(root) == known.seen
    assert check(known, root) == "whole"
