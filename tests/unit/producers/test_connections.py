"""What a client holds open is opened whole, or not at all."""

import signal
import threading
from collections.abc import Iterator

import pytest

from jobqueue.errors import InvalidSetting
from producers.client import Client
from producers.connections import uninterrupted


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """What is started in the background of a script ignores it, and so would its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_who_interrupts_the_opening_interrupts_the_waiting_alone(client: Client) -> None:
    opened, may_go_on, made = client._connections, threading.Event(), list[str]()

    def make() -> str:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # as Ctrl-C does
        may_go_on.wait()
        made.append("whole")
        return "thing"

    with pytest.raises(KeyboardInterrupt):
        opened.once("thing", make)
    may_go_on.set()

    assert opened.once("thing", lambda: "another") == "another"
    for thread in threading.enumerate():
        if thread.name == "jobqueue-opening":
            thread.join()
    assert made == ["whole"]


def test_what_cannot_be_opened_is_told_to_who_asks_and_tried_again(client: Client) -> None:
    def fail() -> str:
        raise InvalidSetting("no")

    with pytest.raises(InvalidSetting, match="no"):
        client._connections.once("thing", fail)
    assert client._connections.once("thing", lambda: "thing") == "thing"


def test_what_was_made_is_returned() -> None:
    assert uninterrupted(lambda: 5) == 5
