"""`make demo`: a real experiment from its submission to its outputs, on each runtime, and nothing is left."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from services.engine import Engine
from services.images import PYTHON

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    # The path of a pytest folder alone may be too long for a socket.
    short = Path(f"/tmp/jq-{os.getpid()}-{os.urandom(3).hex()}")
    short.symlink_to(tmp_path)
    yield short
    short.unlink()


def _demo(folder: Path, **variables: str) -> str:
    """Run the demo with its temporary folder in `folder`; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "TMPDIR": str(folder), **variables}
    done = subprocess.run(
        [sys.executable, str(_ROOT / "examples" / "demo.py")],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def _check(printed: str, folder: Path, *, model: str) -> None:
    accuracy = re.search(r"result +SUCCEEDED: accuracy (\d\.\d+)", printed)
    assert accuracy, printed
    assert float(accuracy[1]) > 0.9
    assert "progress   [" in printed
    assert "100%" in printed
    assert printed.count("epoch") >= 8
    for output in (model, "metrics.json", "result.json"):
        assert f"outputs/{output}" in printed
    assert "nothing is left running" in printed
    assert not list(folder.glob("jobqueue-demo-*"))


def test_without_an_engine_it_trains_in_a_confined_process_and_says_so_whatever_this_machines_own_settings(
    folder: Path,
) -> None:
    (folder / "jobqueue.toml").write_text('broker_url = "amqp://127.0.0.1:1"\n')
    printed = _demo(
        folder,
        DOCKER_HOST="unix:///nonexistent/docker.sock",
        JOBQUEUE_BROKER_URL="redis://127.0.0.1:1/0",
        JOBQUEUE_PROJECT="elsewhere",
    )
    assert "runtime    process: no container engine answers" in printed
    _check(printed, folder, model="model.joblib")


def test_with_an_engine_it_trains_in_a_container(folder: Path, engine: Engine) -> None:
    printed = _demo(folder, DOCKER_HOST=engine.url, DEMO_IMAGE=PYTHON)
    assert "runtime    docker: " in printed
    _check(printed, folder, model="model.json")
    assert not engine.client.containers.list(all=True)


def test_with_an_engine_that_cannot_have_the_image_it_says_so_and_takes_a_process(engine: Engine) -> None:
    chosen = subprocess.run(
        [sys.executable, "-c", "import demo; print(demo.choose_runtime())"],
        env={
            **os.environ,
            "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'examples'}",
            "DOCKER_HOST": engine.url,
            "DEMO_IMAGE": "jobqueue-test/nowhere:1",
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    assert "the image jobqueue-test/nowhere:1 is not there and cannot be pulled" in chosen.stdout
    assert chosen.stdout.splitlines()[-1] == "process"
