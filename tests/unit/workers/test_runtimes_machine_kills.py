"""A process that was killed where the machine had no memory left: the kernel's count tells it from its own end."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.attempt.runtimes import process_tree, shim

KILLED = 137


@pytest.fixture
def vmstat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's counters, which a test writes."""
    monkeypatch.setattr(process_tree, "_PROCESSES", tmp_path)
    return tmp_path / "vmstat"


@pytest.fixture
def supervisor(vmstat: Path) -> Iterator[shim._Supervisor]:
    vmstat.write_text("oom_kill 7\n")
    listener, other = socket.socketpair()
    with listener, other:
        yield shim._Supervisor(listener, {}, pipe=listener.fileno())


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("pgfault 12\noom_kill 3\nunevictable_pgs_culled 5\n", 3),
        ("oom_kill_reaped 9\npgfault 1\n", 0),
        ("", 0),
    ],
)
def test_the_kernels_count_is_read(vmstat: Path, text: str, count: int) -> None:
    vmstat.write_text(text)
    assert process_tree.count_machine_kills() == count


def test_a_kernel_that_counts_nothing_has_killed_nothing(vmstat: Path) -> None:
    assert not vmstat.exists()
    assert process_tree.count_machine_kills() == 0


def test_this_kernel_counts() -> None:
    assert "oom_kill " in Path("/proc/vmstat").read_text()


@pytest.mark.parametrize(
    ("code", "kills", "is_from_outside"), [(KILLED, 8, True), (KILLED, 7, False), (1, 8, False), (0, 8, False)]
)
def test_only_a_kill_while_the_machine_kills_is_taken_for_one_from_outside(
    supervisor: shim._Supervisor, vmstat: Path, code: int, kills: int, *, is_from_outside: bool
) -> None:
    vmstat.write_text(f"oom_kill {kills}\n")
    supervisor._code = code
    assert supervisor._judge() == {"code": code, "is_from_outside": is_from_outside}
