"""What starts containers."""

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
    engine_url: str | None = None,
    image_cache: "ImageCache | None" = None,
    policy: "EnginePolicy | None" = None,
) -> "ContainerRuntime":
    """Return the runtime of that name; `auto` takes the engine when one answers within a second, else `process`.

    Args:
        name: a named runtime is returned even when it does not work now: its `check` says why.
        state_dir: a folder of this worker's own, where the process runtime keeps what is temporary.
        hidden: further folders of this node, which no process container is to see wherever they lie.
        engine_url: the engine's address; by default what DOCKER_HOST says, as for `docker`.
        image_cache: what this node knows of the images that it has pulled; without it all are kept.
        policy: what the operator wants of it; without one nothing is accepted.
    """
    # Imported where they are used: the process runtime's own supervisor starts by importing this package.
    if name == "fake":
        from workers.attempt.runtimes.fake import FakeRuntime

        return FakeRuntime()
    if name == "process":
        from workers.attempt.runtimes.process import ProcessRuntime

        return ProcessRuntime(state_dir, hidden=hidden)
    from workers.attempt.runtimes.docker import DockerRuntime

    runtime = DockerRuntime(engine_url, image_cache=image_cache, policy=policy)
    if name == "docker":
        return runtime
    return _prefer(runtime, state_dir, hidden, policy)


def _prefer(
    engine: "DockerRuntime", state_dir: Path, hidden: tuple[Path, ...], policy: "EnginePolicy | None"
) -> "ContainerRuntime":
    from jobqueue.errors import RuntimeFailure
    from workers.attempt.runtimes.process import ProcessRuntime

    try:
        engine.knock()
    except RuntimeFailure:
        engine.close()
        return ProcessRuntime(
            state_dir, hidden=hidden, may_be_bare=policy is not None and "unconfined" in policy.accepted
        )
    return engine
