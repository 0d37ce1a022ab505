"""What each parser is to understand, for the fuzzers to damage."""

import io
import json
import tarfile
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import zstandard

from jobqueue.application import CONTENT_TYPE, TASK
from jobqueue.artifacts import Artifact, Manifest, OutputFile, manifest_to_json
from jobqueue.brokers.copies import pack
from jobqueue.codec import (
    SealedReport,
    SealedSpec,
    encode_header,
    encode_report,
    encode_sealed_report,
    encode_sealed_spec,
    encode_spec,
)
from jobqueue.envelope import seal
from jobqueue.grants import Reply, Request, Verdict, Wish, seal_reply, sign_request, write_trouble
from jobqueue.header import Header
from jobqueue.ids import ExperimentId, KeyId, WorkerId, make_experiment_id
from jobqueue.keys import KeyRing, Signer, SigningKey, ensure_laptop_keys, make_pair
from jobqueue.keys.directory import sign_list
from jobqueue.keys.signing import make_signing_key
from jobqueue.lifecycle import Reason, State
from jobqueue.marker import Marker, marker_to_json
from jobqueue.permit import make_permit
from jobqueue.report import Progress, Report, TaskState
from jobqueue.sealed_report import close_report
from jobqueue.spec import ExperimentSpec, parse_spec

QUEUE = "default_cpu"
NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
_ID = ExperimentId("exp-01m7ze0enjrd99bv7hcqvfqbaz")
_DEEP = 200_000


@cache
def key_folder() -> Path:
    """Return the keys of a laptop that grants as well; the folder ends with this process."""
    folder = _kept().name
    ensure_laptop_keys(Path(folder))
    make_pair(Path(folder), Signer.CLERK)
    return Path(folder)


@cache
def _kept() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory()


@cache
def _spec() -> ExperimentSpec:
    return parse_spec(_fields() | {"inputs": {"data": Artifact(uri="s3://bucket/x", sha256="0" * 64)}})


def _fields() -> dict[str, object]:
    return {
        "image": "python:3.12-slim",
        "command": ["python", "train.py", "--lr=0.1"],
        "outputs": ["model.pt", "metrics/"],
        "env": {"SEED": "1"},
        "secrets": {"TOKEN": "hidden"},
        "labels": {"run": "1"},
        "memory": "2GiB",
        "timeout": "1h30m",
        "name": "one",
    }


@cache
def grant_requests() -> tuple[bytes, ...]:
    """Return what a node asks a clerk, signed."""
    keys, experiment_id = KeyRing(key_folder()), make_experiment_id()
    permit = make_permit(_spec(), experiment_id=experiment_id, queue=QUEUE, sender=keys.sender())
    asked = Request(
        wish=Wish.WRITE_ONCE, uri="store:a", queue=QUEUE, experiment_id=experiment_id, permit=permit, content=b"{}"
    )
    unopened = Request(wish=Wish.READ, uri="store:a", queue=QUEUE, experiment_id=experiment_id, envelope=messages()[0])
    return sign_request(asked, keys=keys), sign_request(unopened, keys=keys)


@cache
def grant_replies() -> tuple[bytes, ...]:
    """Return what a clerk answers to that."""
    reply = Reply(verdict=Verdict.GRANTED, url="https://host/key", objects=(("key", 1),))
    sealed = seal_reply(reply, message=grant_requests()[0], queue=QUEUE, keys=KeyRing(key_folder()))
    return sealed, write_trouble("nobody is known")


@cache
def messages() -> tuple[bytes, ...]:
    """Return sealed and signed messages."""
    header = Header(
        experiment_id=_ID,
        queue=QUEUE,
        project=_spec().project,
        resources=_spec().resources,
        submitted_at=NOW,
        expires_at=NOW + timedelta(days=1),
    )
    return (seal(_spec(), header, keys=KeyRing(key_folder())),)


def headers() -> tuple[bytes, ...]:
    """Return encoded headers, and one that goes on and on."""
    header = Header(
        experiment_id=_ID,
        queue=QUEUE,
        project="default",
        resources=_spec().resources,
        submitted_at=NOW,
        expires_at=NOW + timedelta(days=1),
    )
    return encode_header(header), _nested()


def specs() -> tuple[bytes, ...]:
    """Return encoded specs."""
    return encode_spec(_spec()), _nested()


def sealed_specs() -> tuple[bytes, ...]:
    """Return what lies inside of a message."""
    inside = SealedSpec(sender_key_id=KeyId("a" * 32), spec=encode_spec(_spec()), reporting_key="")
    return encode_sealed_spec(inside), _nested()


def sealed_reports() -> tuple[bytes, ...]:
    """Return the parts of a sealed report."""
    sealed = SealedReport(version=1, suite=1, reporting_key_id=KeyId("a" * 32), ciphertext=b"sealed")
    return encode_sealed_report(sealed), _nested()


def spec_fields() -> tuple[bytes, ...]:
    """Return what a notebook gives, as JSON."""
    return (json.dumps(_fields()).encode(),)


def reports() -> tuple[bytes, ...]:
    """Return encoded reports."""
    progress = Progress(task_state=TaskState.STARTED, json='{"loss": 0.1}')
    report = Report(
        at=NOW, experiment_id=_ID, worker_id=WorkerId("w"), sequence=1, attempt=1, token=1, payload=progress
    )
    return encode_report(report), _nested()


