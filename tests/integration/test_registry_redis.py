"""What only the registry in Redis can meet: a server that is away, silent, new, full, or strict with its users."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from services.redis import RedisServer, open_redis
from services.registries import LONG, acquire, granted, make_submission, registered, use_everything
from services.waiting import TOLD_WITHIN_SECONDS, free_port, waited_seconds

from jobqueue.errors import InvalidSetting, RegistryUnavailable
from jobqueue.ids import make_experiment_id
from jobqueue.registry import open_registry
from jobqueue.registry.base import Held, Lease, Registry

PASSWORD = "hunter2-secret"
COMMANDS = (
    *("ping", "select", "time", "evalsha", "script|load"),
    *("get", "set", "del", "exists", "pexpire", "hget", "hgetall", "hmget", "info", "hset", "hincrby", "hdel", "hvals"),
    *("zadd", "zscore", "zrem", "zrange", "zrangebyscore", "zrevrangebylex", "xadd", "xrange", "xrevrange", "xtrim"),
    *("rpush", "blpop", "ltrim"),
)


@pytest.fixture
def registry(redis_server: RedisServer) -> Iterator[Registry]:
    registry = open_registry(redis_server.url)
    yield registry
    registry.close()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client


CALLS: dict[str, Callable[[Registry], object]] = {
    "ping": lambda registry: registry.ping(),
    "acquire": lambda registry: acquire(registry, make_submission()),
    "renew": lambda registry: registry.leases.renew(
        Lease(experiment_id=make_experiment_id(), token=1, attempt=1), ttl=LONG
    ),
    "register": lambda registry: registry.experiments.register(make_submission()),
    "get": lambda registry: registry.experiments.get(make_experiment_id()),
    "states": lambda registry: registry.experiments.states([make_experiment_id()]),
    "find": lambda registry: registry.experiments.find(),
    "read": lambda registry: registry.live_logs.read(make_experiment_id(), "stdout"),
    "present": lambda registry: registry.workers.present(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_server_that_is_down_is_told_of_within_two_seconds(call: Callable[[Registry], object]) -> None:
    registry = open_registry(f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0")
    begun_at = waited_seconds()
    with pytest.raises(RegistryUnavailable) as caught:
        call(registry)
    assert waited_seconds() - begun_at < TOLD_WITHIN_SECONDS
    assert PASSWORD not in f"{caught.value} {caught.value!r} {registry!r} {vars(registry)!r}"


def test_an_address_that_swallows_connections_is_told_of_within_two_seconds() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # the queue of those who wait is full after the first
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        registry = open_registry(f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
        begun_at = waited_seconds()
        with pytest.raises(RegistryUnavailable):
            registry.ping()
        assert waited_seconds() - begun_at < TOLD_WITHIN_SECONDS


def test_a_restarted_server_is_found_again_and_knows_its_leases(registry: Registry, redis_server: RedisServer) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    redis_server.process.stop()
    with pytest.raises(RegistryUnavailable):
        registry.leases.renew(lease, ttl=LONG)
    redis_server.process.start()
    assert registry.leases.renew(lease, ttl=LONG) is None
    assert isinstance(acquire(registry, submission), Held)


def test_a_server_that_forgot_the_scripts_is_taught_them_again(registry: Registry, client: redis.Redis) -> None:
    registry.experiments.register(make_submission())
    client.script_flush()
    registry.experiments.register(make_submission())


def test_a_dropped_connection_is_replaced_unnoticed(registry: Registry, client: redis.Redis) -> None:
    registry.ping()
    client.client_kill_filter(_type="normal", skipme=True)
    registry.ping()
    client.client_kill_filter(_type="normal", skipme=True)
    assert granted(registry, registered(registry)).lease.attempt == 1


def test_a_server_out_of_memory_refuses_as_unavailable(registry: Registry, client: redis.Redis) -> None:
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(RegistryUnavailable, match="memory"):
            registry.experiments.register(make_submission())
    finally:
        client.config_set("maxmemory", "0")
    registry.experiments.register(make_submission())


def test_a_user_with_the_named_commands_and_our_keys_can_do_everything(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    client.execute_command(
        "ACL", "SETUSER", "jobqueue", "reset", "on", f">{PASSWORD}", "~jobqueue:*", *(f"+{name}" for name in COMMANDS)
    )
    registry = open_registry(redis_server.url.replace("redis://", f"redis://jobqueue:{PASSWORD}@"))
    try:
        use_everything(registry)
        client.execute_command("ACL", "SETUSER", "jobqueue", "-hset")
        with pytest.raises(RegistryUnavailable, match="can't run this command"):
            registry.experiments.register(make_submission())
    finally:
        registry.close()
        client.execute_command("ACL", "DELUSER", "jobqueue")


def test_a_wrong_password_is_not_repeated(redis_server: RedisServer) -> None:
    registry = open_registry(redis_server.url.replace("redis://", f"redis://nobody:{PASSWORD}@"))
    with pytest.raises(RegistryUnavailable) as caught:
        registry.ping()
    assert PASSWORD not in str(caught.value)
    registry.close()


def test_a_socket_is_reached_by_kombus_url(tmp_path: Path) -> None:
    path = tmp_path / "r.sock"
    with open_redis(tmp_path / "data", options=("--unixsocket", str(path))) as server:
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", PASSWORD)
        registry = open_registry(f"redis+socket://:{PASSWORD}@{path}?virtual_host=3")
        use_everything(registry)
        registry.close()
        with redis.Redis(port=server.port, password=PASSWORD, db=3, decode_responses=True) as client:
            assert client.dbsize()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2-secret#x@host:nonsense/0",
        "redis://:hunter2-secret@host/0?no_such_option=1",
        "mongodb://user:hunter2-secret@host",
        "hunter2-secret",
    ],
)
def test_an_url_that_cannot_be_used_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        open_registry(url)
    assert PASSWORD not in str(caught.value)
    assert "redis://" in str(caught.value)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_uses_connections_of_its_own(registry: Registry) -> None:
    registry.ping()
    child = os.fork()
    if child == 0:
        try:
            for _ in range(50):
                registry.experiments.register(make_submission())
        except BaseException:  # noqa: BLE001 the child must not go on as a second test run
            os._exit(1)
        os._exit(0)
    for _ in range(50):
        submission = make_submission()
        assert registry.experiments.register(submission) == [submission.id]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
