"""An engine that dies takes no container, no exit code and no line of output with it."""

import gc
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from services.engine import Engine
from services.runtimes import AT_ONCE, LONG, NODE, Reader, StartContainer, run
from services.waiting import wait_until

from jobqueue.errors import RuntimeFailure
from workers.attempt.runtimes.base import Exit
from workers.attempt.runtimes.docker import DockerRuntime

COUNT = (
    "i=0; while [ $i -lt 150 ]; do i=$((i+1)); echo line $i; [ $((i%50)) = 0 ] && echo error $i >&2; sleep 0.02; done"
)
LINES = [f"line {number}" for number in range(1, 151)]
SHORT = timedelta(seconds=0.2)

# The client library forgets its socket when the engine dies between our knock and its own.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Find such a socket here, and not while the next test runs."""
    yield
    gc.collect()


def test_a_killed_engine_is_not_mistaken_for_an_end(engine: Engine, start: StartContainer) -> None:
    container = start("sleep", "1000")
    engine.process.kill()
    with pytest.raises(RuntimeFailure):
        container.wait(SHORT)
    with pytest.raises(RuntimeFailure):
        container.wait(AT_ONCE)
    engine.process.start()
    assert container.wait(SHORT) is None


def test_a_restart_between_two_waits_is_not_even_noticed(engine: Engine, start: StartContainer) -> None:
    container = start("sleep", "1000")
    assert container.wait(SHORT) is None
    engine.process.kill()
    engine.process.start()
    assert container.wait(SHORT) is None


def test_output_and_exit_code_survive_a_killed_engine(engine: Engine, start: StartContainer) -> None:
    container = start("sh", "-c", f"{COUNT}; exit 7")
    reader = Reader(container)
    wait_until(lambda: "line 20\n" in reader.text(), what="some output")
    engine.process.kill()
    time.sleep(0.5)
    engine.process.start()
    wait_until(lambda: "line 100\n" in reader.text(), what="output after the restart")
    assert container.wait(LONG) == Exit(code=7)
    assert reader.join().text().splitlines() == LINES
    assert reader.text("stderr").splitlines() == ["error 50", "error 100", "error 150"]


def test_an_end_during_the_absence_is_found_and_nothing_comes_twice(engine: Engine, start: StartContainer) -> None:
    container = start("sh", "-c", f"{COUNT}; exit 7")
    reader = Reader(container)
    wait_until(lambda: "line 20\n" in reader.text(), what="some output")
    engine.process.kill()
    time.sleep(5)
    engine.process.start()
    assert getattr(container.wait(LONG), "code", None) == 7
    # What a container prints while no engine reads it, and that ends before one does, Docker itself loses.
    lines = reader.join().text().splitlines()
    assert lines == LINES[: len(lines)]


def test_another_worker_finds_the_container_and_all_that_it_printed(
    engine: Engine, runtime: DockerRuntime, start: StartContainer
) -> None:
    first = start("sh", "-c", f"{COUNT}; exit 7")
    reader = Reader(first)
    wait_until(lambda: "line 20\n" in reader.text(), what="some output")
    later = DockerRuntime(engine.url)
    (found,) = later.find(NODE)
    assert found.labels == first.labels
    assert later.find("another-node") == []
    how, second = run(found)
    assert how.code == 7
    assert second.text().splitlines() == LINES
    assert reader.join().text() == second.text()
    found.remove()
    assert later.find(NODE) == []
    later.close()


def test_a_container_that_a_third_party_removed_is_a_failure(engine: Engine, start: StartContainer) -> None:
    container = start("sleep", "1000")
    engine.remove_containers()
    with pytest.raises(RuntimeFailure, match="No such container"):
        container.wait(LONG)
    container.stop(LONG)
    container.remove()


def test_a_container_that_was_never_started_is_no_success(engine: Engine, start: StartContainer) -> None:
    made = start("true")
    assert made.wait(LONG) == Exit(code=0)
    labels = engine.client.containers.list(all=True)[0].labels | {"jobqueue.token": "5", "jobqueue.node": "n2"}
    engine.client.containers.create("jobqueue-test/busybox:1", ["true"], labels=labels)
    later = DockerRuntime(engine.url)
    (found,) = later.find("n2")
    with pytest.raises(RuntimeFailure, match="never started"):
        found.wait(SHORT)
    found.remove()
    later.close()


def test_a_check_of_an_engine_that_is_away_or_frozen_fails_within_seconds(
    engine: Engine, runtime: DockerRuntime
) -> None:
    runtime.check()
    engine.process.pause()
    began = time.monotonic()
    with pytest.raises(RuntimeFailure, match="is the container engine running"):
        runtime.check()
    assert time.monotonic() - began < 10
    engine.process.resume()
    runtime.check()
