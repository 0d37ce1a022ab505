"""Amazon's S3 and SQS, as moto's server answers for them; its data ends with its process."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from services.process import MissingProgramError, Process
from services.waiting import answers, free_port

_REGION = "us-east-1"
_KEY = "testing"


@dataclass(frozen=True, kw_only=True)
class MotoServer:
    """A running moto server.

    Attributes:
        process: To stop, kill, pause or restart it.
        port: Where it listens, on 127.0.0.1.
    """

    process: Process
    port: int

    @property
    def url(self) -> str:
        """The endpoint of S3, and of SQS without a broker's options."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that lead any client of Amazon's services here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _KEY,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_ALLOW_HTTP": "true",
        }

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process of it."""
        return (self.process,)

    def client(self, service: str) -> Any:
        """Make a boto3 client of `s3` or `sqs`; the caller closes it."""
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=_REGION,
            aws_access_key_id=_KEY,
            aws_secret_access_key=_KEY,
        )

    def make_bucket(self, name: str) -> str:
        """Create a bucket and return its address, `s3://name`."""
        client = self.client("s3")
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}"


@dataclass(frozen=True, kw_only=True)
class SqsServer:
    """The SQS of a moto server, as a broker.

    Attributes:
        moto: The server.
    """

    moto: MotoServer

    @property
    def url(self) -> str:
        """The broker's address; polls are short, so that a test's last one does not outlive it by much."""
        return f"sqs://{_KEY}:{_KEY}@127.0.0.1:{self.moto.port}?region={_REGION}&tls=false&wait=2s"

    @property
    def process(self) -> Process:
        """To stop, kill, pause or restart it; its queues end with it."""
        return self.moto.process

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process of it."""
        return self.moto.processes

    def client(self) -> Any:
        """Make a boto3 client; the caller closes it."""
        return self.moto.client("sqs")


@contextmanager
def open_moto(folder: Path, *, prefix: Sequence[str] = ()) -> Iterator[MotoServer]:
    """Run a moto server that logs to `folder`; `prefix` stands before its command (faketime)."""
    if find_spec("flask") is None:
        raise MissingProgramError("moto's server is not installed: run `make test`")
    port = free_port()
    process = Process(
        name="moto",
        command=[*prefix, sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        log=folder / "moto.log",
        ready=lambda: answers(port, b"GET /moto-api/ HTTP/1.0\r\n\r\n", b" 200 "),
    )
    with process:
        yield MotoServer(process=process, port=port)
