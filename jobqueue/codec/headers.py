"""A header to bytes and back."""

import math

from jobqueue.codec.messages import (
    has_unknown_fields,
    parse,
    read_instant,
    read_resources,
    serialise,
    write_instant,
    write_resources,
)
from jobqueue.errors import BadEnvelope
from jobqueue.header import Header
from jobqueue.ids import ExperimentId, is_experiment_id
from jobqueue.resources import Resources
from jobqueue.spec import is_name
from jobqueue.wire.v1 import envelope_pb2


def encode_header(header: Header) -> bytes:
    """Return the header's bytes: these are signed."""
    message = envelope_pb2.Header(
        experiment_id=header.experiment_id,
        queue=header.queue,
        project=header.project,
        resources=write_resources(header.resources),
        submitted_at=write_instant(header.submitted_at),
        expires_at=write_instant(header.expires_at),
    )
    return serialise(message)


def decode_header(content: bytes) -> Header:
    """Return the header that `encode_header` wrote.

    Raises:
        BadEnvelope: the bytes are no header, or it holds what nothing can be scheduled by; the message names the field.
    """
    message = parse(envelope_pb2.Header(), content)
    if has_unknown_fields(message):
        raise BadEnvelope("the header has fields that this version does not know", hint="update this node")
    header = Header(
        experiment_id=ExperimentId(message.experiment_id),
        queue=message.queue,
        project=message.project,
        resources=read_resources(message.resources),
        submitted_at=read_instant(message.submitted_at),
        expires_at=read_instant(message.expires_at),
    )
    if wrong := _wrong_fields(header):
        raise BadEnvelope(f"the header is malformed: {', '.join(wrong)}")
    return header


def _wrong_fields(header: Header) -> list[str]:
    checks = {
        "experiment_id": is_experiment_id(header.experiment_id),
        "queue": is_name(header.queue),
        "project": is_name(header.project),
        "resources": _is_possible(header.resources),
        "expires_at": header.submitted_at < header.expires_at,
    }
    return [name for name, is_right in checks.items() if not is_right]


def _is_possible(resources: Resources) -> bool:
    return math.isfinite(resources.cpus) and resources.cpus > 0 and resources.memory_bytes > 0
