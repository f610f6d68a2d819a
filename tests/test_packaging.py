"""What is built here works elsewhere: one package, with the linked folders inside it as real files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("searchers", "schedulers", "cluster")
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "raytuner", *LINKED)


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy without what earlier builds left behind, its links still links."""
    copy = tmp_path_factory.mktemp("build") / "checkout"
    copy.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    for name in LINKED:
        assert (copy / "raytuner" / name).is_symlink()
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    """Built from the checkout itself, as pip does."""
    run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", checkout.parent / "direct", cwd=checkout
    )
    (built,) = (checkout.parent / "direct").glob("*.whl")
    return built


def sources(checkout: Path) -> set[str]:
    """Every module of the package, by the name it must have in a wheel."""
    found = {"raytuner/py.typed"}
    for folder, below, files in os.walk(checkout / "raytuner", followlinks=True):
        below[:] = [name for name in below if name != "__pycache__"]
        found |= {str(Path(folder, file).relative_to(checkout)) for file in files if file.endswith(".py")}
    return found


def test_the_wheel_holds_the_package_and_nothing_else(checkout: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
        licence = [entry for entry in entries if entry.filename.endswith(".dist-info/licenses/LICENSE")]
        assert len(licence) == 1
        assert archive.read(licence[0]) == (ROOT / "LICENSE").read_bytes()
    names = {entry.filename for entry in entries}
    assert {name for name in names if ".dist-info/" not in name} == sources(checkout)
    for folder in LINKED:
        assert f"raytuner/{folder}/__init__.py" in names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"raytuner", next(top for top in tops if top.endswith(".dist-info"))}
    assert not [entry.filename for entry in entries if entry.external_attr >> 16 & 0o170000 == 0o120000]  # links


def test_a_wheel_by_way_of_a_source_distribution_is_the_same(checkout: Path, wheel: Path) -> None:
    out = checkout.parent / "both"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=checkout)
    (sdist,) = out.glob("*.tar.gz")
    (second,) = out.glob("*.whl")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
    with zipfile.ZipFile(wheel) as first_archive, zipfile.ZipFile(second) as second_archive:
        assert set(first_archive.namelist()) == set(second_archive.namelist())
        for name in first_archive.namelist():
            if name.endswith(".py"):
                assert first_archive.read(name) == second_archive.read(name)


def test_the_installed_wheel_is_imported_from_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    run(*pip, "--target", site, wheel, cwd=elsewhere)
    modules = ["raytuner", *(f"raytuner.{name}" for name in LINKED)]
    code = f"import {', '.join(modules)}\nprint(*({', '.join(f'{module}.__file__' for module in modules)}), sep='\\n')"
    files = run(sys.executable, "-c", code, cwd=elsewhere, PYTHONPATH=str(site)).split()
    assert files == [str(site.joinpath(*module.split("."), "__init__.py")) for module in modules]
    for name in LINKED:  # the generic names stay free for the user's own modules
        assert not (site / name).exists()
    distribution = "from importlib.metadata import version; print(version('raytuner'))"
    assert run(sys.executable, "-c", distribution, cwd=elsewhere, PYTHONPATH=str(site)).split() == [
        wheel.name.split("-")[1]
    ]


SWEEP = """
import raytuner as tune
from raytuner.schedulers import HyperBandScheduler
from raytuner.searchers import BOHB

def train(config):
    for step in range(1, 10):
        tune.report({"loss": config["x"] / step})

results = tune.Tuner(
    train,
    param_space={"x": tune.uniform(0, 1)},
    tune_config=tune.TuneConfig(
        metric="loss", mode="min", num_samples=6, search_alg=BOHB(), scheduler=HyperBandScheduler(max_t=9)
    ),
    run_config=tune.RunConfig(name="study", storage_path=".", verbose=0),
).fit()
print(tune.__file__)
print("trials", len(results), "failed", results.num_errors)
"""


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_sweep_runs_where_only_the_wheel_was_installed(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment, with the dependencies that the wheel itself asks for, far from the checkout."""
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, "--constraint", ROOT / "constraints.txt", cwd=tmp_path)
    (tmp_path / "sweep.py").write_text(SWEEP)
    where, found = run(python, "sweep.py", cwd=tmp_path).splitlines()[-2:]
    assert Path(where).is_relative_to(tmp_path / "env")
    assert found == "trials 6 failed 0"
