"""Who waits for a try of the network `egress`, and who does not."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from services.node import FakeNode

from jobqueue.config import Settings
from jobqueue.errors import ImagePullFailed
from workers.attempt.runtimes.egress import Egress
from workers.attempt.runtimes.engine import Engine, Gone
from workers.attempt.runtimes.process import ProcessRuntime
from workers.bootstrap import Node


class SlowPull:
    """A probe's image that is not there, and whose pull takes as long as a test wants."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def resolve(self) -> str:
        self.begun.set()
        assert self.may_end.wait(60)
        raise ImagePullFailed("nobody answers")

    def look(self) -> str:
        raise Gone("no such image")


@pytest.fixture
def pull() -> Iterator[SlowPull]:
    pull = SlowPull()
    yield pull
    pull.may_end.set()


def test_a_start_does_not_wait_for_the_image_of_the_probe(pull: SlowPull) -> None:
    egress = Egress(Engine("unix:///none"), resolve=pull.resolve, look=pull.look)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(egress.find_fault()))
    thread.start()
    assert pull.begun.wait(60)
    assert egress.confirm() == "it could not be tried: no such image"
    assert thread.is_alive()
    pull.may_end.set()
    thread.join()
    assert found == ["it could not be tried: nobody answers"]


def test_a_worker_starts_while_a_network_is_tried(
    pull: SlowPull, node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        broker_url="memory://",
        registry_url="memory://",
        state_dir=tmp_path,
        cache_dir=tmp_path / "cache",
        networks=("egress",),
        runtime="process",
    )
    egress = Egress(Engine("unix:///none"), resolve=pull.resolve, look=pull.look)
    monkeypatch.setattr(ProcessRuntime, "find_fault", lambda *_: egress.find_fault())
    worker = Node(settings, worker_name="cpu@test", queues=())
    worker.site = replace(worker.site, keys=node.site.keys)
    try:
        worker.start()
        assert pull.begun.wait(60)
        assert not pull.may_end.is_set()
    finally:
        worker.close()
