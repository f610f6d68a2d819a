"""Folders and files that survive a power failure; and that are what they seem, no links that lead elsewhere."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from io import BufferedReader


def make_folders(path: str | os.PathLike[str]) -> None:
    """``os.makedirs``, durable: each new folder's name is on the disk when this returns."""
    path = os.fspath(path)
    parent = os.path.dirname(path)
    if parent and not os.path.isdir(parent):
        make_folders(parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    sync_folder(parent or ".")


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Bring a directory's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: str | os.PathLike[str]) -> None:
    """Bring to disk what another process wrote to a file and may not have synced before it died."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a small file, whole or not at all; it is on the disk when this returns."""
    path = os.fspath(path)
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.unlink(temporary)  # of a dead process that had our number; or what somebody else put there
    with open(temporary, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path) or ".")


def open_plain(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; `ValueError` for a link, a pipe, a directory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would block for ever
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{os.fspath(path)} is a symbolic link") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{os.fspath(path)} is not a plain file")
    return open(descriptor, "rb")


def not_a_folder(path: str | os.PathLike[str]) -> str | None:
    """What stands where a folder of a study belongs, if it is something else; None for a folder, and for nothing."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(mode):
        return None
    return "a symbolic link, which is not followed" if stat.S_ISLNK(mode) else "not a directory"
