"""Checkpoints: whole or not at all, wherever the process dies; verified before use; kept by Ray's rule."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raytuner.checkpoints import (
    MANIFEST,
    Checkpoint,
    DamagedCheckpoint,
    Manifest,
    Store,
)

SYSTEM_CALLS = ("open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir")
"""Between any two of these a process may die. All go through `os`, `shutil.rmtree` included."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="names open files by /proc")


class Died(BaseException):
    """The process is gone."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "checkpoints")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files as training code leaves them: nested, empty, and more than one chunk long."""
    return write(tmp_path / "source", {"model.pt": b"weights" * 200_000, "a/b/deep.bin": b"deep", "empty": b""})


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: str | Path) -> dict[str, bytes]:
    """The user's files of a checkpoint."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != MANIFEST}


def temporaries(store: Store) -> list[Path]:
    return [path for path in Path(store.root).rglob("*") if path.name.startswith(".tmp-")]


# -------------------------------------------------------------------------------------------------- Checkpoint


def test_importing_it_brings_in_no_heavy_package() -> None:
    code = (
        "import sys, raytuner.checkpoints\n"
        "print(sorted({'ray', 'torch', 'pandas', 'pyarrow', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_checkpoint_is_a_directory_that_exists(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "missing", tmp_path / "file", "s3://bucket/checkpoint"):
        with pytest.raises(ValueError, match="existing directory"):
            Checkpoint.from_directory(path)


def test_a_checkpoint_is_read_in_place_and_copied_out(source: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.from_directory(source)
    with checkpoint.as_directory() as path:
        assert path == checkpoint.path == str(source)
    copy = checkpoint.to_directory(tmp_path / "copy")
    assert copy == str(tmp_path / "copy")
    assert read(copy) == read(source)
    first, second = checkpoint.to_directory(), checkpoint.to_directory()
    try:
        assert first != second
        assert read(first) == read(second) == read(source)
    finally:
        shutil.rmtree(first)
        shutil.rmtree(second)
    assert checkpoint.to_directory(source) == str(source)


def test_a_relative_path_does_not_move_with_the_working_directory(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(source.parent)
    checkpoint = Checkpoint("source")
    monkeypatch.chdir(tmp_path.parent)
    assert read(checkpoint.path) == read(source)
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint


def test_metadata_is_set_updated_and_published_with_the_checkpoint(source: Path, store: Store) -> None:
    checkpoint = Checkpoint(source)
    assert checkpoint.get_metadata() == {}
    checkpoint.set_metadata({"epoch": 3, "name": "µ"})
    checkpoint.update_metadata({"epoch": 4})
    assert checkpoint.get_metadata() == {"epoch": 4, "name": "µ"}
    with pytest.raises(TypeError):
        checkpoint.set_metadata({"model": object()})
    assert checkpoint.get_metadata() == {"epoch": 4, "name": "µ"}

    store.publish(source, 0, 1, 0)
    published = store.load(0, 1)
    assert published.get_metadata() == {"epoch": 4, "name": "µ"}
    with pytest.raises(ValueError, match="does not change any more"):
        published.update_metadata({"epoch": 5})
    Checkpoint(published.to_directory(source.parent / "copy")).update_metadata({"epoch": 5})
    store.verify(0, 1)


def test_metadata_written_by_ray_is_read(source: Path) -> None:
    import ray.train

    ray.train.Checkpoint.from_directory(str(source)).set_metadata({"by": "ray"})
    assert Checkpoint(source).get_metadata() == {"by": "ray"}
    Checkpoint(source).update_metadata({"and": "us"})
    assert ray.train.Checkpoint.from_directory(str(source)).get_metadata() == {"by": "ray", "and": "us"}


# ------------------------------------------------------------------------------------------------------- Store


def test_what_is_published_is_loaded(store: Store, source: Path) -> None:
    (source / "hollow").mkdir()
    digest = store.publish(source, 7, 27, 1)
    path = Path(store.root) / "000007" / "000027"
    assert store.path(7, 27) == str(path)
    assert store.load(7, 27).path == str(path)
    assert read(path) == read(source)
    assert (path / "hollow").is_dir()
    assert digest == store.verify(7, 27) == hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    manifest = Manifest.decode((path / MANIFEST).read_bytes())
    assert manifest.files["a/b/deep.bin"] == (4, hashlib.sha256(b"deep").hexdigest())
    assert not temporaries(store)


def test_numbers_beyond_six_digits_and_below_zero(store: Store, source: Path) -> None:
    store.publish(source, 1_000_000, 12_345_678, 0)
    store.publish(source, 1_000_000, 2, 0)
    assert store.steps(1_000_000) == [2, 12_345_678]
    with pytest.raises(ValueError, match="step must be 0 or more"):
        store.publish(source, 0, -1, 0)


def test_steps_are_those_published(store: Store, source: Path) -> None:
    assert store.steps(0) == []
    for step in (9, 1, 3):
        store.publish(source, 0, step, 0)
    write(Path(store.root) / "000000", {".tmp-000005-0-1/model.pt": b"", "notes": b"", "7/x": b""})
    assert store.steps(0) == [1, 3, 9]


def test_the_first_report_of_a_step_counts(store: Store, source: Path, tmp_path: Path) -> None:
    first = store.publish(source, 0, 1, 0)
    other = write(tmp_path / "other", {"model.pt": b"other"})
    assert store.publish(other, 0, 1, 1) == first
    assert read(store.load(0, 1).path) == read(source)
    assert not temporaries(store)


def test_the_first_counts_also_if_it_comes_while_the_second_is_written(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write(tmp_path / "other", {"model.pt": b"other"})
    rename = os.rename

    def late(source_path: str, target: str) -> None:
        monkeypatch.setattr(os, "rename", rename)
        store.publish(other, 0, 1, 1)
        rename(source_path, target)

    monkeypatch.setattr(os, "rename", late)
    assert store.publish(source, 0, 1, 0) == store.verify(0, 1)
    assert read(store.load(0, 1).path) == {"model.pt": b"other"}
    assert not temporaries(store)


def test_a_damaged_checkpoint_is_replaced(store: Store, source: Path, tmp_path: Path) -> None:
    store.publish(source, 0, 1, 0)
    (Path(store.path(0, 1)) / "model.pt").write_bytes(b"torn")
    other = write(tmp_path / "other", {"model.pt": b"other"})
    assert store.publish(other, 0, 1, 1) == store.verify(0, 1)
    assert read(store.load(0, 1).path) == {"model.pt": b"other"}
    assert not temporaries(store)


def test_a_checkpoint_that_was_published_can_be_reported_again(store: Store, source: Path) -> None:
    store.publish(source, 0, 1, 0)
    store.publish(store.load(0, 1).path, 3, 1, 0)
    assert read(store.load(3, 1).path) == read(source)
    copy = store.load(0, 1).to_directory(source.parent / "copy")
    assert not os.path.exists(os.path.join(copy, MANIFEST))


def test_a_file_that_only_looks_like_the_manifest_is_refused_rather_than_lost(store: Store, source: Path) -> None:
    write(source, {f"a/{MANIFEST}": b"{}"})
    store.publish(source, 0, 1, 0)
    assert read(store.load(0, 1).path)[f"a/{MANIFEST}"] == b"{}"  # only the top one is ours
    write(source, {MANIFEST: b'{"name": "an extension"}'})
    with pytest.raises(ValueError, match=r"MANIFEST\.json: a checkpoint may not hold a file of this name"):
        store.publish(source, 0, 2, 0)


def test_links_and_pipes_in_the_source_are_refused(store: Store, source: Path) -> None:
    (source / "a" / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"a/link is a symbolic link"):
        store.publish(source, 0, 1, 0)
    (source / "a" / "link").unlink()
    (source / "up").symlink_to("..")
    with pytest.raises(ValueError, match=r"up is a symbolic link"):
        store.publish(source, 0, 1, 0)
    (source / "up").unlink()
    os.mkfifo(source / "pipe")
    with pytest.raises(ValueError, match=r"pipe is a special file"):
        store.publish(source, 0, 1, 0)
    assert store.steps(0) == []
    assert not temporaries(store)


def test_deleting(store: Store, source: Path) -> None:
    store.publish(source, 0, 1, 0)
    store.publish(source, 0, 3, 0)
    store.delete(0, 1)
    store.delete(0, 1)
    store.delete(5, 1)
    assert store.steps(0) == [3]
    with pytest.raises(DamagedCheckpoint, match="no such directory"):
        store.load(0, 1)
    assert not temporaries(store)


def test_sweep_leaves_what_is_referenced_and_what_is_not_its_own(store: Store, source: Path) -> None:
    assert store.sweep({(0, 1)}) == []
    for trial, step in ((0, 1), (0, 3), (1, 1), (2, 9)):
        store.publish(source, trial, step, 0)
    root = Path(store.root)
    write(root, {"000002/.tmp-000010-0-1/model.pt": b"half", "README": b"mine", "000002/notes.txt": b"mine"})
    gone = store.sweep({(0, 3), (2, 9), (8, 8)})
    expected = ["000000/000001", "000001/000001", "000002/.tmp-000010-0-1"]
    assert [os.path.relpath(path, root) for path in gone] == expected
    assert [store.steps(trial) for trial in range(3)] == [[3], [], [9]]
    assert not (root / "000001").exists()
    assert (root / "README").exists()
    assert (root / "000002" / "notes.txt").exists()
    assert store.sweep({(0, 3), (2, 9)}) == []


def test_sweep_of_one_trial_leaves_the_others(store: Store, source: Path) -> None:
    for trial in (0, 1):
        for step in (1, 3):
            store.publish(source, trial, step, 0)
        write(Path(store.root), {f"00000{trial}/.tmp-000009-0-1/model.pt": b"half"})
    gone = store.sweep_trial(0, [3])
    assert [os.path.basename(path) for path in gone] == [".tmp-000009-0-1", "000001"]
    assert (store.steps(0), store.steps(1)) == ([3], [1, 3])
    assert len(temporaries(store)) == 1
    assert store.sweep_trial(9, []) == []


def test_a_trial_that_is_a_link_to_elsewhere_is_never_followed(store: Store, source: Path, tmp_path: Path) -> None:
    outside = Store(tmp_path / "outside")
    outside.publish(source, 0, 1, 0)
    os.mkdir(store.root)
    os.symlink(os.path.join(outside.root, "000000"), os.path.join(store.root, "000000"))
    with pytest.raises(DamagedCheckpoint):
        store.load(0, 1)
    with pytest.raises(OSError, match="not a link"):
        store.publish(source, 0, 2, 0)
    store.delete(0, 1)
    assert store.sweep(set()) == []
    assert outside.steps(0) == [1]
    outside.verify(0, 1)


# ------------------------------------------------------------------------------------------------------ damage


def each_damage() -> Iterator[tuple[str, str, str, Callable[[Path], Any]]]:
    """(name of the case, file, what the error says, how to do it)."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)

    def relink(path: Path) -> None:
        path.rename(path.parent.parent.parent / "elsewhere")
        path.symlink_to(path.parent.parent.parent / "elsewhere")

    def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
        def do(path: Path) -> None:
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))

        return do

    def pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def refold(path: Path) -> None:
        path.unlink()
        path.mkdir()

    big, deep = "model.pt", "a/b/deep.bin"
    yield "removed", big, "the file is missing", Path.unlink
    yield "removed in a folder", deep, "the file is missing", Path.unlink
    yield "truncated", big, "its size is 1000 bytes, and was 1400000", lambda path: os.truncate(path, 1000)
    yield "emptied", deep, "its size is 0 bytes, and was 4", lambda path: os.truncate(path, 0)
    yield "longer", "empty", "its size is 1 bytes, and was 0", lambda path: path.write_bytes(b"x")
    yield "bit flipped", big, "its sha256 is", flip
    yield "bit flipped in a folder", deep, "its sha256 is", flip
    yield "extra", "a/new", "an extra file", lambda path: path.write_bytes(b"")
    yield "extra folder", "a/new", "an extra directory", Path.mkdir
    yield "folder removed", "hollow", "the directory is missing", Path.rmdir
    yield "made a link", big, "is a symbolic link", relink
    yield "made a pipe", big, "is a special file", pipe
    yield "made a folder", "empty", "the file is missing", refold
    yield "no manifest", MANIFEST, "the file is missing", Path.unlink
    yield "empty manifest", MANIFEST, "bad manifest: not JSON", lambda path: os.truncate(path, 0)
    yield "torn manifest", MANIFEST, "bad manifest: not JSON", lambda path: os.truncate(path, 100)
    yield "linked manifest", MANIFEST, "is a symbolic link", relink
    yield "piped manifest", MANIFEST, "is not a plain file", pipe
    yield "another file", MANIFEST, "not a manifest of format", lambda path: path.write_text('{"format": 1}')
    yield "a list", MANIFEST, "not a manifest of format", lambda path: path.write_text("[]")
    yield "too deep", MANIFEST, "bad manifest: not JSON", lambda path: path.write_text("[" * 100_000)
    yield "of tomorrow", MANIFEST, "format version 2", edit(lambda manifest: manifest.update(version=2))
    yield "of another step", MANIFEST, "belongs to trial 0, step 9", edit(lambda manifest: manifest.update(step=9))
    yield (
        "absolute path",
        MANIFEST,
        "'/etc/passwd' is not a path",
        edit(lambda manifest: manifest["files"][0].update(path="/etc/passwd")),
    )
    yield (
        "path outside",
        MANIFEST,
        "is not a path inside",
        edit(lambda manifest: manifest["files"][0].update(path="a/../../../x")),
    )
    yield "folder outside", MANIFEST, "'..' is not a path", edit(lambda manifest: manifest["folders"].append(".."))
    yield (
        "path twice",
        MANIFEST,
        "is listed twice",
        edit(lambda manifest: manifest["files"].append(manifest["files"][0])),
    )
    yield (
        "over-long path",
        MANIFEST,
        "is not a path",
        edit(lambda manifest: manifest["files"][0].update(path="../" + "x" * 10_000)),
    )
    yield "no path", MANIFEST, "None is not a path", edit(lambda manifest: manifest["files"][0].pop("path"))
    yield (
        "size a string",
        MANIFEST,
        "'size' must be a whole number",
        edit(lambda manifest: manifest["files"][0].update(size="4")),
    )
    yield (
        "size below zero",
        MANIFEST,
        "'size' must be a whole number",
        edit(lambda manifest: manifest["files"][0].update(size=-4)),
    )
    yield "no files", MANIFEST, "'files' must be a list", edit(lambda manifest: manifest.pop("files"))


