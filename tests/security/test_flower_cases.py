"""Flower, as operators start it: nobody without a password sees or stops anything, and nothing that is shown acts."""

import base64
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from flower.utils.authentication import authenticate, validate_auth_option
from services.process import Process
from services.redis import RedisServer
from services.site import ROOT, Site, open_site
from services.waiting import free_port, wait_until

from jobqueue.application import make_app
from jobqueue.dashboard import check_options
from jobqueue.errors import InvalidSetting

SHOWN = (
    "/",
    "/workers",
    "/tasks",
    "/broker",
    "/metrics",
    "/api/workers",
    "/api/tasks",
    "/api/task/types",
    "/api/queues/length",
)
DONE = ("/api/worker/shutdown/{worker}", "/api/worker/pool/grow/{worker}", "/api/task/revoke/{task}?terminate=true",
        "/api/task/async-apply/jobqueue.run_experiment", "/api/task/send-task/jobqueue.run_experiment")  # fmt: skip
PASSWORD = "a:right"


@pytest.fixture
def site(tmp_path: Path, redis_server: RedisServer) -> Iterator[Site]:
    with open_site(tmp_path, broker=redis_server.url, registry=redis_server.url) as opened:
        yield opened


@contextmanager
def serving(site: Site) -> Iterator[tuple[int, int]]:
    """Serve Flower on a loopback port behind a password, and give its process id and its port."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    words = ["flower", "--address=127.0.0.1", f"--port={port}"]
    process = Process(
        name="flower",
        command=[sys.executable, "-m", "celery", "-A", "jobqueue", *words],
        log=site.folder / "flower.log",
        ready=lambda: ask(f"{address}/healthcheck")[0] == 200,
        environment={**site.environment, "PYTHONPATH": str(ROOT), "FLOWER_BASIC_AUTH": PASSWORD},
    )
    with process:
        yield process.pid, port


@contextmanager
def flower(site: Site) -> Iterator[str]:
    """Serve Flower, and give its address."""
    with serving(site) as (_, port):
        yield f"http://127.0.0.1:{port}"


def ask(
    url: str, *, password: str = "", method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Return status and body; 0 where nobody answers."""
    sent = dict(headers or {})
    if password:
        sent["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
    request = urllib.request.Request(url, headers=sent, method=method, data=b"args=[]" if method == "POST" else None)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


@pytest.mark.security_case("Flower and API without token")
@pytest.mark.parametrize("passwords", [("", "a:wrong", "a:", ":", "b:right", "a:right ")])
def test_who_has_not_the_password_sees_and_stops_nothing(site: Site, passwords: tuple[str, ...]) -> None:
    """Somebody without Flower's password, or with a wrong one, opens its pages, its API and its numbers.

    Refused: 401 for each of them; workers go on.
    Evidence: the answers of a real Flower to 14 addresses, and the worker's process.
    Red before: `/metrics` was served to everybody.
    """
    with site.make_worker() as worker, flower(site) as address:
        name = f"cpu.{site.settings.project}@test"
        for password in passwords:
            for path in SHOWN:
                assert ask(address + path, password=password)[0] == 401, (path, password)
            for path in DONE:
                url = address + path.format(worker=name, task="exp-01k0000000000000000000000a")
                assert ask(url, password=password, method="POST")[0] == 401, (path, password)
        assert ask(f"{address}/metrics", password=PASSWORD)[0] == 200
        assert worker.running


@pytest.mark.security_case("Flower and API without token")
def test_no_other_site_has_a_browser_stop_a_worker(site: Site) -> None:
    """A page of another site has the browser of an operator, who is logged in, send a form to Flower.

    Refused: 403 by where the form comes from, whichever of the two headers the browser sends.
    Evidence: the answers of a real Flower, and the worker's process; the operator's own page is answered.
    """
    elsewhere = [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://attacker.example"},
        {"Origin": "null"},
    ]
    with site.make_worker() as worker, flower(site) as address:
        name = f"cpu.{site.settings.project}@test"
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        for headers in elsewhere:
            for path in DONE:
                url = address + path.format(worker=name, task="exp-01k0000000000000000000000a")
                status, _ = ask(url, password=PASSWORD, method="POST", headers={**form, **headers})
                assert status == 403, (path, headers)
        assert worker.running
        assert ask(f"{address}/workers", password=PASSWORD, headers={"Sec-Fetch-Site": "none"})[0] == 200


@pytest.mark.security_case("huge body, slow client, path traversal in ids")
def test_no_request_keeps_flower_from_answering(site: Site) -> None:
    """Clients announce huge bodies, send half a request and wait, and ask for ids that are paths.

    Refused: what is announced too large is turned away at once, who waits keeps nobody, no file is sent.
    Evidence: the memory of a real Flower, its answers to others meanwhile, and its answers to such ids.
    """
    with serving(site) as (pid, port), ExitStack() as opened:
        address = f"http://127.0.0.1:{port}"
        process = psutil.Process(pid)
        before = process.memory_info().rss

        def client() -> socket.socket:
            return opened.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=20)))

        for _ in range(100):
            client().sendall(b"POST /api/worker/shutdown/x HTTP/1.1\r\nHost: x\r\nContent-Le")
        for announced in (b"Content-Length: 10000000000", b"Content-Length: -1", b"X: " + b"x" * 200_000):
            huge = client()
            with suppress(OSError):
                huge.sendall(b"POST /api/tasks HTTP/1.1\r\nHost: x\r\n" + announced + b"\r\n\r\n" + b"x" * 100_000)
                assert huge.recv(12)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 431")
        for hostile in ("../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "a%00b"):
            for page in ("task/", "worker/", "static/", "api/task/info/"):
                status, body = ask(f"{address}/{page}{hostile}", password=PASSWORD)
                assert status >= 400, (page, hostile)
                assert "root:" not in body
        assert ask(f"{address}/workers", password=PASSWORD)[0] == 200
        assert process.memory_info().rss - before < 64 * 2**20


@pytest.mark.security_case("terminal escape and HTML in names, logs and errors")
def test_flower_shows_markup_as_text(site: Site) -> None:
    """Events say names, errors and workers that hold HTML which runs a script.

    Refused: Flower's pages show it as text.
    Evidence: the pages of a real Flower about a task and a worker of such names.
    """
    hostile = "<script>alert(1)</script>"
    with flower(site) as address, closing(make_app(site.settings)) as app, app.connection() as connection:
        task = "exp-01k0000000000000000000000a"
        pages = [f"{address}/task/{task}", f"{address}/workers", f"{address}/tasks", f"{address}/worker/cpu@{hostile}"]

        def is_heard() -> bool:  # an event that comes before Flower listens is lost
            with app.events.Dispatcher(connection, hostname=f"cpu@{hostile}") as events:
                events.send("worker-online", sw_ident=hostile, sw_ver=hostile, sw_sys=hostile)
                common = {"uuid": task, "retries": 0}
                events.send("task-received", name=hostile, args=hostile, kwargs=hostile, **common)
                events.send("task-failed", exception=hostile, traceback=hostile, **common)
            return ask(pages[0], password=PASSWORD)[0] == 200

        wait_until(is_heard, what="the task's page", within=timedelta(minutes=2))
        shown = [ask(page.replace("<", "%3C").replace(">", "%3E"), password=PASSWORD)[1] for page in pages]
        assert "&lt;script&gt;alert(1)" in shown[0]
        assert not [page for page in shown if hostile in page]


def options(**changes: object) -> SimpleNamespace:
    return SimpleNamespace(**{"address": "", "unix_socket": "", "basic_auth": None, "auth": "", **changes})


@pytest.mark.security_case("Flower and API without token")
@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({}, ""),
        ({"address": "0.0.0.0"}, ""),
        ({"address": "::"}, ""),
        ({"address": "192.0.2.1"}, ""),
        ({"address": "node.example"}, ""),
        ({"address": "127.0.0.1.example"}, ""),
        ({"basic_auth": ["a:"]}, ""),
        ({"basic_auth": ["a:b", "c"]}, ""),
        ({"address": "127.0.0.1"}, "true"),
        ({"basic_auth": ["a:b"]}, "1"),
    ],
)
def test_flower_does_not_start_where_everybody_could_use_it(changes: dict[str, object], variable: str) -> None:
    """An operator starts Flower without a password on an address of the network, or opens its API to everybody.

    Refused: it does not start, and says what to do.
    Evidence: the check that Flower's start runs through; a row of docs/operations.md is such a start.
    Red before: it was served to everybody.
    """
    with pytest.raises(InvalidSetting) as refused:
        check_options(options(**changes), environment={"FLOWER_UNAUTHENTICATED_API": variable})
    assert refused.value.hint


