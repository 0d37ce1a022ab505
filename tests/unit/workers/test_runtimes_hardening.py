"""What an engine is asked for: compared as a whole, so that nothing can be added without a look at this file."""

import os
from pathlib import Path
from typing import Any

import pytest

from jobqueue.errors import ImageRefused, RuntimeFailure
from jobqueue.resources import Resources
from workers.attempt.runtimes import hardening
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.hardening import make_create_body, make_labels, make_name, parse_labels

GIB = 2**30
NOT_FROM_THE_IMAGE = (
    *("LD_AUDIT", "LD_PRELOAD", "NVIDIA_IMEX_CHANNELS"),
    *("NVIDIA_MIG_CONFIG_DEVICES", "NVIDIA_MIG_MONITOR_DEVICES"),
    *("NVIDIA_GDRCOPY", "NVIDIA_GDS", "NVIDIA_MOFED", "NVIDIA_NVSWITCH", "NVIDIA_ALLOW_ADDITIONAL_GIDS"),
)
LABELS = Labels(experiment_id="exp-0", attempt=2, token=1234, node_id="node-1")


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 0)


def make_plan(folder: Path, **changes: Any) -> Plan:
    asked = Resources(cpus=1.5, memory_bytes=8 * GIB, disk_bytes=10 * GIB, shm_bytes=GIB)
    plan: dict[str, Any] = {"image": "repo@sha256:0", "command": ("python", "train.py"), "env": {"SEED": "1"}}
    plan |= {"labels": LABELS, "workspace": folder, "inputs": {"data": folder}, "resources": asked}
    return Plan(**plan | changes)


def test_the_whole_body_of_a_plan(tmp_path: Path) -> None:
    bind = {"Type": "bind", "Source": str(tmp_path), "BindOptions": {"Propagation": "rprivate"}}
    assert make_create_body(make_plan(tmp_path)) == {
        "Image": "repo@sha256:0",
        "Entrypoint": ["python", "train.py"],
        "Cmd": [],
        "Env": ["HOME=/tmp", "SEED=1", "NVIDIA_VISIBLE_DEVICES=void", *NOT_FROM_THE_IMAGE],
        "WorkingDir": "/workspace",
        "User": "65534:65534",
        "Labels": {
            "jobqueue.experiment": "exp-0",
            "jobqueue.attempt": "2",
            "jobqueue.token": "1234",
            "jobqueue.node": "node-1",
        },
        "Tty": False,
        "OpenStdin": False,
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "CapDrop": ["ALL"],
            "Privileged": False,
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,size={4 * GIB},nr_inodes=1m,mode=1777"},
            "Mounts": [
                bind | {"Target": "/workspace", "ReadOnly": False},
                bind | {"Target": "/inputs/data", "ReadOnly": True},
            ],
            "Memory": 8 * GIB,
            "MemorySwap": 8 * GIB,
            "NanoCpus": 1_500_000_000,
            "PidsLimit": 512,
            "ShmSize": GIB,
            "Ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "nofile", "Soft": 4096, "Hard": 4096},
                {"Name": "fsize", "Soft": 10 * GIB, "Hard": 10 * GIB},
            ],
            "OomScoreAdj": 500,
            "IpcMode": "private",
            "NetworkMode": "none",
            "Init": True,
            "AutoRemove": False,
            "RestartPolicy": {"Name": "no"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "2"}},
            "DeviceRequests": [],
            "Runtime": "",
        },
    }


def test_a_worker_that_is_not_root_gives_its_own_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 100)
    assert make_create_body(make_plan(tmp_path))["User"] == "1000:100"


def test_devices_are_asked_for_by_uuid_and_no_variable_can_ask_for_more(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, gpus=("GPU-a", "GPU-b"), env={"NVIDIA_VISIBLE_DEVICES": "all"})
    body = make_create_body(plan)
    assert body["HostConfig"]["DeviceRequests"] == [
        {"Driver": "nvidia", "DeviceIDs": ["GPU-a", "GPU-b"], "Capabilities": [["gpu"]]}
    ]
    assert "NVIDIA_VISIBLE_DEVICES=GPU-a,GPU-b" in body["Env"]
    assert "NVIDIA_VISIBLE_DEVICES=all" not in body["Env"]


def test_devices_may_be_asked_for_by_cdi_name(tmp_path: Path) -> None:
    body = make_create_body(make_plan(tmp_path, gpus=("GPU-a",)), devices="cdi")
    assert body["HostConfig"]["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-a"]}]


def test_volumes_of_the_image_become_bounded_memory(tmp_path: Path) -> None:
    volumes = ("/data", "/workspace", "/tmp", "/tmpfoo", "/data/../data/", "/devices", "/.x")
    tmpfs = make_create_body(make_plan(tmp_path), volumes=volumes)["HostConfig"]["Tmpfs"]
    assert set(tmpfs) == {"/tmp", "/data", "/tmpfoo", "/devices", "/.x"}
    assert len(set(tmpfs.values())) == 1


@pytest.mark.parametrize(
    "volume",
    ["/", "", "/../", "//", "/workspace/x", "/inputs", "/inputs/data", "/proc/1", "/dev", "/sys", "/a/../dev/"],
)
def test_an_image_with_a_volume_over_our_folders_is_refused(tmp_path: Path, volume: str) -> None:
    with pytest.raises(ImageRefused, match="volume"):
        make_create_body(make_plan(tmp_path), volumes=("/data", volume))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../etc", "/etc", "a b", "a:b", "-a", "é"])
def test_an_input_cannot_lie_outside_the_inputs(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeFailure, match="not a name of an input"):
        make_create_body(make_plan(tmp_path, inputs={name: tmp_path}))


def test_a_folder_that_is_a_link_missing_or_relative_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/etc")
    for folder in (link, tmp_path / "missing", Path("relative")):
        with pytest.raises(RuntimeFailure, match="not a folder or file"):
            make_create_body(make_plan(tmp_path, workspace=folder))
        with pytest.raises(RuntimeFailure, match="not a folder or file"):
            make_create_body(make_plan(tmp_path, inputs={"data": folder}))


@pytest.mark.parametrize("network", ["host", "container:other", "", "default"])
def test_only_two_networks_can_be_asked_for(tmp_path: Path, network: str) -> None:
    with pytest.raises(RuntimeFailure, match="not a network"):
        make_create_body(make_plan(tmp_path, network=network))


def test_labels_are_read_back(tmp_path: Path) -> None:
    assert parse_labels(make_labels(LABELS)) == LABELS
    assert make_name(LABELS) == "exp-0-2-1234"


@pytest.mark.parametrize("change", [{"jobqueue.token": "x"}, {"jobqueue.attempt": ""}])
def test_labels_that_are_not_ours_are_told_from_ours(change: dict[str, str]) -> None:
    assert parse_labels(make_labels(LABELS) | change) is None
    assert parse_labels({}) is None


def test_the_environment_is_not_shown_by_a_plan(tmp_path: Path) -> None:
    assert "secret" not in repr(make_plan(tmp_path, env={"TOKEN": "secret"}))


def test_nobody_is_never_root() -> None:
    assert hardening.run_as() == (65534, 65534)
