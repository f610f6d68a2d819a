"""Checkpoints: publish by rename, verify before use, delete so that no half is ever seen.

`Checkpoint` is what users hold: a directory, with Ray's methods. `Store` is where a study keeps them:

    <study>/checkpoints/000007/000027/          trial 7, step 27
        model.pt …                              the user's files
        MANIFEST.json                           size and sha256 of each of them, written last

A checkpoint is there as a whole or not at all: its files are copied to a temporary sibling (``.tmp-…``), everything is
brought to disk, and one rename makes it visible. Whatever dies in between leaves a temporary, which the next `sweep`
removes. Once published, a checkpoint never changes. `Store` has one writer per trial at a time; it does not know which
checkpoints are in use, the study does. A damaged one is put aside, in ``<study>/quarantine/000007-000027``.

Which of them to keep, `raytuner.retention` says.

Local file systems only. Needs neither Ray nor pyarrow.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from raytuner.record.durable import make_folders, not_a_folder, open_plain, sync_folder
from raytuner.record.patience import Patience, StorageError, always
from raytuner.retention import AnyOf as AnyOf
from raytuner.retention import BestN as BestN
from raytuner.retention import CheckpointConfig as CheckpointConfig
from raytuner.retention import Everything as Everything
from raytuner.retention import InUse as InUse
from raytuner.retention import Kept as Kept
from raytuner.retention import LatestN as LatestN
from raytuner.retention import Retention as Retention
from raytuner.retention import retention as retention

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from raytuner.object_checkpoints import ObjectStore

T = TypeVar("T")

MANIFEST = "MANIFEST.json"
METADATA = ".metadata.json"  # Ray's name for it: a checkpoint written under Ray keeps its metadata here
TEMPORARY = ".tmp-"
_DELETED = "-deleted"
FORMAT = "raytuner-checkpoint"
VERSION = 1
CHUNK = 1 << 20  # bytes read at a time

_SYNCS = 8  # files that are brought to disk at the same time
_OPEN = 64  # and that wait for it, open
_PIECE = 16 * CHUNK  # of a large file, so much is brought to disk while the rest is read
_WORTH_A_THREAD_S = 0.0001
_NO_COPY_RANGE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.ETXTBSY}
_LONGEST = 255  # bytes in a file's name


class DamagedCheckpoint(Exception):
    """A stored checkpoint is not what was published. ``file`` is relative to ``path``; "" is the whole directory."""

    def __init__(self, path: str, file: str, wrong: str) -> None:
        super().__init__(path, file, wrong)  # all three, so that it survives pickling
        self.path, self.file, self.wrong = path, file, wrong

    def __str__(self) -> str:
        return f"checkpoint {self.path} is damaged: {self.file + ': ' if self.file else ''}{self.wrong}"


# ----------------------------------------------------------------------------------------------- what users hold


class Checkpoint:
    """A directory of files from which training can go on. Same shape as ``ray.tune.Checkpoint``."""

    path: str
    """Absolute path of the directory."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not os.path.isdir(path):
            raise ValueError(f"a Checkpoint is made from an existing directory; {os.fspath(path)!r} is not one")
        self.path = os.path.abspath(path)

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """The checkpoint that consists of the files in this directory."""
        return cls(path)

    @contextmanager
    def as_directory(self) -> Iterator[str]:
        """The files, to read and leave as they are: ``with checkpoint.as_directory() as path: ...``."""
        yield self.path

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> str:
        """Copy the files into ``path`` (default: a new temporary directory) and return it. The copy may be changed."""
        if path is None:
            target = tempfile.mkdtemp(prefix="checkpoint_tmp_")
        else:
            target = os.path.normpath(os.path.expanduser(os.fspath(path)))
        if os.path.realpath(target) == os.path.realpath(self.path):
            return target
        published = _is_ours(self.path)
        shutil.copytree(
            self.path,
            target,
            dirs_exist_ok=True,
            ignore=lambda folder, names: [MANIFEST] if published and folder == self.path else [],
        )
        return target

    def get_metadata(self) -> dict[str, Any]:
        """The user's notes on this checkpoint; empty if there are none."""
        try:
            with open(os.path.join(self.path, METADATA), encoding="utf-8") as file:
                found: dict[str, Any] = json.load(file)
        except FileNotFoundError:
            return {}
        return found

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the notes. They are part of the checkpoint: make them before it is reported."""
        if _is_ours(self.path):
            raise ValueError(
                f"checkpoint {self.path} is published and does not change any more; "
                f"set the metadata before reporting it, or on a copy (to_directory())"
            )
        text = json.dumps(dict(metadata))  # before the file is opened: what is not JSON must not cost the old notes
        with open(os.path.join(self.path, METADATA), "w", encoding="utf-8") as file:
            file.write(text)

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Add to the notes."""
        self.set_metadata({**self.get_metadata(), **metadata})

    @property
    def _place(self) -> str:
        return self.path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checkpoint) and self._place == other._place

    def __hash__(self) -> int:
        return hash(self._place)

    def __repr__(self) -> str:
        return f"Checkpoint({self._place!r})"


