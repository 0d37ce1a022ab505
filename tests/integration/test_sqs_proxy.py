"""What stands between the tests and SQS leaves nothing open, whenever its client goes."""

import gc
import socket
import struct
import sys
import warnings
from contextlib import closing
from datetime import timedelta

import pytest
from services.sqs_proxy import open_sqs_proxy
from services.waiting import wait_until

ASKED = b"POST / HTTP/1.1\r\nHost: sqs\r\nX-Amz-Target: AmazonSQS.ReceiveMessage\r\nContent-Length: 2\r\n\r\n{}"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
RESETS = struct.pack("ii", 1, 0)


def test_a_client_that_goes_before_its_answer_leaves_no_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value))
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        warnings.catch_warnings(),
        open_sqs_proxy(server.getsockname()[1]) as proxy,
    ):
        warnings.simplefilter("error", ResourceWarning)
        client = socket.create_connection(("127.0.0.1", proxy.port))
        client.sendall(ASKED)
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
            client.close()
            connection.sendall(ANSWER)
            connection.settimeout(10)
            wait_until(lambda: not connection.recv(65536), what="its end", within=timedelta(seconds=10))
        wait_until(lambda: not proxy._open.total(), what="the request over")
        gc.collect()
    assert told == []
