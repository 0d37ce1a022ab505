"""The rules that conftest.py enforces, each broken once."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

LEFT_BEHIND = {
    "thread": "import threading, time; threading.Thread(target=time.sleep, args=(25,)).start()",
    "process": "import subprocess; subprocess.run('setsid sleep 50 >/dev/null & true', shell=True)",
    "container": (
        "engine.client.containers.run('jobqueue-test/busybox:1', 'sleep 50', detach=True,"
        "network_mode='none', labels={'jobqueue.experiment': 'exp'})"
    ),
    "redis, stopped": "redis_server.process.kill()",
}
SOCKET = (
    "import contextlib, socket\n"
    "    with contextlib.suppress(Exception), socket.socket() as opened:\n"
    "        opened.connect(('127.0.0.1', 9))"
)
SKIP = "import pytest; pytest.skip('no server here')"


def write_test(folder: Path, tier: str, name: str, body: str) -> None:
    """Add a test with this body to a tier."""
    fixtures = [fixture for fixture in ("engine", "redis_server") if fixture in body]
    module = folder / "tests" / tier / f"test_of_{tier}.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    with module.open("a") as file:
        file.write(f"def test_{name}({', '.join(fixtures)}):\n    {body}\n")


def run_tests(folder: Path) -> str:
    """Run all tests of a folder under the house's rules and return what pytest printed."""
    shutil.copy(TESTS / "conftest.py", folder / "tests")
    command = [sys.executable, "-m", "pytest", "-c", str(TESTS.parent / "pyproject.toml")]
    done = subprocess.run(
        [*command, "--rootdir", str(folder), "-p", "no:cacheprovider", str(folder / "tests")],
        env={**os.environ, "CI": "true", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest prints of tests that each break one rule."""
    folder = tmp_path_factory.mktemp("rules")
    for leak, body in LEFT_BEHIND.items():
        write_test(folder, "integration", leak.partition(",")[0], body)
    write_test(folder, "unit", "socket", SOCKET)
    write_test(folder, "contract", "skip", SKIP)
    return run_tests(folder)


def section(printed: str, title: str) -> str:
    """Return what stands under a title of pytest's."""
    _before, *parts = re.split(r"^_+ (.+) _+$", printed, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))[title]


@pytest.mark.parametrize("leak", LEFT_BEHIND)
def test_what_a_test_leaves_behind_fails_it(leak: str, printed: str) -> None:
    told = section(printed, f"ERROR at teardown of test_{leak.partition(',')[0]}")
    assert leak in told.partition("left behind")[2]
    assert "2 failed, 4 passed, 4 errors" in printed


def test_a_unit_test_cannot_open_a_socket_even_if_it_swallows_errors(printed: str) -> None:
    assert "a unit test opened a socket to ('127.0.0.1', 9)" in section(printed, "test_socket")


def test_a_skipped_test_fails_where_everything_must_run(printed: str) -> None:
    assert "skipped, where everything must run" in section(printed, "test_skip")


def test_a_test_outside_the_tiers_is_refused(tmp_path: Path) -> None:
    write_test(tmp_path, "misc", "it", "pass")
    assert "not in one of unit, contract, integration, acceptance, faults" in run_tests(tmp_path)
