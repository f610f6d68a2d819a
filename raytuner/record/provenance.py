"""What a study was begun with besides its settings: versions, the training function's source, the state of its git.

It is written into ``study.json``. Whoever goes on with the study is told what has changed since: that may be what was
meant (a bug was mended), and it may be why trials differ. Nothing is refused for it; settings are, and decisions that
come out otherwise.
"""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raytuner import __version__

PACKAGES = ("ray", "numpy", "scipy", "pandas", "pyarrow", "torch")
_GIT_S = 5.0  # how long git may take


def versions() -> dict[str, str]:
    """Of Python, of raytuner, and of the packages that are there out of `PACKAGES`."""
    found = {"python": sys.version.split()[0], "raytuner": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def code(train: Callable[..., Any] | type) -> dict[str, Any]:
    """``source``: sha256 of the training function's, or class's, own source (None where there is none to read);
    ``commit`` and ``dirty`` of the git repository its file is in, where it is in one: whether tracked files differ."""
    try:
        source = hashlib.sha256(inspect.getsource(train).encode("utf-8", "surrogatepass")).hexdigest()
        file = inspect.getsourcefile(train)
    except (OSError, TypeError):
        source, file = None, None
    return {"source": source, **(git(Path(file).parent) if file else {})}


def git(folder: Path) -> dict[str, Any]:
    """``commit`` and ``dirty`` of the repository a folder is in; empty where it is in none, or git does not say."""
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {} if commit is None or status is None else {"commit": commit.strip(), "dirty": bool(status.strip())}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_GIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout if ran.returncode == 0 else None


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, as phrases. Both have ``versions`` and ``code`` as above; what was not recorded then is passed
    over."""
    found = []
    before, after = _mapping(then, "versions"), _mapping(now, "versions")
    for package in sorted(before):
        if before[package] != after.get(package):
            found.append(f"{package} {before[package]} is now {after.get(package, 'not there')}")
    before, after = _mapping(then, "code"), _mapping(now, "code")
    if before.get("source") and before["source"] != after.get("source"):
        found.append("the training function's source has changed")
    if before.get("commit") and before["commit"] != after.get("commit"):
        found.append(f"git commit {_short(before['commit'])} is now {_short(after.get('commit') or 'unknown')}")
    if before.get("commit") and before.get("dirty") != after.get("dirty"):
        found.append("tracked files differed from their commit" if before["dirty"] else "tracked files are changed now")
    return found


def _mapping(what: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = what.get(name)
    return found if isinstance(found, Mapping) else {}


def _short(commit: Any) -> str:
    return str(commit)[:12]
