"""A device has one holder on a machine, whoever started it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobqueue.errors import InvalidSetting
from workers.hardware.locks import open_device_locks

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from workers.hardware.locks import open_device_locks\n"
    "taken = open_device_locks(Path(sys.argv[1])).take(sys.argv[2], owner='gpu0@there')\n"
    "print('taken' if taken is not None else 'refused', flush=True)\n"
    "input()\n"
)


def hold(folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", HOLD, str(folder), UUID]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def answer(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_device_that_is_taken_is_refused_and_its_holder_told(tmp_path: Path) -> None:
    locks = open_device_locks(tmp_path / "state")
    assert locks.holder(UUID) == ""
    handle = locks.take(UUID, owner="gpu0@here")
    assert handle is not None
    assert locks.take(UUID, owner="gpu1@here") is None
    assert locks.holder(UUID) == f"gpu0@here (process {os.getpid()})"
    os.close(handle)
    assert locks.holder(UUID) == ""
    again = locks.take(UUID, owner="gpu1@here")
    assert again is not None
    os.close(again)


def test_devices_are_taken_apart_from_each_other_also_those_with_odd_names(tmp_path: Path) -> None:
    locks = open_device_locks(tmp_path / "state")
    handles = [locks.take(uuid, owner="me") for uuid in (UUID, "MIG-GPU-8932f937/1/0", "../../outside")]
    assert None not in handles
    assert len(list(locks.folder.iterdir())) == 3
    for handle in handles:
        os.close(handle or 0)


def test_workers_with_the_same_folder_of_locks_share_them(tmp_path: Path) -> None:
    holder, other = hold(tmp_path / "state"), hold(tmp_path / "state")
    assert {answer(holder), answer(other)} == {b"taken", b"refused"}
    for process in (holder, other):
        process.communicate(b"\n")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_holder_that_dies_gives_its_device_back(tmp_path: Path, end: signal.Signals) -> None:
    locks = open_device_locks(tmp_path / "state")
    holder = hold(tmp_path / "state")
    assert answer(holder) == b"taken"
    assert locks.holder(UUID) == f"gpu0@there (process {holder.pid})"
    holder.send_signal(end)
    holder.communicate()
    handle = locks.take(UUID, owner="me")
    assert handle is not None
    os.close(handle)


def test_a_lock_is_not_passed_on_to_what_a_worker_starts(tmp_path: Path) -> None:
    locks = open_device_locks(tmp_path / "state")
    handle = locks.take(UUID, owner="me")
    assert handle is not None
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    os.close(handle)
    assert locks.holder(UUID) == ""
    child.kill()
    child.wait()


def test_other_users_of_the_machine_may_lock_too(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        locks = open_device_locks(tmp_path / "state")
        handle = locks.take(UUID, owner="me")
    finally:
        os.umask(before)
    assert handle is not None
    os.close(handle)
    assert locks.folder.stat().st_mode & 0o7777 == 0o1777
    assert next(locks.folder.iterdir()).stat().st_mode & 0o777 == 0o666


def test_a_link_in_place_of_a_lock_is_refused_and_not_followed(tmp_path: Path) -> None:
    locks = open_device_locks(tmp_path / "state")
    target = tmp_path / "target"
    target.write_text("kept")
    (locks.folder / UUID).symlink_to(target)
    with pytest.raises(InvalidSetting, match=UUID):
        locks.take(UUID, owner="me")
    assert target.read_text() == "kept"


def test_a_folder_that_cannot_be_made_is_a_setting_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match="JOBQUEUE_DEVICE_LOCKS"):
        open_device_locks(tmp_path / "file" / "state")
