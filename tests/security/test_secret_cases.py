"""Canaries go in everywhere that a secret may, and everything that anybody could look at is searched for them."""

import json
import pickle
import re
import resource
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from services.place import LONG, Place, number, open_place, sleepers, wait_for_sleep
from services.process import Process
from services.site import ROOT
from services.waiting import wait_until

from jobqueue.application import make_app
from jobqueue.artifacts import Artifact
from jobqueue.codec import decode_report
from jobqueue.errors import ExperimentFailed, InvalidSpec, JobqueueError
from jobqueue.keys import KeyRing
from jobqueue.lifecycle import State
from jobqueue.routing import reporting_queue
from jobqueue.sealed_report import open_report
from jobqueue.spec import parse_spec
from producers.handle import Experiment
from workers.attempt.redaction import forms_of

pytestmark = [
    pytest.mark.security,
    pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning"),
]


def canary(kind: str) -> str:
    return f"canary{kind}{secrets.token_hex(8)}"


class Canaries:
    """What nobody may find, by where it goes in.

    Attributes:
        secrets: values of `secrets=`; these reach the container, and are printed there in every way.
        others: what is sealed, or the worker's own: these are printed nowhere.
    """

    def __init__(self) -> None:
        self.secrets = {
            "PLAIN": canary("Plain"),
            "QUOTED": f"{canary('Quoted')} \"q\" 'q' $HOME \\n",
            "UNICODE": f"{canary('Unicode')}-\u00fc\u00e9\u65e5",
            "LINES": f"{canary('LineOne')}\n{canary('LineTwo')}\n",
            "URL": f"https://user:{canary('Password')}@host.example.org/",
            "JSON": json.dumps({"key": canary("Json")}),
            "PART": canary("Part"),
            "LONG": canary("Long") * 40,
            "BLANK": f"  {canary('Blank')}  ",
            "PROGRESS": canary("Progress"),
            "FILE": canary("File"),
            "ERROR": canary("Error"),
            "LAST": canary("Last"),
        }
        self.secrets["WHOLE"] = self.secrets["PART"] + canary("Whole")
        self.others = {name: canary(name) for name in ("Env", "Command", "Label", "Signature", "Password", "Worker")}

    def found_in(self, shown: bytes) -> list[str]:
        """Return which ones something has in it, in any of the forms that they could have been printed in."""
        values = {**self.secrets, **self.others}
        return [name for name, value in values.items() if any(form in shown for form in forms_of([value]))]


PRINTED = ["PLAIN", "QUOTED", "UNICODE", "LINES", "URL", "JSON", "PART", "LONG", "BLANK", "WHOLE", "LAST"]
TELL_ALL = """
for name in {names}; do
  eval "value=\\$$name"
  printf '%s\\n' "$value"; printf '%s' "$value" | base64 | tr -d '\\n'; echo "ValueError: $value" >&2
  printf '%s' "$value" | while IFS= read -r line; do echo "> $line"; done
done
env | grep -v '^HINT='
echo "::jobqueue key=$PROGRESS::"
printf '{{"key": "%s"}}\\n' "$FILE" >> "$JOBQUEUE_PROGRESS"
""".format(names=" ".join(PRINTED))


@contextmanager
def _heard(place: Place) -> Iterator[list[dict[str, Any]]]:
    """Take all of Celery's events, which is what Flower shows."""
    events: list[dict[str, Any]] = []
    with make_app(place.site.settings) as app, app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.append})
        listening = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None, "wakeup": False})
        listening.start()
        try:
            wait_until(lambda: events, what="a heartbeat", within=LONG)
            yield events
        finally:
            receiver.should_stop = True
            listening.join()


def _redis_dump(url: str) -> bytes:
    """Return every key of a Redis with its value."""
    client = redis.Redis.from_url(url)
    found: list[bytes] = []
    for key in client.scan_iter(count=1000):
        kind: Any = client.type(key)
        read: dict[bytes, Callable[[Any], Any]] = {
            b"string": client.get, b"hash": client.hgetall, b"set": client.smembers, b"stream": client.xrange,
            b"list": lambda name: client.lrange(name, 0, -1), b"zset": lambda name: client.zrange(name, 0, -1),
            b"none": lambda _: b"",
        }  # fmt: skip
        with suppress(redis.ResponseError):  # gone meanwhile, and there again as something else
            value = read[kind](key)
            found += [key, value if isinstance(value, bytes) else repr(value).encode()]
    client.close()
    return b"\n".join(found)


