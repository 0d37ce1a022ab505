"""Images that workers of one machine share: nobody is kept waiting for longer than it takes, and nothing is lost."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest
from services.waiting import wait_until

from jobqueue.errors import ImagePullFailed, ImageRefused, RuntimeFailure
from jobqueue.resources import Resources
from workers import file_locks
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.docker import DockerRuntime
from workers.attempt.runtimes.engine import Engine, Gone
from workers.attempt.runtimes.image_cache import ImageCache
from workers.attempt.runtimes.images import Images

NAME = "repo:1"
SEEN = {"Id": "sha256:id", "RepoTags": [NAME], "RepoDigests": ["repo@sha256:2"], "Size": 10}


class FakeEngine:
    """An engine that has one image, or can pull it, and counts what it is asked.

    Attributes:
        images: those that it has.
        asked: how often it was asked to do what.
        failures: what it says instead of doing something, once.
        may_pull: set once a pull may go on.
        is_left: whether who asked for the last pull has hung up before its end.
    """

    address = "tcp://elsewhere:2376"

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.failures: dict[str, RuntimeFailure] = {}
        self.may_pull = Event()
        self.may_pull.set()
        self.is_left = False

    @contextmanager
    def client(self, doing: str, **_: int) -> Iterator[SimpleNamespace]:
        self.asked.append(doing.partition(" ")[0])
        if failure := self.failures.pop(self.asked[-1], None):
            raise failure
        yield SimpleNamespace(
            inspect_image=self._inspect,
            images=lambda: list(self.images),
            containers=lambda **_: [],
            info=dict,
            pull=self._pull,
        )

    def _inspect(self, _: str) -> dict[str, Any]:
        if not self.images:
            raise Gone("no such image")
        return self.images[0]

    def _pull(self, _name: str, **_: Any) -> Iterator[dict[str, Any]]:
        try:
            yield {"status": "Pulling"}
            self.may_pull.wait()
            yield {"status": "Pulling"}
            self.images.append(SEEN)
        except GeneratorExit:
            self.is_left = True


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(folder=tmp_path / "images", size_bytes=100)


def open_images(engine: FakeEngine, cache: ImageCache, **changes: Any) -> Images:
    return Images(cast("Engine", engine), cache=cache, pause=lambda _: None, **changes)


def list_nothing() -> frozenset[str]:
    return frozenset()


def test_a_disk_that_does_not_take_a_pull_leaves_nobody_waiting(
    cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    with cache.locked():
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", refuse)
            with pytest.raises(OSError, match="no space left"):
                cache.begin_pull(NAME, list_nothing)
        assert not cache.is_pulled(NAME)
        pull = cache.begin_pull(NAME, list_nothing)
    assert pull
    assert cache.is_pulled(NAME)
    pull.close()


def test_an_engine_that_does_not_answer_at_the_start_of_a_pull_leaves_nobody_waiting(
    engine: FakeEngine, cache: ImageCache
) -> None:
    images = open_images(engine, cache)
    engine.failures["list"] = RuntimeFailure("it does not answer")
    with pytest.raises(RuntimeFailure, match="does not answer"):
        images.resolve(NAME)
    assert not cache.is_pulled(NAME)
    assert images.resolve(NAME).is_pulled


def test_who_waits_for_anothers_pull_asks_the_engine_nothing_and_has_no_lock(
    engine: FakeEngine, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    is_pulled = ImageCache.is_pulled

    def look(cache: ImageCache, name: str) -> bool:
        looks.append(name)
        return is_pulled(cache, name)

    monkeypatch.setattr(ImageCache, "is_pulled", look)
    with cache.locked():
        pull = cache.begin_pull(NAME, list_nothing)
    assert pull
    found: list[str] = []
    waiter = Thread(target=lambda: found.append(open_images(engine, cache).resolve(NAME).pinned))
    waiter.start()
    wait_until(lambda: len(looks) >= 3, what="somebody who waits")
    assert engine.asked == ["look"]
    with cache.locked():
        engine.images.append(SEEN)
    pull.close()
    waiter.join()
    assert found == ["repo@sha256:2"]
    assert "list" not in engine.asked


def test_a_stopped_process_with_the_lock_is_told_and_not_waited_for_without_end(
    engine: FakeEngine, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(engine, cache)
    monkeypatch.setattr(file_locks, "LOCK_WITHIN", timedelta(seconds=0.1))
    with cache.locked(), pytest.raises(RuntimeFailure, match=r"images\.lock for 0\.1 seconds"):
        images.resolve(NAME)
    assert images.resolve(NAME).is_pulled


def test_a_start_waits_for_nobody(
    engine: FakeEngine, cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_locks, "LOCK_WITHIN", timedelta(seconds=0.1))
    runtime = DockerRuntime("tcp://elsewhere:2376")
    runtime._images, runtime._engine = open_images(engine, cache), cast("Engine", engine)
    engine.images.append(SEEN)
    engine.failures["create"] = RuntimeFailure("it was asked to create a container")
    with cache.locked(), pytest.raises(RuntimeFailure, match="was asked to create"):
        runtime.start(make_plan(tmp_path))
    engine.images.clear()
    with pytest.raises(RuntimeFailure, match="no longer on the engine"):
        runtime.start(make_plan(tmp_path))
    assert "pull" not in engine.asked, "on the attempt's own thread"


def make_plan(workspace: Path) -> Plan:
    return Plan(
        labels=Labels(experiment_id="exp-1", attempt=1, token=1, node_id="node"),
        image="repo@sha256:2",
        command=("true",),
        env={},
        workspace=workspace,
        inputs={},
        resources=Resources(cpus=1, memory_bytes=2**20, disk_bytes=2**20, shm_bytes=0),
    )


def test_what_was_pulled_and_could_not_be_noted_is_claimed_by_the_next_look(
    engine: FakeEngine, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    images = open_images(engine, cache)
    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "note", refuse)
        with pytest.raises(OSError, match="no space left"):
            images.resolve(NAME)
    assert engine.images == [SEEN]
    assert images.tidy().startswith("1 images")
    assert images.tidy().startswith("1 images")


def test_what_arrives_after_its_pull_was_given_up_is_claimed_by_the_next_look(
    engine: FakeEngine, cache: ImageCache
) -> None:
    images = open_images(engine, cache, pull_timeout=timedelta(seconds=0.1))
    engine.may_pull.clear()
    with pytest.raises(ImagePullFailed, match="not done within"):
        images.resolve(NAME)
    engine.images.append(SEEN)
    assert images.tidy().startswith("1 images")
    engine.may_pull.set()
    wait_until(lambda: engine.is_left, what="the end of a pull that nobody waits for")


def test_an_image_that_is_refused_leaves_nothing_to_look_at(engine: FakeEngine, cache: ImageCache) -> None:
    engine.failures["pull"] = RuntimeFailure("manifest unknown")
    with pytest.raises(ImageRefused):
        open_images(engine, cache).resolve(NAME)
    assert not list((cache.folder / "pulls").iterdir())
