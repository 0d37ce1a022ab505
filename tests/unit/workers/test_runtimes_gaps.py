"""What an engine says of itself: which gaps are told, which are refused, and what an operator may accept."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from jobqueue.errors import InvalidSetting
from workers.attempt.runtimes.engine import Engine
from workers.attempt.runtimes.gaps import (
    ACCEPTABLE,
    EnginePolicy,
    check_accepted,
    describe_gaps,
    find_flaw,
    find_remapped_root,
)

SOUND: dict[str, Any] = {
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default", "name=userns"],
    "LiveRestoreEnabled": True,
    "DockerRootDir": "/var/lib/docker/100000.200000",
    "Runtimes": {"runc": {}, "runsc": {}},
}
SOCKET = "unix:///run/docker.sock"


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def flaw(address: str = SOCKET, *, accepted: tuple[str, ...] = (), oci_runtime: str = "", **changes: Any) -> str:
    return find_flaw(SOUND | changes, address=address, policy=EnginePolicy(accepted=accepted, oci_runtime=oci_runtime))


def test_a_sound_engine_has_no_gap() -> None:
    assert (describe_gaps(SOUND, address=SOCKET), flaw()) == ("", "")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("no-limits", {"MemoryLimit": False}),
        ("no-limits", {"PidsLimit": False}),
        ("no-limits", {"CpuCfsQuota": False}),
        ("no-seccomp", {"SecurityOptions": ["name=seccomp,profile=unconfined"]}),
        ("no-seccomp", {"SecurityOptions": None}),
    ],
)
def test_what_is_essential_is_refused_unless_an_operator_accepts_it(name: str, changes: dict[str, Any]) -> None:
    assert f"JOBQUEUE_ACCEPTED_GAPS={name}" in flaw(**changes)
    assert flaw(**changes, accepted=(name,)) == ""
    others = tuple(other for other in ACCEPTABLE if other != name)
    assert name in flaw(**changes, accepted=others)


def test_all_that_is_refused_is_told_at_once_with_the_whole_setting() -> None:
    changes: dict[str, Any] = {"SecurityOptions": ["name=seccomp,profile=unconfined"], "PidsLimit": False}
    assert "JOBQUEUE_ACCEPTED_GAPS=bare-tcp,no-limits,no-seccomp)" in flaw("tcp://engine:2375", **changes)
    assert "JOBQUEUE_ACCEPTED_GAPS=no-seccomp,no-limits)" in flaw(**changes, accepted=("no-seccomp",))


@pytest.mark.parametrize(
    "changes",
    [
        {"SecurityOptions": ["name=apparmor", "name=seccomp"]},
        {"SecurityOptions": ["name=seccomp", "name=userns"]},
        {"LiveRestoreEnabled": False},
        {"SwapLimit": False},
    ],
)
def test_what_is_desirable_is_told(changes: dict[str, Any]) -> None:
    assert flaw(**changes) == ""
    assert describe_gaps(SOUND | changes, address=SOCKET).startswith("this engine ")


@pytest.mark.parametrize("address", ["tcp://10.0.0.5:2375", "http://engine:2375", "tcp://0.0.0.0:2375", "tcp://[::]:1"])
def test_an_engine_without_tls_beyond_this_machine_is_refused(address: str) -> None:
    assert "bare-tcp" in flaw(address)
    assert flaw(address, accepted=("bare-tcp",)) == ""


@pytest.mark.parametrize("address", [SOCKET, "https://engine:2376", "https://127.0.0.1:2376", "ssh://user@engine:22"])
def test_a_socket_tls_and_ssh_are_fine(address: str) -> None:
    assert flaw(address) == ""


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:2375", "http://localhost:2375", "http://[::1]:2375"])
def test_a_port_of_loopback_is_as_open_as_a_socket_of_everybody(address: str) -> None:
    assert "JOBQUEUE_ACCEPTED_GAPS=open-socket)" in flaw(address)
    assert flaw(address, accepted=("open-socket",)) == ""
    assert "open-socket" in flaw(address, accepted=("bare-tcp",))


@pytest.mark.parametrize(
    ("host", "environ", "address"),
    [
        ("unix:///run/x.sock", {}, "unix:///run/x.sock"),
        ("ssh://user@engine", {}, "ssh://user@engine:22"),
        ("127.0.0.1:2375", {}, "http://127.0.0.1:2375"),
        ("tcp://engine:2375", {}, "http://engine:2375"),
        ("https://engine:2376", {}, "https://engine:2376"),
        ("tcp://engine:2376", {"DOCKER_TLS_VERIFY": "1"}, "https://engine:2376"),
        ("tcp://engine:2376", {"DOCKER_TLS_VERIFY": ""}, "http://engine:2376"),
        ("https://engine:2376", {"DOCKER_TLS_VERIFY": ""}, "http://engine:2376"),
    ],
)
def test_an_engine_counts_as_one_with_tls_where_its_certificate_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, environ: dict[str, str], address: str
) -> None:
    for name in ("cert.pem", "key.pem", "ca.pem"):
        (tmp_path / name).touch()
    monkeypatch.delenv("DOCKER_TLS_VERIFY", raising=False)
    folder = {"DOCKER_CERT_PATH": str(tmp_path)} if environ else {}
    for name, value in ({"DOCKER_HOST": host, "DOCKER_CERT_PATH": ""} | folder | environ).items():
        monkeypatch.setenv(name, value)
    assert Engine().address == address


@pytest.mark.parametrize(
    ("mode", "folder_mode", "is_refused"),
    [(0o666, 0o755, True), (0o602, 0o711, True), (0o660, 0o755, False), (0o666, 0o750, False), (0o600, 0o777, False)],
)
def test_an_engine_that_every_user_of_the_machine_may_command_is_refused(
    mode: int, folder_mode: int, *, is_refused: bool
) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders are closed to others
    try:
        path = folder / "docker.sock"
        path.touch()
        path.chmod(mode)
        folder.chmod(folder_mode)
        assert ("JOBQUEUE_ACCEPTED_GAPS=open-socket" in flaw(f"unix://{path}")) is is_refused
        assert flaw(f"unix://{path}", accepted=("open-socket",)) == ""
    finally:
        shutil.rmtree(folder)


def test_the_operators_runtime_has_to_be_there() -> None:
    assert flaw(oci_runtime="runsc") == ""
    said = flaw(oci_runtime="kata")
    assert "'kata'" in said
    assert "runc, runsc" in said


def test_whom_the_engine_maps_root_to_is_told_by_its_folder() -> None:
    assert find_remapped_root(SOUND) == (100000, 200000)
    assert find_remapped_root(SOUND | {"SecurityOptions": ["name=seccomp"]}) is None


def test_mapped_users_need_a_worker_that_is_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in flaw()
    assert flaw(SecurityOptions=["name=seccomp"]) == ""


def test_a_misspelt_gap_is_an_error() -> None:
    check_accepted(ACCEPTABLE)
    with pytest.raises(InvalidSetting, match="unconfind"):
        check_accepted(("unconfind",))
