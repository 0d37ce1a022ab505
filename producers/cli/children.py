"""Child processes that end with the process that started them, however that one ends."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_IS_LINUX = sys.platform == "linux"
_KILL_AFTER = timedelta(seconds=5)


def start_child(
    words: Sequence[str], *, log: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `words` in a session of its own, so that Ctrl-C reaches only the parent, which stops its children in order.

    Args:
        words: the program and its arguments.
        log: where its output is added; None: the parent's stderr.
        env: its whole environment; None: the parent's.
    """
    with log.open("ab") if log else os.fdopen(os.dup(2), "wb") as output:
        return subprocess.Popen(  # noqa: S603 - words come from this package, never from a spec
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            start_new_session=True,
            preexec_fn=end_with_parent(),  # noqa: PLW1509 - no other thread has been started by then
        )


def end_with_parent() -> Callable[[], None] | None:
    """Return what a new process calls to get SIGTERM when its parent dies; None where the kernel cannot do that."""
    if not _IS_LINUX:
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def leash() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel was told
            os.kill(os.getpid(), signal.SIGTERM)

    return leash


def end_with_terminal() -> None:
    """Have this process get SIGTERM when its own parent dies, unless it was started with nohup."""
    if _IS_LINUX and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def stop_child(child: subprocess.Popen[bytes], *, grace: timedelta) -> int:
    """Ask a child to end, insist after `grace`, and return its exit code; one that has ended already is fine.

    A KeyboardInterrupt while waiting asks it once more: a second SIGTERM makes a node hand back at once.
    """
    if child.poll() is None:
        child.terminate()
    for patience in (grace, _KILL_AFTER):
        try:
            return child.wait(patience.total_seconds())
        except KeyboardInterrupt:
            child.terminate()
        except subprocess.TimeoutExpired:
            break
    _kill_session(child)
    return child.wait()


def _kill_session(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's own process group."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
