"""S3 as rclone serves a folder: unlike moto it checks signatures and when they expire."""

import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.process import MissingProgramError, Process
from services.waiting import answers, free_port

_REGION = "us-east-1"


@dataclass(frozen=True, kw_only=True)
class RcloneServer:
    """A running server.

    Attributes:
        process: To stop, kill, pause or restart it.
        port: Where it listens, on 127.0.0.1.
        key, secret: The credentials that it accepts.
    """

    process: Process
    port: int
    key: str
    secret: str

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that give a client its credentials."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": _REGION,
        }

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process of it."""
        return (self.process,)


@contextmanager
def open_rclone(folder: Path, *, buckets: Sequence[str]) -> Iterator[RcloneServer]:
    """Serve some empty buckets, of which it is to know from its start, in `folder`, which takes the log too."""
    data, port = folder / "data", free_port()
    for bucket in buckets:
        (data / bucket).mkdir(parents=True)
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    program = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise MissingProgramError("rclone is not installed: run `make test`")
    process = Process(
        name="rclone",
        command=[
            *(program, "serve", "s3", str(data), "--addr", f"127.0.0.1:{port}"),
            *(
                "--auth-key",
                f"{key},{secret}",
                "--vfs-cache-mode",
                "off",
                "--config",
                "/dev/null",
            ),
        ],
        log=folder / "rclone.log",
        ready=lambda: answers(port, b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1."),
    )
    with process:
        yield RcloneServer(process=process, port=port, key=key, secret=secret)
