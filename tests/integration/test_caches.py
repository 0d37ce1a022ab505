"""Caches that several processes share, and what those leave that are killed half-way."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import docker
import pytest
from services.engine import Engine
from services.image_registry import ImageRegistry
from services.images import BUSYBOX
from services.place import Place, open_place
from services.redis import RedisServer
from services.waiting import wait_until

from jobqueue.application import make_app
from jobqueue.lifecycle import State
from workers.attempt.input_cache import InputCache
from workers.attempt.lease_files import read_leases
from workers.attempt.trees import remove

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

LONG = timedelta(seconds=60)
CONTENT = bytes(range(256)) * 1000
DIGEST = sha256(CONTENT).hexdigest()

# A store that gives the first half, and the second one when a file is there.
FETCH = """
import sys, time
from hashlib import sha256
from pathlib import Path
from jobqueue.artifacts import Artifact
from workers.attempt.downloads import Source, fetch_file
from workers.attempt.input_cache import InputCache

folder, place, mark = map(Path, sys.argv[1:])
content = bytes(range(256)) * 1000

class Store:
    def get(self, key):
        yield content[: len(content) // 2]
        mark.with_suffix(".begun").touch()
        while not mark.exists():
            time.sleep(0.01)
        yield content[len(content) // 2 :]

artifact = Artifact(uri="store:x", sha256=sha256(content).hexdigest(), size_bytes=len(content))
source = Source(artifact=artifact, store=Store(), key="x", max_bytes=2**30)
print(fetch_file(source, InputCache(folder=folder, size_bytes=2**20), place), flush=True)
"""


def start_fetch(folder: Path, attempt: str, mark: Path) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", FETCH, str(folder), str(folder / "attempts" / attempt / "data"), str(mark)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def end(fetch: "subprocess.Popen[str]") -> Path:
    said, _ = fetch.communicate(timeout=60)
    assert fetch.returncode == 0
    return Path(said.strip())


def test_what_a_process_that_is_killed_has_half_fetched_is_fetched_anew_and_nothing_of_it_stays(tmp_path: Path) -> None:
    cache, folder = InputCache(folder=tmp_path / "cache", size_bytes=2**20), tmp_path / "cache"
    with start_fetch(folder, "one", tmp_path / "never") as first:
        wait_until((tmp_path / "never.begun").exists, what="half of it", within=LONG)
        first.kill()
    assert list((folder / "incoming").iterdir())
    assert cache.fill().count == 0
    (tmp_path / "now").touch()
    with start_fetch(folder, "two", tmp_path / "now") as second:
        path = end(second)
    assert path.read_bytes() == CONTENT
    assert not list((folder / "incoming").iterdir())
    assert cache.fill().held == 1
    assert remove(folder / "attempts" / "two")
    assert cache.fill().held == 0


def test_of_two_processes_that_need_the_same_one_fetches_it_and_the_other_waits_or_takes_over(tmp_path: Path) -> None:
    folder, mark = tmp_path / "cache", tmp_path / "mark"
    with start_fetch(folder, "one", tmp_path / "never") as first:
        wait_until((tmp_path / "never.begun").exists, what="the first one's half", within=LONG)
        with start_fetch(folder, "two", mark) as second, start_fetch(folder, "three", mark) as third:
            wait_until(lambda: len(list((folder / "attempts").iterdir())) == 3, what="two who wait", within=LONG)
            assert not mark.with_suffix(".begun").exists()
            first.kill()
            wait_until(mark.with_suffix(".begun").exists, what="one who takes over", within=LONG)
            mark.touch()
            paths = {end(second), end(third)}
    assert paths == {folder / "kept" / f"{DIGEST}.file" / "content"}
    assert InputCache(folder=folder, size_bytes=0).fill().size_bytes == len(CONTENT)
    links = (folder / "kept" / f"{DIGEST}.file" / "use").stat().st_nlink
    assert links == 3, "its own name and one for each attempt that is alive"


@pytest.fixture
def place(redis_server: RedisServer, engine: Engine, tmp_path: Path) -> Iterator[Place]:
    """A place on Redis and a real engine."""
    server = redis_server.url
    with open_place(tmp_path, broker=server, registry=server, engine=engine) as opened:
        yield opened


@pytest.fixture
def image(image_registry: ImageRegistry, engine: Engine) -> Iterator[str]:
    """An image whose registry does not answer until it is told to go on."""
    digest = image_registry.push(BUSYBOX, "awaited")
    image_registry.process.pause()
    yield digest
    image_registry.process.resume()
    with suppress(docker.errors.ImageNotFound):
        engine.client.images.remove(digest, force=True)


def leases(place: Place) -> Mapping[str, float]:
    """Return the deadlines of what a node runs, by attempt."""
    (folder,) = (place.site.settings.state_dir / "nodes").glob("*/leases")
    return {name: kept.deadline_seconds for name, kept in read_leases(folder).items()}


def wait_for_pull(place: Place) -> None:
    folder = place.site.settings.cache_dir / "images" / "pulls"
    wait_until(lambda: folder.exists() and list(folder.iterdir()), what="a pull", within=LONG)


def test_while_an_image_is_pulled_the_lease_is_renewed_and_the_worker_answers(
    place: Place, image: str, image_registry: ImageRegistry
) -> None:
    with place.make_worker() as worker:
        wait_until(lambda: "caches.kept" in worker.log.read_text(), what="what the caches hold", within=LONG)
        experiment = place.submit("true", image=image)
        wait_for_pull(place)
        ((name, deadline),) = leases(place).items()
        lease_seconds = place.site.settings.lease.total_seconds()
        wait_until(lambda: leases(place)[name] > deadline + lease_seconds, what="a pull of some leases", within=LONG)
        app = make_app(place.site.settings)
        assert wait_until(lambda: app.control.ping(timeout=2), what="an answer to a ping", within=LONG)
        assert place.client.get(experiment.id).attempt == 1
        image_registry.process.resume()
        assert experiment.result(timeout=60) == {"exit_code": 0}
        assert place.client.get(experiment.id).attempt == 1
        app.close()


def test_a_cancel_does_not_wait_for_the_image(place: Place, image: str) -> None:
    with place.make_worker():
        experiment = place.submit("true", image=image)
        wait_for_pull(place)
        experiment.cancel()
        wait_until(lambda: experiment.state is State.CANCELLED, what="the end", within=LONG)


def test_a_worker_that_is_killed_in_the_middle_of_a_pull_is_followed_by_one_that_pulls_it_and_runs(
    place: Place, image: str, image_registry: ImageRegistry, engine: Engine
) -> None:
    folder = place.site.settings.cache_dir / "images"
    with place.make_worker() as worker:
        experiment = place.submit("true", image=image)
        wait_for_pull(place)
        worker.kill()
        image_registry.process.resume()
        worker.start()
        assert experiment.result(timeout=90) == {"exit_code": 0}
        wait_until(lambda: not list((folder / "pulls").iterdir()), what="no pull left", within=LONG)
        (note,) = folder.glob("image-*")
        assert engine.client.images.get(image).id == f"sha256:{note.name.removeprefix('image-')}"
        wait_until(lambda: note.stat().st_nlink == 1, what="nobody who holds it", within=LONG)


def test_what_an_experiment_without_its_worker_needs_stays_until_it_has_ended(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    server, data = redis_server.url, tmp_path / "data"
    data.write_bytes(CONTENT)
    # The lease is long: a container that nobody may run would be frozen meanwhile.
    with open_place(tmp_path, broker=server, registry=server, engine=None, lease="60s") as place:
        cache = InputCache(folder=place.site.settings.cache_dir, size_bytes=0)
        wait = "touch outputs/begun; while [ ! -e go ]; do sleep 0.05; done; sha256sum < $DATA"
        with place.make_worker() as worker:
            experiment = place.submit(wait, inputs={"data": str(data)}, env={"DATA": "/inputs/data"})
            wait_until(lambda: list(cache.folder.glob("attempts/*/workspace/outputs/begun")), what="it", within=LONG)
            worker.kill()
            cache.trim()
            assert (cache.fill().count, cache.fill().held) == (1, 1)
            worker.start()
            wait_until(lambda: "attempt.adopted" in worker.log.read_text(), what="the adoption", within=LONG)
            cache.trim()
            (workspace,) = cache.folder.glob("attempts/*/workspace")
            (workspace / "go").touch()
            assert experiment.result(timeout=60) == {"exit_code": 0}
            assert list(experiment.logs()) == [f"{DIGEST}  -"]
            wait_until(lambda: cache.fill().held == 0, what="nobody who needs it", within=LONG)
            cache.trim()
            assert cache.fill().count == 0
