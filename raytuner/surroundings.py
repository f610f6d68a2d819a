"""What a trial's code finds around it in its process: a working directory, and files that what it prints is copied to.

Both are the process's, not the thread's: they are the trial's while its code runs, and are put back while it is parked.
A trial that goes on finds them as it left them, also where it changed them itself.

Copied is what goes through ``sys.stdout`` and ``sys.stderr``; what C code or a child process writes is not. Every
thread of the process is heard, not only the trial's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from raytuner.record.durable import not_a_folder


class Surroundings:
    """A trial's surroundings in this process. ``enter`` and ``leave`` by turns, ``forget`` at the end, whatever came
    before; each does nothing where there is nothing to do.

    ``folder``: the trial's own; made when it is needed, and after `forget` removed, or another trial's, if nothing is
    in it. ``chdir``: whether it is the working directory. ``stdout``, ``stderr``: names of files in it; one file where
    they are equal.
    """

    def __init__(self, folder: Path, chdir: bool, stdout: str | None, stderr: str | None) -> None:
        self._folder = folder
        self._chdir = chdir
        self._files = {stream: name for stream, name in (("stdout", stdout), ("stderr", stderr)) if name is not None}
        self._wanted = chdir or bool(self._files)
        self._inside = False
        self._made = False
        self._copies: dict[str, TextIO] = {}  # open files, by name; only inside
        self._tees = {stream: _Tee(stream) for stream in self._files}
        self._streams_inside: dict[str, Any] = dict(self._tees)  # as the trial left them
        self._streams_outside: dict[str, Any] = {}
        self._cwd_inside: str | None = None
        self._cwd_outside: str | None = None

    def enter(self) -> None:
        """The trial's code runs from now on."""
        if not self._wanted or self._inside:
            return
        self._inside = True  # from here on `leave` has something to put back, even if this is not finished
        if not self._folder.is_absolute():
            self._folder = self._folder.absolute()
        self._make_folder()
        for name in sorted(set(self._files.values())):
            self._copies[name] = open(  # noqa: SIM115 - `leave` closes it
                self._folder / name,
                "a",
                buffering=1,
                encoding="utf-8",
                errors="backslashreplace",
                opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666),
            )
        for stream, name in self._files.items():
            original = self._streams_outside[stream] = getattr(sys, stream)
            self._tees[stream].connect(original, self._copies[name])
            setattr(sys, stream, self._streams_inside[stream])
        if self._chdir:
            self._cwd_outside = _cwd()
            if self._cwd_inside is None or not os.path.isdir(self._cwd_inside):
                self._cwd_inside = str(self._folder)
            os.chdir(self._cwd_inside)

    def leave(self) -> None:
        """The trial is parked: others' code runs."""
        if not self._inside:
            return
        self._inside = False
        if self._cwd_outside is not None:
            self._cwd_inside = _cwd()
            with suppress(OSError):  # that it is gone, or closed to us, is no fault of the trial's
                os.chdir(self._cwd_outside)
            self._cwd_outside = None
        for stream, original in self._streams_outside.items():
            self._streams_inside[stream] = getattr(sys, stream)
            setattr(sys, stream, original)
            self._tees[stream].disconnect()
        self._streams_outside.clear()
        for copy in self._copies.values():
            with suppress(OSError):  # a full disk; what was printed is not worth a trial
                copy.close()
        self._copies.clear()

    def forget(self, ours: bool = True) -> None:
        """The trial is over in this process. ``ours``: nobody else can have begun to run it meanwhile."""
        if not self._wanted:
            return
        self.leave()
        if self._made and ours:
            _spares.keep(self._folder)
        self._made = False

    def _make_folder(self) -> None:
        for folder in (self._folder.parent, self._folder):
            if what := not_a_folder(folder):
                raise ValueError(f"{folder} is {what}; a trial's files belong there")
        if _spares.become(self._folder):
            self._made = True
            return
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._folder.mkdir()
        except FileExistsError:
            return
        self._made = True


class _Spares:
    """The empty folder of a trial that is over, which becomes the next one's: to remove a folder was seen to take
    2 ms on ext4, to rename one 0.1 ms. In between it has a name that only this process knows."""

    def __init__(self) -> None:
        self._spare: Path | None = None

    def keep(self, folder: Path) -> None:
        """This folder is no longer needed, if nothing is in it."""
        with suppress(OSError), os.scandir(folder) as entries:
            if any(entries):
                return
            self.clear()
            self._spare = folder.with_name(f".spare-{os.getpid()}")
            os.rename(folder, self._spare)

    def become(self, folder: Path) -> bool:
        """Whether the spare one, if there is one, has become this folder."""
        if self._spare is None or self._spare.parent != folder.parent or folder.is_dir():
            return False
        spare, self._spare = self._spare, None
        with suppress(OSError):  # it is gone
            os.rename(spare, folder)
            return True
        return False

    def clear(self) -> None:
        """Remove it."""
        spare, self._spare = self._spare, None
        if spare is not None:
            with suppress(OSError):
                spare.rmdir()


_spares = _Spares()
clear_spares = _spares.clear
"""Remove what is kept for a trial that does not come."""


class _Tee:
    """A text stream that is copied to a file, line by line. To all else it is the original.

    Handlers that keep it (`logging.StreamHandler`) may write to it at any time: while its trial is parked, and
    afterwards, it is the original alone.
    """

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._original: Any = getattr(sys, stream)
        self._copy: TextIO | None = None

    def connect(self, original: Any, copy: TextIO) -> None:
        self._original, self._copy = original, copy

    def disconnect(self) -> None:
        self._copy = None

    def write(self, text: str) -> Any:
        copy = self._copy
        if copy is not None:
            with suppress(OSError, ValueError):  # a full disk; another thread that wrote while it was closed
                copy.write(text)
        return self._original.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        copy = self._copy
        if copy is not None:
            with suppress(OSError, ValueError):
                copy.flush()
        self._original.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __reduce__(self) -> Any:
        return _stream, (self._stream,)


def _stream(name: str) -> Any:
    """What a stream that travelled in a pickle is where it arrives."""
    return getattr(sys, name)


def _cwd() -> str | None:
    """The working directory; None if it does not exist any more."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
