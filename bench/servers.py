"""The servers that a run needs, each started when it is first asked for, all stopped at its end."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from services.engine import Engine, open_engine
from services.moto import SqsServer, open_moto
from services.process import Process
from services.rabbitmq import RabbitServer, open_rabbitmq
from services.redis import RedisServer, open_redis
from services.site import Site, open_site

from bench import ROOT

T = TypeVar("T")


class Servers:
    """Redis, RabbitMQ and a container engine of this run's own.

    Attributes:
        folder: for what is temporary.
        is_quick: few samples, to see that it works.
    """

    def __init__(self, folder: Path, stack: ExitStack, *, is_quick: bool) -> None:
        self.folder = folder
        self.is_quick = is_quick
        self._stack = stack

    def rounds(self, wanted: int) -> int:
        """Return how many samples to take."""
        return min(3, wanted) if self.is_quick else wanted

    def enter(self, opened: AbstractContextManager[T]) -> T:
        """Keep something open until the end of the run."""
        return self._stack.enter_context(opened)

    @cached_property
    def redis(self) -> RedisServer:
        """The registry of every site, and a broker."""
        return self.enter(open_redis(self.folder / "redis"))

    @cached_property
    def rabbitmq(self) -> RabbitServer:
        """A broker."""
        return self.enter(open_rabbitmq(self.folder / "rabbitmq"))

    @cached_property
    def sqs(self) -> SqsServer:
        """A broker."""
        return SqsServer(moto=self.enter(open_moto(self.folder / "sqs")))

    @cached_property
    def engine(self) -> Engine:
        """The container engine, with the test images."""
        return self.enter(open_engine())

    def broker_url(self, name: str) -> str:
        """Return the address of the broker of that name."""
        urls: dict[str, Callable[[], str]] = {
            "redis": lambda: self.redis.url,
            "rabbitmq": lambda: self.rabbitmq.url,
            "sqs": lambda: self.sqs.url,
        }
        return urls[name]()

    @contextmanager
    def site(self, broker: str) -> Iterator[Site]:
        """Open a site with the shipped lease, the docker runtime and a store in a folder."""
        folder = Path(tempfile.mkdtemp(prefix=f"site-{broker}-", dir=self.folder))
        url = self.broker_url(broker)
        with open_site(folder, broker=url, registry=self.redis.url, lease="60s", runtime="docker") as site:
            yield site

    def celery_worker(self, site: Site, *, name: str, app: str, pool: str = "", **environment: str) -> Process:
        """Return a worker of another application than the shipped one, on the same broker; it is not started yet."""
        log = site.folder / f"{name}.log"
        options = ["--pool", pool, "--concurrency", "1"] if pool else []
        worker = f"{name}.{site.settings.project}@bench"
        return Process(
            name=f"worker {name}",
            command=[sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO", "-n", worker, *options],
            log=log,
            ready=lambda: log.exists() and " ready." in log.read_text(errors="replace"),
            environment={**site.environment, **self.engine_environment, "PYTHONPATH": str(ROOT), **environment},
        )

    @property
    def engine_environment(self) -> dict[str, str]:
        """The variables that lead to the engine."""
        return {"DOCKER_HOST": self.engine.url}


@contextmanager
def open_servers(*, is_quick: bool) -> Iterator[Servers]:
    """Open a run's servers."""
    folder = Path(tempfile.mkdtemp(prefix="jobqueue-bench-"))
    try:
        with ExitStack() as stack:
            yield Servers(folder, stack, is_quick=is_quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
