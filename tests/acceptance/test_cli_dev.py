"""`jobqueue dev`: everything runs in one terminal, an experiment goes through, and nothing is left afterwards."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from services.waiting import free_port, wait_until

_ROOT = Path(__file__).parents[2]
_COMMAND = (sys.executable, "-c", "from producers.cli import main; main()")
_STARTER = "import signal, subprocess, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); subprocess.run(sys.argv[1:])"
_READY = "Ctrl-C stops everything"
_START = timedelta(seconds=120)
_STOP = timedelta(seconds=120)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    # The path of a pytest folder alone may be too long for a socket.
    short = Path(f"/tmp/jq-{os.getpid()}-{os.urandom(3).hex()}")
    short.symlink_to(tmp_path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBQUEUE_")}
    yield kept | {
        "JOBQUEUE_STATE_DIR": str(short / "state"),
        "JOBQUEUE_CACHE_DIR": str(short / "cache"),
        "JOBQUEUE_RUNTIME": "process",
        "JOBQUEUE_GRACE": "2s",
        "PYTHONPATH": str(_ROOT),
    }
    short.unlink()


@dataclass(frozen=True, kw_only=True)
class _Dev:
    process: subprocess.Popen[str]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def parts(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def _dev(environment: Mapping[str, str], *options: str) -> Iterator[_Dev]:
    log = Path(environment["JOBQUEUE_STATE_DIR"]).parent / f"dev-{os.urandom(3).hex()}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*_COMMAND, "dev", *options], env=dict(environment), stdout=output, stderr=output, text=True
        )
    dev = _Dev(process=process, log=log)
    try:
        wait_until(lambda: _READY in dev.text or process.poll() is not None, what="dev is up", within=_START)
        assert process.poll() is None, dev.text
        yield dev
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _call(environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *words], env=dict(environment), capture_output=True, text=True, check=False, timeout=200
    )


def _workers(environment: Mapping[str, str]) -> bool:
    rows = json.loads(_call(environment, "doctor", "-o", "json").stdout)
    return {row["name"]: row["verdict"] for row in rows}.get("workers") == "ok"


def _all_gone(parts: list[psutil.Process]) -> bool:
    return not any(part.is_running() and part.status() != psutil.STATUS_ZOMBIE for part in parts)


def test_an_experiment_runs_and_ctrl_c_leaves_nothing(environment: Mapping[str, str], tmp_path: Path) -> None:
    with _dev(environment, "--no-flower") as dev:
        assert _workers(environment), "what it invites to try can be tried"
        folder = tmp_path / "work"
        folder.mkdir()
        (folder / "train.py").write_text(
            "import os, sys, json\n"
            "print('hello', os.environ['SEED'])\n"
            "print('oops', file=sys.stderr)\n"
            "os.makedirs('outputs', exist_ok=True)\n"
            "json.dump({'accuracy': 1}, open('outputs/result.json', 'w'))\n"
            "sys.exit(int(os.environ['CODE']))\n"
        )
        given = ("--image", "python:3.12-slim", "--workspace", str(folder), "--env", "SEED=7", "--memory", "512MiB")
        for code in (0, 3):
            result = _call(environment, "run", *given, "--env", f"CODE={code}", "--", sys.executable, "train.py")
            assert result.returncode == code, result.stderr
            assert result.stdout == "hello 7\n"
            assert "oops" in result.stderr
        assert _call(environment, "wait", "last").returncode == 100
        assert _call(environment, "get", "last", str(tmp_path / "out"), "-o", "name").stdout.split() == [
            str(tmp_path / "out/outputs/result.json")
        ]
        parts = dev.parts()
        assert len(parts) >= 2
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(_STOP.total_seconds()) == 0, dev.text
        assert dev.text.rstrip().endswith("stopped")
        assert _all_gone(parts)


def test_a_second_one_says_that_one_is_running_and_sigterm_stops_the_first(environment: Mapping[str, str]) -> None:
    with _dev(environment, "--no-flower", "--quiet") as dev:
        second = _call(environment, "dev")
        assert second.returncode == 1
        assert "running already" in second.stderr
        assert "hint:" in second.stderr
        parts = dev.parts()
        dev.process.terminate()
        assert dev.process.wait(_STOP.total_seconds()) == 0, dev.text
        assert _all_gone(parts)


def test_its_parts_end_with_it_when_it_is_killed_and_the_next_one_starts(environment: Mapping[str, str]) -> None:
    with _dev(environment, "--no-flower", "--quiet") as dev:
        parts = dev.parts()
        dev.process.kill()
        dev.process.wait()
    wait_until(lambda: _all_gone(parts), what="its parts end", within=_STOP)
    with _dev(environment, "--no-flower", "--quiet") as dev:
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(_STOP.total_seconds()) == 0


def test_it_ends_with_the_process_that_started_it(environment: Mapping[str, str], tmp_path: Path) -> None:
    log = tmp_path / "dev.log"
    with log.open("w") as output:
        starter = subprocess.Popen(
            [sys.executable, "-c", _STARTER, *_COMMAND, "dev", "--no-flower", "--quiet"],
            env=dict(environment),
            stdout=output,
            stderr=output,
        )
    wait_until(lambda: _READY in log.read_text(), what="dev is up", within=_START)
    parts = psutil.Process(starter.pid).children(recursive=True)
    starter.kill()
    starter.wait()
    wait_until(lambda: _all_gone(parts), what="everything ends", within=_STOP)
    assert log.read_text().rstrip().endswith("stopped")


@pytest.mark.security_case("Flower and API without token")
def test_flower_is_served_on_this_machine_only_and_to_who_has_the_password(environment: Mapping[str, str]) -> None:
    """Another user of a login host, or a page in a browser there, opens the Flower of somebody's `jobqueue dev`.

    Refused: each start has a password of its own, which stands in the address that its terminal shows.
    Evidence: the answers of a real Flower with it and without, and that no process shows it in its words.
    Red before: its pages asked nobody, and let every page of the web read them.
    """
    opened = {**environment, "FLOWER_UNAUTHENTICATED_API": "true"}
    with _dev(opened, "--quiet", "--flower-port", str(free_port())) as dev:
        found = re.search(r"http://(jobqueue:\S+)@(127\.0\.0\.1:\d+)", dev.text)
        assert found
        login, address = found[1], f"http://{found[2]}"
        wait_until(lambda: _status(f"{address}/workers", login=login) == 200, what="Flower answers", within=_START)
        assert {_status(f"{address}{path}") for path in ("/", "/workers", "/tasks", "/api/workers")} == {401}
        children = psutil.Process(dev.process.pid).children(recursive=True)
        assert children
        assert not [child for child in children if login.partition(":")[2] in " ".join(child.cmdline())]
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(_STOP.total_seconds()) == 0, dev.text


@pytest.mark.parametrize("name", ["BROKER_URL", "REGISTRY_URL"])
def test_it_does_not_run_beside_a_server_that_is_named(environment: Mapping[str, str], name: str) -> None:
    result = _call({**environment, f"JOBQUEUE_{name}": "redis://127.0.0.1:1/0"}, "dev")
    assert result.returncode == 2
    assert f"unset JOBQUEUE_{name}" in result.stderr


def test_without_it_commands_say_to_start_it(environment: Mapping[str, str]) -> None:
    result = _call(environment, "ls")
    assert result.returncode == 69
    assert "hint: start everything on this machine with `jobqueue dev`" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_is_quick(environment: Mapping[str, str]) -> None:
    def seconds() -> float:
        before = os.times()
        _call(environment, "--help")
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < 0.25


def test_the_shell_completes_commands(environment: Mapping[str, str]) -> None:
    asked = {**environment, "_JOBQUEUE_COMPLETE": "bash_complete", "COMP_WORDS": "jobqueue re", "COMP_CWORD": "1"}
    assert "plain,reports" in _call(asked).stdout


def _status(url: str, *, login: str = "") -> int:
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0
