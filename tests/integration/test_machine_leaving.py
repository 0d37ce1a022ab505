"""What waits on a busy machine for all of its GPUs, while another machine starts that has as many free."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from services.fake_nvml import FakeDriver, compile_library
from services.machine import UUIDS
from services.place import OpenAt, Place, number, wait_for_sleep
from services.site import ROOT
from services.waiting import wait_until

from jobqueue.lifecycle import Phase, Reason, State
from workers.hardware.devices import Device

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
GPUS = 2
LONG = timedelta(minutes=2)


@pytest.fixture(params=["rabbitmq", "redis"])
def place(request: pytest.FixtureRequest, open_at: OpenAt) -> Iterator[Place]:
    with open_at(request.param, lease="30s", grace="2s") as opened:
        opened.create(f"{opened.site.settings.project}_gpu")
        yield opened


def test_what_waits_for_a_busy_machine_runs_on_one_that_starts_meanwhile(place: Place, tmp_path: Path) -> None:
    seconds = number()
    with open_node(place, tmp_path / "first", devices=UUIDS[:GPUS]):
        running = place.submit(f"sleep {seconds}; true", gpus=1)
        sleeper = wait_for_sleep(seconds)
        waiting = place.submit("echo $NVIDIA_VISIBLE_DEVICES", gpus=GPUS)
        wait_until(lambda: place.record_of(waiting).phase is Phase.WAITING, what="it waiting in line", within=LONG)
        with open_node(place, tmp_path / "second", devices=UUIDS[GPUS:]):
            assert waiting.result(timeout=LONG.total_seconds()) == {"exit_code": 0}
            assert set(next(iter(waiting.logs())).split(",")) == set(UUIDS[GPUS:])
            record = place.record_of(waiting)
            assert (record.state, record.user_failures, record.platform_failures) == (State.SUCCEEDED, 0, 0)
            (past,) = record.history
            assert (past.attempt, past.reason) == (1, Reason.DOES_NOT_FIT)
            assert past.detail.endswith(f", and another node is free: {node_of(place, 'gpu0.second')}")
            assert running.state is State.RUNNING
        os.kill(sleeper, signal.SIGTERM)
        assert running.result(timeout=LONG.total_seconds()) == {"exit_code": 0}


@contextmanager
def open_node(place: Place, folder: Path, *, devices: tuple[str, ...]) -> Iterator[None]:
    """Open a machine with devices of its own that are only said to be there, a worker for each."""
    (folder / "driver").mkdir(parents=True)
    driver = FakeDriver(compile_library(folder), folder / "driver")
    driver.show(*(Device(uuid=uuid, index=index, memory_bytes=2**34) for index, uuid in enumerate(devices)))
    own: Mapping[str, str] = {
        **driver.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JOBQUEUE_STATE_DIR": str(folder / "state"),
        "JOBQUEUE_CACHE_DIR": str(folder / "cache"),
        "JOBQUEUE_KEYS": str(place.site.settings.keys_dir),
        "JOBQUEUE_STORAGE_URL": place.site.settings.storage,
    }
    workers = [
        place.make_worker(
            f"gpu{index}.{folder.name}",
            environment={**own, "JOBQUEUE_SLOT": f"gpu{index}={uuid}"},
            app="services.restless_worker",
        )
        for index, uuid in enumerate(devices)
    ]
    with workers[0], workers[1]:
        yield


def node_of(place: Place, name: str) -> str:
    # Other tests' workers are named alike, and known for a while after they were killed.
    worker_id = f"{name}.{place.site.settings.project}@test"
    there = place.client._connections.registry.workers.present()
    return next(worker.node_id for worker in there if worker.worker_id == worker_id)
