"""Every container runtime lets another process of the node find a container, freeze it, follow it and remove it."""

from pathlib import Path

from services.runtimes import AT_ONCE, NODE, StartContainer, beat, is_still, real, run
from services.waiting import wait_until

from workers.attempt.runtimes.base import ContainerRuntime


def test_only_what_is_there_under_the_nodes_name_is_found(runtime: ContainerRuntime, start: StartContainer) -> None:
    container = start("sleep", "1000")
    assert [found.labels for found in runtime.find(NODE)] == [container.labels]
    assert runtime.find("another-node") == []
    container.remove()
    assert runtime.find(NODE) == []


@real
def test_what_one_froze_another_one_thaws(runtime: ContainerRuntime, start: StartContainer, workspace: Path) -> None:
    container = start("sh", "-c", beat())
    wait_until((workspace / "beat").exists, what="a beat")
    (found,) = runtime.find(NODE)
    found.pause()
    assert is_still(workspace / "beat")
    container.resume()
    size = (workspace / "beat").stat().st_size
    wait_until(lambda: (workspace / "beat").stat().st_size > size, what="a beat after the thaw")


@real
def test_what_was_found_is_read_from_the_first_byte_and_waited_for(
    runtime: ContainerRuntime, start: StartContainer
) -> None:
    command = ("sh", "-c", "i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo $i; sleep 0.01; done; exit 7")
    how, reader = run(start(*command))
    (found,) = runtime.find(NODE)
    again, second = run(found)
    assert (how, again.code) == (again, 7)
    assert second.text() == reader.text() == "".join(f"{number}\n" for number in range(1, 101))
    found.remove()


@real
def test_what_another_one_removed_is_gone_for_whoever_started_it(
    runtime: ContainerRuntime, start: StartContainer
) -> None:
    container = start("sleep", "1000")
    (found,) = runtime.find(NODE)
    found.remove()
    container.stop(AT_ONCE)
    container.remove()
    assert runtime.find(NODE) == []
