"""What is asked of an engine for a plan: the one function that writes the body of a create request.

Everything here is the worker's, nothing the message's: no field of a `Plan` can add a capability, a device, a mount of
the host or a namespace. The whole body stands here, and not in the client library's arguments, so that a review sees
all of it.
"""

import os
import posixpath
import re
from collections.abc import Collection, Mapping
from typing import Any

from jobqueue.errors import ImageRefused, RuntimeFailure
from workers.attempt.runtimes.base import Labels, Plan

NOBODY = 65534
WORKSPACE = "/workspace"
INPUTS = "/inputs"
EGRESS = "jobqueue-egress"

_LABEL = "jobqueue."
_INPUT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_MIB = 2**20
_DEFAULT_SHM_BYTES = 64 * _MIB
_SMALLEST_TMP_BYTES = 16 * _MIB
_TMP_FILES = "1m"
_OPEN_FILES = 4096
# The container goes first when the node runs out of memory, never the worker.
_OOM_SCORE = 500
# What a worker that comes back finds of the output that was written while it was away.
_LOG = {"max-size": "16m", "max-file": "2"}
# A hook of the GPU toolkit once ran with what an image had put there (CVE-2025-23266); others ask it for more devices:
# those of the network and of storage, and the groups that may use them.
_NOT_FROM_THE_IMAGE = (
    *("LD_AUDIT", "LD_PRELOAD"),
    *("NVIDIA_IMEX_CHANNELS", "NVIDIA_MIG_CONFIG_DEVICES", "NVIDIA_MIG_MONITOR_DEVICES"),
    *("NVIDIA_GDRCOPY", "NVIDIA_GDS", "NVIDIA_MOFED", "NVIDIA_NVSWITCH", "NVIDIA_ALLOW_ADDITIONAL_GIDS"),
)
# An engine lays a volume of an image over these, of its own and without a bound, unless something else is there.
_NO_VOLUME = (WORKSPACE, INPUTS, "/dev", "/proc", "/sys")
_NO_GPU = "void"
# The engine's name for each network that a spec may ask for.
_NETWORKS = {"none": "none", "egress": EGRESS, "bridge": "bridge"}


def run_as() -> tuple[int, int]:
    """Return the user and group ids that experiments run as: the worker's own, or nobody's when it is root."""
    return (os.geteuid() or NOBODY, os.getegid() or NOBODY)


def make_labels(labels: Labels) -> dict[str, str]:
    """Return the labels of a container by which `parse_labels` and `docker ps` find it."""
    return {
        f"{_LABEL}experiment": labels.experiment_id,
        f"{_LABEL}attempt": str(labels.attempt),
        f"{_LABEL}token": str(labels.token),
        f"{_LABEL}node": labels.node_id,
    }


def parse_labels(labels: Mapping[str, str]) -> Labels | None:
    """Return whose attempt it is, or None when these are not the labels of a container of ours."""
    try:
        return Labels(
            experiment_id=labels[f"{_LABEL}experiment"],
            attempt=int(labels[f"{_LABEL}attempt"]),
            token=int(labels[f"{_LABEL}token"]),
            node_id=labels[f"{_LABEL}node"],
        )
    except (KeyError, ValueError):
        return None


def make_node_filter(node_id: str) -> dict[str, list[str]]:
    """Return the engine's filter for the containers of a node."""
    return {"label": [f"{_LABEL}node={node_id}"]}


def make_name(labels: Labels) -> str:
    """Return the container's name: a second start under one token is refused by the engine itself."""
    return f"{labels.experiment_id}-{labels.attempt}-{labels.token}"


def make_create_body(
    plan: Plan, *, volumes: Collection[str] = (), devices: str = "nvidia", oci_runtime: str = ""
) -> dict[str, Any]:
    """Return the JSON body of the engine's create request.

    Args:
        plan: what to start.
        volumes: paths that the image declares as volumes; each becomes a bounded tmpfs, not a folder on the host.
        devices: `nvidia` asks for GPUs by UUID, `cdi` by CDI name.
        oci_runtime: the operator's choice among the engine's, such as `runsc`; empty: the engine's default.

    Raises:
        RuntimeFailure: the plan's paths or names are not those that a worker makes.
        ImageRefused: the image wants a volume where the node's own folders are.
    """
    user, group = run_as()
    return {
        "Image": plan.image,
        # The command is the entry point, so that the image's own entry point and command are both out of the way.
        "Entrypoint": list(plan.command),
        "Cmd": [],
        "Env": _make_env(plan),
        "WorkingDir": WORKSPACE,
        "User": f"{user}:{group}",
        "Labels": make_labels(plan.labels),
        "Tty": False,
        "OpenStdin": False,
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _make_host_config(plan, volumes, devices) | {"Runtime": oci_runtime},
    }


