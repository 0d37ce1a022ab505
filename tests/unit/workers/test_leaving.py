"""When a worker of an ephemeral node ends by itself."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from services.lease_files import make_kept
from services.waiting import wait_until

from jobqueue.errors import InvalidSetting
from jobqueue.ids import ExperimentId, WorkerId
from workers.attempt.lease_files import LeaseFile
from workers.node import leaving as module
from workers.node.leaving import Leave, Leaver, parse_leave

MINUTE = timedelta(minutes=1)
KEPT = make_kept(experiment_id=ExperimentId("other"), worker_id=WorkerId("gpu0@host"))


@dataclass(kw_only=True)
class Worker:
    """A worker of a node whose lease files are in a folder, on a clock that a test moves."""

    folder: Path
    leave: Leave
    served: int = 0
    running: dict[str, object] = field(default_factory=dict)
    now_seconds: float = 0.0
    ends: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.site = SimpleNamespace(worker_id="cpu@host")
        node: Any = SimpleNamespace(folder=SimpleNamespace(leases=self.folder), site=self.site, promised=self._promised)
        self.node = node
        self.leaver = Leaver(node, self.leave, end=self._end, clock=lambda: self.now_seconds)

    def _promised(self) -> dict[str, object]:
        return self.running

    def _end(self) -> None:
        self.ends += 1

    def look(self, *, after: timedelta = timedelta(0)) -> bool:
        self.node.served = self.served
        self.now_seconds += after.total_seconds()
        return self.leaver.look()


def test_it_ends_once_nothing_has_run_for_so_long(tmp_path: Path) -> None:
    worker = Worker(folder=tmp_path / "leases", leave=Leave(idle=MINUTE))
    assert not worker.look()
    assert not worker.look(after=MINUTE * 0.9)
    assert worker.look(after=MINUTE * 0.2)
    assert worker.ends == 1


def test_what_runs_here_or_beside_it_makes_it_busy(tmp_path: Path) -> None:
    worker = Worker(folder=tmp_path / "leases", leave=Leave(idle=MINUTE))
    worker.running = {"exp": object()}
    assert not worker.look(after=2 * MINUTE)
    worker.running = {}
    lease = LeaseFile(worker.folder, KEPT)
    lease.create(b"sealed")
    assert not worker.look(after=2 * MINUTE)
    assert not worker.look(after=2 * MINUTE), "a lease that nobody can renew is one all the same"
    lease.remove()
    assert not worker.look(after=2 * MINUTE)
    assert worker.look(after=2 * MINUTE)


@pytest.mark.parametrize("name", ["a-1-1.lease.new", "a-1-1.message", "a-1-1.lease"])
def test_what_a_killed_worker_has_half_written_keeps_nobody(tmp_path: Path, name: str) -> None:
    worker = Worker(folder=tmp_path / "leases", leave=Leave(idle=MINUTE))
    (worker.folder / name).write_bytes(b"")
    assert not worker.look(after=2 * MINUTE), "the folder has changed"
    assert worker.look(after=2 * MINUTE)


def test_what_began_and_ended_beside_it_between_two_looks_counts(tmp_path: Path) -> None:
    worker = Worker(folder=tmp_path / "leases", leave=Leave(idle=MINUTE))
    assert not worker.look()
    for _ in range(3):
        before = worker.folder.stat().st_mtime_ns

        def has_changed(before: int = before) -> bool:
            (worker.folder / "short.lease").write_text("")
            (worker.folder / "short.lease").unlink()
            return worker.folder.stat().st_mtime_ns != before

        wait_until(has_changed, what="a later change of the folder")
        assert not worker.look(after=MINUTE * 0.9)
    assert worker.look(after=MINUTE)


def test_it_ends_once_it_has_run_enough_and_nothing_runs_any_more(tmp_path: Path) -> None:
    worker = Worker(folder=tmp_path / "leases", leave=Leave(experiments=2), served=1)
    assert not worker.look(after=9 * MINUTE)
    worker.served, worker.running = 2, {"exp": object()}
    assert not worker.look()
    worker.running = {}
    assert worker.look()


def test_it_looks_by_itself_and_tells_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", timedelta(milliseconds=1))
    worker = Worker(folder=tmp_path / "leases", leave=Leave(experiments=1))
    worker.node.served = 1
    worker.leaver.start()
    wait_until(lambda: worker.ends, what="its end")
    worker.leaver.close()
    assert worker.ends == 1


def test_what_upsets_a_look_does_not_keep_it_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", timedelta(milliseconds=1))
    worker = Worker(folder=tmp_path / "leases", leave=Leave(idle=timedelta(microseconds=1)))
    worker.leaver._clock = module.time.monotonic
    worker.node.served = 0
    worker.folder.rmdir()
    worker.leaver.start()
    worker.folder.mkdir()
    wait_until(lambda: worker.ends, what="its end")
    worker.leaver.close()


@pytest.mark.parametrize(
    ("idle", "experiments", "leave"),
    [
        (None, None, Leave()),
        ("", 0, Leave()),
        ("15m", "3", Leave(idle=timedelta(minutes=15), experiments=3)),
        (timedelta(hours=1), 1, Leave(idle=timedelta(hours=1), experiments=1)),
    ],
)
def test_what_is_asked_for_is_read(idle: str | timedelta | None, experiments: str | int | None, leave: Leave) -> None:
    assert parse_leave(idle, experiments) == leave


@pytest.mark.parametrize(
    ("idle", "experiments", "name"),
    [
        ("soon", None, "--exit-when-idle"),
        ("0s", None, "--exit-when-idle"),
        (None, "many", "--max-experiments"),
        (None, "0", "--max-experiments"),
        (None, -1, "--max-experiments"),
        (None, "1.5", "--max-experiments"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(idle: str | None, experiments: str | int | None, name: str) -> None:
    with pytest.raises(InvalidSetting, match=name):
        parse_leave(idle, experiments)
