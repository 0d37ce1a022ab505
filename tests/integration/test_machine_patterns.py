"""A machine with GPUs whose slots find their queues by patterns, each its own kind, while they run."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from services.machine import UUIDS, open_machine
from services.place import LONG, number, wait_for_sleep
from services.redis import RedisServer
from services.waiting import wait_until

if TYPE_CHECKING:
    from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
GPUS = 2


def test_slots_serve_queues_of_their_kind_that_appear_later(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = {"queues": "lab_*,!lab_private_*", "queue_refresh": "1s"}
    with (
        open_machine(tmp_path, broker=redis_server.url, registry=redis_server.url, gpus=GPUS, **settings) as machine,
        machine.place.open_broker() as broker,
    ):
        place, workers = machine.place, machine.place.client._connections.registry.workers
        ending = place.site.settings.project
        gpu, cpu, either, private = (
            f"lab_{name}" for name in (f"{ending}_gpu", f"{ending}_cpu", ending, f"private_{ending}")
        )

        def served(name: str) -> set[str]:
            return {worker.slot for worker in workers.present() if name in worker.queues}

        assert [served(queue) for queue in (gpu, cpu, either)] == [set()] * 3
        for queue in (gpu, cpu, either, private):
            broker.queues.create(queue)
        telling = "echo $NVIDIA_VISIBLE_DEVICES"
        single = place.submit(telling, queue=gpu, gpus=1)
        both = place.submit(telling, queue=either, gpus=GPUS)
        plain = place.submit(telling, queue=cpu)
        left = place.submit("true", queue=private)
        told: dict[Experiment, set[str]] = {}
        for experiment in (single, both, plain):
            assert experiment.result(timeout=90) == {"exit_code": 0}
            told[experiment] = set(next(iter(experiment.logs())).split(","))
        assert told[single] < set(UUIDS[:GPUS])
        assert (told[both], told[plain]) == (set(UUIDS[:GPUS]), {"void"})
        wait_until(lambda: served(gpu) == {"gpu0", "gpu1"}, what="the devices' slots serving the one", within=LONG)
        wait_until(lambda: served(cpu) == {"cpu"}, what="the cores' slot serving the other", within=LONG)
        assert served(private) == set()
        # Both slots work for one queue at a time while it holds something.
        seconds = number(), number()
        running = [place.submit(f"sleep {each}", queue=gpu, gpus=1) for each in seconds]
        for each in seconds:
            wait_for_sleep(each)
        broker.queues.delete(gpu)
        assert [experiment.wait(60) for experiment in running] == [True, True]
        wait_until(lambda: served(gpu) == set(), what="what was deleted being left", within=LONG)
        assert place.submit(telling, queue=cpu).result(timeout=60) == {"exit_code": 0}
        assert left.attempt == 0
        for queue in (cpu, either, private):
            broker.queues.delete(queue)
