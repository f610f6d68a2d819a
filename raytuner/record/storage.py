"""Where things lie: a local path, or a place in an object store; all access to the latter goes through `pyarrow.fs`.

A `Place` is plain text, so that it can be pickled and shown. It never holds a secret: credentials come from the
environment or the store's own chain (``AWS_*``, ``~/.aws``, an instance's role), in each process anew.

    /data/sweeps, ~/sweeps, file:///data/sweeps
    s3://bucket/prefix
    s3://bucket/prefix?endpoint_override=127.0.0.1:9000&scheme=http&region=us-east-1
    gs://bucket/prefix, abfs://container@account.dfs.core.windows.net/prefix

S3 is what the tests run against; ``gs`` and ``abfs`` are what pyarrow makes of them. pyarrow is imported when a remote
place is first used.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_OPTIONS: Mapping[str, frozenset[str]] = {
    "s3": frozenset({"endpoint_override", "region", "scheme"}),
    "gs": frozenset({"endpoint_override", "scheme", "project_id"}),
    "abfs": frozenset({"blob_storage_authority", "dfs_storage_authority", "enable_tls"}),
    "abfss": frozenset({"blob_storage_authority", "dfs_storage_authority", "enable_tls"}),
}
"""The schemes, and what may be said of each in a URI's query: where a store is and how to speak to it, no secret."""

_ATTEMPTS = 5  # of each request, with growing pauses between them
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SQUEEZED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/[^/]")  # what pathlib makes of a URI


@dataclass(frozen=True, slots=True)
class Place:
    """A local path, absolute, or a URI; made by `Place.of`, which checks and normalises it."""

    uri: str

    @classmethod
    def of(cls, path_or_uri: str | os.PathLike[str] | Place) -> Place:
        """The place that a path or a URI names. ValueError for a URI that is none, or holds credentials."""
        if isinstance(path_or_uri, Place):
            return path_or_uri
        text = os.fspath(path_or_uri)
        if not isinstance(text, str) or not text or "\0" in text:
            raise ValueError(f"a path or a URI must be text and not empty, got {text!r:.80}")
        found = _SCHEME.fullmatch(text)
        if found is None:
            if (squeezed := _SQUEEZED.match(text)) and squeezed[1].lower() in (*_OPTIONS, "file"):
                raise ValueError(f"{text!r} was a URI before it became a Path: give it as text")
            return cls(os.path.abspath(os.path.expanduser(text)))
        scheme, rest = found[1].lower(), found[2]
        if scheme == "file":
            return cls(os.path.abspath(_local(rest)))
        if scheme not in _OPTIONS:
            raise ValueError(
                f"{scheme}:// is no storage that raytuner knows; a path, file:// or one of "
                f"{', '.join(f'{known}://' for known in _OPTIONS)} is"
            )
        return cls(_normal(scheme, rest))

    @property
    def local(self) -> Path | None:
        """The path; None where it is remote."""
        return None if "://" in self.uri else Path(self.uri)

    @property
    def path(self) -> str:
        """As the file system wants it: ``bucket/prefix`` on S3."""
        if self.local is not None:
            return self.uri
        if self.uri.startswith("abfs"):  # where the container stands there depends on the host
            from pyarrow.fs import FileSystem

            return str(FileSystem.from_uri(self.uri)[1])
        bare = self.uri.partition("?")[0].partition("://")[2]
        return unquote(bare.rpartition("@")[2])

    @property
    def name(self) -> str:
        """The last part of its path."""
        bare = self.uri if self.local is not None else self.uri.partition("?")[0]
        last = bare.rstrip("/").rpartition("/")[2]
        return last if self.local is not None else unquote(last)

    @property
    def parent(self) -> Place:
        """The place that this one lies in."""
        if self.local is not None:
            return Place(os.path.dirname(self.uri))
        bare, mark, query = self.uri.partition("?")
        above = bare.rpartition("/")[0]
        if above.endswith("/"):
            raise ValueError(f"{self} lies in nothing")
        return Place(above + mark + query)

    def filesystem(self) -> FileSystem:
        """What reads and writes there: one for all places of a store, in each process its own."""
        if self.local is not None:
            from pyarrow.fs import LocalFileSystem

            return LocalFileSystem()
        bare, mark, query = self.uri.partition("?")
        scheme, _, rest = bare.partition("://")
        root = f"{scheme}://{rest.partition('/')[0]}"
        return _filesystem((bare if scheme.startswith("abfs") else root) + mark + query)

    # What follows is for small objects of our own: each is written whole, by one request, or not at all.

    def read(self) -> bytes:
        """The object here. Raises FileNotFoundError."""
        with self.filesystem().open_input_file(self.path) as file:
            return bytes(file.read())

    def exists(self) -> bool:
        """Whether there is an object here."""
        from pyarrow.fs import FileType

        return bool(self.filesystem().get_file_info(self.path).type == FileType.File)

    def write(self, data: bytes) -> None:
        """Make or replace the object here; when this returns it is durable."""
        with self.filesystem().open_output_stream(self.path) as file:
            file.write(data)

    def remove(self) -> None:
        """Remove the object here. Raises FileNotFoundError."""
        self.filesystem().delete_file(self.path)

    def listed(self) -> dict[str, float]:
        """The names of the objects right below this place, and when each was written, by the store's clock."""
        from pyarrow.fs import FileSelector, FileType

        found = self.filesystem().get_file_info(FileSelector(self.path, allow_not_found=True))
        return {each.base_name: each.mtime_ns / 1e9 for each in found if each.type == FileType.File}

    def __truediv__(self, name: str) -> Place:
        """A place in this one; ``name`` may have several parts."""
        if not name or name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"the name of a place in {self} must be relative and plain, got {name!r:.80}")
        if self.local is not None:
            return Place(os.path.join(self.uri, name))
        bare, mark, query = self.uri.partition("?")
        return Place(f"{bare}/{quote(name)}{mark}{query}")

    def __fspath__(self) -> str:
        """For whatever takes a path; TypeError where it is remote."""
        if self.local is None:
            raise TypeError(f"{self} is no local path")
        return self.uri

    def __str__(self) -> str:
        return self.uri


