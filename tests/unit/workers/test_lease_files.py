"""What a node keeps of its leases on disk, and who is on it."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from services.lease_files import make_kept

from jobqueue.errors import InvalidSetting
from jobqueue.ids import ExperimentId, WorkerId
from workers.attempt.lease_files import (
    LeaseFile,
    forget_strays,
    read_lease,
    read_leases,
    read_message,
)
from workers.attempt.node_folder import open_node_folder

KEPT = make_kept(experiment_id=ExperimentId("exp-1"), attempt=2, token=7, deadline_seconds=100.0)


def test_what_is_kept_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path, KEPT)
    file.create(b"sealed")
    file.update(deadline_seconds=200.0, started_at_seconds=150.0, reports=3)
    (kept,) = read_leases(tmp_path).values()
    assert kept == file.kept
    assert (kept.deadline_seconds, kept.started_at_seconds, kept.reports) == (200.0, 150.0, 3)
    assert read_message(tmp_path, kept.name) == b"sealed"
    assert (kept.is_overdue(199.9), kept.is_overdue(200.0)) == (False, True)


def test_nothing_is_left_of_an_attempt_that_ended(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path, KEPT)
    file.create(b"sealed")
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    LeaseFile(tmp_path, KEPT).create(b"sealed")
    (tmp_path / "exp-2-1-1.lease").write_text('{"half": ')
    (tmp_path / "exp-3-1-1.lease").write_text("{}")
    assert list(read_leases(tmp_path)) == [KEPT.name]
    assert read_lease(tmp_path, "exp-9-1-1") is None


def test_what_belongs_to_no_lease_goes_after_a_while(tmp_path: Path) -> None:
    LeaseFile(tmp_path, KEPT).create(b"sealed")
    kept = {path.name for path in tmp_path.iterdir()}
    strays = [f"{name}.new" for name in kept] + ["exp-2-1-1.message", "exp-3-1-1.lease"]
    for name in strays:
        (tmp_path / name).write_bytes(b"")
    forget_strays(tmp_path, after=timedelta(minutes=1))
    assert {path.name for path in tmp_path.iterdir()} == {*kept, *strays}
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    forget_strays(tmp_path, after=timedelta(minutes=1))
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_full_disk_does_not_keep_a_deadline_from_being_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LeaseFile(tmp_path, KEPT)
    file.create(b"sealed")
    monkeypatch.setattr(Path, "write_bytes", full)
    file.update(deadline_seconds=9.0)
    kept = read_lease(tmp_path, KEPT.name)
    assert kept is not None
    assert kept.deadline_seconds == 9.0
    with pytest.raises(OSError, match="No space"):
        LeaseFile(tmp_path / "another", KEPT).create(b"sealed")


def full(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_a_name_is_one_workers_until_it_ends(tmp_path: Path) -> None:
    node = open_node_folder(tmp_path)
    name = WorkerId("cpu@host")
    assert not node.is_alive(name)
    held = node.claim(name)
    assert node.is_alive(name)
    assert node.has_workers()
    with pytest.raises(InvalidSetting, match="runs on this node already"):
        open_node_folder(tmp_path).claim(name)
    os.close(open_node_folder(tmp_path).claim(WorkerId("gpu0@host")))
    os.close(held)
    assert not node.has_workers()
    os.close(node.claim(name))


def test_a_nodes_identity_stays_and_is_no_other_state_folders(tmp_path: Path) -> None:
    first = open_node_folder(tmp_path / "a")
    assert open_node_folder(tmp_path / "a") == first
    assert open_node_folder(tmp_path / "b").node_id != first.node_id
