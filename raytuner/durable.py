"""Folders and files that survive a power failure."""

from __future__ import annotations

import os


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
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a small file, whole or not at all; it is on the disk when this returns."""
    path = os.fspath(path)
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path) or ".")
