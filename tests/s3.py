"""An S3 server on loopback, in a process of its own that ends with the tests', whatever becomes of them."""

from __future__ import annotations

import itertools
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from pyarrow.fs import FileSelector

from raytuner.record.storage import Place

KEY, SECRET = "AKIALOOPBACKONLY0000", "neverToBeFoundInAnyObject/0123456789abcd"

_SERVE = """
import os, sys, threading

def end_with_parent():
    sys.stdin.read()
    os._exit(0)

threading.Thread(target=end_with_parent, daemon=True).start()
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print("listening on", server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


@dataclass
class Server:
    port: int
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def bucket(self) -> Place:
        """A place in a new bucket."""
        name = f"bucket{next(self._numbers)}"
        made = urllib.request.Request(f"http://127.0.0.1:{self.port}/{name}", method="PUT")
        urllib.request.urlopen(made, timeout=30).close()
        return Place.of(f"s3://{name}/sweeps?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            said = next(line for line in process.stdout if line.startswith(b"listening on"))
            yield Server(int(said.split()[-1]))
        finally:
            process.kill()


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place in a bucket of its own, and credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return s3_server.bucket()


def objects(place: Place) -> dict[str, bytes]:
    """All that lies under a place, by its name there."""
    files = place.filesystem()
    found = files.get_file_info(FileSelector(place.path, recursive=True, allow_not_found=True))
    names = [each.path.removeprefix(f"{place.path}/") for each in found if each.is_file]
    return {name: (place / name).read() for name in sorted(names)}
