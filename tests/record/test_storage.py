"""Where things lie: a path or a URI in, one spelling out, and never a secret in it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from raytuner.record.storage import Place
from tests.s3 import KEY, SECRET, s3, s3_server  # noqa: F401


@pytest.mark.parametrize(
    ("given", "path", "name"),
    [
        ("/data/sweeps/", "/data/sweeps", "sweeps"),
        ("file:///data/a%20b", "/data/a b", "a b"),
        ("file://localhost/data", "/data", "data"),
        (Path("/data/x"), "/data/x", "x"),
    ],
)
def test_local_places(given: str | Path, path: str, name: str) -> None:
    place = Place.of(given)
    assert place.local == Path(path)
    assert (place.path, place.name, str(place)) == (path, name, path)
    assert place.parent.local == Path(path).parent


def test_local_paths_are_absolute_and_home_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Place.of("~/x").local == tmp_path / "x"
    assert Place.of("x").local == tmp_path / "x"
    assert (Place.of("x") / "a/b").local == tmp_path / "x" / "a" / "b"


@pytest.mark.parametrize(
    ("given", "uri", "path"),
    [
        ("s3://bucket", "s3://bucket", "bucket"),
        ("S3://bucket/a//b/", "s3://bucket/a/b", "bucket/a/b"),
        ("s3://bucket/a b/ü%25", "s3://bucket/a%20b/%C3%BC%25", "bucket/a b/ü%"),
        (
            "s3://bucket/p?scheme=http&endpoint_override=http://127.0.0.1:9000",
            "s3://bucket/p?endpoint_override=http://127.0.0.1:9000&scheme=http",
            "bucket/p",
        ),
        ("gs://bucket/p", "gs://bucket/p", "bucket/p"),
        ("abfs://box@account.dfs.core.windows.net/p", "abfs://box@account.dfs.core.windows.net/p", "box/p"),
    ],
)
def test_remote_places(given: str, uri: str, path: str) -> None:
    place = Place.of(given)
    assert place.local is None
    assert (str(place), place.path) == (uri, path)
    assert Place.of(uri) == place == Place.of(place) == pickle.loads(pickle.dumps(place))
    inner = place / "a study/x?y#z%"
    assert inner.path == f"{path}/a study/x?y#z%"
    assert inner.name == "x?y#z%"
    assert Place.of(str(inner)) == inner
    assert inner.parent.parent == place
    with pytest.raises(TypeError, match="is no local path"):
        os.fspath(place)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"s3://{KEY}:{SECRET}@bucket/p", "must hold no credentials"),
        (f"s3://{KEY}@bucket/p", "must hold no credentials"),
        (f"s3://{KEY}:{SECRET.replace('/', '%2F')}@bucket/p", "must hold no credentials"),
        (f"s3://{KEY}%3A{SECRET.replace('/', '%2F')}%40bucket/p", "must hold no credentials"),
        (f"abfss://box:{SECRET}@account.dfs.core.windows.net/p", "must hold no credentials"),
        (f"s3://bucket/p?access_key={KEY}", "not 'access_key'"),
        (f"s3://bucket/p?region=x&secret_key={SECRET}", "not 'secret_key'"),
        (f"s3://bucket/p?endpoint_override=http://{KEY}:{SECRET}@host", "endpoint_override .* without credentials"),
        ("s3://bucket/p?allow_bucket_deletion=true", "may have endpoint_override, region, scheme"),
        ("s3:///p", "must name a bucket"),
        ("s3://bucket/a/../b", "are no folders"),
        ("hdfs://node/p", "hdfs:// is no storage"),
        ("file://other/p", "absolute path"),
        ("", "not empty"),
        (Path("s3://bucket/p"), "was a URI before it became a Path"),
    ],
)
def test_what_is_refused_is_named_and_no_secret_shown(given: str | Path, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Place.of(given)
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("name", ["", "/a", "..", "a/../b", "a//b", "."])
@pytest.mark.parametrize("root", ["/data", "s3://bucket/p"])
def test_names_in_a_place_are_plain(root: str, name: str) -> None:
    with pytest.raises(ValueError, match="must be relative and plain"):
        Place.of(root) / name


def test_small_objects(s3: Place) -> None:  # noqa: F811
    assert not (s3 / "a/x").exists()
    assert (s3 / "a").listed() == {}
    with pytest.raises(FileNotFoundError):
        (s3 / "a/x").read()
    (s3 / "a/x").write(b"1")
    (s3 / "a/x").write(b"")
    (s3 / "a/y z").write(bytes(range(256)) * 40_000)
    (s3 / "a/deeper/x").write(b"3")
    assert set((s3 / "a").listed()) == {"x", "y z"}
    assert ((s3 / "a/x").read(), (s3 / "a/x").exists()) == (b"", True)
    assert (s3 / "a/y z").read() == bytes(range(256)) * 40_000
    (s3 / "a/x").remove()
    assert set((s3 / "a").listed()) == {"y z"}


def test_a_place_needs_no_pyarrow_before_it_is_used() -> None:
    lines = ["import sys", "from raytuner.record.storage import Place", "Place.of('s3://b/p') / 'x'"]
    subprocess.run([sys.executable, "-c", "\n".join([*lines, "assert 'pyarrow' not in sys.modules"])], check=True)
