"""A worker without any credentials of the store runs experiments whole, through a clerk who has some."""

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from services.clerk import introduce
from services.moto import MotoServer
from services.place import LONG, OpenAt, Place, number, wait_for_sleep
from services.process import Process
from services.site import ROOT
from services.waiting import wait_until

from jobqueue.keys import KeyRing, Reader, Signer, make_pair
from jobqueue.lifecycle import Reason, State
from jobqueue.storage.markers import read_marker
from producers.handle import Experiment
from producers.preparation import JobqueueWarning

CREDENTIALS = ("AWS_", "JOBQUEUE_STORAGE_ENDPOINT")


@dataclass(frozen=True, kw_only=True)
class Granting:
    """A place whose clerk has the store's credentials, and whose worker has none."""

    place: Place
    clerk: Process
    worker: Process


@pytest.fixture
def granting(
    open_at: OpenAt, s3_server: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Granting]:
    bucket = s3_server.make_bucket(f"bucket-{uuid.uuid4()}") + "/site"
    for name in [name for name in os.environ if name.startswith(CREDENTIALS)]:
        monkeypatch.delenv(name)
    with ExitStack() as opened:
        place = opened.enter_context(
            open_at("redis", "process", storage_url=bucket, storage_endpoint=s3_server.url, lease="60s")
        )
        with monkeypatch.context() as credentials:  # the client's own, which no process inherits
            for name, value in s3_server.environment.items():
                credentials.setenv(name, value)
            assert place.client._connections.store.size("nothing") is None
        node, clerk_keys = make_keys(place, tmp_path)
        clerk = make_clerk(place, s3_server, clerk_keys)
        without = {"JOBQUEUE_STORAGE_URL": "granted:", "JOBQUEUE_KEYS": str(node), "JOBQUEUE_STORAGE_ENDPOINT": ""}
        worker = place.make_worker(environment=without, is_copy=False)
        with clerk, worker:
            yield Granting(place=place, clerk=clerk, worker=worker)


def make_keys(place: Place, folder: Path) -> tuple[Path, Path]:
    """Make a node's and a clerk's keys in folders of their own, and let each trust whom it needs."""
    client, node, clerk = place.client._connections.keys, KeyRing(folder / "node keys"), KeyRing(folder / "clerk keys")
    node_lines = [make_pair(node.folder, Reader.NODE).line, make_pair(node.folder, Signer.NODE).line]
    sender_line, clerk_line = client.sender().public.line, make_pair(clerk.folder, Signer.CLERK).line
    queue = place.site.queue
    introduce(client, node_lines, queue=queue)
    introduce(node, [sender_line, clerk_line], queue=queue)
    introduce(clerk, [*node_lines, sender_line], queue=queue)
    return node.folder, clerk.folder


def make_clerk(place: Place, server: MotoServer, keys: Path, *, name: str = "clerk") -> Process:
    log = place.site.folder / f"{name}.log"
    return Process(
        name=name,
        command=[sys.executable, "-c", "from producers.cli import main; main()", "grants", "serve"],
        log=log,
        ready=lambda: log.exists() and "grants.ready" in log.read_text(errors="replace"),
        environment={
            **place.site.environment,
            **server.environment,
            "PYTHONPATH": str(ROOT),
            "JOBQUEUE_KEYS": str(keys),
        },
    )


def submit(granting: Granting, tmp_path: Path, command: str) -> Experiment:
    workspace = tmp_path / "work"
    workspace.mkdir()
    (workspace / "code.sh").write_text("cat $1\n")
    (tmp_path / "data.txt").write_text("the input\n")
    return granting.place.submit(
        command, workspace=workspace, inputs={"data": tmp_path / "data.txt"}, outputs=["outputs/"]
    )


WORK = "sh code.sh /inputs/data | tee outputs/copy.txt; echo done"


def ask_doctor(granting: Granting, keys: Path) -> str:
    """Return what `jobqueue doctor` says on a node without credentials."""
    environment = {
        **os.environ,
        **granting.place.site.environment,
        "JOBQUEUE_STORAGE_URL": "granted:",
        "JOBQUEUE_KEYS": str(keys),
    }
    words = [sys.executable, "-c", "from producers.cli import main; main()", "doctor"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60).stdout


