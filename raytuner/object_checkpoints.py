"""Checkpoints in an object store, where nothing can be renamed: the data first, what makes it a checkpoint last.

    <study>/checkpoints/000007/000027/          trial 7, step 27
        3-9f2c61aa/model.pt …                   the user's files, of attempt 3
        MANIFEST-<sha256>.json                  size and sha256 of each of them, written last, removed first

A checkpoint is there if and only if its manifest is, and a manifest is named by its own hash, which the study's journal
has: whoever loads a checkpoint asks for that one, whatever an attempt that is thought dead has written beside it. Each
attempt writes below a name of its own; no object is ever written twice. What has no manifest the next sweep removes.

Files pass through a `raytuner.cache.Cache` both ways: what a process publishes stays there, so that whoever goes on
from it on the same machine does not fetch it. What is fetched is compared with the manifest before anybody sees it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from raytuner.cache import Cache
from raytuner.checkpoints import (
    CHUNK,
    MANIFEST,
    Checkpoint,
    DamagedCheckpoint,
    Manifest,
    Staged,
    Store,
    take,
)
from raytuner.record.durable import open_plain
from raytuner.record.storage import Place

_NAME = re.compile(r"MANIFEST-([0-9a-f]{64})\.json")
_AT_ONCE = 8  # files that are sent or fetched at the same time


def store_at(where: str | os.PathLike[str] | Place, cache: Path, cache_bytes: int) -> Store | ObjectStore:
    """What keeps checkpoints there; ``cache``: for those in an object store, a folder on this machine."""
    place = Place.of(where)
    return Store(place) if place.local is not None else ObjectStore(place, Cache(cache, cache_bytes))


class RemoteCheckpoint(Checkpoint):
    """A checkpoint in an object store, whose files are fetched, and verified, when ``path`` is first asked for."""

    def __init__(self, store: ObjectStore, trial: int, step: int, digest: str) -> None:
        self._store = store
        self._which = trial, step, digest

    @cached_property
    def path(self) -> str:  # type: ignore[override]
        """Absolute path of a directory on this machine."""
        return self._store.fetch(*self._which)[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteCheckpoint) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Checkpoint({self._store.path(*self._which[:2])!r})"

    @property
    def _key(self) -> tuple[Any, ...]:
        return self._store.root, self._which


class ObjectStore:
    """The checkpoints of a study, under ``root`` in an object store; the same methods as `Store`."""

    def __init__(self, root: Place, cache: Cache) -> None:
        self.root = str(root)
        self._root = root
        self._cache = cache
        self._aside = root.parent / "quarantine"
        self._known: dict[tuple[int, int], tuple[str, int]] = {}  # hash and size of what passed through here

    def path(self, trial: int, step: int) -> str:
        """Where this checkpoint is, or would be."""
        return str(self._place(trial, step))

    def publish(self, source_dir: str | os.PathLike[str], trial: int, step: int, attempt: int) -> str:
        """Copy a directory into the store, durable when this returns; returns the hash of its manifest."""
        staged = self.stage(source_dir, trial, step, attempt)
        try:
            return self.publish_staged(staged)
        except BaseException:
            self._cache.discard(staged.path)
            raise

    def stage(self, source_dir: str | os.PathLike[str], trial: int, step: int, attempt: int) -> Staged:
        """Take a directory's files, to `publish_staged` them later: when this returns, they may change or go."""
        path = self._cache.new()
        try:
            files, folders = take(os.path.abspath(source_dir), path)
        except BaseException:
            self._cache.discard(path)
            raise
        return Staged(path, trial, step, files, folders, attempt)

    def publish_staged(self, staged: Staged) -> str:
        """`publish` what was taken. If this fails, it may be tried again."""
        place = self._place(staged.trial, staged.step)
        data = f"{staged.attempt}-{secrets.token_hex(4)}"
        with _threads() as threads:
            sent = threads.map(lambda name: _send(os.path.join(staged.path, name), place / data / name), staged.files)
            files = dict(zip(staged.files, sent, strict=True))
        manifest = Manifest(staged.trial, staged.step, frozenset(staged.folders), files, data).encode()
        digest = hashlib.sha256(manifest).hexdigest()
        Path(staged.path, MANIFEST).write_bytes(manifest)
        (place / f"MANIFEST-{digest}.json").write(manifest)
        self._note(staged.trial, staged.step, digest, files)
        self._cache.adopt(staged.path, digest)
        self._cache.release(digest)
        return digest

    def verify(self, trial: int, step: int) -> str:
        """Read all of a checkpoint from the store; returns the hash of its manifest, or raises `DamagedCheckpoint`."""
        digest, path = self._download(trial, step, "")
        self._cache.discard(path)
        return digest

    def fetch(self, trial: int, step: int, digest: str) -> tuple[str, str]:
        """The hash of a checkpoint's manifest, verified, and a directory with its files; ``digest``: the hash that it
        should have, if that is known. Raises `DamagedCheckpoint`."""
        if digest and (path := self._cache.find(digest, trial, step)) is not None:
            return digest, path
        digest, path = self._download(trial, step, digest)
        return digest, self._cache.adopt(path, digest)

    def local(self, trial: int, step: int, digest: str) -> str:
        """A directory with the files of a checkpoint that this process has published or fetched."""
        return self.fetch(trial, step, digest)[1]

    def nbytes(self, trial: int, step: int) -> int:
        """The size of a checkpoint's files, as its manifest has it."""
        if (trial, step) not in self._known:
            digest, manifest, _ = self._manifest(trial, step, "")
            self._note(trial, step, digest, manifest.files)
        return self._known[trial, step][1]

    def load(self, trial: int, step: int) -> Checkpoint:
        """A checkpoint to read from, verified."""
        return Checkpoint(self.fetch(trial, step, "")[1])

    def published(self, trial: int, step: int, digest: str) -> Checkpoint:
        """One that is there, to be fetched when somebody looks at it."""
        return RemoteCheckpoint(self, trial, step, digest)

    def all(self) -> set[tuple[int, int]]:
        """The trials and steps of all that are there. They are not verified."""
        found = (name.split("/") for name in _below(self._root) if _is_manifest(name.partition("/")[2]))
        return {(int(trial), int(step)) for trial, step, _ in found if trial.isascii() and trial.isdecimal()}

    def has(self, trial: int, step: int) -> bool:
        """Whether there is anything in the way of publishing it: never."""
        return False

    def steps(self, trial: int) -> list[int]:
        """Steps with a published checkpoint, lowest first. They are not verified."""
        found = _below(self._root / f"{trial:06d}")
        return sorted({int(name.split("/")[0]) for name in found if _is_manifest(name)})

    def delete(self, trial: int, step: int) -> None:
        """Remove a checkpoint; from the first moment on it is not seen any more. One that is not there: nothing."""
        self._remove(self._place(trial, step), _below(self._place(trial, step)))

    def quarantine(self, trial: int, step: int) -> str | None:
        """Put a damaged checkpoint aside, where nothing is ever removed; its new place, or None if it is not there."""
        place, name = self._place(trial, step), f"{trial:06d}-{step:06d}"
        if not (found := _below(place)):
            return None
        taken = {each.split("/")[0] for each in _below(self._aside)}
        number = 1
        while (free := name if number == 1 else f"{name}-{number}") in taken:
            number += 1  # the same step was damaged before
        files = place.filesystem()
        for each in sorted(found, key=lambda each: _NAME.fullmatch(each) is None):  # manifests first
            files.copy_file((place / each).path, (self._aside / free / each).path)
            _remove_object(place / each)
        return str(self._aside / free)

    def sweep(self, referenced: Collection[tuple[int, int]]) -> list[str]:
        """Remove every checkpoint that is not ``referenced`` as (trial, step), and data that no manifest speaks of.

        Returns the places that are gone. Only while no trial runs: a checkpoint that is being published would go too.
        Names that are not the store's own are left alone.
        """
        return self._sweep(_below(self._root), set(referenced))

    def sweep_trial(self, trial: int, referenced: Collection[int]) -> list[str]:
        """The same for one trial, while that trial does not run; ``referenced`` are steps."""
        found = [f"{trial:06d}/{name}" for name in _below(self._root / f"{trial:06d}")]
        return self._sweep(found, {(trial, step) for step in referenced})

    def tidy(self, trial: int) -> None:
        """What a process that died while it published left is not in anybody's way."""

    def close(self) -> None:
        """What was given out is not needed any more."""
        self._cache.close()

    # --------------------------------------------------------------------------------------------------- its parts

    def _place(self, trial: int, step: int) -> Place:
        for what, number in (("trial", trial), ("step", step)):
            if number < 0:
                raise ValueError(f"{what} must be 0 or more, not {number}")
        return self._root / f"{trial:06d}/{step:06d}"

    def _note(self, trial: int, step: int, digest: str, files: Any) -> None:
        self._known[trial, step] = digest, sum(size for size, _ in files.values())

    def _manifest(self, trial: int, step: int, digest: str) -> tuple[str, Manifest, bytes]:
        """Hash, content and bytes; if the hash is not known, of the one that is there."""
        place = self._place(trial, step)
        if not digest:
            there = sorted(found[1] for name in place.listed() if (found := _NAME.fullmatch(name)))
            if not there:
                self._must_answer()
                raise DamagedCheckpoint(str(place), "", "there is no such checkpoint")
            known = self._known.get((trial, step), ("", 0))[0]
            digest = known if known in there else there[0]
        name = f"MANIFEST-{digest}.json"
        try:
            raw = (place / name).read()
        except FileNotFoundError:
            self._must_answer()
            raise DamagedCheckpoint(str(place), name, "the file is missing") from None
        if hashlib.sha256(raw).hexdigest() != digest:
            raise DamagedCheckpoint(str(place), name, f"its sha256 is {hashlib.sha256(raw).hexdigest()}")
        try:
            manifest = Manifest.decode(raw)
            if not manifest.data:
                raise ValueError("it does not say where its data lies")
        except ValueError as error:
            raise DamagedCheckpoint(str(place), name, f"bad manifest: {error}") from None
        if (manifest.trial, manifest.step) != (trial, step):
            whose = f"trial {manifest.trial}, step {manifest.step}"
            raise DamagedCheckpoint(str(place), name, f"bad manifest: it belongs to {whose}")
        return digest, manifest, raw

    def _download(self, trial: int, step: int, digest: str) -> tuple[str, str]:
        """Fetch a checkpoint into a new directory of the cache, and compare it with its manifest."""
        place = self._place(trial, step)
        digest, manifest, raw = self._manifest(trial, step, digest)
        path = self._cache.new()
        try:
            for name in sorted(manifest.folders):
                os.makedirs(os.path.join(path, name), exist_ok=True)

            def get(name: str) -> None:
                size, sha256 = manifest.files[name]
                os.makedirs(os.path.dirname(os.path.join(path, name)), exist_ok=True)
                try:
                    found = _get(place / manifest.data / name, os.path.join(path, name), size)
                except FileNotFoundError:
                    self._must_answer()
                    raise DamagedCheckpoint(str(place), name, "the file is missing") from None
                if found != (size, sha256):
                    was = f"its size is {found[0]} bytes, its sha256 {found[1]}; they were {size} and {sha256}"
                    raise DamagedCheckpoint(str(place), name, was)

            with _threads() as threads:
                list(threads.map(get, manifest.files))
            Path(path, MANIFEST).write_bytes(raw)
        except BaseException:
            self._cache.discard(path)
            raise
        self._note(trial, step, digest, manifest.files)
        return digest, path

    def _must_answer(self) -> None:
        """Something is not there; raise OSError if that is because nothing is."""
        from pyarrow.fs import FileType

        bucket = self._root.path.partition("/")[0]
        if self._root.filesystem().get_file_info(bucket).type == FileType.NotFound:
            raise OSError(f"{self._root}: there is no bucket {bucket!r}")

    def _sweep(self, found: Collection[str], referenced: set[tuple[int, int]]) -> list[str]:
        there: dict[tuple[int, int], list[str]] = {}
        for name in found:
            parts = name.split("/", 2)
            if len(parts) == 3 and all(part.isascii() and part.isdecimal() for part in parts[:2]):
                there.setdefault((int(parts[0]), int(parts[1])), []).append(parts[2])
        gone = []
        for (trial, step), names in sorted(there.items()):
            place = self._place(trial, step)
            if (trial, step) not in referenced:
                self._remove(place, names)
                gone.append(str(place))
            elif stale := self._unspoken(trial, step, names):
                self._remove(place, stale)
                gone += [str(place / name) for name in stale]
        return gone

    def _unspoken(self, trial: int, step: int, names: Collection[str]) -> list[str]:
        """The data of a checkpoint's place that no manifest there speaks of."""
        folders = {name.split("/")[0] for name in names if "/" in name}
        manifests = [found[1] for name in names if (found := _NAME.fullmatch(name))]
        if not manifests or len(folders) <= 1:
            return []
        try:
            spoken = {self._manifest(trial, step, digest)[1].data for digest in manifests}
        except DamagedCheckpoint:
            return []  # whoever loads it will find out
        return [name for name in names if "/" in name and name.split("/")[0] not in spoken]

    def _remove(self, place: Place, names: Collection[str]) -> None:
        """Remove objects: manifests first, so that what is left of the rest is no checkpoint."""
        for name in names:
            if _NAME.fullmatch(name):
                _remove_object(place / name)
        with _threads() as threads:
            list(threads.map(lambda name: _remove_object(place / name), (n for n in names if not _NAME.fullmatch(n))))


