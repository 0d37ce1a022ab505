"""The broker of a run, of any of three kinds: how it is broken, and what lies in its queues."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis
from services.moto import MotoServer, SqsServer, open_moto
from services.process import Process
from services.rabbitmq import open_rabbitmq
from services.redis import open_redis

BROKERS: Final = ("rabbitmq", "redis", "sqs")
# Where a Redis keeps what was delivered and is not acknowledged, what was put off too.
UNACKED: Final = "jobqueue:unacked"
_MAIL: Final = "jobqueue:mail:"


@dataclass(frozen=True, kw_only=True)
class BrokerServer:
    """A running broker.

    Attributes:
        url_through: returns its address by a port of one's own.
        depths: returns each queue's name and what lies in it, unacknowledged messages too.
        names: returns whatever is in it under a name of its own.
        wipe: ends it as badly as can be, and starts it with nothing in it.
    """

    kind: str
    process: Process
    port: int
    url_through: Callable[[int], str]
    depths: Callable[[], Mapping[str, int]]
    names: Callable[[], AbstractSet[str]]
    wipe: Callable[[], None]

    @property
    def url(self) -> str:
        """Its own address."""
        return self.url_through(self.port)


@contextmanager
def open_broker_server(kind: str, folder: Path) -> Iterator[BrokerServer]:
    """Run a broker on a folder."""
    with {"rabbitmq": _rabbitmq, "redis": _redis, "sqs": _sqs}[kind](folder) as server:
        yield server


@contextmanager
def _rabbitmq(folder: Path) -> Iterator[BrokerServer]:
    with open_rabbitmq(folder) as server:

        def wipe() -> None:
            server.process.kill()
            shutil.rmtree(folder / "mnesia", ignore_errors=True)
            server.process.start()

        yield BrokerServer(
            kind="rabbitmq",
            process=server.process,
            port=server.port,
            url_through=lambda port: f"amqp://guest:guest@127.0.0.1:{port}//",
            depths=server.queues,
            names=lambda: set(server.queues()),
            wipe=wipe,
        )


@contextmanager
def _redis(folder: Path) -> Iterator[BrokerServer]:
    with open_redis(folder) as server:

        def wipe() -> None:
            with closing(redis.Redis(port=server.port)) as client:
                client.flushall()

        def depths() -> dict[str, int]:
            with closing(redis.Redis(port=server.port, decode_responses=True)) as client:
                kinds = {name: client.type(name) for name in client.scan_iter("*")}
                found = Counter({str(name): client.llen(name) for name, kind in kinds.items() if kind == "list"})
                # Mail that somebody has received, or would have if the answer had come.
                found.update({str(name).removeprefix(_MAIL): client.hlen(name) for name in kinds if _MAIL in name})
                return {**found, UNACKED: client.hlen(UNACKED)}

        def names() -> set[str]:
            with closing(redis.Redis(port=server.port, decode_responses=True)) as client:
                return {str(name) for name in client.scan_iter("*")}

        yield BrokerServer(
            kind="redis",
            process=server.process,
            port=server.port,
            url_through=lambda port: f"redis://127.0.0.1:{port}/0",
            depths=depths,
            names=names,
            wipe=wipe,
        )


@contextmanager
def _sqs(folder: Path) -> Iterator[BrokerServer]:
    with open_moto(folder) as server:

        def through(port: int) -> str:
            return SqsServer(moto=MotoServer(process=server.process, port=port)).url

        yield BrokerServer(
            kind="sqs",
            process=server.process,
            port=server.port,
            url_through=through,
            depths=lambda: _sqs_depths(server),
            names=lambda: set(_sqs_depths(server)),
            wipe=server.process.restart,
        )


def _sqs_depths(server: MotoServer) -> dict[str, int]:
    names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    with closing(server.client("sqs")) as client:
        found = {}
        for url in client.list_queues().get("QueueUrls", ()):
            answer = client.get_queue_attributes(QueueUrl=url, AttributeNames=list(names))
            found[url.rpartition("/")[2]] = sum(int(answer["Attributes"][name]) for name in names)
        return found