# ------------------------------------------------------------------------------------------ where they are kept


@dataclass(frozen=True, slots=True)
class Staged:
    """Files that were taken for a checkpoint, in a directory that nobody knows; nothing of it need be on the disk."""

    path: str
    trial: int
    step: int
    files: Sequence[str]
    folders: Sequence[str]
    attempt: int


class Store:
    """The checkpoints of a study, under ``root``."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)
        self.aside = os.path.join(os.path.dirname(self.root), "quarantine")

    def path(self, trial: int, step: int) -> str:
        """Where this checkpoint is, or would be."""
        return os.path.join(self._folder(trial), _name("step", step))

    def publish(self, source_dir: str | os.PathLike[str], trial: int, step: int, attempt: int) -> str:
        """Copy a directory into the store, durable when this returns; returns the hash of its manifest.

        A checkpoint of this step that is already there and whole is kept, since the first report of a step counts.
        A damaged one is replaced.
        """
        source, folder = os.path.abspath(source_dir), self._folder(trial)
        self._check_root()
        with suppress(DamagedCheckpoint):
            digest = self.verify(trial, step)
            sync_folder(folder)  # whoever renamed it may have died before this
            return digest
        ours = self._temporary(trial, step, attempt)
        try:
            digest = _write_checkpoint(source, ours, trial, step)
            return self._place(ours, trial, step, digest)
        finally:
            with suppress(OSError):  # what cannot be removed now, `sweep` removes
                remove(ours)

    def stage(self, source_dir: str | os.PathLike[str], trial: int, step: int, attempt: int) -> Staged:
        """Take a directory's files, to `publish_staged` them later: when this returns, they may change or go."""
        ours = self._temporary(trial, step, attempt)
        try:
            files, folders = take(os.path.abspath(source_dir), ours)
        except BaseException:
            with suppress(OSError):
                remove(ours)
            raise
        return Staged(ours, trial, step, files, folders, attempt)

    def publish_staged(self, staged: Staged) -> str:
        """`publish` what was taken. If this fails, it may be tried again."""
        digest = _seal(staged.path, staged.trial, staged.step, staged.files, staged.folders)
        digest = self._place(staged.path, staged.trial, staged.step, digest)
        with suppress(OSError):
            remove(staged.path)  # another attempt was first
        return digest

    def _temporary(self, trial: int, step: int, attempt: int) -> str:
        """The name of a directory that is to become a checkpoint, in a folder that is there."""
        make_folders(folder := self._folder(trial))
        if not _is_folder(folder):
            raise NotADirectoryError(errno.ENOTDIR, "checkpoints are kept in a directory, not a link", folder)
        return os.path.join(folder, f"{TEMPORARY}{_name('step', step)}-{attempt}-{os.getpid()}")

    def _place(self, ours: str, trial: int, step: int, digest: str) -> str:
        """Give a directory that is whole, and on the disk, its name; the hash of the manifest that is there then."""
        final, folder, theirs = self.path(trial, step), self._folder(trial), f"{ours}-damaged"
        try:
            if os.path.lexists(final):
                remove(theirs)
                os.rename(final, theirs)
            try:
                os.rename(ours, final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                digest = self.verify(trial, step)  # another attempt was first after all
            sync_folder(folder)
        finally:
            with suppress(OSError):
                remove(theirs)
        return digest

    def verify(self, trial: int, step: int) -> str:
        """Read all of a checkpoint; returns the hash of its manifest, or raises `DamagedCheckpoint`.

        An `OSError` (no permission, a storage that does not answer) says nothing about the checkpoint, and is raised.
        """
        path = self.path(trial, step)
        for folder in (self.root, self._folder(trial), path):
            if not _is_folder(folder):
                what = not_a_folder(folder)
                raise DamagedCheckpoint(path, "", f"{folder} is {what}" if what else "there is no such directory")
        return verify_folder(path, trial, step)

    def fetch(self, trial: int, step: int, digest: str) -> tuple[str, str]:
        """The hash of a checkpoint's manifest, verified, and a directory with its files; ``digest``: the hash that it
        should have, if that is known."""
        return self.verify(trial, step), self.path(trial, step)

    def local(self, trial: int, step: int, digest: str) -> str:
        """A directory with the files of a checkpoint that this process has published or fetched."""
        return self.path(trial, step)

    def nbytes(self, trial: int, step: int) -> int:
        """The size of a checkpoint's files, as its manifest has it."""
        return sum(size for size, _ in _read_manifest(self.path(trial, step), trial, step)[1].files.values())

    def load(self, trial: int, step: int) -> Checkpoint:
        """A checkpoint to read from, verified."""
        self.verify(trial, step)
        return Checkpoint(self.path(trial, step))

    def published(self, trial: int, step: int, digest: str) -> Checkpoint:
        """One that is there, to be verified when somebody looks at it."""
        return StoredCheckpoint(self, trial, step, digest)

    def all(self) -> set[tuple[int, int]]:
        """The trials and steps of all that are there. They are not verified."""
        trials = [int(name) for name in _names(self.root) if _is_number(name)]
        return {(trial, step) for trial in trials for step in self.steps(trial)}

    def has(self, trial: int, step: int) -> bool:
        """Whether there is anything that goes by the name of this checkpoint."""
        return os.path.lexists(self.path(trial, step))

    def steps(self, trial: int) -> list[int]:
        """Steps with a published checkpoint, lowest first. They are not verified."""
        return sorted(int(name) for name in _names(self._folder(trial)) if _is_number(name))

    def delete(self, trial: int, step: int) -> None:
        """Remove a checkpoint; from the first moment on it is not seen any more. One that is not there: nothing."""
        hidden = self.hide(trial, step)
        if hidden is not None:
            sync_folder(os.path.dirname(hidden))
            remove(hidden)

    def hide(self, trial: int, step: int) -> str | None:
        """The first half of `delete`: make it a temporary, and return its path; None if it is not there."""
        path, folder = self.path(trial, step), self._folder(trial)
        self._check_root()
        if not _is_folder(folder):
            return None
        hidden = os.path.join(folder, f"{TEMPORARY}{_name('step', step)}-{os.getpid()}{_DELETED}")
        remove(hidden)
        try:
            os.rename(path, hidden)
        except FileNotFoundError:
            return None
        return hidden

    def quarantine(self, trial: int, step: int) -> str | None:
        """Put a damaged checkpoint aside, where nothing is ever removed; its new path, or None if it is not there."""
        path, folder, name = (
            self.path(trial, step),
            self._folder(trial),
            f"{_name('trial', trial)}-{_name('step', step)}",
        )
        if not _is_folder(folder) or not os.path.lexists(path):
            return None
        make_folders(self.aside)
        for number in itertools.count(1):
            moved = os.path.join(self.aside, name if number == 1 else f"{name}-{number}")
            if os.path.lexists(moved):
                continue  # the same step was damaged before
            os.rename(path, moved)
            break
        sync_folder(self.aside)
        sync_folder(folder)
        return moved

    def sweep(self, referenced: Collection[tuple[int, int]]) -> list[str]:
        """Remove every temporary and every checkpoint that is not ``referenced`` as (trial, step).

        Returns the paths that are gone. Only while no trial runs: a checkpoint that is being published would go too.
        Names that are not the store's own are left alone.
        """
        self._check_root()
        wanted: dict[int, set[int]] = {}
        for trial, step in referenced:
            wanted.setdefault(trial, set()).add(step)
        gone = []
        for name in _names(self.root):
            if _is_number(name):
                gone += self.sweep_trial(int(name), wanted.get(int(name), ()))
                with suppress(OSError):
                    os.rmdir(os.path.join(self.root, name))  # only if nothing is left
        return gone

    def sweep_trial(self, trial: int, referenced: Collection[int]) -> list[str]:
        """The same for one trial, while that trial does not run; ``referenced`` are steps."""
        folder = self._folder(trial)
        self._check_root()
        if not _is_folder(folder):
            return []
        gone = []
        for name in _names(folder):
            path = os.path.join(folder, name)
            if name.startswith(TEMPORARY):
                if not _removed(path):
                    continue
            elif _is_number(name) and int(name) not in referenced:
                self.delete(trial, int(name))
            else:
                continue
            gone.append(path)
        return gone

    def tidy(self, trial: int) -> None:
        """Remove what a process that died while it published left half-written, before the trial runs again."""
        self._check_root()
        if not _is_folder(folder := self._folder(trial)):
            return
        for name in _names(folder):
            if name.startswith(TEMPORARY) and not name.endswith(_DELETED):
                _removed(os.path.join(folder, name))

    def close(self) -> None:
        """What was given out is not needed any more."""

    def _folder(self, trial: int) -> str:
        return os.path.join(self.root, _name("trial", trial))

    def _check_root(self) -> None:
        """Nothing is written or removed through a link that stands where the store belongs."""
        if what := not_a_folder(self.root):
            raise DamagedCheckpoint(self.root, "", f"it is {what}")


class StoredCheckpoint(Checkpoint):
    """A published checkpoint that a record tells of. Its files are verified when its ``path`` is first asked for, which
    raises `DamagedCheckpoint` if they are not what was published.

    ``digest``: the hash of its manifest, where that was recorded.
    """

    def __init__(self, store: Store, trial: int, step: int, digest: str) -> None:
        self._store, self._which, self._digest = store, (trial, step), digest

    def __getattr__(self, name: str) -> str:
        if name != "path" or "_store" not in self.__dict__:
            raise AttributeError(name)
        if self._store.verify(*self._which) != self._digest and self._digest:
            raise DamagedCheckpoint(self._place, MANIFEST, "it is not the one that was published")
        self.path = self._place
        return self.path

    @property
    def _place(self) -> str:
        return self._store.path(*self._which)


class Janitor:
    """Deletes a store's checkpoints, in the order in which it is told to, in a thread of its own: that takes time. What
    it is told meanwhile it does together: then each trial's folder is brought to disk once.

    ``prompt``: `delete` returns when it is done. For a quota: room is made before anything more is published in it.
    """

    def __init__(self, store: Store | ObjectStore, patience: Patience | None = None, prompt: bool = False) -> None:
        self._store = store
        self._patience = patience or Patience(0.0)
        self._prompt = prompt
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raytuner-janitor")
        self._doomed: deque[tuple[int, int]] = deque()

    def delete(self, trial: int, step: int) -> None:
        """Remove a checkpoint, soon. One that cannot be removed is left to the next `sweep`."""
        self._doomed.append((trial, step))
        done = self._thread.submit(self._delete)
        if self._prompt:
            done.result()

    def quarantine(self, trial: int, step: int) -> str | None:
        """`Store.quarantine`, when all that was told before is done."""
        return self._thread.submit(
            self._try, self._store.path(trial, step), self._store.quarantine, trial, step
        ).result()

    def sweep(self, referenced: Collection[tuple[int, int]]) -> list[str]:
        """`Store.sweep`, when all that was told before is done. Raises `StorageError`."""
        sweep = partial(self._store.sweep, referenced)
        return self._thread.submit(self._patience.through, sweep, self._store.root, always).result()

    def sweep_trial(self, trial: int, referenced: Collection[int]) -> list[str]:
        """`Store.sweep_trial`, when all that was told before is done. Raises `StorageError`."""
        sweep = partial(self._store.sweep_trial, trial, referenced)
        return self._thread.submit(self._patience.through, sweep, self._store.root, always).result()

    def close(self) -> None:
        """Return when all is done."""
        self._thread.shutdown()

    def _delete(self) -> None:
        """Remove all that waits for it."""
        hidden: dict[str, list[str]] = {}  # by folder
        for _ in range(len(self._doomed)):
            trial, step = self._doomed.popleft()
            if not isinstance(self._store, Store):
                self._try(self._store.path(trial, step), self._store.delete, trial, step)
                continue
            path = self._try(self._store.path(trial, step), self._store.hide, trial, step)
            if path is not None:
                hidden.setdefault(os.path.dirname(path), []).append(path)
        for folder, paths in hidden.items():
            self._try(folder, self._remove, folder, paths)

    def _remove(self, folder: str, paths: Sequence[str]) -> None:
        sync_folder(folder)
        for path in paths:
            self._try(path, remove, path)

    def _try(self, path: str, act: Callable[..., T], *args: Any) -> T | None:
        try:
            return self._patience.through(partial(act, *args), path)
        except (StorageError, OSError) as error:
            _log.warning("a checkpoint could not be removed, and is left to the next sweep: %s", error)
            return None


# ------------------------------------------------------------------------------------------------- the manifest


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was published: relative paths, with ``/``. ``files`` maps each to (size in bytes, sha256). ``data``: in an
    object store, the name below which they lie."""

    trial: int
    step: int
    folders: frozenset[str]
    files: Mapping[str, tuple[int, str]]
    data: str = ""

    def encode(self) -> bytes:
        """The bytes of the file; the same manifest gives the same bytes."""
        files = [{"path": name, "size": size, "sha256": sha} for name, (size, sha) in sorted(self.files.items())]
        content = {
            "format": FORMAT,
            "version": VERSION,
            "trial": self.trial,
            "step": self.step,
            "folders": sorted(self.folders),
            "files": files,
            **({"data": self.data} if self.data else {}),
        }
        return (json.dumps(content, indent=1) + "\n").encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read it back, believing nothing; `ValueError` says what is wrong."""
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error})") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"not a manifest of format {FORMAT!r}")
        if content.get("version") != VERSION:
            raise ValueError(f"format version {content.get('version')!r:.80}; this raytuner reads version {VERSION}")
        trial, step = _count(content, "trial"), _count(content, "step")
        folders = [_safe(name) for name in _list(content, "folders")]
        files: dict[str, tuple[int, str]] = {}
        for entry in _list(content, "files"):
            if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
                raise ValueError(f"a file is a path, a size and a sha256, not {entry!r:.80}")
            name = _safe(entry.get("path"))
            if name in files:
                raise ValueError(f"{name!r:.80} is listed twice")
            files[name] = (_count(entry, "size"), entry["sha256"])
        below = content.get("data", "")
        if below and "/" in _safe(below):
            raise ValueError(f"'data' must be one plain name, not {below!r:.80}")
        return cls(trial, step, frozenset(folders), files, below)


