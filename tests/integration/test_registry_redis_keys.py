"""What the registry leaves in Redis: keys of one prefix that expire, and steps that may be sent twice."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis
from services.redis import RedisServer
from services.registries import AT_ONCE, LONG, acquire, granted, make_submission, registered, use_everything

from jobqueue.errors import NotFound
from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry import open_registry
from jobqueue.registry.base import Final, Granted, Held, Registry
from jobqueue.registry.calls import Call
from jobqueue.registry.redis_client import RedisClient
from jobqueue.registry.redis_fields import submission_arguments


@pytest.fixture
def registry(redis_server: RedisServer) -> Iterator[Registry]:
    registry = open_registry(redis_server.url)
    yield registry
    registry.close()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client


def test_no_key_lies_outside_of_our_prefix(registry: Registry, client: redis.Redis) -> None:
    before = set(client.scan_iter())
    use_everything(registry)
    assert {key.partition(":")[0] for key in set(client.scan_iter()) - before} == {"jobqueue"}


def test_an_acquire_that_is_sent_twice_is_granted_once(registry: Registry, redis_server: RedisServer) -> None:
    submission = registered(registry)
    connection = RedisClient(redis_server.url)
    call = (*submission_arguments(submission), "w", "n", 60_000, 5, "one-call")
    first, again = connection.witness("acquire", *call), connection.witness("acquire", *call)
    connection.close()
    assert first == again
    assert first[0] == b"granted"
    assert registry.experiments.get(submission.id).attempt == 1


def test_a_clock_that_jumped_back_stretches_no_lease_and_grants_none_early(
    registry: Registry, client: redis.Redis
) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    key = f"jobqueue:experiment:{submission.id}"
    floor_ms = client.hget("jobqueue:clock", "floor_ms")
    an_hour_ms = 3_600_000
    client.hincrby(key, "until_ms", an_hour_ms)
    client.hincrby(key, "token", an_hour_ms)
    answer = acquire(registry, submission)
    assert isinstance(answer, Held)
    assert AT_ONCE < answer.remaining <= LONG
    client.hset(key, mapping={"until_ms": "0", "span_ms": "0"})
    assert granted(registry, submission).lease.token == lease.token + an_hour_ms + 1
    client.hset("jobqueue:clock", "floor_ms", floor_ms or "")


def test_a_final_record_expires_and_leaves_the_indexes(registry: Registry, client: redis.Redis) -> None:
    submission = make_submission(name=make_experiment_id(), idempotency_key=make_experiment_id())
    registry.experiments.register(submission)
    key = f"jobqueue:experiment:{submission.id}"
    assert client.ttl(key) == -1
    registry.leases.finish(
        granted(registry, submission).lease, Outcome(reason=Reason.EXITED_ZERO), state=State.SUCCEEDED
    )
    for expiring in (key, f"jobqueue:idempotency:default:{submission.idempotency_key}"):
        assert 29 < timedelta(seconds=client.ttl(expiring)) / timedelta(days=1) <= 30
    assert not client.exists(f"jobqueue:message:{submission.id}")
    client.delete(key)
    assert registry.experiments.find(name=submission.name) == []
    assert registry.experiments.find(project="default", prefix=submission.id) == []
    assert not client.exists(f"jobqueue:name:{submission.name}")
    assert client.zscore("jobqueue:project:default", submission.id) is None
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
    submission = registered(registry)
    registry.live_logs.append(granted(registry, submission).lease, "stdout", b"x", offset=0)
    registry.experiments.withdraw(withdrawn := make_experiment_id())
    assert 0 < client.ttl(f"jobqueue:log:{submission.id}:stdout") <= 24 * 3600
    assert 29 < timedelta(seconds=client.ttl(f"jobqueue:withdrawn:{withdrawn}")) / timedelta(days=1) <= 30


def test_texts_that_utf_8_cannot_hold_are_stored_all_the_same(registry: Registry) -> None:
    submission = make_submission(name="odd \udcff name")
    registry.experiments.register(submission)
    lease = granted(registry, submission).lease
    outcome = Outcome(reason=Reason.RUNTIME_FAILURE, detail="said \udcff", last_lines=("\udcff",))
    registry.leases.advance(lease, State.RUNNING, progress='{"x": "\udcff"}')
    registry.leases.release(lease, outcome, delay=AT_ONCE)
    record = registry.experiments.get(submission.id)
    assert record.detail == "said ?"
    assert isinstance(acquire(registry, submission), Granted)
    assert not isinstance(acquire(registry, submission), Final)


def test_names_of_questions_that_somebody_else_has_put_there_are_passed_over(
    registry: Registry, client: redis.Redis
) -> None:
    client.rpush("jobqueue:calls", b"\xff", "", "none", "one")
    client.set("jobqueue:call:one", "question", px=60_000)
    assert registry.calls.take(within=LONG) == Call(name="one", question=b"question")
    client.delete("jobqueue:call:one")


def test_questions_that_nobody_answers_and_answers_that_nobody_takes_expire(
    registry: Registry, client: redis.Redis
) -> None:
    assert registry.calls.ask(b"question", within=timedelta(milliseconds=100)) is None
    assert list(client.scan_iter("jobqueue:call:*")) == []
    assert 0 < client.ttl("jobqueue:calls") <= 60
    registry.calls.answer(Call(name="gone", question=b""), b"answer")
    assert 0 < client.ttl("jobqueue:answer:gone") <= 60
    client.delete("jobqueue:calls", "jobqueue:answer:gone")
