"""An engine is asked anew what it keeps, once it was away or was refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from jobqueue.errors import RuntimeFailure
from workers.attempt.runtimes.docker import DockerRuntime

FACTS = {"SecurityOptions": ["name=seccomp,profile=builtin", "name=userns"], "LiveRestoreEnabled": True}
UNSOUND = {"SecurityOptions": ["name=seccomp,profile=unconfined"], "LiveRestoreEnabled": True}


class Answering:
    """An engine that says of itself what it is told to."""

    address = "unix:///run/docker.sock"

    def __init__(self) -> None:
        self.facts: dict[str, Any] = FACTS
        self.is_there = True

    @contextmanager
    def client(self, doing: str, *, timeout_seconds: int = 120) -> Iterator["Answering"]:
        del doing, timeout_seconds
        if not self.is_there:
            raise RuntimeFailure("away")
        yield self

    def ping(self) -> None: ...

    def info(self) -> dict[str, Any]:
        return self.facts


@pytest.fixture
def engine() -> Answering:
    return Answering()


@pytest.fixture
def runtime(engine: Answering, monkeypatch: pytest.MonkeyPatch) -> DockerRuntime:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    runtime = DockerRuntime("unix:///none")
    monkeypatch.setattr(runtime, "_engine", engine)
    runtime.vet()
    return runtime


def test_one_that_comes_back_without_its_filter_is_refused(engine: Answering, runtime: DockerRuntime) -> None:
    runtime.check()
    engine.is_there = False
    with pytest.raises(RuntimeFailure, match="away"):
        runtime.check()
    engine.is_there, engine.facts = True, UNSOUND
    with pytest.raises(RuntimeFailure, match="no-seccomp"):
        runtime.check()


def test_one_that_was_mended_is_served_again(engine: Answering, runtime: DockerRuntime) -> None:
    engine.is_there = False
    with pytest.raises(RuntimeFailure):
        runtime.check()
    engine.is_there, engine.facts = True, UNSOUND
    with pytest.raises(RuntimeFailure, match="no-seccomp"):
        runtime.check()
    engine.facts = FACTS
    runtime.check()
