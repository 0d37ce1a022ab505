"""Users of Redis with the rights of `examples/redis.acl`: each can do its work, and not more."""

import secrets
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from services.broker_client import patiently
from services.flower import open_flower, read_page
from services.place import LONG, Place
from services.redis import RedisServer, open_redis
from services.site import open_site
from services.waiting import wait_until

from jobqueue.application import make_app
from jobqueue.brokers import open_broker
from jobqueue.config import Settings
from jobqueue.registry import open_registry
from jobqueue.registry.presence import Drain
from jobqueue.routing import reporting_queue

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

EXAMPLE = Path(__file__).parents[2] / "examples" / "redis.acl"
USERS = ("operator", "node", "producer", "flower")


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """A Redis that knows the users of the example, and nobody else."""

    server: RedisServer
    password: str

    def url(self, user: str) -> str:
        """Return its address for a user."""
        return self.server.url.replace("redis://", f"redis://{user}:{self.password}@")

    def client(self, user: str) -> redis.Redis:
        """Connect as a user; the caller closes it."""
        return redis.Redis.from_url(self.url(user), protocol=2)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    password = secrets.token_hex(8)
    with open_redis(tmp_path / "redis") as server:
        rules = [line.split() for line in EXAMPLE.read_text().replace("CHANGE-ME", password).splitlines() if line]
        with redis.Redis.from_url(server.url) as client:
            client.set("another_application", "x")
            client.hset("jobqueue:drains", "x", "{}")
            # The one that this connection is of comes last.
            for _, name, *rule in sorted(rules, key=lambda words: words[1] == "default"):
                client.execute_command("ACL", "SETUSER", name, "reset" if name != "default" else "on", *rule)
            client.acl_log_reset()
            yield Guarded(server=server, password=password)
            # Shown where the test has failed.
            print(*client.acl_log(20), sep="\n")  # noqa: T201


def refusal(client: redis.Redis, *command: str | bytes) -> str:
    """Try a command, and return how Redis refused it; empty where it did not."""
    try:
        client.execute_command(*command)  # type: ignore[no-untyped-call]
    except redis.exceptions.NoPermissionError:
        return "NOPERM"
    return ""


FORBIDDEN: tuple[tuple[str, ...], ...] = (
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("ACL", "LIST"),
    ("SHUTDOWN",),
    ("DEBUG", "SLEEP", "0"),
    ("MONITOR",),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("CLIENT", "LIST"),
    ("CLIENT", "TRACKING", "ON", "BCAST"),
    ("FUNCTION", "FLUSH"),
    ("FUNCTION", "LOAD", "#!lua name=x\nredis.register_function('x', function() return 1 end)"),
    ("GET", "another_application"),
    ("SET", "another_application", "y"),
    ("DEL", "another_application"),
    ("RENAME", "another_application", "jobqueue:clock"),
)
ROLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "operator": (),
    "node": (
        ("HSET", "jobqueue:drains", "x", "y"),
        ("SET", "jobqueue:withdrawn:x", "1"),
        ("LPUSH", "other_cpu", "x"),
        ("SCRIPT", "FLUSH"),
    ),
    "producer": (
        ("HSET", "jobqueue:drains", "x", "y"),
        ("XADD", "jobqueue:log:x:stdout", "*", "line", "forged"),
        ("SET", "jobqueue:elected:sweep", "me"),
        ("RPUSH", "jobqueue:answer:x", "forged"),
        ("LPUSH", "other_cpu", "x"),
        ("PUBLISH", "/0.celery.pidbox", "{}"),
        ("PUBLISH", "jobqueue:bus:0:celery.pidbox", "{}"),
        ("SCRIPT", "FLUSH"),
    ),
    "flower": (
        ("HSET", "jobqueue:drains", "x", "y"),
        ("HSET", "jobqueue:experiment:x", "state", "SUCCEEDED"),
        ("HSET", "jobqueue:clock", "floor_ms", "9e99"),
        ("DEL", "jobqueue:workers"),
        ("GET", "jobqueue:message:x"),
        ("HGETALL", "jobqueue:experiment:x"),
        ("XRANGE", "jobqueue:log:x:stdout", "-", "+"),
        ("DEL", "lab_cpu"),
        ("LPUSH", "lab_cpu", "x"),
        ("PUBLISH", "/0.celery.pidbox", "{}"),
        ("PUBLISH", "jobqueue:bus:0:celery.pidbox", "{}"),
        ("XADD", "jobqueue:log:x:stdout", "*", "line", "forged"),
        ("SCRIPT", "FLUSH"),
    ),
}


