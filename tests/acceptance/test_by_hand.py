"""What somebody does by hand: RabbitMQ, a worker, an experiment; then look at it with every tool there is."""

import base64
import itertools
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from services.process import Process
from services.rabbitmq import RabbitServer
from services.redis import RedisServer
from services.site import ROOT, Site, open_site
from services.waiting import free_port, wait_until

_JOBQUEUE = (sys.executable, "-c", "from producers.cli import main; main()")
_CELERY = (sys.executable, "-m", "celery", "-A", "jobqueue")
_PLAINTEXT = "a-word-that-nobody-else-may-read"
_WITHIN = timedelta(seconds=120)
_USER, _PASSWORD = "watcher", "correct-horse"
# It goes on until somebody lets it: what is to be seen of a running experiment does not depend on the machine's speed.
_PATIENT = """
import os, sys, time
print("first line", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
"""


@pytest.fixture
def site(rabbitmq_server: RabbitServer, redis_server: RedisServer, tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path, broker=rabbitmq_server.url, registry=redis_server.url, runtime="process") as opened:
        assert _jobqueue(opened, "queues", "create", "--reporting").returncode == 0
        with opened.make_worker():
            yield opened
        _jobqueue(opened, "queues", "delete", "--yes", opened.queue, opened.queue.replace("_cpu", "_gpu"))


def _environment(site: Site) -> dict[str, str]:
    return {**os.environ, **site.environment, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}


def _run(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, env=_environment(site), cwd=site.folder, capture_output=True, text=True, check=False, timeout=200
    )


def _jobqueue(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    return _run(site, *_JOBQUEUE, *words)


def _submit(site: Site, program: str, *arguments: str) -> str:
    image = ("--image", "python:3.12-slim", "--memory", "256MiB", "--env", f"WORD={_PLAINTEXT}")
    done = _jobqueue(site, "submit", *image, "--", sys.executable, "-c", program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _is_running(site: Site, experiment: str) -> bool:
    return "RUNNING" in _jobqueue(site, "why", experiment).stdout


def _reports(site: Site, experiment: str) -> list[dict[str, Any]]:
    """Listen until the experiment's last report has come."""
    found: list[dict[str, Any]] = []
    # A machine that is busy may need more than the first ones to connect.
    seconds = itertools.count(2, 2)

    def has_ended() -> bool:
        printed = _jobqueue(site, "reports", "listen", "--timeout", f"{next(seconds)}s", "-o", "json").stdout
        reports = [json.loads(line) for line in printed.splitlines()]
        found.extend(report for report in reports if report["experiment_id"] == experiment)
        return any(report["state"] in ("SUCCEEDED", "FAILED", "CANCELLED") for report in found)

    wait_until(has_ended, what="the last report", within=_WITHIN)
    return found


def test_an_experiment_is_seen_by_every_tool_while_it_runs_and_when_it_is_over(site: Site) -> None:
    gate = site.folder / "open"
    experiment = _submit(site, _PATIENT, gate.name)
    wait_until(lambda: _is_running(site, experiment), what="it runs", within=_WITHIN)

    active = _run(site, *_CELERY, "inspect", "active")
    assert active.returncode == 0, active.stderr
    assert experiment in active.stdout
    assert _PLAINTEXT not in active.stdout

    follower = subprocess.Popen(
        [*_JOBQUEUE, "logs", "-f", experiment], env=_environment(site), stdout=subprocess.PIPE, text=True
    )
    assert follower.stdout is not None
    assert follower.stdout.readline() == "first line\n"
    _open(gate)
    assert follower.communicate(timeout=60)[0] == ""
    assert follower.returncode == 0

    reports = _reports(site, experiment)
    assert [report["sequence"] for report in reports] == list(range(len(reports)))
    assert [report["progress"]["state"] for report in reports if "progress" in report] == [
        "Prestart", "Started", "Stopping", "Success",
    ]  # fmt: skip
    assert [report["logging"]["message"] for report in reports if "logging" in report] == ["first line"]
    assert experiment not in _run(site, *_CELERY, "inspect", "active").stdout
    assert _jobqueue(site, "show", experiment, "-o", "json").returncode == 0


def test_a_failure_is_reported_with_its_error_and_its_last_lines(site: Site) -> None:
    experiment = _submit(site, "import sys; print('no data'); sys.exit(3)")
    assert _jobqueue(site, "wait", experiment).returncode == 100
    last = _reports(site, experiment)[-1]
    assert last["progress"]["state"] == "Failed"
    assert last["progress"]["error"]["code"] == 3
    assert "another code than 0" in last["progress"]["error"]["msg"]
    assert (last["reason"], last["fault"], last["exit_code"]) == ("EXITED_NONZERO", "user", 3)


def test_celerys_terminate_cancels_an_experiment(site: Site) -> None:
    experiment = _submit(site, _PATIENT, "never")
    wait_until(lambda: _is_running(site, experiment), what="it runs", within=_WITHIN)
    assert _run(site, *_CELERY, "control", "terminate", "TERM", experiment).returncode == 0
    assert _jobqueue(site, "wait", "--timeout", "60s", experiment).returncode == 103


def test_flower_shows_the_experiment_and_nothing_of_what_it_runs(site: Site) -> None:
    gate = site.folder / "open"
    with _flower(site) as address:
        assert _get(f"{address}/api/tasks", password="wrong")[0] == 401
        experiment = _submit(site, _PATIENT, gate.name)
        wait_until(lambda: _task(address, experiment).get("state") == "STARTED", what="it is seen", within=_WITHIN)
        _open(gate)
        wait_until(lambda: _task(address, experiment).get("state") == "SUCCESS", what="its end", within=_WITHIN)
        task = _task(address, experiment)
        assert task["name"] == "jobqueue.run_experiment"
        shown = [json.dumps(task)] + [
            _get(f"{address}{path}")[1]
            for path in ("/api/tasks", "/api/workers", f"/api/task/info/{experiment}", f"/task/{experiment}", "/tasks")
        ]
        for text in shown:
            assert _PLAINTEXT not in text
            assert "first line" not in text
        assert experiment in shown[1]


@contextmanager
def _flower(site: Site) -> Iterator[str]:
    """Serve Flower on a loopback port, behind a password."""
    port = free_port()
    words = ("flower", "--address=127.0.0.1", f"--port={port}", f"--basic-auth={_USER}:{_PASSWORD}")
    address = f"http://127.0.0.1:{port}"
    process = Process(
        name="flower",
        command=[*_CELERY, *words],
        log=site.folder / "flower.log",
        ready=lambda: _get(f"{address}/api/workers")[0] == 200,
        environment=_environment(site),
    )
    with process:
        yield address


def _task(address: str, experiment: str) -> Mapping[str, Any]:
    status, text = _get(f"{address}/api/tasks")
    tasks: dict[str, Mapping[str, Any]] = json.loads(text) if status == 200 else {}
    return tasks.get(experiment, {})


def _get(url: str, *, password: str = _PASSWORD) -> tuple[int, str]:
    credentials = base64.b64encode(f"{_USER}:{password}".encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {credentials}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except OSError:
        return 0, ""


def _open(gate: Path) -> None:
    """Make the file that the running experiment waits for, in its workspace on the node."""
    workspaces = [path for path in gate.parent.rglob("workspace") if path.is_dir()]
    assert workspaces, sorted(gate.parent.rglob("*"))
    for workspace in workspaces:
        (workspace / gate.name).touch()
