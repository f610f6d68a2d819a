"""What all tests share: Hypothesis profiles, and a Ray on loopback that every test gives back."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

CHAOS_CASES = int(os.environ.get("CHAOS_CASES", "10000"))
"""How many cases `make chaos` tries for each scheduler; the length of all else there goes by it."""

FILES_TOGETHER = {"tests/test_cli.py", "tests/test_members.py", "tests/test_packaging.py"}
"""What they make for all of their tests takes longer than the tests."""

settings.register_profile(
    "quick",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("chaos", settings.get_profile("quick"), derandomize=False, max_examples=CHAOS_CASES // 25)
settings.load_profile("quick")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where tests run in several processes (-n): those of all files that start a Ray in one of them, the first.

    Not by the mark ``xdist_group``: pytest-xdist 3.8 passes over it under pytest 9.2 (its issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if starts_ray(config.rootpath / file) else file if file in FILES_TOGETHER else nodeid

    return Scheduling(config, log)


@functools.cache
def starts_ray(file: Path) -> bool:
    return "mark.ray" in file.read_text()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Beside the process whose tests start a Ray and watch the clock, the others take what it leaves of the cores."""
    if "PYTEST_XDIST_WORKER" in os.environ and not starts_ray(item.path):
        step_back()


@functools.cache
def step_back() -> None:
    os.nice(10)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this process: four logical CPUs, two logical GPUs, loopback, no dashboard."""
    import ray

    from raytuner.cluster import local

    local.start(num_cpus=4, num_gpus=2, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: for tests that write journals by the hundred."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    import tempfile

    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The joint model's answers need not be good ones."""
    from raytuner.models import acquisition

    for name, count in (("RANDOM", 40), ("PERTURBED", 30), ("ROUNDS", 2)):
        monkeypatch.setattr(acquisition, name, count)
