"""A real Flower, as operators start it, with the broker's user of a dashboard."""

import base64
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.process import Process
from services.site import ROOT
from services.waiting import free_port

_LOGIN = "watcher:correct"


@contextmanager
def open_flower(folder: Path, *, broker: str, project: str) -> Iterator[str]:
    """Serve Flower over a broker, behind a password; yields its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    process = Process(
        name="flower",
        command=[sys.executable, "-m", "celery", "-A", "jobqueue", "flower", "--address=127.0.0.1", f"--port={port}"],
        log=folder / "flower.log",
        ready=lambda: read_page(f"{address}/healthcheck") == "OK",
        environment={
            "PYTHONPATH": str(ROOT),
            "JOBQUEUE_BROKER_URL": broker,
            "JOBQUEUE_PROJECT": project,
            "FLOWER_BASIC_AUTH": _LOGIN,
        },
    )
    with process:
        yield address


def read_page(url: str) -> str:
    """Return what stands there for who has the password; empty where nobody answers."""
    request = urllib.request.Request(url)
    request.add_header("Authorization", f"Basic {base64.b64encode(_LOGIN.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""
