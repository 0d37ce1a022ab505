"""Containers on an engine: Docker's, or Podman's through the same interface."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from jobqueue.errors import RuntimeFailure
from workers.attempt.runtimes.base import Container, Plan
from workers.attempt.runtimes.docker_container import DockerContainer
from workers.attempt.runtimes.engine import Engine, Gone
from workers.attempt.runtimes.engine_streams import Attachment, ExitWatch
from workers.attempt.runtimes.hardening import make_create_body, make_name, make_node_filter, parse_labels
from workers.attempt.runtimes.image_cache import ImageCache
from workers.attempt.runtimes.images import Images

_log = logging.getLogger(__name__)

_CHECK_SECONDS = 1
# What an engine may lack without a word: rootless ones on an older kernel ignore limits silently.
_LIMITS = {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "cpus"}


class DockerRuntime:
    """A `ContainerRuntime` on a container engine; its methods may be called from any thread.

    Args:
        url: the engine's address; by default what DOCKER_HOST and its companions say, as for `docker`.
        image_cache: what this node knows of the images that it has pulled; without it all are kept.
    """

    name = "docker"

    def __init__(self, url: str | None = None, *, image_cache: ImageCache | None = None) -> None:
        self._engine = Engine(url)
        self._images = Images(self._engine, cache=image_cache)
        self._lock = Lock()
        self._facts: Mapping[str, Any] | None = None

    @property
    def notice(self) -> str:
        """What this engine does not enforce; empty for a sound one, and while it does not answer."""
        with suppress(RuntimeFailure):
            return describe_gaps(self._read_facts())
        return ""

    def check(self) -> None:
        """Ask the engine for a sign of life, for at most a second."""
        with self._engine.client("answer at all", timeout_seconds=_CHECK_SECONDS) as client:
            client.ping()

    def resolve(self, image: str, *, hold: Path | None = None) -> str:
        """Return `repository@digest` where the engine knows one, else the image's id."""
        return self._images.resolve(image, hold).pinned

    def tidy(self) -> str:
        """Remove the images over the bound that this node has pulled and that nobody uses."""
        return self._images.tidy()

    def start(self, plan: Plan) -> Container:
        """Create, attach, start: in this order nothing of the output is missed.

        A command that the image lacks is no failure of the runtime: the container ends with 127 and says so on stderr.
        """
        identity = self._create(plan)
        with ExitStack() as undone:
            undone.callback(self._discard, identity, plan)
            watch = undone.enter_context(closing(ExitWatch(self._engine, identity, "next-exit")))
            attached = undone.enter_context(closing(Attachment(self._engine, identity)))
            with self._engine.client("start a container") as client:
                client.start(identity)
            undone.pop_all()
        return DockerContainer(self._engine, identity=identity, labels=plan.labels, attached=attached, watch=watch)

    def find(self, node_id: str) -> list[Container]:
        """Return this node's containers, told by their labels; one with labels that cannot be read is left alone."""
        with self._engine.client("list containers") as client:
            listed = client.containers(all=True, filters=make_node_filter(node_id))
        found: list[Container] = []
        for entry in listed:
            labels = parse_labels(entry["Labels"])
            if labels is None:
                _log.warning("container.labels_unreadable", extra={"container": entry["Id"]})
            else:
                found.append(DockerContainer(self._engine, identity=entry["Id"], labels=labels))
        return found

    def close(self) -> None:
        """Close the idle connections; containers and their output go on."""
        self._engine.close()

    def _create(self, plan: Plan) -> str:
        devices = self._choose_devices(plan.gpus)
        try:
            body = make_create_body(plan, volumes=self._images.look(plan.image).volumes, devices=devices)
            with self._engine.client("create a container") as client:
                name = make_name(plan.labels)
                created = client.create_container_from_config(body, name)  # type: ignore[no-untyped-call]
        except Gone as failure:
            self._images.forget()
            raise RuntimeFailure(
                f"the image is no longer on the engine: {plan.image}", hint="resolve it again"
            ) from failure
        for warning in created.get("Warnings") or ():
            _log.warning("container.limit_ignored", extra={"warning": warning})
        return str(created["Id"])

    def _discard(self, identity: str, plan: Plan) -> None:
        # What cannot be removed now is found by its labels later.
        with suppress(RuntimeFailure):
            DockerContainer(self._engine, identity=identity, labels=plan.labels).remove()

    def _choose_devices(self, gpus: tuple[str, ...]) -> str:
        if not gpus:
            return "nvidia"
        listed = {str(device.get("ID")) for device in self._read_facts().get("DiscoveredDevices") or ()}
        return "cdi" if all(f"nvidia.com/gpu={gpu}" in listed for gpu in gpus) else "nvidia"

    def _read_facts(self) -> Mapping[str, Any]:
        with self._lock:
            if self._facts is None:
                with self._engine.client("describe itself") as client:
                    self._facts = client.info()
            return self._facts


def describe_gaps(facts: Mapping[str, Any]) -> str:
    """Return what an engine that describes itself by `facts` does not enforce, as a sentence; empty when nothing."""
    gaps = [f"no limit of {what}" for key, what in _LIMITS.items() if facts.get(key) is False]
    if not any("seccomp" in option and "unconfined" not in option for option in facts.get("SecurityOptions") or ()):
        gaps.append("no system call filter (seccomp)")
    return f"this engine enforces {', '.join(gaps)}" if gaps else ""