def _reports(place: Place) -> Iterator[tuple[str, bytes]]:
    """Return each report as it travels and as it is read."""
    queue = place.site.queue
    keys = KeyRing(place.site.settings.keys_dir)
    with place.open_broker() as broker:
        while mail := broker.post.receive(reporting_queue(queue), timeout=timedelta(seconds=1)):
            broker.post.acknowledge(mail)
            yield "report as it travels", mail.body
            report = open_report(mail.body, content_type=mail.content_type, queue=queue, keys=keys)
            yield "report as it is read", repr(report).encode()
            with suppress(JobqueueError):
                yield "report as it is decoded", repr(decode_report(mail.body)).encode()


def _files(folder: Path, *, but: str) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file() and not re.search(but, str(path)):
                yield str(path), path.read_bytes()


def _command_line(place: Place, *words: str) -> tuple[str, bytes]:
    done = subprocess.run(
        [sys.executable, "-c", "from producers.cli import main; main()", *words],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **place.site.environment},
        capture_output=True,
        timeout=200,
        check=False,
        cwd=place.site.folder,
    )
    return f"jobqueue {' '.join(words)}", done.stdout + done.stderr


def _handle(experiment: Experiment) -> Iterator[tuple[str, bytes]]:
    """Return all that a notebook shows of an experiment."""
    yield "repr", repr(experiment).encode()
    yield "HTML", experiment._repr_html_().encode()
    yield "pickle", pickle.dumps(experiment)
    for stream in ("stdout", "stderr"):
        yield f"logs {stream}", "\n".join(experiment.logs(stream=stream)).encode()
    try:
        experiment.result(timeout=60)
    except ExperimentFailed as failed:
        yield "error", f"{failed} {failed!r} {failed.last_lines} {pickle.dumps(failed)!r}".encode()


def _while_it_runs(place: Place, worker: Process, canaries: Canaries) -> Iterator[tuple[str, bytes]]:
    """Return what can be seen of an experiment that has told all, and goes on."""
    seconds = number()
    running = place.submit(
        f"{TELL_ALL}\nsleep {seconds} # {canaries.others['Command']}",
        secrets=canaries.secrets,
        env={"HINT": canaries.others["Env"]},
    )
    wait_for_sleep(seconds)
    wait_until(lambda: "[secret]" in "".join(running.logs()), what="its output", within=LONG)
    with make_app(place.site.settings) as app, app.connection_for_write() as connection:
        inspect = app.control.inspect(timeout=40, limit=1, connection=connection)
        seen = [inspect.active(), inspect.stats(), inspect.conf(), inspect.reserved(), inspect.query_task(running.id)]
    assert running.id in repr(seen[0])
    yield "celery inspect", repr(seen).encode()
    yield from _command_lines(place, running)
    yield "the worker's command line", Path(f"/proc/{worker.pid}/cmdline").read_bytes()
    yield (
        "files while it runs",
        b"\n".join(
            content for _, content in _files(place.site.folder, but="/workspace/|cpu.log|/stdout|/stderr|/output")
        ),
    )
    limits = Path(f"/proc/{worker.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 ", limits), limits
    running.cancel()
    wait_until(lambda: running.state == State.CANCELLED and not sleepers(seconds), what="its end", within=LONG)
    yield from _handle_of_cancelled(running)


def _handle_of_cancelled(experiment: Experiment) -> Iterator[tuple[str, bytes]]:
    yield "repr", repr(experiment).encode()
    yield "HTML", experiment._repr_html_().encode()
    yield "logs", "\n".join([*experiment.logs(), *experiment.logs(stream="stderr")]).encode()


def _command_lines(place: Place, experiment: Experiment) -> Iterator[tuple[str, bytes]]:
    for words in (["show", experiment.id], ["why", experiment.id], ["ls"], ["nodes", "ls"]):
        yield _command_line(place, *words)


def _ends(place: Place, canaries: Canaries) -> Iterator[tuple[str, bytes]]:
    """Return what can be seen of experiments that failed, each in its own way."""
    failed = place.submit(
        f'{TELL_ALL}\necho "RuntimeError: $LAST" >&2; exit 3 # {canaries.others["Command"]}',
        secrets=canaries.secrets,
        env={"HINT": canaries.others["Env"]},
    )
    unknown = place.submit("/no/such/program", canaries.secrets["ERROR"], secrets=canaries.secrets)
    absent = place.submit(f"/no/such/{canaries.secrets['ERROR']}", "x", secrets=canaries.secrets)
    far = place.submit(
        "true",
        inputs={
            "data": f"https://data.example.org/x?X-Amz-Signature={canaries.others['Signature']}",
            "more": Artifact(uri=f"https://data.example.org/y.tar.zst?sig={canaries.others['Signature']}"),
        },
        secrets=canaries.secrets,
    )
    for experiment in (failed, unknown, absent, far):
        experiment.wait(100)
        assert experiment.state == State.FAILED
        yield from _handle(experiment)
    for words in (["show", failed.id], ["logs", failed.id], ["get", failed.id, "got"], ["why", far.id]):
        yield _command_line(place, *words)


