"""A registry of images inside an engine's own network: pushes, pulls, digests, missing images."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.engine import Engine
from services.process import Process, find_program
from services.waiting import free_port

_SETTINGS = """
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}
http: {{addr: "{address}"}}
"""


@dataclass(frozen=True, kw_only=True)
class ImageRegistry:
    """A running docker-registry.

    Attributes:
        process: To stop, kill, pause or restart it.
        engine: The engine that alone reaches it.
        address: What stands before the slash in the name of its images.
    """

    process: Process
    engine: Engine
    address: str

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process of it."""
        return (self.process,)

    def push(self, image: str, name: str) -> str:
        """Push a local image as `name:1`, drop it here, and return its reference by digest."""
        repository = f"{self.address}/{name}"
        client = self.engine.client
        client.images.get(image).tag(repository, "1")
        answer = client.images.push(repository, tag="1")
        if '"error"' in answer:
            raise RuntimeError(f"{repository}: {answer}")
        (digest,) = (
            each
            for each in client.images.get(f"{repository}:1").attrs["RepoDigests"]
            if each.startswith(f"{repository}@")
        )
        client.images.remove(f"{repository}:1")
        return str(digest)


@contextmanager
def open_image_registry(engine: Engine) -> Iterator[ImageRegistry]:
    """Run a registry whose images end with the engine's folder."""
    folder = engine.folder / "registry"
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    settings = folder / "config.yml"
    settings.write_text(_SETTINGS.format(folder=folder, address=address))
    wget = [*engine.enter, find_program("busybox", package="busybox-static"), "wget", "-q"]
    probe = [*wget, "-O", "/dev/null", f"http://{address}/v2/"]
    process = Process(
        name="docker-registry",
        command=[
            *engine.enter,
            find_program("docker-registry", package="docker-registry"),
            *("serve", str(settings)),
        ],
        log=folder / "registry.log",
        ready=lambda: subprocess.run(probe, capture_output=True, check=False).returncode == 0,
    )
    with process:
        yield ImageRegistry(process=process, engine=engine, address=address)
