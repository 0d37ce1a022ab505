"""Images that a node has pulled: kept up to a bound, never taken from anybody, pulled once, none lost or half-used."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Thread

import docker
import pytest
from services.engine import Engine, open_engine
from services.image_registry import ImageRegistry, open_image_registry
from services.images import BUSYBOX
from services.waiting import wait_until

from jobqueue.errors import DiskFull
from workers.attempt.runtimes.engine import Engine as Connections
from workers.attempt.runtimes.image_cache import ImageCache
from workers.attempt.runtimes.images import Images

MIB = 2**20
LONG = timedelta(seconds=60)


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    """Room for two of the images below and no third one."""
    return ImageCache(folder=tmp_path / "images", size_bytes=9 * MIB)


@pytest.fixture
def open_images(engine: Engine, cache: ImageCache) -> Iterator[Callable[..., Images]]:
    """Open a worker's images; each call is another worker's."""
    opened: list[Connections] = []

    def open_images(**changes: int) -> Images:
        opened.append(Connections(engine.url))
        return Images(opened[-1], cache=replace(cache, **changes), pause=lambda _: None)

    yield open_images
    for connections in opened:
        connections.close()


@pytest.fixture
def push(engine: Engine, image_registry: ImageRegistry, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Push an image of some four MiB that nobody else has; returns its name."""
    pushed: list[str] = []

    def push(name: str) -> str:
        pushed.append(f"{image_registry.address}/{tmp_path.name[-20:].strip('_').lower()}-{name}:1")
        push_image(image_registry, pushed[-1], 4)
        return pushed[-1]

    yield push
    for name in pushed:
        with suppress(docker.errors.ImageNotFound):
            engine.client.images.remove(name, force=True)


def push_image(
    registry: ImageRegistry, name: str, mebibytes: int, *, made_of: Callable[[int], bytes] = os.urandom
) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        header = tarfile.TarInfo("content")
        header.size = mebibytes * MIB
        archive.addfile(header, io.BytesIO(made_of(header.size)))
    client = registry.engine.client
    answer = client.api.import_image_from_data(plain.getvalue(), repository="jobqueue-test/made", tag="1")
    assert '"error"' not in answer
    registry.push("jobqueue-test/made:1", name.removeprefix(f"{registry.address}/").removesuffix(":1"))
    client.images.remove("jobqueue-test/made:1")


def is_there(engine: Engine, name: str) -> bool:
    with suppress(docker.errors.ImageNotFound):
        return bool(engine.client.images.get(name))
    return False


def test_what_was_used_longest_ago_goes_when_the_bound_is_exceeded(
    engine: Engine, open_images: Callable[..., Images], push: Callable[[str], str]
) -> None:
    images, first, second, third = open_images(), push("a"), push("b"), push("c")
    images.resolve(first)
    images.resolve(second)
    images.resolve(first)
    images.resolve(third)
    assert [is_there(engine, name) for name in (first, second, third)] == [True, False, True]
    assert images.resolve(second).pinned
    assert not is_there(engine, first)


def test_the_last_uses_are_known_to_the_next_worker(
    engine: Engine, open_images: Callable[..., Images], push: Callable[[str], str]
) -> None:
    first, second, third = push("a"), push("b"), push("c")
    open_images().resolve(first)
    open_images().resolve(second)
    open_images().resolve(first)
    open_images().resolve(third)
    assert [is_there(engine, name) for name in (first, second, third)] == [True, False, True]


