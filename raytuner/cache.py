"""Checkpoints that lie in an object store, kept on a machine's own disk: who goes on where he was need not fetch them.

    <root>/<digest>/                the files and MANIFEST.json; named by the hash of the manifest, which has theirs
    <root>/<digest>.lock            locked, shared, by whoever may read them
    <root>/.tmp-<nonce>/, .lock     being made, by whoever holds the lock

Several processes share a cache. What is found is verified, all of it, before it is used, so that a cache is never
trusted. If it is too large, what was used longest ago goes, but nothing that somebody holds. A process that dies lets
go of its locks; what it left half-made is removed by the next that looks.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress

from raytuner.checkpoints import MANIFEST, TEMPORARY, DamagedCheckpoint, remove, scan, verify_folder

CACHE_BYTES = 10 << 30

_LOCK = ".lock"


class Cache:
    """One process's view of it. What is given out stays until `close`.

    ``root``: the folder; made when it is first needed. ``most_bytes``: of the files that are kept.
    """

    def __init__(self, root: str | os.PathLike[str], most_bytes: int) -> None:
        self._root = os.path.abspath(root)
        self._most_bytes = most_bytes
        self._held: dict[str, int] = {}  # open lock files, by name

    def find(self, digest: str, trial: int, step: int) -> str | None:
        """The directory of a checkpoint, verified; None if it is not there, or not as it was."""
        path = os.path.join(self._root, digest)
        if not os.path.isdir(path):
            return None
        self._hold(digest, fcntl.LOCK_SH)
        try:
            if verify_folder(path, trial, step) == digest:
                os.utime(os.path.join(self._root, digest + _LOCK))
                return path
        except (DamagedCheckpoint, FileNotFoundError):
            pass
        self.release(digest)
        self._evict(digest)
        return None

    def new(self) -> str:
        """A new directory, to be filled and given to `adopt` or `discard`."""
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        name = TEMPORARY + secrets.token_hex(8)
        self._hold(name, fcntl.LOCK_EX)
        path = os.path.join(self._root, name)
        os.mkdir(path)
        return path

    def adopt(self, path: str, digest: str) -> str:
        """A directory that `new` gave is a checkpoint now; where it is from now on."""
        final = os.path.join(self._root, digest)
        self._hold(digest, fcntl.LOCK_SH)
        try:
            os.rename(path, final)
        except OSError:
            if not os.path.isdir(final):
                raise
            remove(path)  # somebody else has it already
        self._let_go(os.path.basename(path))
        self.trim()
        return final

    def discard(self, path: str) -> None:
        """A directory that `new` gave is not needed."""
        with suppress(OSError):
            remove(path)
        self._let_go(os.path.basename(path))

    def release(self, digest: str) -> None:
        """Nobody here reads it any more."""
        if (file := self._held.pop(digest, None)) is not None:
            os.close(file)

    def close(self) -> None:
        """Nobody here reads any of it any more."""
        for digest in list(self._held):
            self.release(digest)

    def trim(self) -> None:
        """Remove what is too much, and what dead processes left."""
        entries: list[tuple[float, str, int]] = []
        for name in os.listdir(self._root):
            if name.endswith(_LOCK):
                continue
            if name.startswith(TEMPORARY):
                self._evict(name)
                continue
            with suppress(OSError):  # it is going
                used = os.stat(os.path.join(self._root, name + _LOCK)).st_mtime
                entries.append((used, name, _size(os.path.join(self._root, name))))
        total = sum(size for _, _, size in entries)
        for _, name, size in sorted(entries):
            if total <= self._most_bytes:
                break
            if self._evict(name):
                total -= size

    def _evict(self, name: str) -> bool:
        """Remove an entry, unless somebody holds it."""
        if name in self._held:
            return False
        try:
            file = self._lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            going = os.path.join(self._root, f"{TEMPORARY}{secrets.token_hex(8)}")
            with suppress(FileNotFoundError):
                os.rename(os.path.join(self._root, name), going)
            remove(going)
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._root, name + _LOCK))
        finally:
            os.close(file)
        return True

    def _hold(self, name: str, how: int) -> None:
        if name not in self._held:
            self._held[name] = self._lock(name, how)

    def _let_go(self, name: str) -> None:
        """Of a directory that is no more."""
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self._root, name + _LOCK))
        self.release(name)

    def _lock(self, name: str, how: int) -> int:
        """Lock an entry's lock file, which must still lie there when it is locked."""
        path = os.path.join(self._root, name + _LOCK)
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(file, how)
                if _is_there(path, file):
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)


def _is_there(path: str, file: int) -> bool:
    """Whether the open file is the one that lies there."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _size(path: str) -> int:
    return sum(os.lstat(os.path.join(path, name)).st_size for name in scan(path)[0] if name != MANIFEST)
