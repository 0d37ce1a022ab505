"""The rules that conftest.py enforces, each broken once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

LEFT_BEHIND = {
    "thread": "import threading, time; threading.Thread(target=time.sleep, args=(5,)).start()",
    "process": "import subprocess; subprocess.run('setsid sleep 50 >/dev/null & true', shell=True)",
    "container": (
        "engine.client.containers.run('jobqueue-test/busybox:1', 'sleep 50', detach=True,"
        "network_mode='none', labels={'jobqueue.experiment': 'exp'})"
    ),
    "redis, stopped": "redis_server.process.kill()",
}


def run_test(folder: Path, tier: str, body: str) -> str:
    """Run one test with this body under the house's rules and return what pytest printed."""
    fixtures = [name for name in ("engine", "redis_server") if name in body]
    module = folder / "tests" / tier / "test_it.py"
    module.parent.mkdir(parents=True)
    module.write_text(f"def test_it({', '.join(fixtures)}):\n    {body}\n")
    shutil.copy(TESTS / "conftest.py", folder / "tests")
    command = [sys.executable, "-m", "pytest", "-c", str(TESTS.parent / "pyproject.toml")]
    done = subprocess.run(
        [*command, "--rootdir", str(folder), "-p", "no:cacheprovider", str(module)],
        env={**os.environ, "CI": "true", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("leak", LEFT_BEHIND)
def test_what_a_test_leaves_behind_fails_it(leak: str, tmp_path: Path) -> None:
    printed = run_test(tmp_path, "integration", LEFT_BEHIND[leak])
    assert "left behind" in printed
    assert leak in printed.partition("left behind")[2]
    assert "1 passed, 1 error" in printed


def test_a_unit_test_cannot_open_a_socket_even_if_it_swallows_errors(tmp_path: Path) -> None:
    body = (
        "import contextlib, socket\n"
        "    with contextlib.suppress(Exception), socket.socket() as opened:\n"
        "        opened.connect(('127.0.0.1', 9))"
    )
    assert "a unit test opened a socket to ('127.0.0.1', 9)" in run_test(tmp_path, "unit", body)


def test_a_skipped_test_fails_where_everything_must_run(tmp_path: Path) -> None:
    printed = run_test(tmp_path, "contract", "import pytest; pytest.skip('no server here')")
    assert "skipped, where everything must run" in printed
    assert "1 failed" in printed


def test_a_test_outside_the_tiers_is_refused(tmp_path: Path) -> None:
    printed = run_test(tmp_path, "misc", "pass")
    assert "not in one of unit, contract, integration, acceptance, faults" in printed
