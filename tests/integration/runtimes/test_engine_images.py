"""Images from a registry of images: found, pulled once, pinned, refused, or to be tried again."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from services.engine import Engine
from services.image_registry import ImageRegistry
from services.images import BUSYBOX
from services.runtimes import StartContainer, run

from jobqueue.errors import ImagePullFailed, ImageRefused, RuntimeFailure
from workers.attempt.runtimes.docker import DockerRuntime
from workers.attempt.runtimes.engine import Engine as Connections
from workers.attempt.runtimes.images import Images


@pytest.fixture
def images(engine: Engine) -> Iterator[Images]:
    connections = Connections(engine.url)
    yield Images(connections, pause=lambda _: None)
    connections.close()


def test_an_image_is_pulled_and_pinned_by_its_digest(
    image_registry: ImageRegistry, runtime: DockerRuntime, start: StartContainer
) -> None:
    digest = image_registry.push(BUSYBOX, "pulled")
    name = f"{image_registry.address}/pulled:1"
    assert runtime.resolve(name) == digest
    how, reader = run(start("echo", "from a pulled image", image=runtime.resolve(name)))
    assert (how.code, reader.text()) == (0, "from a pulled image\n")


def test_an_image_can_be_named_by_its_digest(image_registry: ImageRegistry, images: Images) -> None:
    digest = image_registry.push(BUSYBOX, "by-digest")
    assert images.resolve(digest).pinned == digest


def test_an_image_that_is_there_needs_no_registry(engine: Engine, runtime: DockerRuntime) -> None:
    assert runtime.resolve(BUSYBOX) == engine.client.images.get(BUSYBOX).id


@pytest.mark.parametrize("name", ["nosuch:1", "nosuch@sha256:" + "0" * 64])
def test_an_image_that_is_nowhere_is_refused(image_registry: ImageRegistry, images: Images, name: str) -> None:
    with pytest.raises(ImageRefused, match="nosuch"):
        images.resolve(f"{image_registry.address}/{name}")


@pytest.mark.parametrize("name", ["UPPER:1", "a b", "a:b:c", ""])
def test_a_name_that_is_none_is_refused(images: Images, name: str) -> None:
    with pytest.raises(ImageRefused):
        images.resolve(name)


def test_a_registry_that_is_away_is_asked_again_and_then_given_up_for_now(images: Images) -> None:
    with pytest.raises(ImagePullFailed, match="could not be pulled"):
        images.resolve("127.0.0.1:1/image:1")


def test_a_pull_that_hangs_is_given_up_in_time(engine: Engine, image_registry: ImageRegistry) -> None:
    name = f"{image_registry.address}/slow:1"
    image_registry.push(BUSYBOX, "slow")
    connections = Connections(engine.url)
    images = Images(connections, pull_timeout=timedelta(seconds=0.5), pause=lambda _: None)
    image_registry.process.pause()
    try:
        with pytest.raises(ImagePullFailed, match="not done within"):
            images.resolve(name)
    finally:
        image_registry.process.resume()
    connections.close()


def test_an_image_that_went_after_it_was_found_is_no_fault_of_the_user(
    engine: Engine, image_registry: ImageRegistry, runtime: DockerRuntime, start: StartContainer
) -> None:
    pinned = runtime.resolve(image_registry.push(BUSYBOX, "pruned"))
    engine.client.images.remove(pinned, force=True)
    with pytest.raises(RuntimeFailure, match="no longer") as failure:
        start("true", image=pinned)
    assert not isinstance(failure.value, ImageRefused)
    assert runtime.resolve(pinned) == pinned
    assert run(start("true", image=pinned))[0].code == 0
