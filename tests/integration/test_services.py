"""The servers that every other test stands on: each starts, answers, dies, and comes back."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import kombu
import psutil
import pytest
import redis
from docker.errors import NotFound
from docker.models.containers import Container
from services.engine import Engine
from services.image_registry import ImageRegistry
from services.images import BUSYBOX, PYTHON
from services.moto import MotoServer, SqsServer
from services.process import MissingProgramError, Process, ServerFailedError, find_program
from services.rabbitmq import RabbitServer
from services.redis import RedisServer
from services.waiting import wait_until


@pytest.fixture
def database(redis_server: RedisServer) -> Iterator["redis.Redis[bytes]"]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
def counter(engine: Engine) -> Iterator[Container]:
    """A container that prints a number every tenth of a second."""
    script = "i=0; while true; do echo $((i+=1)); sleep 0.1; done"
    container = engine.client.containers.run(BUSYBOX, ["sh", "-c", script], network_mode="none", detach=True, init=True)
    yield container
    container.remove(force=True)


def last_number(container: Container) -> int:
    return int((container.logs(tail=1) or b"0").strip())


def put(server: RabbitServer, queue: str) -> None:
    with kombu.Connection(server.url, transport_options={"confirm_publish": True}) as connection:
        simple = connection.SimpleQueue(queue)
        simple.put("kept")
        simple.close()


def test_redis_keeps_what_it_answered_over_a_crash(redis_server: RedisServer, database: "redis.Redis[bytes]") -> None:
    database.set("key", "value")
    redis_server.process.kill()
    redis_server.process.start()
    assert database.get("key") == b"value"


def test_rabbitmq_keeps_confirmed_messages_over_a_crash(rabbitmq_server: RabbitServer) -> None:
    put(rabbitmq_server, "services-crash")
    rabbitmq_server.process.kill()
    rabbitmq_server.process.start()
    wait_until(lambda: rabbitmq_server.queues().get("services-crash") == 1, what="the message")
    rabbitmq_server.control("delete_queue", "services-crash")


def test_rabbitmq_listens_on_loopback_alone(rabbitmq_server: RabbitServer) -> None:
    sockets = [
        connection
        for process in rabbitmq_server.processes
        for connection in psutil.Process(process.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {connection.laddr.port for connection in sockets} >= {rabbitmq_server.port}
    assert {connection.laddr.ip for connection in sockets} <= {"127.0.0.1", "::1"}


def test_s3_stores_and_sqs_passes_messages(s3_server: MotoServer, sqs_server: SqsServer) -> None:
    s3_server.make_bucket("services")
    s3, sqs = s3_server.client("s3"), sqs_server.client()
    s3.put_object(Bucket="services", Key="key", Body=b"value")
    assert s3.get_object(Bucket="services", Key="key")["Body"].read() == b"value"
    queue = sqs.create_queue(QueueName="services")["QueueUrl"]
    sqs.send_message(QueueUrl=queue, MessageBody="text")
    assert sqs.receive_message(QueueUrl=queue)["Messages"][0]["Body"] == "text"
    s3.close()
    sqs.close()


def test_containers_run_on_while_the_engine_is_killed_and_started(engine: Engine, counter: Container) -> None:
    before = wait_until(lambda: last_number(counter), what="the first number")
    engine.process.kill()
    engine.process.start()
    counter.reload()
    assert counter.status == "running"
    wait_until(lambda: last_number(counter) > before, what="a later number")


def test_the_python_image_has_the_whole_standard_library(engine: Engine) -> None:
    script = "import ssl, sqlite3, ctypes, lzma, multiprocessing, asyncio, uuid; print('works')"
    command = ["python", "-c", script]
    printed = engine.client.containers.run(PYTHON, command, network_mode="none", remove=True, user="65534:65534")
    assert printed == b"works\n"


def test_the_engine_sees_nothing_of_the_machine_s_network(engine: Engine) -> None:
    command = [*engine.enter, find_program("ip", package="iproute2"), "-brief", "link"]
    links = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in links.splitlines()] == ["lo"]


def test_images_are_pushed_and_pulled_by_their_digest(image_registry: ImageRegistry) -> None:
    reference = image_registry.push(BUSYBOX, "services/busybox")
    pulled = image_registry.engine.client.images.pull(reference)
    assert reference in pulled.attrs["RepoDigests"]
    with pytest.raises(NotFound):
        image_registry.engine.client.images.pull(f"{image_registry.address}/no/such", tag="1")


def test_a_paused_server_answers_again_after_it_is_resumed(
    redis_server: RedisServer, database: "redis.Redis[bytes]"
) -> None:
    redis_server.process.pause()
    with (
        redis.Redis.from_url(redis_server.url, socket_timeout=0.1, retry=None) as hasty,
        pytest.raises(redis.TimeoutError),
    ):
        hasty.ping()
    redis_server.process.resume()
    assert database.ping()


def test_a_missing_program_says_what_to_install() -> None:
    with pytest.raises(MissingProgramError, match="apt-get install nothing-such"):
        find_program("nothing-such", package="nothing-such")


def test_a_server_that_ends_at_its_start_shows_its_log(tmp_path: Path) -> None:
    process = Process(
        name="broken",
        command=["sh", "-c", "echo the reason; exit 1"],
        log=tmp_path / "log",
        ready=lambda: False,
    )
    with pytest.raises(ServerFailedError, match="the reason"):
        process.start()
