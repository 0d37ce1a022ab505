"""The embedded broker: private, single, and recovered after its owner was killed."""

import os
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from services.waiting import wait_until

from jobqueue.config import Settings
from jobqueue.errors import BrokerUnavailable, InvalidSetting
from producers.cli import embedded
from producers.cli.embedded import AlreadyRunning, embedded_server, is_answering

_OWNER = textwrap.dedent(
    """
    import time
    from pathlib import Path
    from jobqueue.config import Settings
    from producers.cli.embedded import embedded_server
    with embedded_server(Settings()) as server:
        print(server.pid, flush=True)
        time.sleep(600)
    """
)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    # The path of a pytest folder alone may be too long for a socket.
    short = Path(f"/tmp/jq-{os.getpid()}-{os.urandom(3).hex()}")
    short.symlink_to(tmp_path)
    monkeypatch.setenv("JOBQUEUE_STATE_DIR", str(short))
    yield Settings()
    short.unlink()


def _ask(path: Path, *words: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(" ".join(words).encode() + b"\r\n")
        return connection.recv(1000)


def test_it_answers_on_a_private_socket_only_and_leaves_nothing_running(settings: Settings) -> None:
    with embedded_server(settings) as server:
        assert is_answering(server.socket)
        assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
        assert b"$1\r\n0" in _ask(server.socket, "CONFIG", "GET", "port")
    assert not server.socket.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_what_was_written_is_there_the_next_time(settings: Settings) -> None:
    with embedded_server(settings) as server:
        assert _ask(server.socket, "SET", "kept", "yes") == b"+OK\r\n"
    with embedded_server(settings) as server:
        assert _ask(server.socket, "GET", "kept") == b"$3\r\nyes\r\n"


def test_a_second_one_on_the_same_state_is_refused(settings: Settings) -> None:
    with (
        embedded_server(settings),
        pytest.raises(AlreadyRunning, match="running already") as caught,
        embedded_server(settings),
    ):
        pass
    assert "JOBQUEUE_STATE_DIR" in caught.value.hint


def test_it_ends_with_its_killed_owner_and_the_next_one_recovers_what_was_written(settings: Settings) -> None:
    owner = subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    _ask(settings.embedded_socket, "SET", "kept", "yes")
    owner.kill()
    owner.communicate()
    # Before the next one starts, which would end an orphan by itself.
    wait_until(lambda: not _is_running(pid), what="the server ends with its owner")
    with embedded_server(settings) as server:
        assert _ask(server.socket, "GET", "kept") == b"$3\r\nyes\r\n"


def test_a_stale_socket_is_replaced(settings: Settings) -> None:
    settings.embedded_socket.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(settings.embedded_socket))
    with embedded_server(settings) as server:
        assert is_answering(server.socket)


def test_an_orphaned_server_is_ended_before_another_one_takes_its_file(settings: Settings) -> None:
    folder = settings.embedded_socket.parent
    folder.mkdir(parents=True)
    words = embedded._words(embedded.find_redis_server(), settings.embedded_socket)
    orphan = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    wait_until(lambda: is_answering(settings.embedded_socket), what="the orphan answers")
    with embedded_server(settings) as server:
        assert orphan.wait(60) == 0
        assert server.pid != orphan.pid


def test_a_path_that_is_too_long_for_a_socket_is_said_clearly(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / ("x" * 100))
    with pytest.raises(InvalidSetting, match="more than 100 bytes") as caught, embedded_server(settings):
        pass
    assert "JOBQUEUE_STATE_DIR" in caught.value.hint


def test_a_server_that_does_not_start_tells_its_last_line(settings: Settings) -> None:
    folder = settings.embedded_socket.parent
    folder.mkdir(parents=True)
    (folder / "appendonly.aof").write_text("not a log\n")
    with (
        pytest.raises(BrokerUnavailable, match=r"did not start: .*[Bb]ad file format") as caught,
        embedded_server(settings),
    ):
        pass
    assert "redis.log" in caught.value.hint


def test_without_any_redis_server_it_says_what_to_install(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BrokerUnavailable, match="no redis-server") as caught, embedded_server(settings):
        pass
    assert "install" in caught.value.hint


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