def _local(rest: str) -> str:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ValueError(f"file:// needs an absolute path, as in file:///data/sweeps; got 'file://{rest}'")
    return unquote(slash + path)


def _normal(scheme: str, rest: str) -> str:
    """A URI's one spelling, without anything that could be a secret. What is refused is not repeated in the error."""
    bare, _, query = rest.partition("?")
    host, _, path = bare.partition("/")
    whom, _, where = host.rpartition("@")
    if scheme.startswith("abfs"):
        where = re.sub(r":\d+$", "", where)  # a port
    elif (scheme, whom) == ("gs", "anonymous"):
        whom = ""
    if ":" in whom + where or "%" in host or (whom and not scheme.startswith("abfs")):  # a secret may have a slash
        raise ValueError(
            f"a {scheme}:// URI must hold no credentials (what stands before the '@'): they come from the environment "
            "or the store's own chain, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws/credentials"
        )
    options = parse_qsl(query, keep_blank_values=True)
    for name, value in options:
        if name not in _OPTIONS[scheme]:
            raise ValueError(
                f"a {scheme}:// URI may have {', '.join(sorted(_OPTIONS[scheme]))}, not {name!r:.40}; "
                "credentials come from the environment or the store's own chain"
            )
        if "@" in value or not value:
            raise ValueError(f"{name} in a {scheme}:// URI must be a plain value without credentials")
    if not where:
        raise ValueError(f"a {scheme}:// URI must name a {'bucket' if scheme in ('s3', 'gs') else 'container'}")
    parts = [part for part in unquote(path).split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise ValueError(f"{scheme}://{bare!r}: '.' and '..' are no folders of an object store")
    normal = "/".join([f"{scheme}://{host}", *map(quote, parts)])
    return f"{normal}?{urlencode(sorted(options), safe=':/')}" if options else normal


@functools.cache
def _filesystem(uri: str) -> FileSystem:
    from pyarrow import fs

    bare, _, query = uri.partition("?")
    scheme, _, host = bare.partition("://")
    if scheme != "s3":
        return fs.FileSystem.from_uri(uri)[0]
    options = dict(parse_qsl(query))
    if not options.keys() & {"region", "endpoint_override"}:
        options["region"] = fs.resolve_s3_region(host)
    return fs.S3FileSystem(
        **options,
        allow_delayed_open=True,  # what is small goes in one request
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )
