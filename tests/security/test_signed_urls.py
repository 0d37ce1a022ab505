"""A URL that carries its own right is told to nobody, whatever becomes of it."""

import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from jobqueue.errors import StoreUnavailable
from jobqueue.storage import signed_urls

pytestmark = pytest.mark.security
RIGHT = "X-Amz-Signature=right"


@pytest.fixture
def hanging_up() -> Iterator[str]:
    """A server that hangs up on each request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hang_up, args=[server], daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/key?{RIGHT}"


def hang_up(server: socket.socket) -> None:
    while True:
        try:
            line, _ = server.accept()
        except OSError:
            return
        with line:
            line.recv(1)


def test_no_log_of_a_library_shows_it(hanging_up: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(StoreUnavailable) as read:
        signed_urls.read(hanging_up, key="key")
    with pytest.raises(StoreUnavailable) as written:
        signed_urls.write(hanging_up, b"content", 7, key="key")
    assert RIGHT not in caplog.text + str(read.value) + str(written.value)
