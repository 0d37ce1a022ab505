"""What starts containers: the ports, and the one typed value that says all that may be asked of an engine.

A privileged flag, a foreign device, a bind mount of the host or the engine's socket cannot be written down in a
`Plan`: the three folders it names are made by the worker, and the hardening is the adapter's, not the caller's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from jobqueue.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a container is known by, on the engine: whose attempt it is."""

    experiment_id: str
    attempt: int
    token: int
    node_id: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One container to start.

    Attributes:
        image: as `resolve` returned it.
        command: the words; the image's entry point is not used.
        env: complete, the node's own variables included; values may be secret and are never logged.
        workspace: the attempt's folder on the node, seen as `/workspace` (writable, the working folder).
        inputs: folder or file on the node, by name; each seen as `/inputs/<name>`, read-only.
        resources: the limits: cpus, memory, shm and disk.
        gpus: UUIDs of the granted devices.
        network: `none`, `egress` or `bridge`.
        pids: most processes and threads.
    """

    labels: Labels
    image: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    workspace: Path
    inputs: Mapping[str, Path]
    resources: Resources
    gpus: tuple[str, ...] = ()
    network: str = "none"
    pids: int = 512


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a container ended, in the engine's words.

    Attributes:
        code: exit code; 128 + n for signal n.
        is_out_of_memory: the engine says that its memory limit killed a process of it.
        memory_peak_bytes: 0 where the engine does not tell.
        error: what the engine says went wrong, if it never ran properly.
        is_from_outside: it was killed, and maybe by neither itself nor its limits: by a machine without memory, say.
    """

    code: int
    is_out_of_memory: bool = False
    memory_peak_bytes: int = 0
    error: str = ""
    is_from_outside: bool = False


class Container(Protocol):
    """One started container. Every method raises `RuntimeFailure` when the engine does not answer or has lost it."""

    labels: Labels

    def follow(self, sink: Callable[[str, bytes], None]) -> None:
        """Pass the output to `sink(stream, bytes)` (`stdout` or `stderr`), in order, from the first byte, to the last.

        Blocks; the pieces are bounded; a slow sink slows the container down rather than filling memory. Returning does
        not mean that the container ended: `wait` tells. After an error, a second call goes on where the first stopped.
        """
        ...

    def wait(self, timeout: timedelta) -> Exit | None:
        """Return how it ended, or None when it still runs after `timeout`."""
        ...

    def stop(self, grace: timedelta) -> None:
        """SIGTERM, then SIGKILL after `grace`, to all of its processes; returns when none is left.

        To be asked it is thawed first. Without any grace it is killed as it is: what is frozen computes nothing more.
        """
        ...

    def pause(self) -> None:
        """Freeze all of its processes; frozen already is fine."""
        ...

    def resume(self) -> None:
        """Let it go on; running already is fine."""
        ...

    def remove(self) -> None:
        """Stop it at once if need be and leave nothing of it on the engine; gone already is fine."""
        ...


class ContainerRuntime(Protocol):
    """One engine on this node."""

    @property
    def name(self) -> str:
        """As in the settings."""
        ...

    @property
    def notice(self) -> str:
        """What a user should know about it (`process` is weaker than a container); empty when nothing."""
        ...

    def vet(self) -> None:
        """Judge once, when a worker starts, whether this runtime may be used as it is.

        Raises:
            InvalidSetting: it keeps too little, or not what the operator asked for; with what to do.
        """
        ...

    def find_fault(self, network: str) -> str:
        """Return why containers cannot have a network now, or nothing."""
        ...

    def check(self) -> None:
        """Return when it can start containers now.

        Raises:
            RuntimeFailure: it cannot, with what to do.
        """
        ...

    def resolve(self, image: str, *, hold: Path | None = None) -> str:
        """Return the image pinned by digest, pulled if it was not there.

        Args:
            image: its name, with a tag or a digest.
            hold: a file to be made in an attempt's folder; until it is removed this node does not remove the image.

        Raises:
            ImageRefused: there is no such image.
            ImagePullFailed: it could not be fetched now.
            DiskFull: the node has no room for it.
            RuntimeFailure: the engine does not answer.
        """
        ...

    def start(self, plan: Plan) -> Container:
        """Start it.

        Raises:
            RuntimeFailure: the engine does not answer, refuses, or has lost the image. A command that the image lacks
                is no such failure: the container ends with 127 or 126.
        """
        ...

    def find(self, node_id: str) -> list[Container]:
        """Return the containers of this node that are still on the engine, running or not."""
        ...

    def tidy(self) -> str:
        """Remove what this node has fetched, is over its bound, and nobody needs; return what it keeps, in words.

        Raises:
            RuntimeFailure: the engine does not answer.
        """
        ...

    def close(self) -> None:
        """Close its connections; containers go on."""
        ...
