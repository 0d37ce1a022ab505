"""RabbitMQ, Redis and moto behind TLS: each asks for a client's certificate, but moto, which cannot."""

import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.certificates import Authority, Pair
from services.moto import MotoServer
from services.process import Process
from services.rabbitmq import RabbitServer, open_rabbitmq
from services.redis import RedisServer, open_redis
from services.waiting import free_port

# The servers listen at both; their certificates are for the first.
HOST, OTHER_HOST = "127.0.0.1", "127.0.0.2"


@dataclass(frozen=True, kw_only=True)
class SecuredServers:
    """Running servers, and what their certificates are checked with.

    Attributes:
        ports: where each listens with TLS, by what it is: `amqps`, `rediss`, `https`.
        authority: has signed all of their certificates.
        client: what a client shows.
    """

    rabbit: RabbitServer
    redis: RedisServer
    moto: MotoServer
    ports: dict[str, int]
    authority: Authority
    client: Pair

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process of them."""
        return (*self.rabbit.processes, *self.redis.processes, *self.moto.processes)


@contextmanager
def open_secured(folder: Path) -> Iterator[SecuredServers]:
    """Run the three servers with certificates of one authority."""
    authority = Authority(folder / "certificates")
    server = authority.issue("server", addresses=(HOST,))
    ports = {scheme: free_port() for scheme in ("amqps", "rediss", "https")}
    lines = {f"listeners.ssl.{number}": f"{host}:{ports['amqps']}" for number, host in enumerate((HOST, OTHER_HOST), 1)}
    lines |= {"ssl_options.cacertfile": str(authority.ca), "ssl_options.certfile": str(server.cert)}
    lines |= {"ssl_options.keyfile": str(server.key), "ssl_options.verify": "verify_peer"}
    lines |= {"ssl_options.fail_if_no_peer_cert": "true"}
    options = ["--bind", HOST, OTHER_HOST, "--tls-port", str(ports["rediss"]), "--tls-auth-clients", "yes"]
    options += ["--tls-cert-file", str(server.cert), "--tls-key-file", str(server.key)]
    options += ["--tls-ca-cert-file", str(authority.ca)]
    with (
        open_rabbitmq(folder / "rabbitmq", settings=lines) as rabbit,
        open_redis(folder / "redis", options=options) as redis,
        _moto(folder / "moto", port=ports["https"], server=server, authority=authority) as moto,
    ):
        yield SecuredServers(
            rabbit=rabbit,
            redis=redis,
            moto=moto,
            ports=ports,
            authority=authority,
            client=authority.issue("client"),
        )


@contextmanager
def show_certificate(pair: Pair) -> Iterator[int]:
    """Listen at `HOST` with a certificate, and say nothing else; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    with closing(socket.create_server((HOST, 0))) as listener:
        thread = threading.Thread(target=_shake_hands, args=(listener, context), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _shake_hands(listener: socket.socket, context: ssl.SSLContext) -> None:
    with suppress(OSError):
        while True:
            line = listener.accept()[0]
            line.settimeout(10)
            with closing(line), suppress(OSError), context.wrap_socket(line, server_side=True) as secured:
                secured.recv(1)


@contextmanager
def _moto(folder: Path, *, port: int, server: Pair, authority: Authority) -> Iterator[MotoServer]:
    command = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(port)]
    command += ["-s", "-c", str(server.cert), "-k", str(server.key)]
    context = ssl.create_default_context(cafile=str(authority.ca))

    def answers() -> bool:
        with (
            suppress(OSError),
            socket.create_connection((HOST, port), timeout=2) as line,
            context.wrap_socket(line, server_hostname=HOST) as secured,
        ):
            secured.sendall(b"GET /moto-api/ HTTP/1.0\r\n\r\n")
            return b" 200 " in secured.recv(100)
        return False

    process = Process(name="moto with TLS", command=command, log=folder / "moto.log", ready=answers)
    with process:
        yield MotoServer(process=process, port=port)
