"""Fixtures and rules for every test: real servers, tiers by folder, nothing left behind."""

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import pytest
from services import leaks
from services.engine import Engine, open_engine
from services.forking import MARK, forks_allowed
from services.image_registry import ImageRegistry, open_image_registry
from services.moto import MotoServer, SqsServer, open_moto
from services.patience import wait_as_users_do, wait_patiently
from services.process import Process
from services.rabbitmq import RabbitServer, open_rabbitmq
from services.redis import RedisServer, open_redis
from services.schedule import deal
from services.waiting import wait_until

TIERS = ("unit", "contract", "integration", "acceptance", "faults", "security", "fuzz")
_ROOT = Path(__file__).parent
_IN_CI = os.environ.get("CI") == "true"
_LEAVE = timedelta(seconds=10)


class Server(Protocol):
    """What every server of `services` has."""

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process of it."""


S = TypeVar("S", bound=Server)
_shared: dict[str, Server] = {}


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for the whole run; whoever stops it starts it again."""
    with _share("redis_server", open_redis(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """A RabbitMQ for the whole run; whoever stops it starts it again."""
    with _share("rabbitmq_server", open_rabbitmq(tmp_path_factory.mktemp("rabbitmq"))) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """S3 for the whole run; the same process is `sqs_server` too."""
    with _share("s3_server", open_moto(tmp_path_factory.mktemp("moto"))) as server:
        yield server


@pytest.fixture(scope="session")
def sqs_server(s3_server: MotoServer) -> SqsServer:
    """SQS for the whole run."""
    return SqsServer(moto=s3_server)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A container engine with the test images for the whole run; whoever stops it starts it."""
    with _share("engine", open_engine()) as server:
        yield server


@pytest.fixture(scope="session")
def image_registry(engine: Engine) -> Iterator[ImageRegistry]:
    """A registry of images that the engine, and nobody else, reaches."""
    with _share("image_registry", open_image_registry(engine)) as server:
        yield server


@pytest.fixture(scope="session")
def share() -> Callable[[str, AbstractContextManager[S]], AbstractContextManager[S]]:
    """Open what outlives a test under the name of its fixture: its processes belong there, those to come too."""
    return _share


@pytest.fixture(scope="session", autouse=True)
def _forks() -> Iterator[None]:
    """Most workers are copies of one process, which has loaded what they need."""
    with forks_allowed():
        yield


@pytest.fixture(scope="session", autouse=True)
def _patience() -> Iterator[None]:
    with wait_patiently():
        yield


@pytest.fixture
def as_users_wait() -> Iterator[None]:
    """Wait no longer for a broker than the product does; first of a test's fixtures, before anything is connected."""
    with wait_as_users_do():
        yield


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    is_unit = request.node.get_closest_marker("unit") is not None
    engine = None if is_unit else _shared.get("engine")
    engine = engine if isinstance(engine, Engine) else None
    mark = "" if is_unit else uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    find = leaks.watch(mark=mark, known=_known, engine=engine)
    yield
    if left := find():
        # What was told to end may take a moment.
        with suppress(TimeoutError):
            wait_until(lambda: not find(), what="nothing left", within=_LEAVE)
        left = find()
    stopped = [process for process in _shared_processes() if not process.running]
    said = [str(left), *(f"{process.name}, stopped" for process in stopped)]
    leaks.remove(left, engine)
    for process in stopped:
        process.start()
    if left or stopped:
        pytest.fail("\n".join(["left behind:", *filter(None, said)]))


@pytest.fixture(autouse=True)
def _no_socket_in_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("unit"):
        for method in ("connect", "connect_ex", "bind"):
            original = getattr(socket.socket, method)
            monkeypatch.setattr(socket.socket, method, _local_only(original))


def pytest_configure() -> None:
    """Let other users read what tests lay down for them, whatever the custom of whoever runs this."""
    os.umask(0o022)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every test with its tier, which is the folder that it stands in; and let what takes long come first."""
    for item in items:
        tier = item.path.relative_to(_ROOT).parts[0]
        if tier not in TIERS:
            raise pytest.UsageError(f"{item.path}: not in one of {', '.join(TIERS)}")
        item.add_marker(tier)
    if worker := getattr(config, "workerinput", None):
        items[:] = deal(items, worker["workercount"], module_of=lambda item: str(item.path.relative_to(_ROOT)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Iterator[None]:
    """Turn a skip into a failure in continuous integration, and print the world on a failure."""
    report = yield
    _forbid_skip(report)
    if report.failed:
        for name in getattr(item, "fixturenames", ()):
            for process in _shared[name].processes if name in _shared else ():
                report.sections.append((f"{process.name}'s log", process.log_tail()))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """Turn a skipped module into a failure in continuous integration."""
    report = yield
    _forbid_skip(report)
    return report


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where everything must run: {report.longrepr}"


@contextmanager
def _share(name: str, opened: AbstractContextManager[S]) -> Iterator[S]:
    with opened as server:
        _shared[name] = server
        yield server
        del _shared[name]


def _shared_processes() -> list[Process]:
    return [process for server in _shared.values() for process in server.processes]


def _known() -> set[int]:
    return {pid for process in _shared_processes() for pid in process.pids}


def _local_only(original: Callable[[socket.socket, object], object]) -> object:
    def refuse(address: object) -> NoReturn:
        pytest.fail(
            f"a unit test opened a socket to {address}: use the in-memory adapter, "
            "or move the test to tests/integration"
        )

    def guarded(self: socket.socket, address: object) -> object:
        return original(self, address) if self.family == socket.AF_UNIX else refuse(address)

    return guarded
