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


@pytest.mark.parametrize(
    ("lines", "file", "text"),
    [
        ("4:memory:/a/b\n0::/\n", "memory/a/b/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"),
        ("4:cpu,memory:/a\n", "cpu,memory/a/memory.oom_control", "oom_kill 5\n"),
        ("0::/a/b\n", "a/b/memory.events", "low 0\noom 6\noom_kill 5\noom_group_kill 0\n"),
        ("0::/\n", "memory.events", "oom_kill 5\n"),
    ],
)
def test_what_dies_in_other_containers_of_the_machine_is_not_counted(
    vmstat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, file: str, text: str
) -> None:
    monkeypatch.setattr(process_tree, "_GROUPS", tmp_path / "groups")
    vmstat.write_text("oom_kill 7\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(lines)
    assert process_tree.count_machine_kills() == 7, "the group tells nothing"
    events = tmp_path / "groups" / file
    events.parent.mkdir(parents=True)
    events.write_text(text)
    assert process_tree.count_machine_kills() == 5


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
