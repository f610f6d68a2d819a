"""A study's folder, on a disk or in an object store: what lies where, and what the study is.

``study.json`` is written once, when the study begins: format version, seed, space, metric, settings, versions. It is
plain JSON; reading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raytuner import __version__
from raytuner.durable import make_folders, sync_folder
from raytuner.storage import Place

FORMAT = 3

_CACHE = Path("~/.cache/raytuner")


class NoStudy(ValueError):
    """There is no study where one was looked for, or none that can be read."""


class Folder:
    """The paths of a study. ``root``: a path, or a `Place` in an object store."""

    def __init__(self, where: str | os.PathLike[str] | Place) -> None:
        place = Place.of(where)
        self.root: Path | Place = place.local or place

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def record(self) -> Path | Place:
        return self.root / "study.json"

    @property
    def here(self) -> Path:
        """Where trials' own files are on the machine they run on (working directories, what they print): in the
        study's folder, or for a study in an object store in a folder of the user's cache. May begin with ``~``."""
        if isinstance(self.root, Path):
            return self.root
        return _CACHE / hashlib.sha256(self.root.uri.encode()).hexdigest()[:16] / self.name

    @property
    def checkpoints(self) -> Path | Place:
        return self.root / "checkpoints"

    def exists(self) -> bool:
        """Whether a study was begun here."""
        return self.record.is_file() if isinstance(self.record, Path) else self.record.exists()

    def create(self, what: Mapping[str, Any]) -> None:
        """Begin a study: write ``study.json``, whole or not at all."""
        text = json.dumps({"format": FORMAT, **what, "versions": _versions(), "created": time.time()}, indent=2)
        if isinstance(self.record, Place):
            self.record.write(f"{text}\n".encode())
            return
        assert isinstance(self.root, Path)
        make_folders(self.root)
        temporary = self.root / f".study.json.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.record)
        sync_folder(self.root)

    def read(self) -> dict[str, Any]:
        """What ``study.json`` says. Raises `NoStudy` where there is none, or one of another format."""
        if not self.exists():
            raise NoStudy(f"there is no study in {self.root}: it holds no study.json")
        try:
            text = self.record.read_bytes() if isinstance(self.record, Path) else self.record.read()
            what = json.loads(text.decode("utf-8"))
        except ValueError as error:
            raise NoStudy(f"{self.record} is damaged: {error}") from None
        if not isinstance(what, dict) or what.get("format") not in range(1, FORMAT + 1):
            found = what.get("format") if isinstance(what, dict) else None
            raise NoStudy(f"{self.record} has format {found!r}; this version of raytuner reads formats 1 to {FORMAT}")
        return what


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "raytuner": __version__}
    for package in ("ray", "numpy", "scipy", "pyarrow", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