@pytest.mark.security_case("secrets")
@pytest.mark.parametrize(
    ("broker", "runtime"), [("redis", "process"), pytest.param("rabbitmq", "docker", marks=pytest.mark.full)]
)
def test_twenty_canaries_are_found_nowhere_but_in_the_container(
    broker: str, runtime: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Secrets of many shapes, in `secrets=`, environment, command, signed addresses, errors and progress.

    Refused: they travel sealed, reach the container alone, and are taken out of all that it prints and is told of it.
    Evidence: none is in the worker's log at DEBUG, reports, every key of Redis, the store, the node's files, `inspect`,
        Celery's events, the command line's answers, errors, HTML, reprs and pickles; the worker leaves no core file.
    Red before: base64 and single lines of a secret, and an error that repeats one; a worker could leave a core file.
    """
    registry = request.getfixturevalue("redis_server")
    server = request.getfixturevalue(f"{broker}_server")
    engine = request.getfixturevalue("engine") if runtime == "docker" else None
    canaries = Canaries()
    assert len(canaries.secrets) + len(canaries.others) == 20
    shown: list[tuple[str, bytes]] = []
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_CORE, limits))
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
    with open_place(tmp_path, broker=server.url, registry=registry.url, engine=engine) as place:
        with place.open_broker() as opened:
            opened.queues.create_plain(reporting_queue(place.site.queue))
        environment = {"AWS_SECRET_ACCESS_KEY": canaries.others["Worker"]}
        worker = place.make_worker(environment=environment, is_copy=False)
        worker._command[worker._command.index("INFO")] = "DEBUG"
        with worker, _heard(place) as events:
            shown += _while_it_runs(place, worker, canaries)
            shown.append(("Redis while it goes on", _redis_dump(registry.url)))
            shown += _ends(place, canaries)
            assert worker.running, worker.log_tail()
        shown.append(("events", repr(events).encode()))
        shown += _reports(place)
        shown.append(("Redis", _redis_dump(registry.url)))
        shown.append(("the worker's log", worker.log.read_bytes()))
        shown += _files(tmp_path, but=r"/outputs/|got/")
    names = {name for name, _ in shown}
    assert {"report as it is read", "events", "error", "celery inspect"} <= names
    assert any("/logs/stdout/" in name for name in names), "the store was not searched"
    assert b"[secret]" in b"".join(content for name, content in shown if name.startswith("logs"))
    assert {name: found for name, content in shown if (found := canaries.found_in(content))} == {}


@pytest.mark.security_case("secrets")
def test_no_repr_or_error_of_a_spec_shows_a_secret() -> None:
    """A spec that is printed, logged or refused where it was written.

    Refused: values of secrets, and what follows the path of an address, are in no repr and no error.
    Evidence: the texts of a good spec, and of bad ones whose secrets are wrong themselves.
    """
    value = canary("Spec")
    good = {
        "image": "any", "command": "true", "secrets": {"KEY": value},
        "inputs": {"data": Artifact(uri=f"https://host.example.org/x?sig={value}")},
    }  # fmt: skip
    spec = parse_spec(good)
    said = [repr(spec), str(spec), f"{spec!r}", repr(spec.inputs), repr(spec.inputs["data"])]
    for wrong in (
        {"secrets": {"KEY": [value]}}, {"secrets": {"KEY": {value: value}}}, {"secrets": [value, {"x": value}]},
        {"secrets": {"KEY": value + "\0"}}, {"secrets": value},
        {"inputs": {"data": f"https://user:{value}@host/"}}, {"inputs": {"data": Artifact(uri=f"?{value}\n")}},
        {"memory": "much"},
    ):  # fmt: skip
        with pytest.raises(InvalidSpec) as refused:
            parse_spec({**good, **wrong})
        said += [
            str(refused.value),
            repr(refused.value),
            repr(refused.value.problems),
            repr(pickle.dumps(refused.value)),
        ]
    assert [text for text in said if value in text] == []