@pytest.mark.parametrize(
    ("file", "wrong", "damage"), [case[1:] for case in each_damage()], ids=[case[0] for case in each_damage()]
)
def test_damage_is_named(store: Store, source: Path, file: str, wrong: str, damage: Callable[[Path], Any]) -> None:
    (source / "hollow").mkdir()
    store.publish(source, 0, 1, 0)
    damage(Path(store.path(0, 1)) / file)
    with pytest.raises(DamagedCheckpoint) as caught:
        store.load(0, 1)
    error = caught.value
    assert error.path == store.path(0, 1)
    assert error.file == file
    assert wrong in error.wrong
    assert len(str(error)) < 1000
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    # And it is no obstacle: the step can be published again, or swept away.
    store.publish(source, 0, 1, 1)
    store.verify(0, 1)
    store.sweep(set())
    assert store.steps(0) == []


def test_every_flipped_bit_of_a_small_checkpoint_is_noticed(store: Store, tmp_path: Path) -> None:
    store.publish(write(tmp_path / "small", {"w": b"abc", "d/v": b"xy"}), 0, 1, 0)
    folder = Path(store.path(0, 1))
    files = read(folder)
    whole = {**files, MANIFEST: (folder / MANIFEST).read_bytes()}
    digest = store.verify(0, 1)
    for name, content in whole.items():
        for bit in range(len(content) * 8):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(flipped)
            try:
                found = store.verify(0, 1)
            except DamagedCheckpoint:
                pass
            else:
                # White space of the manifest, or the case of a hexadecimal: still these files, but another hash.
                assert name == MANIFEST
                assert found != digest
                assert read(folder) == files
        (folder / name).write_bytes(content)
    assert store.verify(0, 1) == digest


