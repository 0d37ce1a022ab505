"""Keeping the processes of a machine's slots: real ones, which are small here and start again within milliseconds."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest
from services.waiting import wait_until

from workers.attempt.node_folder import open_node_folder
from workers.file_locks import lock
from workers.node.serve import Serving, make_commands

LONG = timedelta(seconds=30)
SERVER = """
import json, logging, os, sys
from datetime import timedelta
from workers.node.keeping import Command, SlotWorker, keep
logging.basicConfig(level=logging.INFO, format="%(message)s %(slot)s %(status)s", stream=sys.stdout)
logging.Formatter.default_time_format = ""
short = timedelta(milliseconds=1)
settings = json.loads(sys.argv[1])
workers = [
    SlotWorker(
        Command(slot=f"gpu{number}", words=["sh", "-c", script], environ=os.environ),
        first_pause=timedelta(milliseconds=settings["pause"]),
        longest_pause=timedelta(milliseconds=settings["longest"]),
        settled=timedelta(milliseconds=settings["settled"]),
    )
    for number, script in enumerate(sys.argv[2:])
]
sys.exit(keep(workers))
"""


class Server:
    """One server over scripts, which write what they do into a folder."""

    def __init__(self, folder: Path, *scripts: str, pause: int = 1, longest: int = 4, settled: int = 60_000) -> None:
        self.folder = folder
        settings = json.dumps({"pause": pause, "longest": longest, "settled": settled})
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, settings, *scripts],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def said(self, name: str = "said") -> list[str]:
        """Return the lines of a file that the scripts write."""
        with suppress(FileNotFoundError):
            return (self.folder / name).read_text().splitlines()
        return []

    def tell(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(LONG.total_seconds())

    def pids(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    made: list[Server] = []
    yield made
    for server in made:
        with suppress(psutil.NoSuchProcess):  # its workers too, should nobody else end them
            for each in (*server.pids(), psutil.Process(server.process.pid)):
                each.kill()
        server.process.wait()
        if server.process.stdout:
            server.process.stdout.close()


# Each says what it is told; dash looks at its traps when what it waits for has ended.
TALKING = 'for s in TERM INT QUIT; do trap "echo $s >> said" $s; done; echo up >> said; '
UNTIL_TERM = 'trap "echo TERM >> said; exit {status}" TERM; echo up >> said; while :; do sleep 0.02; done'


def test_each_slot_has_a_process_in_a_session_of_its_own(servers: list[Server], tmp_path: Path) -> None:
    servers.append(server := Server(tmp_path, *[UNTIL_TERM.format(status=0)] * 3))
    wait_until(lambda: len(server.said()) == 3, what="three workers")
    assert {os.getsid(each.pid) for each in server.pids()} == {each.pid for each in server.pids()}
    server.tell(signal.SIGTERM)
    assert server.wait() == 0


def test_it_ends_with_the_worst_status_of_its_workers(servers: list[Server], tmp_path: Path) -> None:
    servers.append(server := Server(tmp_path, *(UNTIL_TERM.format(status=status) for status in (0, 7, 3))))
    wait_until(lambda: len(server.said()) == 3, what="three workers")
    server.tell(signal.SIGTERM)
    assert server.wait() == 7


def test_every_signal_is_passed_on_as_it_comes(servers: list[Server], tmp_path: Path) -> None:
    script = TALKING + "while [ $(grep -c . said) -lt 4 ]; do sleep 0.02; done; exit 5"
    servers.append(server := Server(tmp_path, script))
    wait_until(lambda: server.said() == ["up"], what="the worker")
    for number, name in ((signal.SIGTERM, "TERM"), (signal.SIGINT, "INT"), (signal.SIGQUIT, "QUIT")):
        server.tell(number)
        wait_until(lambda name=name: server.said()[-1] == name, what=name)  # type: ignore[misc]
    assert server.wait() == 5


def test_a_terminal_that_goes_away_lets_the_workers_drain(servers: list[Server], tmp_path: Path) -> None:
    servers.append(server := Server(tmp_path, UNTIL_TERM.format(status=0)))
    wait_until(lambda: server.said() == ["up"], what="the worker")
    server.tell(signal.SIGHUP)
    assert server.wait() == 0
    assert server.said() == ["up", "TERM"]


def test_a_worker_that_is_killed_twenty_times_in_a_row_comes_back_each_time_and_is_told_of(
    servers: list[Server], tmp_path: Path
) -> None:
    dying = "echo $$ >> pids; [ $(grep -c . pids) -gt 20 ] || kill -9 $$; " + UNTIL_TERM.format(status=0)
    servers.append(server := Server(tmp_path, dying, UNTIL_TERM.format(status=0)))
    wait_until(lambda: len(server.said()) == 2, what="the last one", within=LONG)
    assert len(set(server.said("pids"))) == 21
    server.tell(signal.SIGTERM)
    assert server.wait() == 0
    told = server.process.stdout.read().decode()  # type: ignore[union-attr]
    assert told.count("slot.lost gpu0 137") == 20
    assert "slot.lost gpu1" not in told


def test_a_worker_that_lived_for_a_while_comes_back_soon_and_one_that_never_does_later_and_later(
    servers: list[Server], tmp_path: Path
) -> None:
    dying = "cut -d' ' -f1 /proc/uptime >> at; kill -9 $$"
    servers.append(server := Server(tmp_path, dying, pause=40, longest=320))
    wait_until(lambda: len(server.said("at")) == 6, what="six starts")
    at = [float(line) for line in server.said("at")]
    between = [after - before for before, after in itertools.pairwise(at)]
    for seconds, least in zip(between, (0.04, 0.08, 0.16, 0.32, 0.32), strict=True):
        assert seconds > least - 0.02
    server.tell(signal.SIGTERM)
    assert server.wait() in (0, 137)
    other = tmp_path / "settled"
    other.mkdir()
    servers.append(settled := Server(other, dying, pause=40, longest=60_000, settled=1))
    wait_until(lambda: len(settled.said("at")) == 12, what="twelve starts, without a pause of minutes")


def test_a_killed_server_leaves_no_worker(servers: list[Server], tmp_path: Path) -> None:
    servers.append(server := Server(tmp_path, *[UNTIL_TERM.format(status=0)] * 2))
    wait_until(lambda: len(server.said()) == 2, what="two workers")
    workers = server.pids()
    server.tell(signal.SIGKILL)
    wait_until(lambda: not any(each.is_running() for each in workers), what="their end")
    assert "TERM" not in server.said()


def test_a_worker_that_an_operator_ended_stays_away_and_the_others_go_on(servers: list[Server], tmp_path: Path) -> None:
    servers.append(server := Server(tmp_path, "echo once >> once; exit 0", UNTIL_TERM.format(status=0)))
    wait_until(lambda: server.said("once") and server.said(), what="both")
    wait_until(lambda: len(server.pids()) == 1, what="the end of one")
    server.tell(signal.SIGTERM)
    assert server.wait() == 0
    assert server.said("once") == ["once"]


def test_what_waits_for_its_next_start_does_not_keep_a_server_from_its_end(
    servers: list[Server], tmp_path: Path
) -> None:
    servers.append(server := Server(tmp_path, "echo died >> said; exit 9", UNTIL_TERM.format(status=0), pause=60_000))
    wait_until(lambda: sorted(server.said()) == ["died", "up"], what="both")
    wait_until(lambda: len(server.pids()) == 1, what="the end of one")
    server.tell(signal.SIGTERM)
    assert server.wait() == 9


def test_a_mistake_in_the_settings_is_told_once_and_ends_the_server(servers: list[Server], tmp_path: Path) -> None:
    servers.append(server := Server(tmp_path, *["echo wrong >> said; exit 69"] * 3, pause=60_000))
    assert server.wait() == 69
    assert server.said() == ["wrong"] * 3


def test_a_worker_that_never_starts_does_not_keep_the_server_of_those_that_have_ended_by_themselves(
    servers: list[Server], tmp_path: Path
) -> None:
    refused, idle = "echo no >> refused; exit 69", "sleep 0.2; echo idle >> idle; exit 0"
    servers.append(server := Server(tmp_path, refused, idle, "kill -9 $$", longest=16))
    assert server.wait() == 137
    assert server.said("idle") == ["idle"]
    assert len(server.said("refused")) >= 4, "it is given some time to come up"


def test_a_worker_that_is_lost_now_and_then_comes_back_also_when_the_others_have_ended_by_themselves(
    servers: list[Server], tmp_path: Path
) -> None:
    lost = "echo $$ >> pids; [ $(grep -c . pids) -gt 2 ] || kill -9 $$; " + UNTIL_TERM.format(status=0)
    servers.append(server := Server(tmp_path, lost, "exit 0", longest=60_000))
    wait_until(lambda: server.said() == ["up"], what="it, again", within=LONG)
    server.tell(signal.SIGTERM)
    assert server.wait() == 0


def test_each_worker_is_started_as_the_machines_was_with_a_device_a_name_and_places_of_its_own() -> None:
    serving = Serving(state_dir="/s", log_format="text", slots={"gpu0=GPU-a": 1, "cpu": 14})
    words = ["-A", "jobqueue", "--workdir", "/w", "worker", "--pidfile=/p", "-l", "INFO", "--uid", "1000"]
    gpu, cpu = make_commands(serving, words, {"SEED": "1", "CUDA_VISIBLE_DEVICES": "0"})
    began = [sys.executable, "-m", "celery", "-A", "jobqueue", "worker", "-l", "INFO"]
    assert gpu.words == [*began, "--slot", "gpu0=GPU-a", "--hostname", "gpu0@%h", "--concurrency", "1"]
    assert cpu.words == [*began, "--slot", "cpu", "--hostname", "cpu@%h", "--concurrency", "14"]
    assert gpu.environ == {"SEED": "1", "CUDA_VISIBLE_DEVICES": "GPU-a", "NVIDIA_VISIBLE_DEVICES": "GPU-a"}
    assert cpu.environ == {"SEED": "1", "CUDA_VISIBLE_DEVICES": "0"}


@pytest.fixture
def serving(tmp_path: Path) -> list[str]:
    """How a server of no slots is started."""
    what = {"state_dir": str(tmp_path), "log_format": "json", "slots": {}, "pidfile": str(tmp_path / "pid")}
    return [sys.executable, "-m", "workers.node.serve", json.dumps(what)]


def test_a_second_server_of_a_machine_says_that_there_is_one_and_ends(serving: list[str], tmp_path: Path) -> None:
    run = partial(subprocess.run, serving, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    held = lock(open_node_folder(tmp_path).root / "server")
    assert held is not None
    refused = run()
    assert refused.returncode == 69
    assert "there already" in refused.stderr
    os.close(held)
    done = run()
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["node.serving", "node.ended"]
    assert (done.returncode, (tmp_path / "pid").exists()) == (0, False)


def test_the_server_loads_none_of_what_its_workers_need() -> None:
    heavy = "[name for name in ('celery', 'kombu', 'redis', 'docker', 'pydantic', 'structlog') if name in sys.modules]"
    script = f"import sys, workers.node.serve; sys.exit(' '.join({heavy}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[3], capture_output=True, check=False
    )
    assert done.stderr.split() == []
