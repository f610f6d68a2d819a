"""What a study is stands in one file, written whole."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

import raytuner
from raytuner.record.folder import FORMAT, Folder, NoStudy


def test_what_is_created_is_read(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a" / "study")
    assert not folder.exists()
    folder.create({"metric": "loss", "naïve": ["学", None, 1.5]})
    assert folder.exists()
    found = folder.read()
    assert found["metric"] == "loss"
    assert found["naïve"] == ["学", None, 1.5]
    assert found["format"] == FORMAT
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["versions"]["raytuner"] == raytuner.__version__
    assert isinstance(found["created"], float)
    assert folder.name == "study"
    assert [path.name for path in folder.root.iterdir()] == ["study.json"], "something is left lying about"


def test_study_json_is_plain_json(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.create({"seed": 3})
    assert json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))["seed"] == 3


@pytest.mark.parametrize("dies_in", ["fsync", "replace"])
def test_a_crash_while_it_is_written_leaves_no_study(
    dies_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def die(*_: object) -> None:
        raise Died

    folder = Folder(tmp_path)
    monkeypatch.setattr(os, dies_in, die)
    with pytest.raises(Died):
        folder.create({"seed": 3})
    monkeypatch.undo()
    assert not folder.exists()
    with pytest.raises(NoStudy):
        folder.read()
    folder.create({"seed": 4})
    assert folder.read()["seed"] == 4


def test_what_cannot_be_json_leaves_no_study(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Folder(tmp_path).create({"seed": object()})
    assert not Folder(tmp_path).exists()


@pytest.mark.parametrize("there", ["nothing", "no folder", "another folder"])
def test_no_study(there: str, tmp_path: Path) -> None:
    root = tmp_path / "study"
    if there != "no folder":
        root.mkdir()
    if there == "another folder":
        (root / "study.json").mkdir()
    with pytest.raises(NoStudy) as caught:
        Folder(root).read()
    assert str(caught.value) == f"there is no study in {root}: it holds no study.json"


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"format": 1', b"\x00" * 40, b"\xff\xfe{}", b'{"format": 1} {}', b'{"a": "\xe9"}']
)
def test_a_damaged_study(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_bytes(text)
    with pytest.raises(NoStudy) as caught:
        Folder(tmp_path).read()
    assert str(caught.value).startswith(f"{tmp_path / 'study.json'} is damaged: ")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"format": 0}', "0"),
        (f'{{"format": {FORMAT + 1}}}', f"{FORMAT + 1}"),
        ("{}", "None"),
        ("[1]", "None"),
        ("1", "None"),
        ('{"format": "1"}', "'1'"),
        ('{"format": [1]}', "[1]"),
    ],
)
def test_a_study_of_another_format(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(NoStudy) as caught:
        Folder(tmp_path).read()
    assert str(caught.value) == (
        f"{tmp_path / 'study.json'} has format {found}; this version of raytuner reads formats 1 to {FORMAT}"
    )


@pytest.mark.parametrize("known", range(1, FORMAT + 1))
def test_every_format_so_far_is_read(known: int, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(f'{{"format": {known}, "seed": 3}}')
    assert Folder(tmp_path).read() == {"format": known, "seed": 3}