@pytest.mark.security_case("Stolen password of the registry")
@pytest.mark.parametrize("user", USERS)
def test_a_role_is_refused_what_others_do(guarded: Guarded, user: str) -> None:
    """Somebody with the Redis password of a node, a producer or Flower empties it, reconfigures it, reads other keys.

    Refused: by Redis: FLUSHALL, CONFIG, KEYS and the like for everybody; drains, queues, logs and answers by role.
    Evidence: a real Redis with the users of `examples/redis.acl`.
    Red before: Flower's password read every log, and turned the registry's clock; each could delete Redis' functions.
    """
    with guarded.client(user) as client:
        assert client.ping()
        commands = (*FORBIDDEN, *ROLES[user])
        assert {command: refusal(client, *command) for command in commands} == dict.fromkeys(commands, "NOPERM")


def test_nobody_comes_in_without_a_user(guarded: Guarded) -> None:
    with redis.Redis.from_url(guarded.server.url) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def hear(settings: Settings) -> str:
    """Wait as Flower does for any event of a worker; returns its type."""
    heard: list[str] = []

    def note(event: dict[str, Any]) -> None:
        heard.append(event["type"])
        receiver.should_stop = True

    with make_app(settings) as app, app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": note})
        receiver.capture(limit=None, timeout=LONG.total_seconds(), wakeup=False)
    return heard[0]


@pytest.mark.parametrize("broker", ["rabbitmq", "sqs", "redis"])
def test_each_role_can_do_its_work(
    guarded: Guarded, broker: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    urls = {user: guarded.url(user) for user in USERS}
    if broker != "redis":
        urls = dict.fromkeys(USERS, request.getfixturevalue(f"{broker}_server").url)
    project = f"lab_{secrets.token_hex(4)}"
    with closing(open_broker(urls["operator"], lease=LONG)) as opened:
        patiently(partial(opened.queues.create, f"{project}_cpu"))
        patiently(partial(opened.queues.create_plain, reporting_queue(f"{project}_cpu")))
    environment = {"JOBQUEUE_BROKER_URL": urls["node"], "JOBQUEUE_REGISTRY_URL": guarded.url("node")}
    site = open_site(
        tmp_path / "site",
        broker=urls["producer"],
        registry=guarded.url("producer"),
        runtime="process",
        project=project,
    )
    with site as opened_site:
        place = Place(site=opened_site, engine=None)
        with place.make_worker(environment=environment) as worker:
            experiment = place.submit("echo hello; sleep 0.1; echo ::jobqueue loss=1::", name="n")
            assert experiment.result(timeout=LONG.total_seconds()) == {"exit_code": 0}
            assert place.take_reports(experiment)
            sleeper = place.submit("sleep 600")
            assert sleeper.cancel()
            sleeper.wait(timeout=LONG)
            with closing(open_registry(guarded.url("operator"))) as registry:
                (record,) = registry.workers.present()
                registry.workers.drain(Drain(target=record.worker_id))
            if broker == "sqs":
                assert hear(Settings(broker_url=urls["operator"], events_url=guarded.url("flower")))
            if broker == "redis":
                with open_flower(tmp_path, broker=urls["flower"], project=project) as address:
                    seen = f"cpu.{project}@test"
                    wait_until(lambda: seen in read_page(f"{address}/workers"), what="Flower's worker", within=LONG)
            assert "No permissions" not in worker.log.read_text()
