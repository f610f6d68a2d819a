"""One writer: the right to write a study, which one driver holds at a time.

`take` gets it, or raises `StudyInUse` with the holder's host, pid and the age of its heartbeat. A dead holder's place
is free. A holder that lost it (its process was stopped for long, its lock file was removed) finds out when it next
writes: `Hold.check` raises `StudyTaken`, before a turn and after it. Safety rests on the order of these alone, never on
clocks: whoever takes a study makes that known first and reads the record second, and whoever writes, writes first and
looks second. So a turn after which the writer still held the study was seen by whoever took it; any other was never
acknowledged, and epochs tell readers that it does not count (`segments.Epoch`, `objects`).

**A file** (`FileLock`): ``flock`` decides, so a dead holder's lock is free at once; the heartbeat is the file's time of
modification. On a file system of several hosts ``flock`` must hold between them: mounts that are known to keep locks to
one host are refused, another process of this host must be refused the lock, and a holder on another host is believed
to live as long as its heart beats, whatever ``flock`` says.

**An object store** (`ObjectLock`) has no locks. Each driver writes a *claim* of its own, ``lock/<epoch>.json``, with
the next number and a nonce, and beats by writing it again. The highest claim holds the study: claims are compared by
name, so there are never two. A claim is taken over when it was given back, when its process is known to be dead, or
after `DEAD_AFTER_S` seconds without a beat, by the store's own clock. Relied upon is that what was written is read and
listed by all from then on, as S3, GCS and Azure promise; nothing else.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from raytuner.record.durable import make_folders
from raytuner.record.folder import NoStudy
from raytuner.record.storage import Place

_log = logging.getLogger(__name__)

BEAT_S = 5.0
"""Seconds between two beats of a holder's heart."""

DEAD_AFTER_S = 30.0
"""Seconds without a beat after which a holder that may be anywhere is taken for dead."""

_SETTLE_S = 0.5  # for how long a new claim waits for others that were made at the same time
_LOOK_S = 0.5  # how often a heart is listened to


class StudyInUse(Exception):
    """Another driver holds the study."""


class StudyTaken(StudyInUse):
    """This driver held the study, and another one has it now."""


class Hold(Protocol):
    """The right to write a study."""

    def check(self) -> None:
        """Raise `StudyTaken` if another driver has it now."""

    def release(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def take(root: Path | Place) -> Hold:
    """The right to write the study in ``root``. Raises `StudyInUse`."""
    place = Place.of(root)
    return ObjectLock(place) if place.local is None else FileLock(place.local)


class _Held(ABC):
    """What both kinds share: a heart that beats in a thread, and an end."""

    def _start(self, beat_s: float) -> None:
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._live, args=(beat_s,), name="raytuner-heartbeat", daemon=True)
        self._heart.start()

    def _live(self, beat_s: float) -> None:
        failing = False
        while not self._over.wait(beat_s):
            try:
                self._beat()
                failing = False
            except OSError as error:
                if not failing:
                    _log.warning("the heartbeat of this study's driver cannot be written: %s", error)
                failing = True

    @abstractmethod
    def _beat(self) -> None:
        """Write down that the holder lives."""

    def release(self) -> None:
        self._over.set()
        self._heart.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


# ------------------------------------------------------------------------------------------------------- a file


