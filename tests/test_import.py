"""``import raytuner`` is free: what is heavy is loaded when a name that needs it is first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import raytuner

HEAVY = ("ray", "torch", "pyarrow", "pandas", "sklearn", "rich", "matplotlib", "plotly")


def loaded(code: str, *watched: str) -> list[str]:
    """Which of the watched packages a fresh interpreter has loaded after some code."""
    code = f"{code}\nimport sys\nprint([name for name in {watched!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = eval(done.stdout.splitlines()[-1])
    assert isinstance(found, list)
    return found


def test_raytuner_alone_loads_nothing() -> None:
    assert loaded("import raytuner as tune; tune.__version__; dir(tune)", *HEAVY, "numpy", "scipy") == []


@pytest.mark.parametrize(
    "code",
    [
        "import raytuner.searchers, raytuner.schedulers",
        "from raytuner.searchers import BOHB, GridSearch, RandomSearch",
        "from raytuner.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler",
        "from raytuner import uniform, choice, report, get_checkpoint, Checkpoint, StudyInUse",
        "import raytuner.study, raytuner.executors.simulate",
    ],
)
def test_algorithms_and_spaces_need_none_of_the_heavy(code: str) -> None:
    assert loaded(code, *HEAVY) == []


def test_describing_a_study_needs_no_ray() -> None:
    """Not before ``fit``."""
    code = """
import raytuner as tune
for name in tune.__all__:
    getattr(tune, name)
tune.Tuner(lambda config: None, param_space={"x": tune.uniform(0, 1)}, tune_config=tune.TuneConfig(num_samples=2))
"""
    assert loaded(code, "ray", "torch") == []


@pytest.mark.parametrize("name", raytuner.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(raytuner, name)
    assert value.__name__ == name
    assert value.__doc__, f"{name} says nothing about itself"
    assert raytuner.__dict__[name] is value, "fetched once"


def test_public_names_are_listed() -> None:
    assert set(raytuner.__all__) <= set(dir(raytuner))
    assert raytuner.__all__ == sorted(set(raytuner.__all__))
    assert "__version__" in dir(raytuner)


def test_star_import() -> None:
    code = "from raytuner import *\nassert Tuner.__name__ == 'Tuner' and callable(loguniform)"
    assert loaded(code, "ray", "torch") == []


def test_a_wrong_name() -> None:
    with pytest.raises(AttributeError, match="module 'raytuner' has no attribute 'nonsense'"):
        _ = raytuner.nonsense
    with pytest.raises(ImportError, match="cannot import name 'nonsense' from 'raytuner'"):
        from raytuner import nonsense  # noqa: F401
    assert not hasattr(raytuner, "__wrapped__")
