"""Every parser of what a stranger can send, each as a function of bytes, with the errors that its docstring names."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from fuzz import seeds
from jobqueue.artifacts import manifest_from_json, path_fault
from jobqueue.brokers.copies import as_message, unpack_json
from jobqueue.brokers.sqs_address import parse_address
from jobqueue.codec import (
    decode_envelope,
    decode_header,
    decode_report,
    decode_sealed_report,
    decode_sealed_spec,
    decode_signed_report,
    decode_spec,
    encode_envelope,
    encode_header,
    encode_report,
    encode_spec,
)
from jobqueue.envelope import open_sealed, verify
from jobqueue.errors import ArtifactRefused, BadEnvelope, InvalidSetting, InvalidSpec, KeyRefused, Refused
from jobqueue.grants import read_reply, read_request
from jobqueue.keys import KeyRing, parse_key
from jobqueue.keys.directory import read_list
from jobqueue.keys.lines import read_line, write_line
from jobqueue.keys.locking import unlock
from jobqueue.marker import Marker, marker_from_json, marker_to_json
from jobqueue.quantities import parse_duration, parse_size
from jobqueue.routing import parse_selection
from jobqueue.sealed_report import CONTENT_TYPE, SEALED_CONTENT_TYPE, open_report
from jobqueue.spec import parse_spec
from jobqueue.storage.hosts import parse_hosts, parse_target
from workers.attempt.archive import unpack
from workers.attempt.progress import parse_progress_json, parse_progress_line
from workers.attempt.redaction import Redactor
from workers.delivery.shape import check_shape

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Target:
    """One parser.

    Attributes:
        feed: Parses, and raises when what came out is not what the parser promises.
        errors: What it may raise.
        seeds: What it is to understand, to be damaged.
    """

    feed: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], tuple[bytes, ...]]

    def __call__(self, content: bytes) -> None:
        """Parse, and let nothing out but what is not documented."""
        try:
            self.feed(content)
        except self.errors as error:
            # Whoever logs or answers it writes it down.
            str(error).encode(errors="surrogateescape" if isinstance(error, UnicodeError) else "replace")


def _envelope(content: bytes) -> None:
    if encode_envelope(decode_envelope(content)) != content:
        raise AssertionError("an envelope has two encodings")


def _header(content: bytes) -> None:
    header = decode_header(content)
    if decode_header(encode_header(header)) != header:
        raise AssertionError("a header changes when it is written again")


def _spec(content: bytes) -> None:
    spec = decode_spec(content)
    if decode_spec(encode_spec(spec)) != spec:
        raise AssertionError("a spec changes when it is written again")


def _spec_fields(content: bytes) -> None:
    fields = _json(content)
    # Names are what a program calls its arguments.
    if isinstance(fields, dict) and all(name.isidentifier() and name.isascii() for name in fields):
        spec = parse_spec(fields)
        decode_spec(encode_spec(spec))


def _report(content: bytes) -> None:
    report = decode_report(content)
    if decode_report(encode_report(report)) != report:
        raise AssertionError("a report changes when it is written again")


@cache
def _ring() -> KeyRing:
    return KeyRing(seeds.key_folder())


def _message(content: bytes) -> None:
    verified = verify(content, keys=_ring(), queue=seeds.QUEUE, now=seeds.NOW)
    if content not in seeds.messages():
        raise AssertionError("a message that nobody has signed is taken for one")
    open_sealed(verified, keys=_ring())


def _grant_request(content: bytes) -> None:
    read_request(content, keys=_ring())
    _require_signed(content, seeds.grant_requests())


def _grant_reply(content: bytes) -> None:
    read_reply(content, message=seeds.grant_requests()[0], queue=seeds.QUEUE, keys=_ring())
    _require_signed(content, seeds.grant_replies())


def _require_signed(content: bytes, signed: tuple[bytes, ...]) -> None:
    if content.partition(b"\n")[2] not in {each.partition(b"\n")[2] for each in signed}:
        raise AssertionError("what nobody has signed is taken for something")


def _archive(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "outer" / "target"
        folder.mkdir(parents=True)
        source = Path(name) / "archive"
        source.write_bytes(content)
        try:
            unpack(source, folder, max_bytes=_MAX_BYTES)
        finally:
            if {path.name for path in Path(name).iterdir()} != {"outer", "archive"} or len(
                list(folder.parent.iterdir())
            ) > 1:
                raise AssertionError("something lies outside of the folder")


def _progress_line(content: bytes) -> None:
    _json_object(parse_progress_line(content))


def _progress_json(content: bytes) -> None:
    _json_object(parse_progress_json(content, Redactor(())))
    _json_object(parse_progress_json(content, Redactor((b"secret", b"0"))))


def _json_object(text: str | None) -> None:
    if text is not None and not isinstance(json.loads(text, parse_constant=_no_constant), dict):
        raise AssertionError("progress is no object")


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def _key_line(content: bytes) -> None:
    line = read_line(_text(content))
    write_line(line)


def _key(content: bytes) -> None:
    parse_key(_text(content))


def _manifest(content: bytes) -> None:
    for file in manifest_from_json(content).files:
        if path_fault(file.path):
            raise AssertionError(f"a manifest leads to {file.path!r}")


def _marker(content: bytes) -> None:
    marker = marker_from_json(content)
    kinds = {name: type(value) for name, value in vars(marker).items()}
    if not _is_well_typed(marker):
        raise AssertionError(f"a marker's fields are {kinds}")
    if marker_from_json(marker_to_json(marker)) != marker:
        raise AssertionError("a marker changes when it is written again")


def _is_well_typed(marker: Marker) -> bool:
    texts = (marker.detail, marker.manifest, *marker.last_lines)
    return all(isinstance(text, str) for text in texts) and isinstance(marker.exit_code, int | None)


def _celery(content: bytes) -> None:
    parts = _json(content)
    parts = parts if isinstance(parts, dict) else {"headers": parts}
    body = content if parts.get("body") else parts.get("body")
    check_shape(SimpleNamespace(headers=parts.get("headers"), content_type=parts.get("content-type"), body=body))


def _wrapped(content: bytes) -> None:
    unpack_json(content, handle=None)
    message = as_message(content, queue=seeds.QUEUE, tag="1")
    # What kombu does with it: a delivery is made of any bytes, so that each of them can be set aside.
    import base64

    from kombu.transport.virtual import Message

    channel = SimpleNamespace(
        decode_body=lambda body, encoding=None: base64.b64decode(body) if encoding == "base64" else body
    )
    Message(message, channel=channel)  # type: ignore[arg-type]


def _queues(content: bytes) -> None:
    parse_selection(_text(content).split(","))


def _quantities(content: bytes) -> None:
    for parse in (parse_size, parse_duration):
        try:
            parse(_text(content))
        except ValueError:
            continue


def _address(content: bytes) -> None:
    parse_address("sqs://" + _text(content))


def _web_address(content: bytes) -> None:
    target = parse_target(_text(content))
    if parse_target(target.origin + target.path) != target:
        raise AssertionError("an address leads elsewhere when it is written again")


def _hosts(content: bytes) -> None:
    parse_hosts(_text(content).split(","))


def _opened_report(content: bytes) -> None:
    for content_type in (CONTENT_TYPE, SEALED_CONTENT_TYPE):
        try:
            open_report(content, content_type=content_type, queue=seeds.QUEUE, keys=_ring())
        except Refused:
            continue
        if content not in seeds.signed_reports():
            raise AssertionError("a report that no node has signed is taken for one")


def _published(content: bytes) -> None:
    signed = json.loads(seeds.lists()[0])["body"]
    read_list(content, operator=seeds.operator().public)
    # What stands around the signed part may be written in several ways.
    if json.loads(content)["body"] != signed:
        raise AssertionError("a list that no operator has signed is taken for one")


def _key_file(content: bytes) -> None:
    unlock(_text(content), passphrase="")


def _text(content: bytes) -> str:
    return content.decode(errors="surrogateescape")


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


TARGETS = {
    "envelope": Target(feed=_envelope, errors=(BadEnvelope,), seeds=seeds.messages),
    "message": Target(feed=_message, errors=(Refused, InvalidSpec), seeds=seeds.messages),
    "grant_request": Target(feed=_grant_request, errors=(Refused,), seeds=seeds.grant_requests),
    "grant_reply": Target(feed=_grant_reply, errors=(Refused,), seeds=seeds.grant_replies),
    "header": Target(feed=_header, errors=(BadEnvelope,), seeds=seeds.headers),
    "spec": Target(feed=_spec, errors=(BadEnvelope, InvalidSpec), seeds=seeds.specs),
    "spec_fields": Target(feed=_spec_fields, errors=(InvalidSpec,), seeds=seeds.spec_fields),
    "sealed_spec": Target(feed=decode_sealed_spec, errors=(BadEnvelope,), seeds=seeds.sealed_specs),
    "report": Target(feed=_report, errors=(BadEnvelope,), seeds=seeds.reports),
    "signed_report": Target(feed=decode_signed_report, errors=(BadEnvelope,), seeds=seeds.reports),
    "sealed_report": Target(feed=decode_sealed_report, errors=(BadEnvelope,), seeds=seeds.sealed_reports),
    "archive": Target(feed=_archive, errors=(ArtifactRefused,), seeds=seeds.archives),
    "progress_line": Target(feed=_progress_line, errors=(), seeds=seeds.progress_lines),
    "progress_json": Target(feed=_progress_json, errors=(), seeds=seeds.progress_objects),
    "key_line": Target(feed=_key_line, errors=(KeyRefused,), seeds=seeds.key_lines),
    "key": Target(feed=_key, errors=(KeyRefused,), seeds=seeds.key_lines),
    "manifest": Target(feed=_manifest, errors=(ArtifactRefused,), seeds=seeds.manifests),
    "marker": Target(feed=_marker, errors=(ArtifactRefused,), seeds=seeds.markers),
    "celery": Target(feed=_celery, errors=(BadEnvelope,), seeds=seeds.celery_messages),
    "wrapped": Target(feed=_wrapped, errors=(), seeds=seeds.celery_messages),
    "web_address": Target(feed=_web_address, errors=(ArtifactRefused,), seeds=seeds.web_addresses),
    "hosts": Target(feed=_hosts, errors=(InvalidSetting,), seeds=seeds.hosts),
    "opened_report": Target(feed=_opened_report, errors=(), seeds=seeds.signed_reports),
    "published": Target(feed=_published, errors=(KeyRefused,), seeds=seeds.lists),
    "key_file": Target(feed=_key_file, errors=(KeyRefused,), seeds=seeds.key_lines),
    "queues": Target(feed=_queues, errors=(InvalidSetting,), seeds=seeds.selections),
    "quantities": Target(feed=_quantities, errors=(), seeds=seeds.quantities),
    "sqs_address": Target(feed=_address, errors=(InvalidSetting,), seeds=seeds.addresses),
}
