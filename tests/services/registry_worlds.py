"""A registry whose time a test moves, whose server is wiped and restarted, and whose callers come and go."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
import redis

from jobqueue.registry import open_registry, redis_witness
from jobqueue.registry.base import Registry
from jobqueue.registry.memory import MemoryRegistry
from jobqueue.unprotected import VARIABLE
from services.redis import RedisServer, open_redis

SKEW: Final = "jobqueue:skew_ms"
CLOCK: Final = "jobqueue:clock"


class MemoryWorld:
    """The registry in memory: its clock cannot step, and it is restarted by no one."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)
        self._registry = MemoryRegistry(clock=lambda: datetime.now(UTC) + self.ahead)

    def caller(self, name: int) -> Registry:
        """Return what one process has of the registry."""
        return self._registry

    def replace_caller(self, name: int) -> None:
        """Have that process end, and another one take its place."""

    def pass_time(self, duration: timedelta) -> None:
        """Let time go by, for everybody."""
        self.ahead += duration

    def step_clock(self, step: timedelta) -> None:
        """Set the server's clock."""

    def wipe(self) -> None:
        """Lose everything."""
        self._registry.forget()

    def note(self) -> None:
        """Remember what `restart` is to come back with."""

    def restart(self, *, forgets: bool) -> bool:
        """Have another server go on, which may know only what was noted; returns whether it does."""
        return False

    @property
    def now_seconds(self) -> float:
        """The time that everybody but the server's clock agrees on."""
        return time.monotonic() + self.ahead.total_seconds()

    def close(self) -> None:
        """Leave nothing open."""


class RedisWorld:
    """A Redis of its own; time is moved by the key that only unprotected scripts look at."""

    def __init__(self, server: RedisServer) -> None:
        self.ahead = timedelta(0)
        self._url = server.url
        self._redis = redis.Redis.from_url(server.url)
        self._callers: dict[int, Registry] = {}
        self._noted: dict[bytes, bytes] = {}
        self._restarts = 0

    def caller(self, name: int) -> Registry:
        """Return what one process has of the registry."""
        if name not in self._callers:
            self._callers[name] = open_registry(self._url)
        return self._callers[name]

    def replace_caller(self, name: int) -> None:
        """Have that process end, and another one take its place."""
        if name in self._callers:
            self._callers.pop(name).close()

    def pass_time(self, duration: timedelta) -> None:
        """Let time go by, for everybody."""
        self.ahead += duration
        self.step_clock(duration)

    def step_clock(self, step: timedelta) -> None:
        """Set the server's clock."""
        self._redis.incrby(SKEW, step // timedelta(milliseconds=1))

    def wipe(self) -> None:
        """Lose everything."""
        skew = self._redis.get(SKEW) or b"0"
        self._redis.flushall()
        self._redis.set(SKEW, skew)

    def note(self) -> None:
        """Remember what `restart` is to come back with."""
        keys = [key for key in self._redis.scan_iter() if key != SKEW.encode()]
        self._noted = {key: self._redis.dump(key) or b"" for key in keys}

    def restart(self, *, forgets: bool) -> bool:
        """Have another server go on, which may know only what was noted; returns whether it does."""
        if forgets:
            self.wipe()
            for key, value in self._noted.items():
                self._redis.restore(key, 0, value)
        if self._redis.exists(CLOCK):
            self._restarts += 1
            self._redis.hset(CLOCK, "run_id", f"before-restart-{self._restarts}")
        return forgets

    @property
    def now_seconds(self) -> float:
        """The time that everybody but the server's clock agrees on."""
        return time.monotonic() + self.ahead.total_seconds()

    def close(self) -> None:
        """Leave nothing open."""
        for registry in self._callers.values():
            registry.close()
        self._redis.close()


@contextmanager
def open_world(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, off: Sequence[str] = ()
) -> Iterator[MemoryWorld | RedisWorld]:
    """Open a world of this kind, `memory` or `redis`, with some protections switched off."""
    if kind == "memory":
        yield MemoryWorld()
        return
    for name in ("BROKER", "REGISTRY", "STORAGE"):
        monkeypatch.setenv(f"JOBQUEUE_{name}_URL", "memory://")
    monkeypatch.setenv(VARIABLE, ",".join(["skew", *off]))
    with open_redis(folder) as server:
        world = RedisWorld(server)
        real = redis_witness._now_seconds
        monkeypatch.setattr(redis_witness, "_now_seconds", lambda: real() + world.ahead.total_seconds())
        yield world
        world.close()