class FileLock(_Held):
    """The lock on a study's folder. Raises `StudyInUse`; ValueError where locks do not hold."""

    def __init__(self, root: Path, beat_s: float = BEAT_S, dead_after_s: float = DEAD_AFTER_S) -> None:
        make_folders(root)
        self._root = root
        self._path = root / "lock"
        mount = mount_of(root)
        mount.must_lock(root)
        self._file = self._locked(mount)
        try:
            if mount.shared:
                self._believe(dead_after_s)
                self._must_hold(mount)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(_who()).encode(), 0)
        except BaseException:
            os.close(self._file)
            raise
        self._start(beat_s)

    def _locked(self, mount: Mount) -> int:
        """The file that lies there, locked."""
        while True:
            if self._path.is_symlink():
                raise NoStudy(f"{self._path} is a symbolic link, which is not followed")
            file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is(file):  # else it was removed, or replaced, before we had it
                    return file
            except BlockingIOError:
                os.close(file)
                raise StudyInUse(f"the study in {self._root} is being run by {self._holder()}") from None
            except OSError as error:
                os.close(file)
                raise ValueError(f"{mount} gives no locks ({error.strerror}): {_ELSEWHERE}") from None
            os.close(file)

    def _is(self, file: int) -> bool:
        """Whether an open file is the one that lies there."""
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(file))

    def check(self) -> None:
        if self._is(self._file):
            return
        found = f"taken over by {self._holder()}" if self._path.exists() else "removed"
        raise StudyTaken(f"this process has lost the study in {self._root}: its file 'lock' was {found}")

    def release(self) -> None:
        super().release()
        os.close(self._file)

    def _beat(self) -> None:
        os.utime(self._file)

    def _holder(self) -> str:
        try:
            return _shown(json.loads(self._path.read_text()), time.time() - self._path.stat().st_mtime)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "another process"

    def _believe(self, dead_after_s: float) -> None:
        """Where locks might be one host's matter: refuse if the last holder is on another one, and its heart beats."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            holder = json.loads(os.pread(self._file, 1 << 16, 0))
            beaten = os.fstat(self._file).st_mtime
            os.utime(self._root)  # the file system's clock need not be ours
            age = self._root.stat().st_mtime - beaten
            if holder["host"] != socket.gethostname() and age < dead_after_s:
                raise StudyInUse(
                    f"the study in {self._root} is being run by {_shown(holder, age)}; "
                    f"if that is dead, its place is free {dead_after_s:g} s after it was last heard of"
                )

    def _must_hold(self, mount: Mount) -> None:
        """Another process of this host must be refused the lock."""
        code = (
            "import fcntl, sys\n"
            "try: fcntl.flock(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            "except BlockingIOError: sys.exit(7)"
        )
        tried = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(self._path)], capture_output=True)
        if tried.returncode != 7:
            raise ValueError(f"{mount} gives the same lock to two processes: {_ELSEWHERE}")


_ELSEWHERE = "two drivers might write one study. Put it on a local disk, or give an object store's URI as storage_path"

_ALONE: Mapping[str, frozenset[str]] = {
    "nfs": frozenset({"nolock", "local_lock=all", "local_lock=flock"}),
    "nfs4": frozenset({"local_lock=all", "local_lock=flock"}),
    "lustre": frozenset({"localflock", "noflock"}),
    "cifs": frozenset({"nobrl", "forcemandatorylock"}),
    "smb3": frozenset({"nobrl", "forcemandatorylock"}),
}
"""Mount options by which locks are one host's matter, or none."""

