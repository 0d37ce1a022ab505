"""Every container runtime passes the output on: whole, in order, in small pieces, at the reader's pace."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from services.runtimes import LONG, TALK, StartContainer, real, run
from services.waiting import wait_until


def test_stdout_and_stderr_come_apart_and_each_in_order(start: StartContainer) -> None:
    how, reader = run(start(*TALK))
    assert how.code == 0
    assert reader.text("stdout") == "one\nthree\n"
    assert reader.text("stderr") == "two\nfour\n"


def test_a_sink_that_fails_loses_nothing(start: StartContainer) -> None:
    container = start(*TALK)
    seen: list[bytes] = []

    def fail_once(_: str, piece: bytes) -> None:
        if not seen:
            seen.append(b"")
            raise ZeroDivisionError
        seen.append(piece)

    with pytest.raises(ZeroDivisionError):
        container.follow(fail_once)
    container.follow(fail_once)
    assert sorted(b"".join(seen).split()) == [b"four", b"one", b"three", b"two"]


@real
def test_a_line_of_50_mb_comes_whole_in_small_pieces(start: StartContainer) -> None:
    how, reader = run(start("sh", "-c", "head -c 50000000 /dev/zero | tr '\\0' x"))
    assert how.code == 0
    assert len(reader.printed["stdout"]) == 50_000_000
    assert set(reader.printed["stdout"]) == {ord("x")}
    assert reader.largest <= 64 * 1024


@real
def test_a_slow_reader_slows_the_container_down(start: StartContainer, workspace: Path) -> None:
    command = "i=0; while [ $i -lt 200 ]; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > /workspace/count; done"
    container = start("sh", "-c", command)
    gate = threading.Event()
    total = [0]

    def count(_: str, piece: bytes) -> None:
        gate.wait(LONG.total_seconds())
        total[0] += len(piece)

    thread = threading.Thread(target=container.follow, args=(count,))
    thread.start()
    wait_until((workspace / "count").exists, what="some output")
    assert container.wait(timedelta(seconds=1.5)) is None, "nobody read, and it printed all the same"
    assert int((workspace / "count").read_text() or 0) < 199
    gate.set()
    thread.join(LONG.total_seconds())
    assert total[0] == 200 * 65536