# ------------------------------------------------------------------------------------------------- kill points


class Reaper:
    """Counts system calls, and dies at the given one; after its death it does nothing any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.calls = 0
        self.dead = False
        self.trace: list[str] = []
        for name in SYSTEM_CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name), at))

    def _wrap(self, name: str, call: Callable[..., Any], at: int) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.dead or self.calls == at:
                if name == "write" and not self.dead and len(args[1]) > 1:
                    call(args[0], args[1][: len(args[1]) // 2])  # a torn write
                self.dead = True
                raise Died
            self.calls += 1
            self.trace.append(name)
            return call(*args, **kwargs)

        return wrapped


def die_at_every_call(monkeypatch: pytest.MonkeyPatch, prepare: Callable[[], Callable[[], Any]]) -> Iterator[int]:
    """Yields after each death of the call that `prepare` returns, at each of its system calls in turn."""
    for at in range(1000):
        act = prepare()
        with monkeypatch.context() as patch:
            reaper = Reaper(patch, at)
            try:
                act()
            except Died:
                pass
            else:
                assert at > 3, "there was nothing to interrupt"
                return
            assert reaper.dead
        yield at
    raise AssertionError("it never came to an end")


def fresh(tmp_path: Path) -> Store:
    root = tmp_path / "killed"
    shutil.rmtree(root, ignore_errors=True)
    return Store(root / "checkpoints")


def state(store: Store, step: int) -> dict[str, bytes] | None:
    """The checkpoint's files, None where there is none. Anything else that is seen is an error."""
    if step not in store.steps(0):
        return None
    return read(store.load(0, step).path)