def _count(content: Mapping[str, Any], key: str) -> int:
    value = content.get(key)
    if type(value) is not int or value < 0:
        raise ValueError(f"{key!r} must be a whole number, not {value!r:.80}")
    return value


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{key!r} must be a list")
    return value


def _safe(name: object) -> str:
    """A relative path that stays inside the checkpoint."""
    if not isinstance(name, str) or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r:.80} is not a path inside the checkpoint")
    if any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST for part in name.split("/")):
        raise ValueError(f"{name!r:.80} … is longer than a file's name can be")
    return name


def _read_manifest(path: str, trial: int, step: int) -> tuple[str, Manifest]:
    """Hash and content; `DamagedCheckpoint` unless it is this checkpoint's."""
    try:
        with open_plain(os.path.join(path, MANIFEST)) as file:
            data = file.read()
    except FileNotFoundError:
        raise DamagedCheckpoint(path, MANIFEST, "the file is missing") from None
    except ValueError as error:
        raise DamagedCheckpoint(path, MANIFEST, str(error)) from None
    try:
        manifest = Manifest.decode(data)
    except ValueError as error:
        raise DamagedCheckpoint(path, MANIFEST, f"bad manifest: {error}") from None
    if (manifest.trial, manifest.step) != (trial, step):
        whose = f"trial {manifest.trial}, step {manifest.step}"
        raise DamagedCheckpoint(path, MANIFEST, f"bad manifest: it belongs to {whose}")
    return hashlib.sha256(data).hexdigest(), manifest


