"""What starts containers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from workers.attempt.runtimes.base import ContainerRuntime
    from workers.attempt.runtimes.docker import DockerRuntime
    from workers.attempt.runtimes.gaps import EnginePolicy
    from workers.attempt.runtimes.image_cache import ImageCache

RuntimeName = Literal["auto", "docker", "process", "fake"]


def open_runtime(
    name: RuntimeName,
    *,
    state_dir: Path,
    hidden: tuple[Path, ...] = (),
    nodes_of: Callable[[tuple[str, ...]], tuple[str, ...]] | None = None,
    engine_url: str | None = None,
    image_cache: "ImageCache | None" = None,
    policy: "EnginePolicy | None" = None,
) -> "ContainerRuntime":
    """Return the runtime of that name; `auto` takes the engine when one answers within a second, else `process`.

    Args:
        name: a named runtime is returned even when it does not work now: its `check` says why.
        state_dir: a folder of this worker's own, where the process runtime keeps what is temporary.
        hidden: further folders and files of this node, which no process container is to see wherever they lie.
        nodes_of: tells the files of devices, below /dev; without it no process container opens any.
        engine_url: the engine's address; by default what DOCKER_HOST says, as for `docker`.
        image_cache: what this node knows of the images that it has pulled; without it all are kept.
        policy: what the operator wants of it; without one nothing is accepted.
    """
    # Imported where they are used: the process runtime's own supervisor starts by importing this package.
    if name == "fake":
        from workers.attempt.runtimes.fake import FakeRuntime

        return FakeRuntime()
    from workers.attempt.runtimes.process import ProcessRuntime

    processes = partial(ProcessRuntime, state_dir, hidden=hidden, nodes_of=nodes_of)
    if name == "process":
        return processes()
    from workers.attempt.runtimes.docker import DockerRuntime

    runtime = DockerRuntime(engine_url, image_cache=image_cache, policy=policy)
    if name == "docker" or _answers(runtime):
        return runtime
    return processes(may_be_bare=policy is not None and "unconfined" in policy.accepted)


def _answers(runtime: "DockerRuntime") -> bool:
    from jobqueue.errors import RuntimeFailure

    try:
        runtime.knock()
    except RuntimeFailure:
        runtime.close()
        return False
    return True