def test_an_experiment_runs_whole_on_a_node_without_credentials_whose_doctor_names_its_clerk(
    granting: Granting, tmp_path: Path
) -> None:
    environ = psutil.Process(granting.worker.pid).environ()
    assert not [name for name, value in environ.items() if value and name.startswith(CREDENTIALS)]
    experiment = submit(granting, tmp_path, WORK)
    experiment.wait(timeout=LONG)
    assert experiment.state is State.SUCCEEDED, granting.worker.log_tail()
    assert experiment.outputs.read_bytes("outputs/copy.txt") == b"the input\n"
    assert list(experiment.logs()) == ["the input", "done"]
    marker = read_marker(granting.place.client._connections.store, experiment.id)
    assert marker is not None
    assert len(marker.manifest_sha256) == 64
    for log in (granting.worker.log, granting.clerk.log):
        assert "X-Amz" not in log.read_text()
    told = ask_doctor(granting, tmp_path / "node keys")
    assert re.search(rf"^ok +store +granted by the clerk \S+:{granting.clerk.pid},", told, re.MULTILINE), told


def test_an_attempt_is_adopted_on_a_node_without_credentials(granting: Granting, tmp_path: Path) -> None:
    seconds = number()
    experiment = submit(granting, tmp_path, f"echo first; sleep {seconds}; {WORK}")
    pid = wait_for_sleep(seconds)
    granting.worker.kill()
    granting.worker.start()
    psutil.Process(pid).kill()
    experiment.wait(timeout=LONG)
    assert experiment.state is State.SUCCEEDED, granting.worker.log_tail()
    assert list(experiment.logs()) == ["first", "the input", "done"]
    assert granting.place.record_of(experiment).attempt == 1


def test_no_experiment_fails_while_its_clerk_is_started_anew(granting: Granting, tmp_path: Path) -> None:
    seconds = number()
    experiment = submit(granting, tmp_path, f"sleep {seconds}; {WORK}")
    pid = wait_for_sleep(seconds)
    granting.clerk.kill()
    psutil.Process(pid).kill()
    wait_until(
        lambda: "step.retried" in granting.worker.log.read_text() or "not_stored" in granting.worker.log.read_text(),
        what="the worker missing its clerk",
        within=LONG,
    )
    assert not experiment.done()
    granting.clerk.start()
    experiment.wait(timeout=LONG)
    assert experiment.state is State.SUCCEEDED, granting.worker.log_tail()
    record = granting.place.record_of(experiment)
    assert (record.attempt, record.platform_failures) == (1, 0)


def test_of_two_clerks_either_will_do(granting: Granting, s3_server: MotoServer, tmp_path: Path) -> None:
    seconds = number()
    with make_clerk(granting.place, s3_server, tmp_path / "clerk keys", name="other clerk"):
        experiment = submit(granting, tmp_path, f"sleep {seconds}; {WORK}")
        pid = wait_for_sleep(seconds)
        granting.clerk.kill()
        psutil.Process(pid).kill()
        experiment.wait(timeout=LONG)
        assert experiment.state is State.SUCCEEDED, granting.worker.log_tail()
        assert experiment.outputs.read_bytes("outputs/copy.txt") == b"the input\n"


def test_what_is_cancelled_before_it_starts_gets_its_marker_from_the_clerk(granting: Granting, tmp_path: Path) -> None:
    granting.worker.stop()
    with pytest.warns(JobqueueWarning, match="no worker"):
        experiment = submit(granting, tmp_path, WORK)
    store = granting.place.client._connections.store
    granting.place.client._connections.registry.experiments.cancel(experiment.id)  # as another machine's user does
    granting.worker.start()
    marker = wait_until(lambda: read_marker(store, experiment.id), what="the marker", within=LONG)
    assert (marker.state, marker.reason) == (State.CANCELLED, Reason.CANCELLED_BY_USER)
