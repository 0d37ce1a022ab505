"""A container engine of its own: a dockerd with private folders, network and mounts."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import docker
import psutil

from services.images import load_images
from services.process import SYSTEM_PATH, MissingProgramError, Process, find_program
from services.waiting import wait_until


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A running dockerd; it and its containers see a network of their own with only a loopback.

    Attributes:
        process: The daemon, to stop, kill, pause or restart it; its containers go on meanwhile.
        namespaces: The process that keeps its network and its mounts.
        folder: Its data, state and log.
        client: A docker-py client of it.
    """

    process: Process
    namespaces: Process
    folder: Path
    client: docker.DockerClient

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return _socket(self.folder)

    @property
    def url(self) -> str:
        """What DOCKER_HOST takes."""
        return f"unix://{self.socket}"

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process of it."""
        return (self.process, self.namespaces)

    @property
    def enter(self) -> list[str]:
        """What stands before a command that shall run in the engine's network, as root."""
        nsenter = find_program("nsenter", package="util-linux")
        return [nsenter, "--target", str(self.namespaces.pid), "--net", "--mount"]

    def remove_containers(self) -> None:
        """Remove every container, running or not."""
        for container in self.client.containers.list(all=True, ignore_removed=True):
            container.remove(force=True)


@contextmanager
def open_engine(
    *,
    images: bool = True,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Engine]:
    """Run a dockerd, with the test images unless told otherwise.

    `options` are arguments of dockerd, `environment` its variables: a PATH with a
    `nvidia-container-runtime-hook` on it makes an engine with GPUs.
    """
    if os.geteuid() != 0:
        raise MissingProgramError("the container engine needs root: run `make test` as root")
    # Not in a test's folder: the path of a socket is at most 107 bytes long.
    folder = Path(tempfile.mkdtemp(prefix="jobqueue-engine-"))
    folder.chmod(0o711)  # an engine that maps users has to get through as one of them
    namespaces = _make_namespaces(folder)
    process = _make_daemon(folder, options, environment or {})
    try:
        with namespaces, process, _connected(process, namespaces, folder) as engine:
            if images:
                load_images(engine.client)
            yield engine
    finally:
        shutil.rmtree(folder)


@contextmanager
def _connected(process: Process, namespaces: Process, folder: Path) -> Iterator[Engine]:
    client = docker.DockerClient(base_url=f"unix://{_socket(folder)}")
    engine = Engine(process=process, namespaces=namespaces, folder=folder, client=client)
    try:
        yield engine
    finally:
        if process.running:
            process.resume()
        else:
            process.start()
        engine.remove_containers()
        client.close()
        process.stop()
        _kill_inhabitants(namespaces.pid)


def _make_namespaces(folder: Path) -> Process:
    script = 'ip link set lo up && echo $$ >"$0" && exec sleep infinity'
    unshare = [find_program("unshare", package="util-linux"), "--net", "--mount"]
    find_program("ip", package="iproute2")
    pid_file = _namespaces_pid_file(folder)
    return Process(
        name="namespaces",
        command=[*unshare, "--propagation", "slave", "/bin/sh", "-c", script, str(pid_file)],
        log=folder / "namespaces.log",
        ready=lambda: pid_file.exists() and pid_file.read_text().endswith("\n"),
        environment={"PATH": SYSTEM_PATH},
    )


def _make_daemon(folder: Path, options: Sequence[str], environment: Mapping[str, str]) -> Process:
    settings = folder / "daemon.json"
    settings.write_text("{}")
    nsenter = find_program("nsenter", package="util-linux")
    script = f'exec {nsenter} --target "$(cat "$0")" --net --mount "$@"'
    command = [
        *("/bin/sh", "-c", script, str(_namespaces_pid_file(folder))),
        *(find_program("dockerd", package="docker.io"), "--config-file", str(settings)),
        *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
        *("--host", f"unix://{_socket(folder)}", "--pidfile", str(folder / "dockerd.pid")),
        *("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
        *("--live-restore", "--log-level=warn", *options),
    ]
    return Process(
        name="dockerd",
        command=command,
        log=folder / "dockerd.log",
        ready=lambda: _pings(_socket(folder)),
        environment=environment,
        prepare=lambda: _forget_containerd(folder),
    )


def _forget_containerd(folder: Path) -> None:
    """Wait for the containerd of a killed dockerd; a new one refuses to start beside it."""
    pid_file = folder / "exec" / "containerd" / "containerd.pid"
    if pid_file.exists():
        process = Path("/proc", pid_file.read_text().strip())
        wait_until(lambda: not process.exists(), what="the end of the old containerd")
        pid_file.unlink()


def _kill_inhabitants(pid: int) -> None:
    """Kill what runs in the namespaces of a process, and what that started, but not itself."""
    home = Path(f"/proc/{pid}/ns/mnt").readlink()
    inhabitants = [process for process in psutil.process_iter() if _lives_in(process, home)]
    families = [inhabitants, *(process.children(recursive=True) for process in inhabitants)]
    for process in chain.from_iterable(families):
        if process.pid != pid:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _lives_in(process: psutil.Process, home: Path) -> bool:
    try:
        return Path(f"/proc/{process.pid}/ns/mnt").readlink() == home
    except OSError:
        return False


def _pings(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(str(path))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(1024)
    except OSError:
        return False


def _socket(folder: Path) -> Path:
    return folder / "docker.sock"


def _namespaces_pid_file(folder: Path) -> Path:
    return folder / "namespaces.pid"
