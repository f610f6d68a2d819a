"""The example of a searcher from outside, `examples/my_searcher.py`: as an outsider tests it, and in a study."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import raytuner as tune
from raytuner.events import Proposed
from raytuner.record.journal import read
from raytuner.schedulers import AsyncHyperBandScheduler, HyperBandScheduler
from raytuner.testing import SearcherContract
from tests.lives import SPACE, Case, decisions, fate, live_through

__all__ = ["fate"]  # a fixture

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "examples"))
from my_searcher import OnePlusOne, main  # noqa: E402


class TestOnePlusOne(SearcherContract):
    def algorithms(self):  # type: ignore[no-untyped-def]
        return {"default": OnePlusOne(), "short": OnePlusOne(step=0.01)}


OUTSIDE = """
from my_searcher import OnePlusOne
from raytuner.testing import SearcherContract

class TestMine(SearcherContract):
    def algorithm(self):
        return OnePlusOne()
"""


def test_an_outsiders_test_file(tmp_path: Path) -> None:
    """In a folder that knows nothing of ours, as docs/searchers.md says; a defect is seen there too."""
    mine = tmp_path / "my_searcher.py"
    shutil.copy(ROOT / "examples" / "my_searcher.py", mine)
    (tmp_path / "test_mine.py").write_text(OUTSIDE)
    said = outside(tmp_path)
    assert " passed" in said
    assert "failed" not in said
    source = mine.read_text()
    mine.write_text(source.replace("default_rng([self.seed, trial])", "default_rng(abs(hash(str(trial))))"))
    assert mine.read_text() != source
    said = outside(tmp_path)
    assert "two processes differ at answer 0" in said
    assert "makes no difference" in said


def outside(folder: Path) -> str:
    """What pytest says of the checks that need one space only."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "mixed or seed"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        text=True,
    )
    return done.stdout + done.stderr


def test_a_study_with_it(tmp_path: Path) -> None:
    results = main(str(tmp_path), "inline")
    assert len(results) == 40
    assert results.get_best_result().metrics["loss"] < 0.3, "1/9 is the least"
    notes = [row.answer.note for row in read(tmp_path / "my_searcher").rows if isinstance(row, Proposed)]
    assert Counter(note["origin"] for note in notes) == {"random": 1, "step": 39}
    again = main(str(tmp_path), "inline")
    assert again.get_best_result().config == results.get_best_result().config
    with pytest.raises(ValueError, match=r"OnePlusOne\(step=0.3\).*became.*RandomSearch"):
        tune.Tuner(
            lambda config: None,
            param_space={"x": tune.uniform(-1, 1), "lr": tune.loguniform(1e-5, 1)},
            tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=40),
            run_config=tune.RunConfig(name="my_searcher", storage_path=tmp_path),
            executor="inline",
        ).fit()


@pytest.mark.parametrize("scheduler", [HyperBandScheduler(max_t=9), AsyncHyperBandScheduler(max_t=9)])
def test_an_interrupted_study_with_it(scheduler, fast_path, fate) -> None:  # type: ignore[no-untyped-def]
    case = Case(OnePlusOne(), scheduler, SPACE)
    expected, alone = live_through(case, fast_path / "alone", fate, gap=None)
    for round_ in range(3):
        found, checks = live_through(case, fast_path / str(round_), fate, alone.leases // 3 + 4, power=round_ == 1)
        assert checks.deaths
        assert found == expected
    assert decisions(read(fast_path / "alone").rows) == expected