@pytest.mark.parametrize(
    "changes",
    [{"address": "127.0.0.1"}, {"address": "::1"}, {"address": "localhost"}, {"unix_socket": "/run/x"},
     {"basic_auth": ["a:b"]}, {"auth": "me@corp.example", "address": "0.0.0.0"}],
)  # fmt: skip
def test_flower_starts_where_nobody_else_can_use_it(changes: dict[str, object]) -> None:
    check_options(options(**changes), environment={"FLOWER_UNAUTHENTICATED_API": "false"})


@pytest.mark.security_case("Flower and API without token")
def test_flower_without_a_password_does_not_start(site: Site) -> None:
    """Flower is started as in its own manual, without address and password.

    Refused: the command ends with 2 and a sentence, before it listens.
    Evidence: the exit of the real command, and nobody at its port.
    Red before: it was served to everybody.
    """
    port = free_port()
    ended = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "jobqueue", "flower", f"--port={port}"],
        env={**os.environ, **site.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 2
    assert "Flower would serve everybody" in ended.stderr
    assert "FLOWER_BASIC_AUTH" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ask(f"http://127.0.0.1:{port}/")[0] == 0


@pytest.mark.security_case("Flower and API without token")
@pytest.mark.parametrize(
    "address",
    ["evil@corp.com.attacker.net", "evil@corp.com\n", "x@corp.com@attacker.net", "evil@xcorp.com", "@corp.com.x"],
)
@pytest.mark.parametrize("pattern", ["*@corp.com", "me@corp.com", "me@corp.com|you@corp.com"])
def test_an_account_of_another_domain_is_not_let_in(pattern: str, address: str) -> None:
    """An account whose address only looks like one of those that Flower lets in.

    Refused: the whole address has to match.
    Evidence: Flower's own comparison, in the version that is locked; it refuses patterns whose domain is open.
    """
    assert validate_auth_option(pattern)
    assert not authenticate(pattern, address)
    assert not validate_auth_option("me@*")
