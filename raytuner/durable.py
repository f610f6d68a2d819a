"""Folders and files that survive a power failure; and that are what they seem, no links that lead elsewhere."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO


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


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
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
    return os.fdopen(descriptor, "rb")


def not_a_folder(path: str | os.PathLike[str]) -> str | None:
    """What stands where a folder of a study belongs, if it is something else; None for a folder, and for nothing."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(mode):
        return None
    return "a symbolic link, which is not followed" if stat.S_ISLNK(mode) else "not a directory"
