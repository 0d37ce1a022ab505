"""Containers on an engine: Docker's, or Podman's through the same interface."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from jobqueue.errors import InvalidSetting, RuntimeFailure
from workers.attempt.runtimes.base import Container, Plan
from workers.attempt.runtimes.docker_container import DockerContainer
from workers.attempt.runtimes.egress import Egress
from workers.attempt.runtimes.engine import Engine, Gone
from workers.attempt.runtimes.engine_streams import Attachment, ExitWatch
from workers.attempt.runtimes.gaps import EnginePolicy, describe_gaps, find_flaw, find_remapped_root
from workers.attempt.runtimes.hardening import make_create_body, make_name, make_node_filter, parse_labels, run_as
from workers.attempt.runtimes.image_cache import ImageCache
from workers.attempt.runtimes.images import Images
from workers.attempt.trees import own

_log = logging.getLogger(__name__)

_CHECK_SECONDS = 1


class DockerRuntime:
    """A `ContainerRuntime` on a container engine; its methods may be called from any thread.

    Args:
        url: the engine's address; by default what DOCKER_HOST and its companions say, as for `docker`.
        image_cache: what this node knows of the images that it has pulled; without it all are kept.
        policy: what its operator wants of the engine.
    """

    name = "docker"

    def __init__(
        self, url: str | None = None, *, image_cache: ImageCache | None = None, policy: EnginePolicy | None = None
    ) -> None:
        self._engine = Engine(url)
        self._images = Images(self._engine, cache=image_cache)
        self._policy = policy or EnginePolicy()
        probe = self._policy.probe_image
        self._egress = Egress(
            self._engine, resolve=lambda: self.resolve(probe), look=lambda: self._images.look(probe).pinned
        )
        self._lock = Lock()
        self._facts: Mapping[str, Any] | None = None

    @property
    def notice(self) -> str:
        """What this engine does not enforce; empty for a sound one, and while it does not answer."""
        with suppress(RuntimeFailure):
            return describe_gaps(self._read_facts(), address=self._engine.address)
        return ""

    def vet(self) -> None:
        """Judge the engine by what it says of itself; one that is away now is judged by `check` when it is back."""
        with suppress(RuntimeFailure):
            if flaw := self._find_flaw():
                raise InvalidSetting(flaw)

    def find_fault(self, network: str) -> str:
        """Have `egress` tried by a probe, now and then, whose image is pulled; the other ones are the engine's own."""
        return self._egress.find_fault() if network == "egress" else ""

    def check(self) -> None:
        """Ask the engine for a sign of life, for at most a second; one with a flaw that is refused counts as none."""
        with ExitStack() as undone:
            undone.callback(self._forget_facts)
            self.knock()
            if flaw := self._find_flaw():
                raise RuntimeFailure(flaw)
            undone.pop_all()

    def knock(self) -> None:
        """Ask the engine for a sign of life, for at most a second, whatever it keeps.

        Raises:
            RuntimeFailure: there is none.
        """
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
        if plan.network == "egress" and (fault := self._egress.confirm()):
            raise RuntimeFailure(f"the network {plan.network!r} is not what it should be: {fault}")
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
            self._give_away(plan.workspace)
            volumes = self._images.look(plan.image).volumes
            body = make_create_body(plan, volumes=volumes, devices=devices, oci_runtime=self._policy.oci_runtime)
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

    def _give_away(self, workspace: Path) -> None:
        """Where the engine maps users, what is user n in a container is another one on this machine."""
        if mapped := find_remapped_root(self._read_facts()):
            user, group = run_as()
            own(workspace, uid=mapped[0] + user, gid=mapped[1] + group)

    def _find_flaw(self) -> str:
        return find_flaw(self._read_facts(), address=self._engine.address, policy=self._policy)

    def _forget_facts(self) -> None:
        """Ask anew: what was away, or is to be mended, may come back as another one."""
        with self._lock:
            self._facts = None

    def _read_facts(self) -> Mapping[str, Any]:
        with self._lock:
            if self._facts is None:
                with self._engine.client("describe itself") as client:
                    self._facts = client.info()
            return self._facts