def swept(store: Store, referenced: set[tuple[int, int]]) -> None:
    store.sweep(referenced)
    left = {path.name for path in Path(store.root).glob("*/*")}
    assert left <= {f"{step:06d}" for _, step in referenced}


def test_death_while_publishing_leaves_nothing_or_all(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write(tmp_path / "other", {"model.pt": b"other"})
    seen, points = set(), 0

    def prepare() -> Callable[[], Any]:
        fresh(tmp_path).publish(other, 0, 1, 0)
        return lambda: Store(tmp_path / "killed" / "checkpoints").publish(source, 0, 3, 0)

    for _ in die_at_every_call(monkeypatch, prepare):
        points += 1
        store = Store(tmp_path / "killed" / "checkpoints")
        found = state(store, 3)
        assert found in (None, read(source))
        seen.add(found is None)
        assert state(store, 1) == read(other)
        kept = {(0, step) for step in store.steps(0)}
        swept(store, kept)
        assert state(store, 3) == found
        # The next attempt brings it about whatever the dead one left.
        store.publish(source, 0, 3, 1)
        assert state(store, 3) == read(source)
    assert seen == {True, False}
    assert points > 20


def test_death_while_publishing_for_the_first_time(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare() -> Callable[[], Any]:
        store = fresh(tmp_path)
        return lambda: store.publish(source, 0, 1, 0)

    for _ in die_at_every_call(monkeypatch, prepare):
        store = Store(tmp_path / "killed" / "checkpoints")
        assert state(store, 1) in (None, read(source))
        swept(store, set())
        assert not list(Path(store.root).glob("*"))


def test_death_while_replacing_a_damaged_one_never_shows_a_mixture(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def prepare() -> Callable[[], Any]:
        store = fresh(tmp_path)
        store.publish(source, 0, 1, 0)
        (Path(store.path(0, 1)) / "empty").write_bytes(b"damage")
        return lambda: store.publish(source, 0, 1, 1)

    for _ in die_at_every_call(monkeypatch, prepare):
        store = Store(tmp_path / "killed" / "checkpoints")
        try:
            seen.add("none" if state(store, 1) is None else "new")
        except DamagedCheckpoint:
            seen.add("damaged")
            assert (Path(store.path(0, 1)) / "empty").read_bytes() == b"damage"
        store.publish(source, 0, 1, 2)
        swept(store, {(0, 1)})
        assert state(store, 1) == read(source)
    assert seen == {"damaged", "none", "new"}


def test_death_while_deleting_leaves_all_or_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def prepare() -> Callable[[], Any]:
        store = fresh(tmp_path)
        store.publish(source, 0, 1, 0)
        store.publish(source, 0, 3, 0)
        return lambda: store.delete(0, 1)

    for _ in die_at_every_call(monkeypatch, prepare):
        store = Store(tmp_path / "killed" / "checkpoints")
        found = state(store, 1)
        assert found in (None, read(source))
        seen.add(found is None)
        swept(store, {(0, 3)})
        assert (state(store, 1), state(store, 3)) == (None, read(source))
    assert seen == {True, False}


def test_death_while_sweeping(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare() -> Callable[[], Any]:
        store = fresh(tmp_path)
        for step in (1, 3, 9):
            store.publish(source, 0, step, 0)
        write(Path(store.root), {"000000/.tmp-000005-0-1/model.pt": b"half"})
        return lambda: store.sweep({(0, 3)})

    for _ in die_at_every_call(monkeypatch, prepare):
        store = Store(tmp_path / "killed" / "checkpoints")
        for step in (1, 3, 9):
            assert state(store, step) in ((read(source),) if step == 3 else (None, read(source)))
        swept(store, {(0, 3)})
        assert state(store, 3) == read(source)


def test_a_full_disk_leaves_no_litter(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.publish(source, 0, 1, 0)
    calls = 0
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        store.publish(source, 0, 3, 0)
    assert store.steps(0) == [1]
    assert not temporaries(store)


def test_short_writes_are_completed(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    small = write(source.parent / "small", {"model.pt": b"weights" * 500})
    store.publish(small, 0, 1, 0)
    assert read(store.load(0, 1).path) == read(small)


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was brought to disk, renamed and unlinked, in order."""
    calls: list[tuple[str, str]] = []
    fsync, rename, unlink = os.fsync, os.rename, os.unlink

    def traced_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def traced_rename(old: str, new: str) -> None:
        calls.append(("rename", new))
        rename(old, new)

    def traced_unlink(path: str, **kwargs: Any) -> None:
        calls.append(("unlink", path))
        unlink(path, **kwargs)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "rename", traced_rename)
    monkeypatch.setattr(os, "unlink", traced_unlink)
    return calls


@linux
def test_everything_is_on_disk_before_it_is_seen(store: Store, source: Path, trace: list[tuple[str, str]]) -> None:
    store.publish(source, 0, 1, 0)
    trace[:] = [call for call in trace if call[0] != "unlink"]
    renamed = trace.index(("rename", store.path(0, 1)))
    before = {path.partition("/.tmp-")[2].partition("/")[2] for _, path in trace[:renamed] if "/.tmp-" in path}
    assert before == {*read(source), MANIFEST, "a", "a/b", ""}  # "" is the temporary directory itself
    assert ("fsync", store.root) in trace[:renamed]  # the trial's directory is an entry of the root
    folder = os.path.dirname(store.path(0, 1))
    assert trace[renamed + 1 :] == [("fsync", folder)]
    # Whoever renamed it may have died before the last fsync: the next one makes up for it.
    trace.clear()
    store.publish(source, 0, 1, 1)
    assert trace == [("fsync", folder)]


@linux
def test_its_end_is_on_disk_before_its_files_go(store: Store, source: Path, trace: list[tuple[str, str]]) -> None:
    store.publish(source, 0, 1, 0)
    trace.clear()
    store.delete(0, 1)
    kinds = [kind for kind, _ in trace]
    renamed = kinds.index("rename")
    assert trace[renamed + 1] == ("fsync", os.path.dirname(store.path(0, 1)))
    assert kinds[renamed + 2 :] == ["unlink"] * (len(read(source)) + 1)


def test_a_storage_that_does_not_answer_is_no_damage(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(source, 0, 1, 0)
    real = os.open

    def refusing(path: str, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith("model.pt"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing)
        with pytest.raises(PermissionError):
            store.verify(0, 1)
        with pytest.raises(PermissionError):
            store.publish(source, 0, 1, 1)  # must not take the old one for damaged and replace it
    assert read(store.load(0, 1).path) == read(source)