def _make_host_config(plan: Plan, volumes: Collection[str], devices: str) -> dict[str, Any]:
    asked = plan.resources
    return {
        "CapDrop": ["ALL"],
        "Privileged": False,
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": True,
        "Tmpfs": _make_tmpfs(plan, volumes),
        "Mounts": _make_mounts(plan),
        "Memory": asked.memory_bytes,
        "MemorySwap": asked.memory_bytes,
        "NanoCpus": round(asked.cpus * 1e9),
        "PidsLimit": plan.pids,
        "ShmSize": asked.shm_bytes or _DEFAULT_SHM_BYTES,
        "Ulimits": _make_ulimits(asked.disk_bytes),
        "OomScoreAdj": _OOM_SCORE,
        "IpcMode": "private",
        "NetworkMode": _find_network(plan.network),
        "Init": True,
        "AutoRemove": False,
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "json-file", "Config": dict(_LOG)},
        "DeviceRequests": _make_device_requests(plan.gpus, devices),
    }


def _make_env(plan: Plan) -> list[str]:
    env = {"HOME": "/tmp", **plan.env}  # noqa: S108 - the container's own
    # An image may ask for all devices in its own environment; where the engine grants them by it, this wins.
    env["NVIDIA_VISIBLE_DEVICES"] = ",".join(plan.gpus) or _NO_GPU
    # A name without a value takes the image's variable away.
    return [f"{name}={value}" for name, value in env.items()] + [
        name for name in _NOT_FROM_THE_IMAGE if name not in env
    ]


def size_tmp(plan: Plan) -> int:
    """Return the bytes of a /tmp: half of the memory that it is charged to: a full one is an error of its own."""
    return max(plan.resources.memory_bytes // 2, _SMALLEST_TMP_BYTES)


def _make_tmpfs(plan: Plan, volumes: Collection[str]) -> dict[str, str]:
    # HOME is here: what is compiled at run time (Triton, extensions of PyTorch, Numba) is loaded from its caches.
    options = f"rw,exec,nosuid,nodev,size={size_tmp(plan)},nr_inodes={_TMP_FILES},mode=1777"
    declared = {"/" + posixpath.normpath(f"/{path}").lstrip("/") for path in volumes} - {WORKSPACE}
    for path in sorted(declared):
        if path == "/" or any(f"{path}/".startswith(f"{other}/") for other in _NO_VOLUME):
            raise ImageRefused(f"the image declares the volume {path!r}", hint="build one without that VOLUME")
    return dict.fromkeys(["/tmp", *sorted(declared - {"/tmp"})], options)  # noqa: S108 - the container's own


def _make_mounts(plan: Plan) -> list[dict[str, Any]]:
    mounts = [_make_mount(str(_check_source(plan.workspace)), WORKSPACE, is_read_only=False)]
    for name, source in sorted(plan.inputs.items()):
        if not _INPUT_NAME.fullmatch(name):
            raise RuntimeFailure(f"not a name of an input: {name!r}", hint="use letters, digits, '_', '-' and '.'")
        mounts.append(_make_mount(str(_check_source(source)), f"{INPUTS}/{name}", is_read_only=True))
    return mounts


def _make_mount(source: str, target: str, *, is_read_only: bool) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": is_read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }


def _check_source(path: os.PathLike[str]) -> str:
    source = os.fspath(path)
    if not os.path.isabs(source) or os.path.islink(source) or not os.path.exists(source):  # noqa: PTH114, PTH110, PTH117
        raise RuntimeFailure(
            f"not a folder or file that a worker made: {source}", hint="give an absolute path without a link"
        )
    return source


def _make_ulimits(disk_bytes: int) -> list[dict[str, Any]]:
    limits = {"core": 0, "nofile": _OPEN_FILES}
    if disk_bytes:
        limits["fsize"] = disk_bytes
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in limits.items()]


def _make_device_requests(gpus: tuple[str, ...], devices: str) -> list[dict[str, Any]]:
    if not gpus:
        return []
    if devices == "cdi":
        return [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={gpu}" for gpu in gpus]}]
    return [{"Driver": "nvidia", "DeviceIDs": list(gpus), "Capabilities": [["gpu"]]}]


def _find_network(network: str) -> str:
    if network not in _NETWORKS:
        raise RuntimeFailure(f"not a network of this runtime: {network!r}", hint=f"use one of {', '.join(_NETWORKS)}")
    return _NETWORKS[network]