def _is_ours(path: str) -> bool:
    """Whether this directory was published by a store: has one of our manifests, whole or not."""
    try:
        with open_plain(os.path.join(path, MANIFEST)) as file:
            return FORMAT.encode() in file.read(200)
    except (OSError, ValueError):
        return False


# -------------------------------------------------------------------------------------------------------- files


def verify_folder(path: str, trial: int, step: int) -> str:
    """Read all of a checkpoint's directory; returns the hash of its manifest, or raises `DamagedCheckpoint`."""
    digest, expected = _read_manifest(path, trial, step)
    files, folders, others = scan(path)
    for name, kind in others:
        raise DamagedCheckpoint(path, name, f"is {kind}; a checkpoint holds plain files and directories")
    found = set(files) - {MANIFEST}
    for name in sorted(found - expected.files.keys()):
        raise DamagedCheckpoint(path, name, "an extra file: the manifest does not list it")
    for name in sorted(expected.files.keys() - found):
        raise DamagedCheckpoint(path, name, "the file is missing")
    for name in sorted(set(folders) ^ expected.folders):
        extra = name in folders
        raise DamagedCheckpoint(path, name, "an extra directory" if extra else "the directory is missing")
    for name, (size, sha256) in expected.files.items():
        _verify_file(path, name, size, sha256)
    return digest


