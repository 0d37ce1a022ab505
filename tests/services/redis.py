"""A Redis that keeps its data in a folder over restarts and crashes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.process import Process, find_program
from services.waiting import answers, free_port


@dataclass(frozen=True, kw_only=True)
class RedisServer:
    """A running redis-server.

    Attributes:
        process: To stop, kill, pause or restart it.
        port: Where it listens, on 127.0.0.1.
    """

    process: Process
    port: int

    @property
    def url(self) -> str:
        """The address of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process of it."""
        return (self.process,)


@contextmanager
def open_redis(folder: Path, *, options: Sequence[str] = ()) -> Iterator[RedisServer]:
    """Run a redis-server on `folder`; `options` are arguments of its own, such as `--maxmemory`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        find_program("redis-server", package="redis-server"),
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
        *("--appendonly", "yes", "--save", "", "--loglevel", "warning"),
        *("--enable-debug-command", "local"),
        *options,
    ]
    process = Process(
        name="redis",
        command=command,
        log=folder / "redis.log",
        ready=lambda: answers(port, b"PING\r\n", b"+PONG"),
    )
    with process:
        yield RedisServer(process=process, port=port)
