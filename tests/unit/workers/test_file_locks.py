"""Who has a file or a folder of a machine locked, and who only asks."""

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from workers import file_locks
from workers.file_locks import is_at, is_locked, lock, open_folder, try_lock


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_what_is_locked_is_told_until_it_is_closed(file: Path) -> None:
    assert not is_locked(file), "it is not even there"
    handle = lock(file)
    assert handle is not None
    assert is_locked(file)
    assert lock(file) is None
    os.close(handle)
    assert not is_locked(file)


def test_those_who_only_ask_do_not_meet_each_other(tmp_path: Path) -> None:
    asking = open_folder(tmp_path)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert not is_locked(tmp_path)
    os.close(asking)


def test_who_locks_outlasts_somebody_who_only_asks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = os.open(file, os.O_RDONLY | os.O_CREAT, 0o600)
    fcntl.flock(asking, fcntl.LOCK_SH)
    pause = SimpleNamespace(sleep=lambda _: fcntl.flock(asking, fcntl.LOCK_UN))
    monkeypatch.setattr(file_locks, "time", pause)
    handle = lock(file)
    os.close(asking)
    assert handle is not None
    os.close(handle)


def test_a_folder_is_locked_like_a_file_and_never_through_a_link(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    handle = open_folder(folder)
    assert try_lock(handle)
    assert is_locked(folder)
    assert not is_locked(link)
    with pytest.raises(OSError, match="link"):
        open_folder(link)
    folder.rename(tmp_path / "gone")
    assert not is_at(folder, handle)
    folder.mkdir()
    assert not is_at(folder, handle)
    assert is_at(tmp_path / "gone", handle)
    os.close(handle)
