"""Whatever a container leaves is given away and removed, and nothing beside it is touched."""

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from workers.attempt.trees import own, remove


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "file").write_text("stays")
    return outside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "attempt"
    folder.mkdir()
    return folder


def _deep(folder: Path, depth: int) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 100, dir_fd=descriptor)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)


def _fill(folder: Path, outside: Path) -> None:
    (folder / "plain" / "below").mkdir(parents=True)
    (folder / "plain" / "below" / "file").write_text("x")
    (folder / os.fsdecode(b"odd\xff\n name")).mkdir()
    (folder / os.fsdecode(b"odd\xff\n name") / "-rf").write_text("")
    (folder / "link").symlink_to(outside)
    (folder / "plain" / "link").symlink_to(outside / "file")
    (folder / "hard").hardlink_to(outside / "file")
    (folder / "broken").symlink_to("nothing")
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    _deep(folder / "plain", 1500)
    for name in ("nothing", "unreadable"):
        (folder / name / "below" / "below").mkdir(parents=True)
        (folder / name / "below" / "file").write_text("")
        (folder / name / "below").chmod(0o000)
        (folder / name).chmod(0o000)


def test_everything_is_removed_and_nothing_that_links_lead_to(folder: Path, outside: Path) -> None:
    _fill(folder, outside)
    folder.chmod(0)
    assert remove(folder)
    assert not folder.exists()
    assert (outside / "file").read_text() == "stays"
    assert [path.name for path in folder.parent.iterdir()] == ["outside"]


_AS_SOMEBODY = """
import os, sys
from pathlib import Path
from workers.attempt import trees
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
folder = Path(sys.argv[1]) / "attempt"
(folder / "a" / "b" / "c").mkdir(parents=True)
(folder / "a" / "b" / "file").write_text("")
for path in (folder / "a" / "b" / "c", folder / "a" / "b", folder / "a", folder):
    path.chmod(0)
sys.exit(0 if trees.remove(folder) and not folder.exists() else 1)
"""


def test_folders_without_rights_are_removed_also_by_who_is_not_root(tmp_path: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as open_to_all:
        Path(open_to_all).chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-c", _AS_SOMEBODY, open_to_all], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_what_is_gone_already_is_fine(tmp_path: Path) -> None:
    assert remove(tmp_path / "never")
    assert remove(tmp_path / "never" / "ever")


def test_a_link_in_its_place_is_removed_alone(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "attempt").symlink_to(outside)
    assert remove(tmp_path / "attempt")
    assert not (tmp_path / "attempt").is_symlink()
    assert (outside / "file").read_text() == "stays"


def test_a_file_in_its_place_is_removed(tmp_path: Path) -> None:
    (tmp_path / "attempt").write_text("")
    assert remove(tmp_path / "attempt")
    assert not (tmp_path / "attempt").exists()


def test_what_cannot_be_removed_is_logged_and_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "file").write_text("")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", refuse)
    with caplog.at_level(logging.WARNING):
        assert not remove(folder)
    assert caplog.messages == ["workspace.not_removed"]
    assert (folder / "file").exists()


def test_many_files_are_removed(folder: Path) -> None:
    for number in range(50):
        (folder / f"{number}").mkdir()
        for file in range(40):
            (folder / f"{number}" / f"{file}").touch()
    assert remove(folder)
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0 and "CI" not in os.environ, reason="only root gives files away")
def test_a_folder_changes_hands_and_nothing_that_links_lead_to(folder: Path, outside: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "file").write_text("")
    (folder / "link").symlink_to(outside)
    (folder / "a" / "link").symlink_to(outside / "file")
    own(folder, uid=65534, gid=65533)
    inside = [folder, *folder.rglob("*")]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in inside} == {(65534, 65533)}
    assert len(inside) == 6
    assert {path.stat().st_uid for path in (outside, outside / "file")} == {os.geteuid()}