def _is_manifest(name: str) -> bool:
    step, _, rest = name.partition("/")
    return step.isascii() and step.isdecimal() and _NAME.fullmatch(rest) is not None


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="raytuner-objects")


def _below(place: Place) -> list[str]:
    """The names of all objects below a place."""
    from pyarrow.fs import FileSelector, FileType

    found = place.filesystem().get_file_info(FileSelector(place.path, recursive=True, allow_not_found=True))
    return [each.path.removeprefix(f"{place.path}/") for each in found if each.type == FileType.File]


def _remove_object(place: Place) -> None:
    with suppress(FileNotFoundError):
        place.remove()


def _send(source: str, target: Place) -> tuple[int, str]:
    """Copy a file to a new object; its size and sha256."""
    size, digest = 0, hashlib.sha256()
    with open_plain(source) as file, target.filesystem().open_output_stream(target.path) as sink:
        for chunk in _chunks(file):
            size += len(chunk)
            digest.update(chunk)
            sink.write(chunk)
    return size, digest.hexdigest()


def _get(source: Place, target: str, most: int) -> tuple[int, str]:
    """Copy an object to a new file; its size and sha256. Of one that is larger than ``most`` no more than needed."""
    size, digest = 0, hashlib.sha256()
    with source.filesystem().open_input_stream(source.path) as stream, open(target, "xb") as file:
        for chunk in _chunks(stream):
            size += len(chunk)
            digest.update(chunk)
            if size > most:
                break
            file.write(chunk)
    return size, digest.hexdigest()


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(4 * CHUNK):
        yield chunk