_SHARED = ("nfs", "nfs4", "lustre", "cifs", "smb3", "smbfs", "ceph", "gpfs", "gfs2", "ocfs2", "beegfs", "9p", "afs")
_STORES = ("s3", "gcs", "goofys", "rclone", "blob", "mount-s3", "juicefs-s3")  # in the names of FUSE file systems


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system: its ``kind``, as in ``ext4`` or ``fuse.sshfs``, where it is mounted, and how."""

    kind: str
    where: str
    options: frozenset[str]

    @property
    def shared(self) -> bool:
        """Whether several hosts may have it mounted."""
        return self.kind.startswith("fuse.") or self.kind in _SHARED

    def must_lock(self, root: Path) -> None:
        """ValueError if it is known that locks do not hold here."""
        if alone := sorted(self.options & _ALONE.get(self.kind, frozenset())):
            raise ValueError(
                f"{root} lies in {self}, mounted with {', '.join(alone)}, without common locks: {_ELSEWHERE}"
            )
        if self.kind.startswith("fuse.") and any(store in self.kind for store in _STORES):
            raise ValueError(f"{root} lies in {self}, an object store that poses as a file system: {_ELSEWHERE}")

    def __str__(self) -> str:
        return f"the {self.kind} file system at {self.where}"


def mount_of(path: Path, table: Path = Path("/proc/self/mountinfo")) -> Mount:
    """The file system that a path lies in; an unknown one where the system does not say."""
    found = Mount("unknown", "/", frozenset())
    real = os.path.realpath(path)
    try:
        lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return found
    longest = -1
    for line in lines:  # see proc_pid_mountinfo(5)
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        where = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])  # a blank is \040
        inside = real == where or real.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= longest:  # of two at one place the later one is seen
            longest = len(where)
            found = Mount(rest[0], where, frozenset(fields[5].split(",")) | frozenset(rest[2].split(",")))
    return found


# ----------------------------------------------------------------------------------------------- an object store


class ObjectLock(_Held):
    """The claim on a study in an object store. Waits until it is known whether the last holder lives.

    ``name``: of the holder's epoch; that of a later one is larger.
    """

    def __init__(
        self,
        root: Place,
        beat_s: float = BEAT_S,
        dead_after_s: float = DEAD_AFTER_S,
        settle_s: float = _SETTLE_S,
    ) -> None:
        self._root = root
        self._folder = root / "lock"
        self._dead_after_s = dead_after_s
        before = self._claims()
        if before:
            self._wait_for(max(before))
        number = max((int(name.partition("-")[0]) for name in before), default=0) + 1
        self.name = f"{number:06d}-{secrets.token_hex(4)}"
        self._what = _who()
        self._lock = threading.Lock()
        self._beat()
        time.sleep(settle_s)  # so that of several that claim it now, all but one step back
        if other := self._newer():
            raise StudyInUse(f"the study in {root} is being run by {self._holder(other)}")
        for name in self._claims():
            if name < self.name:
                with suppress(OSError):
                    (self._folder / f"{name}.json").remove()
        self._start(beat_s)

    def _claims(self) -> dict[str, float]:
        """All claims, and when each was written last, by the store's clock."""
        found = self._folder.listed()
        return {name.removesuffix(".json"): at for name, at in found.items() if name.endswith(".json")}

    def _newer(self) -> str | None:
        return max((name for name in self._claims() if name > self.name), default=None)

    def _wait_for(self, name: str) -> None:
        """Return when the holder of a claim is known to be dead or done; raise when it is known to live."""
        holder = self._read(name)
        first = last = self._claims().get(name)
        begun, told = time.monotonic(), False
        while last is not None and last == first:
            if holder.get("released") or _is_dead(holder):
                return
            age = self._now() - last
            if age >= self._dead_after_s or time.monotonic() - begun >= self._dead_after_s:
                _log.warning("the driver of %s is not heard of any more: taking the place of %s", self._root, holder)
                return
            if _is_near(holder):
                break
            if not told:
                told = True
                _log.warning(
                    "%s: its last driver (%s) gave it back to nobody: listening for its heart for up to %.0f s",
                    *(self._root, self._holder(name), self._dead_after_s - age),
                )
            time.sleep(_LOOK_S)
            last = self._claims().get(name)
        if not self._read(name).get("released"):
            raise StudyInUse(f"the study in {self._root} is being run by {self._holder(max(self._claims()))}")

    def _now(self) -> float:
        """The store's time: that of an object that is written now."""
        probe = f"{secrets.token_hex(4)}.probe"
        (self._folder / probe).write(b"")
        now = self._folder.listed().get(probe, 0.0)
        (self._folder / probe).remove()
        return now

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self._folder / f"{name}.json").read())
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _holder(self, name: str) -> str:
        age = None
        with suppress(OSError, KeyError):
            beaten = self._claims()[name]
            age = self._now() - beaten
        try:
            return _shown(self._read(name), age)
        except (KeyError, TypeError):
            return "another process"

    def check(self) -> None:
        if other := self._newer():
            self._over.set()
            raise StudyTaken(
                f"this process has lost the study in {self._root}: it was not heard of for {self._dead_after_s:g} s, "
                f"and was taken over by {self._holder(other)}"
            )

    def release(self) -> None:
        super().release()
        with suppress(OSError), self._lock:  # else its place is free when it counts as dead
            self._write({**self._what, "released": True})

    def _beat(self) -> None:
        with self._lock:
            self._write(self._what)

    def _write(self, what: Mapping[str, Any]) -> None:
        (self._folder / f"{self.name}.json").write(json.dumps(what).encode())


# ------------------------------------------------------------------------------------------------------ the holder


def _who() -> dict[str, Any]:
    """This process, so that others can find out whether it lives."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": _machine(),
        "started": _started(os.getpid()),
    }


def _shown(holder: Mapping[str, Any], age_s: float | None) -> str:
    heard = "" if age_s is None else f", last heard of {max(0.0, age_s):.0f} s ago"
    pid, host, since = (f"{holder[name]!s:.80}" for name in ("pid", "host", "since"))
    return f"process {pid} on {host}, since {since}{heard}"


def _machine() -> str:
    """This machine since it was started, and what of its processes can be seen from here; "" where it does not say."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _started(pid: int) -> str:
    """When a process was started, in the machine's own terms; "" if it is not there."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _is_near(holder: Mapping[str, Any]) -> bool:
    """Whether it is a process of this machine, and there."""
    return bool(_machine()) and holder.get("machine") == _machine() and not _is_dead(holder)


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether it was a process of this machine, and is not there any more."""
    here = bool(_machine()) and holder.get("machine") == _machine() and isinstance(holder.get("pid"), int)
    return here and _started(holder["pid"]) != holder.get("started")
