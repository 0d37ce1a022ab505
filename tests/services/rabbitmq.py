"""A RabbitMQ node of its own: no cluster, no shared cookie, no daemon left behind."""

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.process import MissingProgramError, Process, find_program
from services.waiting import answers, free_port

# Debian's wrapper on PATH would become the user rabbitmq and use the system's own folders.
_PROGRAMS = Path("/usr/lib/rabbitmq/bin")
_AMQP_GREETING = b"AMQP\x00\x00\x09\x01"
_AMQP_START = b"PLAIN"
# As our sites set it: by default what was put off in the moment of a crash comes back three minutes after it.
_CONFIRMED_WITHIN = "-rabbit dead_letter_worker_publisher_confirm_timeout 5000"
# Its schedulers do not spin while they have nothing to do: the cores are for what is tested.
_AT_REST = "+sbwt none +sbwtdcpu none +sbwtdio none"


@dataclass(frozen=True, kw_only=True)
class RabbitServer:
    """A running RabbitMQ node.

    Attributes:
        process: The broker, to stop, kill, pause or restart it.
        names: The name server of Erlang (epmd) that it needs.
        port: Where it listens for AMQP, on 127.0.0.1.
        management_port: Where its HTTP API listens, on 127.0.0.1.
        environment: The variables that lead `rabbitmqctl` to this node.
    """

    process: Process
    names: Process
    port: int
    management_port: int
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        """The broker's address, with its default virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def management_url(self) -> str:
        """The address of the HTTP API, with its user."""
        return f"http://guest:guest@127.0.0.1:{self.management_port}"

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process of it."""
        return (self.process, self.names)

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` with `arguments` and return what it printed; it takes a second."""
        done = subprocess.run(
            [str(_PROGRAMS / "rabbitmqctl"), "--quiet", *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def queues(self) -> dict[str, int]:
        """Return every queue's name and how many messages it holds, unacknowledged ones too."""
        table = self.control("list_queues", "--no-table-headers", "name", "messages")
        rows = (line.rsplit("\t", 1) for line in table.splitlines() if "\t" in line)
        return {name: int(messages) for name, messages in rows}


@contextmanager
def open_rabbitmq(
    folder: Path, *, settings: Mapping[str, str] | None = None, internals: Mapping[str, int] | None = None
) -> Iterator[RabbitServer]:
    """Run a node on `folder`.

    `settings` are lines of rabbitmq.conf, `internals` what only its advanced.config takes, such as
    `channel_tick_interval`.
    """
    if not (_PROGRAMS / "rabbitmq-server").exists():
        raise MissingProgramError(
            "rabbitmq-server is not installed: run `make test` as root, or apt-get install rabbitmq-server"
        )
    port, management_port = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    environment = _make_environment(folder)
    _write_settings(folder, port=port, management_port=management_port, settings=settings or {})
    pairs = ",".join(f"{{{key},{value}}}" for key, value in (internals or {}).items())
    (folder / "advanced.config").write_text(f"[{{rabbit,[{pairs}]}}].\n")
    names = _make_name_server(folder, int(environment["ERL_EPMD_PORT"]))
    broker = Process(
        name="rabbitmq",
        command=[str(_PROGRAMS / "rabbitmq-server")],
        log=folder / "rabbitmq.log",
        ready=lambda: answers(port, _AMQP_GREETING, _AMQP_START),
        environment=environment,
    )
    with names, broker:
        yield RabbitServer(
            process=broker,
            names=names,
            port=port,
            management_port=management_port,
            environment=environment,
        )


def _make_environment(folder: Path) -> dict[str, str]:
    distribution_port = free_port()
    loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
    return {
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(free_port()),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"jobqueue-{distribution_port}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_AT_REST} {loopback} -start_epmd false {_CONFIRMED_WITHIN}",
        "RABBITMQ_CTL_ERL_ARGS": loopback,
        # The script becomes the broker instead of a shell that waits for it.
        "RUNNING_UNDER_SYSTEMD": "true",
    }


def _write_settings(folder: Path, *, port: int, management_port: int, settings: Mapping[str, str]) -> None:
    lines = {
        "listeners.tcp.1": f"127.0.0.1:{port}",
        "management.tcp.ip": "127.0.0.1",
        "management.tcp.port": str(management_port),
        "disk_free_limit.absolute": "64MB",
        "log.console.level": "warning",
        **settings,
    }
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    (folder / "rabbitmq.conf").write_text(text)
    (folder / "enabled_plugins").write_text("[rabbitmq_management].\n")


def _make_name_server(folder: Path, port: int) -> Process:
    # In the foreground and before the broker, which would leave a daemon behind.
    return Process(
        name="epmd",
        command=[find_program("epmd", package="rabbitmq-server"), "-port", str(port)],
        log=folder / "epmd.log",
        ready=lambda: _listens(port),
        environment={"ERL_EPMD_ADDRESS": "127.0.0.1"},
    )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
