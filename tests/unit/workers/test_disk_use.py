"""What a workspace takes on the disk: counted whatever hides in it."""

import os
import threading
import tracemalloc
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from services.waiting import wait_until

from workers.attempt import disk_use
from workers.attempt.disk_use import DiskMeter

MIB = 2**20


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


def excess(workspace: Path, *, limit_bytes: int = MIB) -> str:
    meter = DiskMeter(workspace, limit_bytes=limit_bytes)
    meter.look()
    return meter.excess


def looking(but: Collection[threading.Thread] = ()) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "disk-use" and thread not in but]


def fill(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))


def test_what_fits_is_no_excess(workspace: Path) -> None:
    fill(workspace / "a" / "b" / "file", MIB // 2)
    assert excess(workspace) == ""


def test_many_files_count_together(workspace: Path) -> None:
    for number in range(5):
        fill(workspace / str(number) / "file", MIB // 4)
    assert excess(workspace) == "more than 1 MiB in its workspace"


def test_a_sparse_file_takes_what_it_takes_and_a_link_takes_nothing(workspace: Path) -> None:
    with (workspace / "sparse").open("wb") as file:
        file.truncate(100 * MIB)
    (workspace / "link").symlink_to("/usr")
    assert excess(workspace) == ""


def test_a_file_of_several_names_counts_once(workspace: Path) -> None:
    fill(workspace / "file", MIB // 2)
    for number in range(4):
        os.link(workspace / "file", workspace / f"name-{number}")
    assert excess(workspace) == ""


def test_what_lies_deeper_than_any_path_is_found(workspace: Path) -> None:
    here = os.open(workspace, os.O_RDONLY)
    name = "d" * 200
    for _ in range(30):  # 6,000 bytes of path
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(file, bytes(2 * MIB))
    os.close(file)
    os.close(here)
    assert "more than 1 MiB" in excess(workspace)


def test_folders_that_are_too_deep_to_be_looked_at_are_an_excess(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_use, "MOST_DEPTH", 5)
    (workspace / "1" / "2" / "3").mkdir(parents=True)
    assert excess(workspace) == ""
    (workspace / "1" / "2" / "3" / "4" / "5").mkdir(parents=True)
    assert "5 deep" in excess(workspace)


def test_too_many_files_are_an_excess(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_use, "MOST_ENTRIES", 10)
    for number in range(10):
        (workspace / str(number)).touch()
    assert excess(workspace) == ""
    (workspace / "one-more").touch()
    assert excess(workspace) == "more than 10 files in its workspace"


def test_an_empty_file_counts_as_a_small_one(workspace: Path) -> None:
    for number in range(300):
        (workspace / str(number)).touch()
    assert excess(workspace) == "more than 1 MiB in its workspace"


def test_a_folder_without_rights_hides_nothing(workspace: Path) -> None:
    fill(workspace / "hidden" / "file", 2 * MIB)
    (workspace / "hidden").chmod(0)
    assert "more than 1 MiB" in excess(workspace)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at this process alone: the others here have deleted files too, and all of them see this folder."""
    (tmp_path / "processes").mkdir()
    (tmp_path / "processes" / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    monkeypatch.setattr(disk_use, "_PROCESSES", tmp_path / "processes")


@pytest.mark.usefixtures("alone")
def test_what_was_deleted_and_is_still_open_counts(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "file").write_bytes(bytes(2 * MIB))
    with (workspace / "file").open("rb"):
        (workspace / "file").unlink()
        assert excess(workspace) == ""  # this process does not have it as /workspace
        monkeypatch.setattr(disk_use, "WORKSPACE", workspace)
        assert "more than 1 MiB" in excess(workspace)


@pytest.mark.usefixtures("alone")
def test_what_is_deleted_during_a_look_is_not_counted_twice(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_use, "WORKSPACE", workspace)
    fill(workspace / "file", MIB * 3 // 4)
    inhabitants = disk_use._find_inhabitants

    def delete_first(there: os.stat_result) -> Iterator[Path]:
        (workspace / "file").unlink(missing_ok=True)
        return inhabitants(there)

    monkeypatch.setattr(disk_use, "_find_inhabitants", delete_first)
    with (workspace / "file").open("rb"):
        assert excess(workspace) == ""


def test_the_names_of_very_many_folders_are_not_kept(workspace: Path) -> None:
    for number in range(4000):
        (workspace / f"{number:0200}").mkdir()
    tracemalloc.start()
    try:
        assert excess(workspace, limit_bytes=1000 * MIB) == ""
        assert tracemalloc.get_traced_memory()[1] < MIB // 2  # twice as much for their names alone
    finally:
        tracemalloc.stop()


def test_a_workspace_that_is_gone_takes_nothing(tmp_path: Path) -> None:
    assert excess(tmp_path / "nothing") == ""


def test_what_is_over_is_not_looked_at_again_and_stays_over(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_use, "_LOOK_EVERY", timedelta(milliseconds=1))
    others = looking()
    meter = DiskMeter(workspace, limit_bytes=MIB)
    meter.start()
    fill(workspace / "file", 2 * MIB)
    wait_until(lambda: meter.excess, what="the excess")
    wait_until(lambda: not looking(but=others), what="the end of the looks")
    (workspace / "file").unlink()
    meter.close()
    assert meter.excess == "more than 1 MiB in its workspace"
