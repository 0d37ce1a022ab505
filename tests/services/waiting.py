"""Waiting for a condition, never for a time."""

import os
import random
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

# A server that is away is told of within two seconds. Others that are asked meanwhile may take longer, when a machine
# runs all the tests at once.
TOLD_WITHIN_SECONDS: Final = 6.0

_POLL_SECONDS = 0.02
# What is dear to ask is asked less often: the machine is to work for what is waited for.
_SHARE_OF_WAITING = 0.2
# Below the range that the kernel gives to outgoing connections, so that a server which was
# stopped finds its port free when it starts again.
_PORTS = range(12_000, 32_000)
# The tests' random order seeds every worker's `random` alike.
_random = random.SystemRandom()
_given: set[int] = set()


def wait_until(
    condition: Callable[[], T],
    *,
    what: str,
    within: timedelta = timedelta(seconds=60),
) -> T:
    """Return the first true value of `condition`, asked until `within` is over.

    Raises:
        TimeoutError: It never became true; the message names `what` and the last value.
    """
    until = time.monotonic() + within.total_seconds()
    asked_at = time.thread_time()
    while not (value := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {within.total_seconds():g} s (last: {value!r})")
        time.sleep(max(_POLL_SECONDS, (time.thread_time() - asked_at) / _SHARE_OF_WAITING))
        asked_at = time.thread_time()
    return value


def waited_seconds() -> float:
    """Return for how long this thread has waited, from any time on: for answers, and not for a core of the machine."""
    computed, wanted_a_core, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return time.monotonic() - (int(computed) + int(wanted_a_core)) / 1e9


def free_port() -> int:
    """Choose a loopback port that nobody listens on, and that no other test of this run is given.

    A server may take half a minute to its port: what is free now is not left to chance until then.
    """
    number, count = (os.environ.get(f"PYTEST_XDIST_{name}", "") for name in ("WORKER", "WORKER_COUNT"))
    ours = _PORTS[int(number.removeprefix("gw")) :: int(count)] if number and count else _PORTS
    while True:
        port = _random.choice(ours)
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port


def answers(port: int, request: bytes, expected: bytes) -> bool:
    """Tell whether what listens on the loopback port answers `request` with `expected` in it."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(request)
            return expected in connection.recv(1024)
    except OSError:
        return False
