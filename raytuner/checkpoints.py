"""Checkpoints: publish by rename, verify before use, delete so that no half is ever seen; and which of them to keep.

`Checkpoint` is what users hold: a directory, with Ray's methods. `Store` is where a study keeps them:

    <study>/checkpoints/000007/000027/          trial 7, step 27
        model.pt …                              the user's files
        MANIFEST.json                           size and sha256 of each of them, written last

A checkpoint is there as a whole or not at all: its files are copied to a temporary sibling (``.tmp-…``), everything is
brought to disk, and one rename makes it visible. Whatever dies in between leaves a temporary, which the next `sweep`
removes. Once published, a checkpoint never changes. `Store` has one writer per trial at a time; it does not know which
checkpoints are in use, the study does.

`retention` says which checkpoints of a trial to keep. It is pure: it deletes nothing.

Local file systems only. Needs neither Ray nor pyarrow.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
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
from typing import Any, Protocol, TypeVar

from raytuner.durable import make_folders, not_a_folder, open_plain, sync_folder

_log = logging.getLogger(__name__)

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


class Store:
    """The checkpoints of a study, under ``root``."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)

    def path(self, trial: int, step: int) -> str:
        """Where this checkpoint is, or would be."""
        return os.path.join(self._folder(trial), _name("step", step))

    def publish(self, source_dir: str | os.PathLike[str], trial: int, step: int, attempt: int) -> str:
        """Copy a directory into the store, durable when this returns; returns the hash of its manifest.

        A checkpoint of this step that is already there and whole is kept, since the first report of a step counts.
        A damaged one is replaced.
        """
        source, final, folder = os.path.abspath(source_dir), self.path(trial, step), self._folder(trial)
        self._check_root()
        with suppress(DamagedCheckpoint):
            digest = self.verify(trial, step)
            sync_folder(folder)  # whoever renamed it may have died before this
            return digest
        make_folders(folder)
        if not _is_folder(folder):
            raise NotADirectoryError(errno.ENOTDIR, "checkpoints are kept in a directory, not a link", folder)
        ours = os.path.join(folder, f"{TEMPORARY}{_name('step', step)}-{attempt}-{os.getpid()}")
        theirs = f"{ours}-damaged"
        try:
            digest = _write_checkpoint(source, ours, trial, step)
            if os.path.lexists(final):
                _remove(theirs)
                os.rename(final, theirs)
            try:
                os.rename(ours, final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                digest = self.verify(trial, step)  # another attempt was first after all
            sync_folder(folder)
        finally:
            with suppress(OSError):  # what cannot be removed now, `sweep` removes
                _remove(ours)
                _remove(theirs)
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
        digest, expected = _read_manifest(path, trial, step)
        files, folders, others = _scan(path)
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

    def load(self, trial: int, step: int) -> Checkpoint:
        """A checkpoint to read from, verified."""
        self.verify(trial, step)
        return Checkpoint(self.path(trial, step))

    def steps(self, trial: int) -> list[int]:
        """Steps with a published checkpoint, lowest first. They are not verified."""
        return sorted(int(name) for name in _names(self._folder(trial)) if _is_number(name))

    def delete(self, trial: int, step: int) -> None:
        """Remove a checkpoint; from the first moment on it is not seen any more. One that is not there: nothing."""
        hidden = self.hide(trial, step)
        if hidden is not None:
            sync_folder(os.path.dirname(hidden))
            _remove(hidden)

    def hide(self, trial: int, step: int) -> str | None:
        """The first half of `delete`: make it a temporary, and return its path; None if it is not there."""
        path, folder = self.path(trial, step), self._folder(trial)
        self._check_root()
        if not _is_folder(folder):
            return None
        hidden = os.path.join(folder, f"{TEMPORARY}{_name('step', step)}-{os.getpid()}{_DELETED}")
        _remove(hidden)
        try:
            os.rename(path, hidden)
        except FileNotFoundError:
            return None
        return hidden

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
    it is told meanwhile it does together: then each trial's folder is brought to disk once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raytuner-janitor")
        self._doomed: deque[tuple[int, int]] = deque()

    def delete(self, trial: int, step: int) -> None:
        """Remove a checkpoint, soon. One that cannot be removed is left to the next `sweep`."""
        self._doomed.append((trial, step))
        self._thread.submit(self._delete)

    def sweep(self, referenced: Collection[tuple[int, int]]) -> list[str]:
        """`Store.sweep`, when all that was told before is done."""
        return self._thread.submit(self._store.sweep, referenced).result()

    def sweep_trial(self, trial: int, referenced: Collection[int]) -> list[str]:
        """`Store.sweep_trial`, when all that was told before is done."""
        return self._thread.submit(self._store.sweep_trial, trial, referenced).result()

    def close(self) -> None:
        """Return when all is done."""
        self._thread.shutdown()

    def _delete(self) -> None:
        """Remove all that waits for it."""
        hidden: dict[str, list[str]] = {}  # by folder
        for _ in range(len(self._doomed)):
            trial, step = self._doomed.popleft()
            path = self._try(self._store.path(trial, step), self._store.hide, trial, step)
            if path is not None:
                hidden.setdefault(os.path.dirname(path), []).append(path)
        for folder, paths in hidden.items():
            self._try(folder, self._remove, folder, paths)

    def _remove(self, folder: str, paths: Sequence[str]) -> None:
        sync_folder(folder)
        for path in paths:
            self._try(path, _remove, path)

    def _try(self, path: str, act: Callable[..., T], *args: Any) -> T | None:
        try:
            return act(*args)
        except OSError as error:
            _log.warning("checkpoint %s could not be deleted: %s", path, error)
            return None


# ------------------------------------------------------------------------------------------------- the manifest


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was published: relative paths, with ``/``. ``files`` maps each to (size in bytes, sha256)."""

    trial: int
    step: int
    folders: frozenset[str]
    files: Mapping[str, tuple[int, str]]

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
        return cls(trial, step, frozenset(folders), files)


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


def _write_checkpoint(source: str, target: str, trial: int, step: int) -> str:
    """Copy ``source`` to the new directory ``target`` with a manifest, all of it on disk; the manifest's hash."""
    files, folders, others = _scan(source)
    for name, kind in others:
        raise ValueError(f"{os.path.join(source, name)} is {kind}; a checkpoint holds plain files and directories")
    if MANIFEST in [*files, *folders]:
        if not _is_ours(source):
            raise ValueError(f"{os.path.join(source, MANIFEST)}: a checkpoint may not hold a file of this name")
        files.remove(MANIFEST)  # copied or reported again from a published checkpoint
    _remove(target)
    os.mkdir(target)
    for name in folders:
        os.mkdir(os.path.join(target, name))
    with _syncs.under_way() as sync:
        copied = {name: _copy_file(os.path.join(source, name), os.path.join(target, name), sync) for name in files}
        manifest = Manifest(trial, step, frozenset(folders), copied).encode()
        _write_file(os.path.join(target, MANIFEST), [manifest], sync)
        for name in [*folders, ""]:
            sync(os.open(os.path.join(target, name), os.O_RDONLY | os.O_DIRECTORY))
    return hashlib.sha256(manifest).hexdigest()


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
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            size += len(chunk)
            if not size % _PIECE:
                sync(os.dup(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    sync(descriptor)


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


def _scan(root: str) -> tuple[list[str], list[str], list[tuple[str, str]]]:
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


def _remove(path: str) -> None:
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
        _remove(path)
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


# ---------------------------------------------------------------------------------------------- which to keep


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints of each trial are kept, and how often class trainables make one. Ray's names and defaults.

    num_to_keep: how many; None keeps all of them.
    checkpoint_score_attribute: the metric by which the best are kept; None keeps the latest.
    checkpoint_score_order: whether "max" or "min" of it is best.
    checkpoint_frequency: steps between checkpoints that `should_checkpoint` asks for, beside ends of leases; 0: none.
    checkpoint_at_end: whether a class trainable makes one when it ends.
    """

    num_to_keep: int | None = None
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: str = "max"
    checkpoint_frequency: int = 0
    checkpoint_at_end: bool | None = None

    def __post_init__(self) -> None:
        keep: object = self.num_to_keep  # objects: users without a type checker come through here
        attribute: object = self.checkpoint_score_attribute
        frequency: object = self.checkpoint_frequency
        if keep is not None and not (type(keep) is int and keep >= 1):
            raise ValueError(f"num_to_keep must be None or a whole number from 1 on, not {keep!r}")
        if attribute is not None and not (isinstance(attribute, str) and attribute):
            raise ValueError(f"checkpoint_score_attribute must be None or the name of a metric, not {attribute!r}")
        if self.checkpoint_score_order not in ("max", "min"):
            raise ValueError(f"checkpoint_score_order must be 'max' or 'min', not {self.checkpoint_score_order!r}")
        if not (type(frequency) is int and frequency >= 0):
            raise ValueError(f"checkpoint_frequency must be a whole number from 0 on, not {frequency!r}")
        if self.checkpoint_at_end not in (None, True, False):
            raise ValueError(f"checkpoint_at_end must be None, True or False, not {self.checkpoint_at_end!r}")

    def score(self, metrics: Mapping[str, Any]) -> float | None:
        """What a checkpoint made with these metrics is ranked by; None if they do not hold it as a number."""
        if self.checkpoint_score_attribute is None:
            return None
        value = metrics.get(self.checkpoint_score_attribute)
        try:
            return None if value is None or isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Kept:
    """One checkpoint of a trial, as retention sees it; ``score`` as `CheckpointConfig.score` gives it."""

    step: int
    score: float | None = None


class Retention(Protocol):
    """A rule of what to keep."""

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        """Steps to keep out of a trial's checkpoints, in any order; ``in_use`` are steps that something needs."""


@dataclass(frozen=True, slots=True)
class Everything:
    """All of them."""

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        return {one.step for one in kept}


@dataclass(frozen=True, slots=True)
class InUse:
    """Those that something refers to: a paused trial, a restore in flight, a trial that forks from it."""

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        return {one.step for one in kept if one.step in in_use}


@dataclass(frozen=True, slots=True)
class LatestN:
    """The last ``n``."""

    n: int

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        return set(sorted(one.step for one in kept)[-self.n :])


@dataclass(frozen=True, slots=True)
class BestN:
    """The ``n`` with the best scores; of equal ones the later. NaN is worse than any number, None worst."""

    n: int
    order: str = "max"

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        return {one.step for one in sorted(kept, key=self._rank)[-self.n :]}

    def _rank(self, one: Kept) -> tuple[int, float, int]:
        if one.score is None:
            return 0, 0.0, one.step
        if math.isnan(one.score):
            return 1, 0.0, one.step
        return 2, one.score if self.order == "max" else -one.score, one.step


@dataclass(frozen=True, slots=True)
class AnyOf:
    """What one of these rules keeps is kept."""

    rules: tuple[Retention, ...]

    def keep(self, kept: Sequence[Kept], in_use: Collection[int]) -> set[int]:
        return set().union(*(rule.keep(kept, in_use) for rule in self.rules))


def retention(config: CheckpointConfig) -> Retention:
    """Ray's rule: the last, or the best, ``num_to_keep``; and always the last one, and what is in use."""
    if config.num_to_keep is None:
        return Everything()
    if config.checkpoint_score_attribute is None:
        return AnyOf((InUse(), LatestN(config.num_to_keep)))
    return AnyOf((InUse(), LatestN(1), BestN(config.num_to_keep, config.checkpoint_score_order)))