def _write_checkpoint(source: str, target: str, trial: int, step: int) -> str:
    """Copy ``source`` to the new directory ``target`` with a manifest, all of it on disk; the manifest's hash."""
    files, folders = contents(source)
    make_new(target, folders)
    with _syncs.under_way() as sync:
        copied = {name: _copy_file(os.path.join(source, name), os.path.join(target, name), sync) for name in files}
        manifest = Manifest(trial, step, frozenset(folders), copied).encode()
        _write_file(os.path.join(target, MANIFEST), [manifest], sync)
        for name in [*folders, ""]:
            sync(os.open(os.path.join(target, name), os.O_RDONLY | os.O_DIRECTORY))
    return hashlib.sha256(manifest).hexdigest()


def take(source: str, target: str) -> tuple[list[str], list[str]]:
    """Copy ``source`` to the new directory ``target``, as fast as that goes; files and folders."""
    files, folders = contents(source)
    make_new(target, folders)
    for name in files:
        _take_file(os.path.join(source, name), os.path.join(target, name))
    return files, folders


def _seal(target: str, trial: int, step: int, files: Sequence[str], folders: Sequence[str]) -> str:
    """Give a directory its manifest, and bring all of it to disk; the manifest's hash."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(target, MANIFEST))  # of a try that failed
    with _syncs.under_way() as sync:
        found: dict[str, tuple[int, str]] = {}
        for name in files:
            with open_plain(os.path.join(target, name)) as file:
                sync(os.dup(file.fileno()))  # while it is read
                digest = hashlib.file_digest(file, "sha256")
                found[name] = file.tell(), digest.hexdigest()
        manifest = Manifest(trial, step, frozenset(folders), found).encode()
        _write_file(os.path.join(target, MANIFEST), [manifest], sync)
        for name in [*folders, ""]:
            sync(os.open(os.path.join(target, name), os.O_RDONLY | os.O_DIRECTORY))
    return hashlib.sha256(manifest).hexdigest()


def contents(source: str) -> tuple[list[str], list[str]]:
    """The files and folders of a directory that is to become a checkpoint."""
    files, folders, others = scan(source)
    for name, kind in others:
        raise ValueError(f"{os.path.join(source, name)} is {kind}; a checkpoint holds plain files and directories")
    if MANIFEST in [*files, *folders]:
        if not _is_ours(source):
            raise ValueError(f"{os.path.join(source, MANIFEST)}: a checkpoint may not hold a file of this name")
        files.remove(MANIFEST)  # copied or reported again from a published checkpoint
    return files, folders


def make_new(target: str, folders: Sequence[str]) -> None:
    """Make a directory and its folders."""
    remove(target)
    os.mkdir(target)
    for name in folders:
        os.mkdir(os.path.join(target, name))


def _take_file(source: str, target: str) -> None:
    """Copy one file without looking at it: the system does it, on some file systems without reading it."""
    with open_plain(source) as file:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                while os.copy_file_range(file.fileno(), descriptor, 64 * CHUNK):
                    pass
            except OSError as error:
                if error.errno not in _NO_COPY_RANGE:
                    raise
            # From where that ended: what it cannot copy, or only takes to be empty, is read.
            while chunk := file.read(CHUNK):
                _write_all(descriptor, chunk)
        finally:
            os.close(descriptor)


Sync = Callable[[int], None]
"""Takes an open file or folder, to bring it to disk and close it."""


class _Syncs:
    """Brings files and folders to disk; where that takes long, in threads: for several that are asked for at once, a
    file system often needs one flush (ext4 was seen to take 20 ms for four in turn, and 5 ms at once), and while it
    writes, more can be read."""

    def __init__(self) -> None:
        self._took_s = 0.0  # one, as a rule

    @contextmanager
    def under_way(self) -> Iterator[Sync]:
        """What is given to `Sync` within is on disk at the end, in whatever order."""
        threads = ThreadPoolExecutor(_SYNCS, thread_name_prefix="raytuner-sync")  # has none before it is needed
        under_way: deque[Future[None]] = deque()

        def sync(descriptor: int) -> None:
            if self._took_s < _WORTH_A_THREAD_S:
                self._sync(descriptor)
                return
            under_way.append(threads.submit(self._sync, descriptor))
            if len(under_way) > _OPEN:
                under_way.popleft().result()

        with threads:
            yield sync
            for each in under_way:
                each.result()

    def _sync(self, descriptor: int) -> None:
        begun = time.perf_counter()
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._took_s += 0.2 * (time.perf_counter() - begun - self._took_s)


_syncs = _Syncs()


def _copy_file(source: str, target: str, sync: Sync) -> tuple[int, str]:
    """Copy one file; its size and sha256 as they were written."""
    size, digest = 0, hashlib.sha256()

    def chunks() -> Iterator[bytes]:
        nonlocal size
        with open_plain(source) as file:
            while chunk := file.read(CHUNK):
                size += len(chunk)
                digest.update(chunk)
                yield chunk

    _write_file(target, chunks(), sync)
    return size, digest.hexdigest()


def _write_file(path: str, chunks: Collection[bytes] | Iterator[bytes], sync: Sync) -> None:
    """Write a new file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    size = 0
    try:
        for chunk in chunks:
            _write_all(descriptor, chunk)
            size += len(chunk)
            if not size % _PIECE:
                sync(os.dup(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    sync(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _verify_file(path: str, name: str, size: int, sha256: str) -> None:
    """Compare one file with what its manifest says."""
    digest = hashlib.sha256()
    try:
        with open_plain(os.path.join(path, name)) as file:
            actual = os.fstat(file.fileno()).st_size
            if actual != size:
                raise DamagedCheckpoint(path, name, f"its size is {actual} bytes, and was {size}")
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        raise DamagedCheckpoint(path, name, "the file is missing") from None
    except ValueError as error:
        raise DamagedCheckpoint(path, name, str(error)) from None
    if digest.hexdigest() != sha256:
        raise DamagedCheckpoint(path, name, f"its sha256 is {digest.hexdigest()}, and was {sha256}")


def scan(root: str) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """What is below a directory: files, folders (parents first), and what is neither, with its kind."""
    files: list[str] = []
    folders: list[str] = []
    others: list[tuple[str, str]] = []
    below = [""]
    while below:
        prefix = below.pop()
        with os.scandir(os.path.join(root, prefix)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = prefix + entry.name
                if entry.is_symlink():
                    others.append((name, "a symbolic link"))
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                    below.append(name + "/")
                elif entry.is_file(follow_symlinks=False):
                    files.append(name)
                else:
                    others.append((name, "a special file"))
    return sorted(files), sorted(folders), sorted(others)


def remove(path: str) -> None:
    """Remove whatever is there, never following a link. Somebody else may be removing it, too."""
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
        if _is_folder(path):
            shutil.rmtree(path)  # says why not
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _removed(path: str) -> bool:
    """Whether a temporary could be removed. Nobody looks at it: that it stays is no reason not to go on."""
    try:
        remove(path)
    except OSError as error:
        _log.warning("%s could not be removed: %s", path, error)
        return False
    return True


def _is_folder(path: str) -> bool:
    """Whether this is a directory itself, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _names(path: str) -> list[str]:
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def _name(what: str, number: int) -> str:
    if number < 0:
        raise ValueError(f"{what} must be 0 or more, not {number}")
    return f"{number:06d}"


def _is_number(name: str) -> bool:
    """Whether `_name` gives this name."""
    return name.isascii() and name.isdecimal() and f"{int(name):06d}" == name
