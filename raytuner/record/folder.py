"""A study's folder, on a disk or in an object store: what lies where, and what the study is.

``study.json`` is written once, when the study begins: format version, seed, space, metric, settings, versions. It is
plain JSON with a checksum; reading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raytuner.record.durable import make_folders, open_plain, sync_folder
from raytuner.record.provenance import versions
from raytuner.record.storage import Place

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
        if isinstance(self.record, Place):
            return self.record.exists()
        return self.record.is_file() or self.record.is_symlink()

    def create(self, what: Mapping[str, Any]) -> None:
        """Begin a study: write ``study.json``, whole or not at all."""
        what = {"format": FORMAT, **what, "versions": versions(), "created": time.time()}
        text = json.dumps({**what, _CHECKSUM: _digest(json.loads(json.dumps(what)))}, indent=2)
        if isinstance(self.record, Place):
            self.record.write(f"{text}\n".encode())
            return
        assert isinstance(self.root, Path)
        make_folders(self.root)
        for table in ("journal", "reports"):
            if next((self.root / table).glob("*.arrow"), None):
                raise NoStudy(f"{self.root} holds a study's {table}, but no study.json: that must be put back")
        temporary = self.root / f".study.json.{os.getpid()}"
        temporary.unlink(missing_ok=True)  # of a dead process that had our number
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.record)
        sync_folder(self.root)

    def read(self) -> dict[str, Any]:
        """What ``study.json`` says. Raises `NoStudy` where there is none, or one that is damaged, or of another format.

        So does what is asked of the result and is not in it.
        """
        if not self.exists():
            raise NoStudy(f"there is no study in {self.root}: it holds no study.json")
        try:
            if isinstance(self.record, Place):
                text = self.record.read()
            else:
                with open_plain(self.record) as file:
                    text = file.read()
            what = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise NoStudy(f"{self.record} is damaged: {error}") from None
        if not isinstance(what, dict) or what.get("format") not in range(1, FORMAT + 1):
            found = what.get("format") if isinstance(what, dict) else None
            raise NoStudy(
                f"{self.record} has format {found!r:.80}; this version of raytuner reads formats 1 to {FORMAT}"
            )
        said = what.pop(_CHECKSUM, None)  # the first versions wrote none
        if said is not None and said != _digest(what):
            raise NoStudy(f"{self.record} is damaged: its content is not what its sha256 was taken of")
        for name, kinds in _KINDS.items():
            if name in what and not isinstance(what[name], kinds):
                raise NoStudy(f"{self.record} is damaged: {name!r} cannot be {what[name]!r:.80}")
        if what.get("mode") not in (None, "min", "max"):
            raise NoStudy(f"{self.record} is damaged: 'mode' cannot be {what['mode']!r:.80}")
        return _Described(self.record, what)

    @contextmanager
    def interpreted(self) -> Iterator[None]:
        """What is made of ``study.json`` meanwhile is made of what somebody else wrote: whatever is wrong with it is
        the file's fault."""
        try:
            yield
        except NoStudy:
            raise
        except _SENSELESS as error:
            raise NoStudy(f"{self.record} cannot be understood: {type(error).__name__}: {error}") from error


_CHECKSUM = "sha256"
_SENSELESS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("space", "search_alg", "scheduler", "stop", "failure_config", "checkpoint_config"), dict),
    "resources": dict,
    **dict.fromkeys(("metric", "mode"), (str, type(None))),
    **dict.fromkeys(("name", "trainable"), str),
    **dict.fromkeys(("seed", "num_samples"), int),
    "max_concurrent_trials": (int, type(None)),
    "time_budget_s": (int, float, type(None)),
    "chdir_to_trial_dir": bool,
    **dict.fromkeys(("constraints", "points_to_evaluate", "evaluated_rewards"), list),
    "default_config": (dict, type(None)),
}
"""Of what kind the entries of ``study.json`` are that anything depends on."""


class _Described(dict[str, Any]):
    """What a ``study.json`` says."""

    def __init__(self, path: Path | Place, what: Mapping[str, Any]) -> None:
        super().__init__(what)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise NoStudy(f"{self._path} is damaged: it lacks {name!r}")


def _digest(what: Mapping[str, Any]) -> str:
    """Of the content, as it reads back from JSON: neither layout nor order counts."""
    text = json.dumps(what, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
