"""What looks after a node's caches says what they hold, once, and goes on when something is wrong."""

from pathlib import Path

import pytest
from services.waiting import wait_until

from workers.attempt.input_cache import CONTENT, InputCache, Wanted
from workers.attempt.runtimes.fake import FakeRuntime
from workers.node.caches import CacheKeeper


class Engine(FakeRuntime):
    """A runtime that keeps images, or does not answer."""

    def tidy(self) -> str:
        self.check()
        return "2 images pulled here, 3 GiB"


def fill(cache: InputCache, place: Path) -> None:
    def bring(folder: Path, _pulse: object) -> str:
        (folder / CONTENT).write_bytes(bytes(1024))
        return "name"

    cache.get(Wanted(name="name", expected_bytes=1024, bring=bring), place)


@pytest.fixture
def cache(tmp_path: Path) -> InputCache:
    return InputCache(folder=tmp_path, size_bytes=2**20)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    records = [record for record in caplog.records if record.message == "caches.kept"]
    return [(record.inputs, getattr(record, "images", "")) for record in records]  # type: ignore[attr-defined]


def test_what_is_kept_is_said_when_it_has_changed(
    cache: InputCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    keeper = CacheKeeper(cache, Engine())
    keeper.look()
    keeper.look()
    fill(cache, tmp_path / "attempts" / "one")
    keeper.look()
    images = "2 images pulled here, 3 GiB"
    assert said(caplog) == [("0 kept, 0 B of 1 MiB, 0 in use", images), ("1 kept, 1 KiB of 1 MiB, 1 in use", images)]


def test_an_engine_that_is_away_keeps_no_input_from_going(
    cache: InputCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fill(cache, tmp_path / "place")
    (tmp_path / "place" / "use").unlink()
    engine = Engine()
    engine.is_down = True
    CacheKeeper(InputCache(folder=tmp_path, size_bytes=0), engine).look()
    assert said(caplog) == [("0 kept, 0 B of 0 B, 0 in use", "")]


def test_it_looks_at_its_start_and_ends_when_told(cache: InputCache, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Engine):
        def tidy(self) -> str:
            raise ValueError("nobody has thought of this")

    caplog.set_level("INFO")
    for engine, message in ((Engine(), "caches.kept"), (Broken(), "round.failed")):
        keeper = CacheKeeper(cache, engine)
        keeper.start()
        wait_until(lambda message=message: message in caplog.messages, what=message)  # type: ignore[misc]
        keeper.close()
