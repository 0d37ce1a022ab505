"""What only the registry in Redis can meet: a server that is away, silent, new, full, or strict with its users."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from services.redis import RedisServer, open_redis
from services.waiting import free_port

from jobqueue.errors import InvalidSetting, NotFound, RegistryUnavailable
from jobqueue.ids import NodeId, WorkerId, make_experiment_id
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry import open_registry
from jobqueue.registry.base import Answer, Final, Granted, Held, Lease, Registry, Submission, WorkerRecord
from jobqueue.registry.redis_client import COMMANDS, RedisClient
from jobqueue.registry.redis_fields import submission_arguments
from jobqueue.resources import Offer, Resources

TTL = timedelta(minutes=1)
AT_ONCE = timedelta(0)
PASSWORD = "hunter2-secret"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def registry(redis_server: RedisServer) -> Iterator[Registry]:
    registry = open_registry(redis_server.url)
    yield registry
    registry.close()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client


def make_submission(**fields: str) -> Submission:
    return Submission(
        id=make_experiment_id(),
        queue="q",
        project="p",
        resources=Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1),
        submitted_at=NOW,
        expires_at=NOW,
        message=b"sealed",
        **fields,
    )


def acquire(registry: Registry, submission: Submission) -> Answer:
    return registry.leases.acquire(submission, worker_id=WorkerId("w"), node_id=NodeId("n"), ttl=TTL, platform_budget=5)


def granted(registry: Registry, submission: Submission) -> Lease:
    answer = acquire(registry, submission)
    assert isinstance(answer, Granted), answer
    return answer.lease


def use_everything(registry: Registry) -> None:
    """Walk through every method of every port."""
    registry.ping()
    submission = make_submission(name="n", idempotency_key=make_experiment_id())
    registry.experiments.register(submission)
    lease = granted(registry, submission)
    registry.leases.renew(lease, ttl=TTL)
    registry.leases.advance(lease, State.RUNNING, progress="{}")
    registry.live_logs.append(lease, "stdout", b"line\n", offset=0)
    assert registry.live_logs.read(submission.id, "stdout")
    registry.leases.release(lease, Outcome(reason=Reason.RUNTIME_FAILURE), delay=AT_ONCE)
    registry.leases.finish(granted(registry, submission), Outcome(reason=Reason.EXITED_ZERO), state=State.SUCCEEDED)
    assert registry.experiments.get(submission.id).state is State.SUCCEEDED
    assert registry.experiments.states([submission.id]) == {submission.id: State.SUCCEEDED}
    assert registry.experiments.find(name="n", project="p")
    for end in (registry.experiments.cancel, registry.experiments.withdraw):
        other = make_submission()
        registry.experiments.register(other)
        end(other.id)
    worker = make_worker()
    registry.workers.announce(worker, ttl=TTL)
    assert worker in registry.workers.present()
    registry.workers.leave(worker.worker_id)


def make_worker() -> WorkerRecord:
    offer = Offer(cpus=1, memory_bytes=1, disk_bytes=1)
    return WorkerRecord(
        worker_id=WorkerId(make_experiment_id()), node_id=NodeId("n"), queues=("q",), offer=offer, runtime="fake"
    )


CALLS: dict[str, Callable[[Registry], object]] = {
    "ping": lambda registry: registry.ping(),
    "acquire": lambda registry: acquire(registry, make_submission()),
    "renew": lambda registry: registry.leases.renew(
        Lease(experiment_id=make_experiment_id(), token=1, attempt=1), ttl=TTL
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
    begun_at = time.monotonic()
    with pytest.raises(RegistryUnavailable) as caught:
        call(registry)
    assert time.monotonic() - begun_at < 2
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
        begun_at = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            registry.ping()
        assert time.monotonic() - begun_at < 2


def test_a_restarted_server_is_found_again_and_knows_its_leases(registry: Registry, redis_server: RedisServer) -> None:
    submission = make_submission()
    lease = granted(registry, submission)
    redis_server.process.stop()
    with pytest.raises(RegistryUnavailable):
        registry.leases.renew(lease, ttl=TTL)
    redis_server.process.start()
    assert registry.leases.renew(lease, ttl=TTL) is False
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
    assert granted(registry, make_submission()).attempt == 1


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


def test_no_key_lies_outside_of_our_prefix(registry: Registry, client: redis.Redis) -> None:
    use_everything(registry)
    assert {key.partition(":")[0] for key in client.scan_iter()} == {"jobqueue"}


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
        assert registry.experiments.register(submission) == submission.id
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_acquire_that_is_sent_twice_is_granted_once(registry: Registry, redis_server: RedisServer) -> None:
    submission = make_submission()
    connection = RedisClient(redis_server.url)
    call = (*submission_arguments(submission), "w", "n", 60_000, 5, "one-call")
    first, again = connection.run("acquire", *call), connection.run("acquire", *call)
    connection.close()
    assert first == again
    assert first[0] == b"granted"
    assert registry.experiments.get(submission.id).attempt == 1


def test_a_clock_that_jumped_back_stretches_no_lease_and_grants_none_early(
    registry: Registry, client: redis.Redis
) -> None:
    submission = make_submission()
    lease = granted(registry, submission)
    key = f"jobqueue:experiment:{submission.id}"
    an_hour_ms = 3_600_000
    client.hincrby(key, "until_ms", an_hour_ms)
    client.hincrby(key, "token", an_hour_ms)
    answer = acquire(registry, submission)
    assert isinstance(answer, Held)
    assert AT_ONCE < answer.remaining <= TTL
    client.hset(key, "until_ms", "0")
    assert granted(registry, submission).token == lease.token + an_hour_ms + 1


def test_a_final_record_expires_and_leaves_the_indexes(registry: Registry, client: redis.Redis) -> None:
    submission = make_submission(name=make_experiment_id(), idempotency_key=make_experiment_id())
    registry.experiments.register(submission)
    key = f"jobqueue:experiment:{submission.id}"
    assert client.ttl(key) == -1
    registry.leases.finish(granted(registry, submission), Outcome(reason=Reason.EXITED_ZERO), state=State.SUCCEEDED)
    for expiring in (key, f"jobqueue:idempotency:p:{submission.idempotency_key}"):
        assert 29 < timedelta(seconds=client.ttl(expiring)) / timedelta(days=1) <= 30
    assert not client.exists(f"jobqueue:message:{submission.id}")
    client.delete(key)
    assert registry.experiments.find(name=submission.name) == []
    assert registry.experiments.find(project="p", prefix=submission.id) == []
    assert not client.exists(f"jobqueue:name:{submission.name}")
    assert client.zscore("jobqueue:project:p", submission.id) is None
    with pytest.raises(NotFound):
        registry.experiments.get(submission.id)


def test_expired_entries_leave_an_index_as_new_ones_come(registry: Registry, client: redis.Redis) -> None:
    name = make_experiment_id()
    old = [make_submission(name=name) for _ in range(4)]
    for submission in old:
        registry.experiments.register(submission)
    client.delete(*(f"jobqueue:experiment:{submission.id}" for submission in old))
    new = [make_submission(name=name) for _ in range(3)]
    for submission in new:
        registry.experiments.register(submission)
    assert client.zrange(f"jobqueue:name:{name}", 0, -1) == sorted(submission.id for submission in new)


def test_live_logs_and_tombstones_expire(registry: Registry, client: redis.Redis) -> None:
    submission = make_submission()
    registry.live_logs.append(granted(registry, submission), "stdout", b"x", offset=0)
    registry.experiments.withdraw(withdrawn := make_experiment_id())
    assert 0 < client.ttl(f"jobqueue:log:{submission.id}:stdout") <= 24 * 3600
    assert 6 < timedelta(seconds=client.ttl(f"jobqueue:withdrawn:{withdrawn}")) / timedelta(days=1) <= 7


def test_texts_that_utf_8_cannot_hold_are_stored_all_the_same(registry: Registry) -> None:
    submission = make_submission(name="odd \udcff name")
    registry.experiments.register(submission)
    lease = granted(registry, submission)
    outcome = Outcome(reason=Reason.RUNTIME_FAILURE, detail="said \udcff", last_lines=("\udcff",))
    registry.leases.advance(lease, State.RUNNING, progress='{"x": "\udcff"}')
    registry.leases.release(lease, outcome, delay=AT_ONCE)
    record = registry.experiments.get(submission.id)
    assert record.detail == "said ?"
    assert isinstance(acquire(registry, submission), Granted)
    assert not isinstance(acquire(registry, submission), Final)
