"""A study's folder: what lies where, what the study is, and who may write.

``study.json`` is written once, when the study begins: format version, seed, space, metric, settings, versions. It is
plain JSON; reading it runs no code. The lock is the operating system's (``flock``), so a dead holder's place is free.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from raytuner import __version__
from raytuner.durable import make_folders, sync_folder

FORMAT = 3


class StudyInUse(Exception):
    """Another driver holds the study."""


class NoStudy(ValueError):
    """There is no study where one was looked for, or none that can be read."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The paths of a study."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def record(self) -> Path:
        return self.root / "study.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def exists(self) -> bool:
        """Whether a study was begun here."""
        return self.record.is_file()

    def create(self, what: Mapping[str, Any]) -> None:
        """Begin a study: write ``study.json``, whole or not at all."""
        make_folders(self.root)
        text = json.dumps({"format": FORMAT, **what, "versions": _versions(), "created": time.time()}, indent=2)
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
            what = json.loads(self.record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise NoStudy(f"{self.record} is damaged: {error}") from None
        if not isinstance(what, dict) or what.get("format") not in range(1, FORMAT + 1):
            found = what.get("format") if isinstance(what, dict) else None
            raise NoStudy(f"{self.record} has format {found!r}; this version of raytuner reads formats 1 to {FORMAT}")
        return what


class Lock:
    """The right to write a study. Raises `StudyInUse`, naming the holder, where another driver has it."""

    def __init__(self, root: Path) -> None:
        make_folders(root)
        self._path = root / "lock"
        self._file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise StudyInUse(f"the study in {root} is being run by {self._holder()}") from None
        os.ftruncate(self._file, 0)
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.pwrite(self._file, json.dumps(holder).encode(), 0)

    def _holder(self) -> str:
        try:
            holder = json.loads(self._path.read_text())
            return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def release(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "raytuner": __version__}
    for package in ("ray", "numpy", "scipy", "pyarrow", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