@cache
def signed_reports() -> tuple[bytes, ...]:
    """Return reports that a node has signed."""
    report = Report(
        at=NOW, experiment_id=_ID, worker_id=WorkerId("w"), sequence=1, attempt=1, token=1, payload="", queue=QUEUE
    )
    return (close_report(encode_report(report), queue=QUEUE, keys=KeyRing(key_folder()))[1],)


@cache
def operator() -> SigningKey:
    """Return an operator's private key."""
    return make_signing_key(Signer.OPERATOR, NOW)


@cache
def lists() -> tuple[bytes, ...]:
    """Return what an operator publishes."""
    keys = [("lab_", KeyRing(key_folder()).recipient(QUEUE))]
    return sign_list(keys, at=NOW, until=NOW + timedelta(days=30), operator=operator()), b"[" * _DEEP


def web_addresses() -> tuple[bytes, ...]:
    """Return addresses of inputs, and hosts in forms that mislead."""
    return (
        b"https://data.example.org:8443/a/b.tar.zst?X-Amz-Signature=1",
        b"https://[fd00::5]/x",
        b"https://0x7f.1/",
        b"https://a\\@b/",
        b"https://xn--bcher-kva.example/",
        b"https://[::ffff:127.0.0.1%25eth0]/",
    )


def hosts() -> tuple[bytes, ...]:
    """Return what an operator may allow."""
    return b"data.example.org,*.example.org,[fd00::5]:8443,data.lab=10.1.0.0/16,http://127.0.0.1:8000", b"[,]:,=/"


@cache
def archives() -> tuple[bytes, ...]:
    """Return packed trees, in each dialect of tar, and one long run of zeros."""
    packed = []
    for dialect in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=dialect) as archive:
            for name in ("a/b.txt", "a/" + "long" * 20 + "/c.txt"):
                header = tarfile.TarInfo(name)
                header.size = 3
                archive.addfile(header, io.BytesIO(b"abc"))
        packed += [zstandard.compress(plain.getvalue()), _stored(plain.getvalue())]
    return (*packed, zstandard.compress(bytes(64 << 20)))


def _stored(content: bytes) -> bytes:
    """Return a frame of zstandard with the content as it is, so that what is damaged in it reaches the tar."""
    frame = b"\x28\xb5\x2f\xfd" + b"\xa0" + len(content).to_bytes(4, "little")
    return frame + (len(content) << 3 | 1).to_bytes(3, "little") + content


def progress_lines() -> tuple[bytes, ...]:
    """Return lines of output that carry progress."""
    return (
        b"::jobqueue progress=0.62 loss=0.41 step=7 name=x::",
        b"::jobqueue " * 372,
        b"::jobqueue a=1" + b" b=2" * 900,
    )


def progress_objects() -> tuple[bytes, ...]:
    """Return lines of a progress file."""
    return b'{"progress": 0.5, "secret": ["0", NaN, 1e999]}', b"[" * 4096, b'{"a":' * 800


def key_lines() -> tuple[bytes, ...]:
    """Return the lines of all kinds of keys."""
    folder = key_folder()
    return tuple(path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".key", ".pub"))


def manifests() -> tuple[bytes, ...]:
    """Return manifests."""
    manifest = Manifest(files=(OutputFile(path="a/b", size_bytes=1, sha256="0" * 64),), left_out=("x: too large",))
    return manifest_to_json(manifest), b"[" * _DEEP, b'{"files":' * _DEEP


def markers() -> tuple[bytes, ...]:
    """Return result markers."""
    marker = Marker(
        experiment_id=_ID,
        attempt=1,
        token=1,
        state=State.FAILED,
        reason=Reason.EXITED_NONZERO,
        exit_code=3,
        last_lines=("a",),
        finished_at=NOW,
    )
    return marker_to_json(marker), b"[" * _DEEP


def celery_messages() -> tuple[bytes, ...]:
    """Return messages as kombu lays them into Redis and SQS."""
    headers = {"task": TASK, "id": _ID, "retries": 0, "timelimit": [None, None], "eta": None}
    return json.dumps(pack(QUEUE, b"body", content_type=CONTENT_TYPE, headers=headers)).encode(), b"[" * _DEEP


def selections() -> tuple[bytes, ...]:
    """Return what a worker may be told to serve."""
    return b"lab_*,!lab_private_*,default_cpu", b"[" * 500 + b"*" * 500


def quantities() -> tuple[bytes, ...]:
    """Return sizes and durations."""
    return b"16GiB", b"1h30m", b"PT6H", b"9" * 5000, b"1.5.5s" * 500


def addresses() -> tuple[bytes, ...]:
    """Return what follows `sqs://`."""
    return b"key:secret@host:443?region=eu&prefix=p&wait=2s&hold=1h&tls=false", b"[", b"a]@[::1", b"@:99999"


def _nested() -> bytes:
    """Return a message of protobuf inside of another, 10,000 times."""
    content = b""
    for _ in range(10_000):
        content = b"\x0a" + _varint(len(content)) + content
    return content


def _varint(number: int) -> bytes:
    pieces = []
    while number > 0x7F:
        pieces.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*pieces, number])
