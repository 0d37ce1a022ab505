"""What a process container has in memory is what is its own, from its first moment on."""

import subprocess

from workers.attempt.runtimes import process_tree

MOST_BYTES = 1 << 20
STARTS = 150
CONFINED = (
    *("bwrap", "--die-with-parent", "--unshare-pid", "--proc", "/proc", "--dev", "/dev"),
    *("--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
    *("--tmpfs", "/dev/shm", "--tmpfs", "/tmp", "/usr/bin/true"),
)


def test_nothing_of_the_machine_is_weighed_while_a_process_is_being_confined() -> None:
    weights = set[int]()
    for _ in range(STARTS):
        with subprocess.Popen(CONFINED) as process:
            while process.poll() is None:
                pid = min(process_tree.find_children(process.pid), default=process.pid)
                weights.add(process_tree.weigh_files(pid))
        assert process.returncode == 0
    assert max(weights) <= MOST_BYTES
