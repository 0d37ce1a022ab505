"""What an experiment could reach on this node, as one line of JSON on stdout: a probe is started like any experiment.

python -m workers.attempt.reach            starts the probe
python -m workers.attempt.reach --notice   asks the engine alone
"""

import json
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from jobqueue.config import Settings
from jobqueue.errors import JobqueueError, RuntimeFailure
from jobqueue.resources import Resources
from workers.attempt.runtimes.base import ContainerRuntime, Labels, Plan
from workers.attempt.runtimes.checklist import PLANTED, Known, choose_rows, make_program, read_namespaces
from workers.attempt.runtimes.hardening import run_as
from workers.attempt.runtimes.opening import open_node_runtime
from workers.attempt.trees import own, remove

_WITHIN: Final = timedelta(minutes=2)
_MEMORY_BYTES: Final = 256 * 2**20
_NETWORK: Final = "none"


def main() -> int:
    """Tell the runtime, its notice, and of each thing that was tried the answer and whether that is a refusal."""
    logging.disable()
    settings = Settings()
    try:
        runtime = open_node_runtime(settings)
        runtime.vet()
        runtime.check()
        answers = {} if "--notice" in sys.argv else _probe(runtime, settings)
        rows = [
            {"what": row.what, "answer": answers[row.what], "is_refused": answers[row.what] in row.expected}
            for row in choose_rows(runtime.name)
            if answers
        ]
        told = {"runtime": runtime.name, "notice": runtime.notice, "rows": rows, "error": ""}
        runtime.close()
    except JobqueueError as error:
        told = {"runtime": "", "notice": "", "rows": [], "error": str(error)}
    print(json.dumps(told))  # noqa: T201 - that is what it is for
    return 0


def _probe(runtime: ContainerRuntime, settings: Settings) -> dict[str, str]:
    os.environ.update(PLANTED)
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="reach-", dir=settings.cache_dir))
    try:
        with _listener(folder.name) as port:
            return _run(runtime, folder, known=_look(settings, folder, port))
    finally:
        remove(folder)


def _look(settings: Settings, folder: Path, port: int) -> Known:
    for name in ("workspace", "other", "input"):
        (folder / name).mkdir()
    (folder / "input" / "file").write_text("given")
    return Known(
        host_pid=os.getpid(),
        engine=os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or "/var/run/docker.sock",
        state=str(settings.state_dir),
        other=str(folder / "other"),
        parent=str(folder),
        port=port,
        name=folder.name,
        namespaces=read_namespaces(os.getpid()),
        private=tuple(map(str, (settings.keys_dir, *settings.private_files))),
    )


def _run(runtime: ContainerRuntime, folder: Path, *, known: Known) -> dict[str, str]:
    workspace = folder / "workspace"
    if os.geteuid() == 0:
        user, group = run_as()
        own(workspace, uid=user, gid=group)
    plan = Plan(
        labels=Labels(experiment_id="reach", attempt=1, token=time.time_ns() // 1000, node_id="reach"),
        image=runtime.resolve(Settings().probe_image),
        command=("python3", "-c", make_program(choose_rows(runtime.name), known)),
        env={},
        workspace=workspace,
        inputs={"data": folder / "input"},
        resources=Resources(cpus=1, memory_bytes=_MEMORY_BYTES, disk_bytes=_MEMORY_BYTES, shm_bytes=0),
        network=_NETWORK,
    )
    container = runtime.start(plan)
    printed = {"stdout": bytearray(), "stderr": bytearray()}
    try:
        container.follow(lambda stream, piece: printed[stream].extend(piece))
        if container.wait(_WITHIN) is None:
            raise RuntimeFailure("the probe did not end")
    finally:
        container.remove()
    try:
        answers: dict[str, str] = json.loads(printed["stdout"])
    except ValueError as error:
        said = bytes(printed["stderr"][-300:]).decode(errors="replace").strip()
        raise RuntimeFailure(f"the probe did not run: {said}", hint="is a python in JOBQUEUE_PROBE_IMAGE?") from error
    return answers


@contextmanager
def _listener(name: str) -> Iterator[int]:
    """Listen on loopback, and on a socket without a file."""
    with socket.create_server(("127.0.0.1", 0)) as door, socket.socket(socket.AF_UNIX) as named:
        named.bind(f"\0{name}")
        named.listen()
        yield int(door.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