def test_what_somebody_else_brought_or_named_or_runs_is_never_removed(
    engine: Engine, open_images: Callable[..., Images], push: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    images = open_images(size_bytes=1)
    brought, named, run, nobodys = push("brought"), push("named"), push("run"), push("nobodys")
    engine.client.images.pull(brought)
    images.resolve(brought)
    images.resolve(named)
    engine.client.images.get(named).tag("jobqueue-test/kept", "1")
    images.resolve(run)
    container = engine.client.api.create_container(run, ["none"])
    images.resolve(nobodys)
    assert images.tidy().startswith("1 images")
    assert [is_there(engine, name) for name in (brought, named, run, nobodys)] == [True, True, True, False]
    assert is_there(engine, BUSYBOX)
    assert "image.not_removed" not in caplog.messages, "it was left to the engine to refuse it"
    engine.client.api.remove_container(container)
    images.tidy()
    assert [is_there(engine, name) for name in (brought, named, run)] == [True, True, False]
    engine.client.images.remove("jobqueue-test/kept:1")


def test_what_an_attempt_is_about_to_start_stays_whichever_worker_it_is_of(
    engine: Engine, open_images: Callable[..., Images], push: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "attempt").mkdir()
    held = push("held")
    open_images(size_bytes=1).resolve(held, tmp_path / "attempt" / "image")
    open_images(size_bytes=1).resolve(push("other"))
    open_images(size_bytes=1).tidy()
    assert is_there(engine, held)
    (tmp_path / "attempt" / "image").unlink()
    assert open_images(size_bytes=1).tidy().startswith("0 images")
    assert not is_there(engine, held)


def test_without_a_bound_all_are_kept(
    engine: Engine, open_images: Callable[..., Images], push: Callable[[str], str]
) -> None:
    images, names = open_images(size_bytes=0), [push(name) for name in "abc"]
    for name in names:
        images.resolve(name)
    assert images.tidy().startswith("3 images pulled here, 12")
    assert all(is_there(engine, name) for name in names)


def test_what_another_worker_has_removed_is_noticed_at_once(
    engine: Engine, open_images: Callable[..., Images], push: Callable[[str], str]
) -> None:
    name, one, other = push("a"), open_images(), open_images(size_bytes=1)
    one.resolve(name)
    other.tidy()
    assert not is_there(engine, name)
    one.resolve(name)
    assert is_there(engine, name)


def test_of_two_workers_that_need_an_image_one_pulls_it(
    open_images: Callable[..., Images],
    push: Callable[[str], str],
    image_registry: ImageRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name, found = push("a"), []
    image_registry.process.pause()
    try:
        workers = [Thread(target=lambda: found.append(open_images().resolve(name).pinned)) for _ in range(2)]
        with caplog.at_level("INFO"):
            for worker in workers:
                worker.start()
            wait_until(lambda: "image.pull" in caplog.messages, what="a pull")
    finally:
        image_registry.process.resume()
    with caplog.at_level("INFO"):
        for worker in workers:
            worker.join()
    assert len(set(found)) == 1
    assert len(found) == 2
    assert caplog.messages.count("image.pull") == 1


WORKER = """
import sys
from pathlib import Path
from workers.attempt.runtimes.engine import Engine
from workers.attempt.runtimes.image_cache import ImageCache
from workers.attempt.runtimes.images import Images
url, folder, name = sys.argv[1:]
print(Images(Engine(url), cache=ImageCache(folder=Path(folder), size_bytes=1)).resolve(name).pinned)
"""


def start_worker(engine: Engine, cache: ImageCache, name: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", WORKER, engine.url, str(cache.folder), name]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_a_worker_that_is_killed_in_a_pull_leaves_nothing_in_the_way(
    engine: Engine,
    cache: ImageCache,
    open_images: Callable[..., Images],
    push: Callable[[str], str],
    image_registry: ImageRegistry,
) -> None:
    name = push("a")
    image_registry.process.pause()
    try:
        with start_worker(engine, cache, name) as worker:
            wait_until(lambda: list((cache.folder / "pulls").glob("*")), what="a pull", within=LONG)
            worker.kill()
        assert not is_there(engine, name)
        assert open_images(size_bytes=1).tidy().startswith("0 images")
        assert not list((cache.folder / "pulls").iterdir())
    finally:
        image_registry.process.resume()
    assert open_images().resolve(name).pinned
    assert open_images(size_bytes=1).tidy().startswith("0 images")
    assert not is_there(engine, name)


def test_what_a_killed_worker_has_pulled_and_not_noted_is_claimed(
    engine: Engine, cache: ImageCache, open_images: Callable[..., Images], push: Callable[[str], str]
) -> None:
    name, images = push("a"), open_images()
    with cache.locked():
        pull = cache.begin_pull(name, images._list_names)
    assert pull
    engine.client.images.pull(name)
    pull.close()
    assert images.tidy().startswith("1 images")
    assert open_images(size_bytes=1).tidy().startswith("0 images")
    assert not is_there(engine, name)


def test_a_pull_does_not_begin_on_a_disk_below_its_floor(
    engine: Engine, open_images: Callable[..., Images], push: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    images, name = open_images(floor_bytes=2**60), push("a")
    with caplog.at_level("INFO"), pytest.raises(DiskFull, match=r"are free in .*/data, where images go"):
        images.resolve(name)
    assert "image.pull" not in caplog.messages
    assert not is_there(engine, name)


def test_an_image_that_is_there_is_found_on_a_full_disk(open_images: Callable[..., Images]) -> None:
    assert open_images(floor_bytes=2**60).resolve(BUSYBOX).pinned


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, which a test makes smaller."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def leave_free(disk: Path, mebibytes: int) -> None:
    used = shutil.disk_usage(disk).used
    subprocess.run(["mount", "-o", f"remount,size={used + mebibytes * MIB}", disk], check=True)


def wait_until_dropped(disk: Path) -> None:
    """Wait for the engine, which tells of an image that it gives up before it has removed what came of it."""
    wait_until(lambda: shutil.disk_usage(disk).free >= 24 * MIB, what="as much free as before", within=LONG)


def test_an_image_that_cannot_fit_is_given_up_and_is_the_nodes_fault(
    disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        open_engine(images=False, options=("--data-root", str(disk))) as engine,
        open_image_registry(engine) as registry,
    ):
        names = [f"{registry.address}/{name}:1" for name in ("old", "fits-packed", "fits", "large")]
        old, fits_packed, fits, large = names
        for name, mebibytes in ((old, 4), (fits, 8), (large, 60)):
            push_image(registry, name, mebibytes)
        push_image(registry, fits_packed, 60, made_of=bytes)  # zeros: nearly nothing, packed
        connections = Connections(engine.url)
        images = Images(
            connections, cache=ImageCache(folder=tmp_path / "images", size_bytes=2**30), pause=lambda _: None
        )
        images.resolve(old)
        leave_free(disk, 24)
        with caplog.at_level("INFO"), pytest.raises(DiskFull, match="of the image are still to come, packed, and"):
            images.resolve(large)
        assert caplog.messages.count("image.let_go") == 1, "what nobody needed has made room"
        assert not is_there(engine, old)
        wait_until_dropped(disk)
        with pytest.raises(DiskFull, match="no space left on device"):
            images.resolve(fits_packed)
        wait_until_dropped(disk)
        assert images.resolve(fits).pinned
        connections.close()
